"""Clocks that go back, and other processes beside: on one job, and on one collection."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from tests.e2e.command import Command, opened
from tests.faults import test_postgres, test_qdrant
from tests.faults.harness import SMALL_CHUNKS, SMALL_STEPS, Corpus, Workplace, finish, make_corpus
from tests.servers.postgres import PostgresServer
from tests.servers.qdrant_server import QdrantServer

RUN = ("--job", "j", *SMALL_CHUNKS, *SMALL_STEPS)
CORPUS = make_corpus(250, seed=41)
YEAR = 365 * 86_400

# -- clocks ------------------------------------------------------------------------------------------


def test_a_clock_that_was_set_back_between_two_attempts_changes_nothing(place: Workplace) -> None:
    source = CORPUS.write(place.folder / "source.jsonl")
    place.run("run", source, *RUN, fault="kill:after:Ledger.commit:6", code=-signal.SIGKILL)
    before = place.command.checkpoint("j")["updated"]
    result = place.run("resume", "j", "--json", clock=YEAR, code=1)
    counters = place.check(CORPUS, result)
    assert result.document["run"] == 1
    assert counters["stored"] == len(CORPUS.accepted)
    assert datetime.fromisoformat(result.document["updated"]) < datetime.fromisoformat(before)
    assert result.document["seconds"] >= 0

    again = place.run("run", source, *RUN, "--json", clock=2 * YEAR, code=1)
    assert again.document["run"] == 2
    assert again.counters["embedded"] <= 2 * CORPUS.duplicates
    place.check(CORPUS, again)
    assert place.command("stats", "j", "--json").document["run"] == 2
    assert len(list((place.state / "completed").iterdir())) == 2
    assert place.command("failures", "j", "--json", code=1).document["rejected"] == len(CORPUS.rejected)


def test_a_clock_that_goes_back_in_the_middle_of_a_run_changes_nothing(place: Workplace) -> None:
    source = CORPUS.write(place.folder / "source.jsonl")
    result = place.run("run", source, *RUN, "--json", fault="clock:before:Ledger.commit:4", code=1)
    counters = place.check(CORPUS, result)
    assert counters["embedded"] == counters["chunks"]
    assert result.document["seconds"] >= 0
    assert result.document["records_per_second"] > 0


def test_a_source_from_the_future_is_taken_as_it_is(place: Workplace) -> None:
    source = CORPUS.write(place.folder / "source.jsonl")
    place.run("run", source, *RUN, fault="kill:after:Ledger.commit:6", code=-signal.SIGKILL, clock=20 * YEAR)
    result = place.run("resume", "j", "--json", clock=20 * YEAR, code=1)
    assert result.document["run"] == 1
    place.check(CORPUS, result)


# -- two jobs on one collection ----------------------------------------------------------------------


def numbered(start: int, end: int) -> Corpus:
    return Corpus(
        [
            json.dumps({"id": f"doc-{n}", "text": f"Number {n} is told of. " * (30 if n % 20 == 7 else 2)})
            for n in range(start, end)
        ]
    )


ONE, OTHER, BOTH = numbered(0, 250), numbered(150, 400), numbered(0, 400)


def test_a_second_job_on_an_embedded_collection_waits_for_its_turn(place: Workplace) -> None:
    ONE.write(place.folder / "source.jsonl")
    OTHER.write(place.folder / "other.jsonl")
    process = place.start("run", "source.jsonl", *RUN, "--quiet", fault=place.with_gate(3))
    second = ("run", "other.jsonl", "--job", "other", *RUN[2:])
    with place.gate(process):
        refused = place.command(*second, code=4)
        assert "the collection documents is open in another process" in refused.err
        assert "one process at a time" in refused.err
    finish(process, 0)
    place.run(*second)
    with opened(place.folder) as store:
        page, _ = store.scan(None, 10_000)
    assert {point.id: bytes.fromhex(point.digest) for point in page} == BOTH.accepted
    for job in ("j", "other"):
        found = place.run("verify", job, "--json", code=1).document  # points of the other job are foreign to it
        assert (found["missing"], found["altered"]) == (0, 0)


@pytest.fixture(params=["qdrant", "postgres"])
def shared(request: pytest.FixtureRequest) -> Iterator[tuple[tuple[str, ...], Callable[[Corpus], None]]]:
    """A collection of a server that takes several writers, and a look into it."""
    if request.param == "qdrant":
        qdrant: QdrantServer = request.getfixturevalue("qdrant")
        qdrant.engine.clear()
        yield (
            ("--store", "qdrant", "--url", qdrant.url, "--collection", "docs"),
            lambda corpus: test_qdrant.check_content(qdrant.url, corpus),
        )
    else:
        postgres: PostgresServer = request.getfixturevalue("postgres")
        postgres.execute(f"DROP SCHEMA IF EXISTS {test_postgres.NAMESPACE} CASCADE")
        yield test_postgres.into(postgres), lambda corpus: test_postgres.check_content(postgres, corpus)
        postgres.execute(f"DROP SCHEMA IF EXISTS {test_postgres.NAMESPACE} CASCADE")


def test_two_jobs_that_load_one_collection_at_once_lose_and_double_nothing(
    place: Workplace, shared: tuple[tuple[str, ...], Callable[[Corpus], None]]
) -> None:
    into, check = shared
    ONE.write(place.folder / "source.jsonl")
    OTHER.write(place.folder / "other.jsonl")

    def begin(name: str, job: str) -> subprocess.Popen[bytes]:
        return place.start("run", name, "--job", job, *RUN[2:], *into, "--json", "--quiet")

    for process in [begin("source.jsonl", "j"), begin("other.jsonl", "other")]:
        finish(process, 0)
    check(BOTH)
    # What the one no longer has is removed, what is the other's stays.
    numbered(150, 250).write(place.folder / "source.jsonl")
    place.run("run", "source.jsonl", *RUN, *into, "--delete-missing", "--yes")
    check(OTHER)


def test_two_processes_that_begin_one_job_at_once_do_it_once(place: Workplace) -> None:
    CORPUS.write(place.folder / "source.jsonl")
    both = [place.start("run", "source.jsonl", *RUN, "--json", "--quiet") for _ in range(2)]
    outs = [process.communicate() for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes == [1, 5], outs
    assert len(place.embedded()) < 2 * len(CORPUS.lines)
    place.check(CORPUS, place.command("stats", "j", "--json"))


def test_a_command_beside_a_run_reads_and_does_not_disturb(tmp_path: Path) -> None:
    place = Workplace(Command(tmp_path))
    CORPUS.write(place.folder / "source.jsonl")
    process = place.start("run", "source.jsonl", *RUN, "--json", "--quiet", fault=place.with_gate(3))
    with place.gate(process):
        assert place.command("stats", "j", "--json").document["status"] == "running"
        assert place.command("jobs", "--json").document[0]["status"] == "running"
        place.command("failures", "j", code=0)
    place.check(CORPUS, finish(process, 1))
