"""SIGKILL at any moment: what is in the store, in the ledger and in the books at the end is what an undisturbed
run leaves there, and no more is done twice than was in flight."""

from __future__ import annotations

import random
import signal
import subprocess
from dataclasses import replace

import psutil
import pytest

from ragingest.protocols import StoredPoint
from tests.e2e.command import SECONDS, Command, stored
from tests.faults.harness import IN_FLIGHT, SMALL_CHUNKS, SMALL_STEPS, Corpus, Workplace, finish, make_corpus

COUNT = 2500
KILLS = 3

RUN = ("--job", "j", *SMALL_CHUNKS, *SMALL_STEPS)


Essence = dict[str, list[tuple[str, str, str, str, str, bytes]]]


def essence(points: dict[str, list[StoredPoint]]) -> Essence:
    """Of each document its chunks: point, text, digest, metadata, and both vectors to the bit."""
    return {
        id_: [(p.point_id, p.text, p.digest, str(p.metadata), str(p.sparse), p.dense.tobytes()) for p in chunks]
        for id_, chunks in points.items()
    }


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return make_corpus(COUNT, seed=1953)


@pytest.fixture(scope="module")
def undisturbed(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A run that nothing happened to."""
    place = Workplace(Command(tmp_path_factory.mktemp("undisturbed")))
    source = corpus.write(place.folder / "source.jsonl")
    counters = place.check(corpus, place.run("run", source, *RUN, "--json", code=1))
    assert counters["duplicate"] == corpus.duplicates > 0
    assert counters["embedded"] == len(place.embedded())
    assert counters["chunks"] > counters["stored"]
    return place


@pytest.mark.parametrize("name", ["source.jsonl", "source.jsonl.gz", "source.json"])
def test_killed_again_and_again_it_ends_as_if_nothing_had_been(
    place: Workplace, corpus: Corpus, undisturbed: Workplace, name: str
) -> None:
    source = corpus.write(place.folder / name)
    chance = random.Random(name)  # noqa: S311  # repeatable
    moments = sorted(chance.randrange(1, len(corpus.accepted) - 200) for _ in range(KILLS))
    command: tuple[str, ...] = ("run", str(source), *RUN)
    kills = 0
    for rows in moments:
        kills += place.kill_at(lambda rows=rows: place.known() >= rows, *command)  # type: ignore[misc]  # bound at once
        if (place.state / "j.json").exists():
            place.check_books()
            command = ("resume", "j")
    assert kills == KILLS

    result = place.resume()
    place.check(corpus, result)
    assert result.document["run"] == 1
    assert essence(stored(place.folder, corpus.accepted)) == essence(stored(undisturbed.folder, corpus.accepted))
    assert len(place.embedded()) <= len(undisturbed.embedded()) + kills * IN_FLIGHT


SMALL = make_corpus(250, seed=7)

STEPS = (
    "JSONLines.read_block:1",  # reading
    "Embedder.embed:5",
    "Journal.intend:1",
    "Store.upsert:9",
    "Journal.commit:4",  # confirmation
    "Ledger.commit:6",
    "Store.flush:1",
    "RejectsFile.write:1",
    "Ledger.sync:1",
    "CheckpointManager.save:1",
    "Path.replace:2",  # the checkpoint becomes the one before
    "Path.replace:3",  # the new one takes its place
    "Store.finish:1",
    "CheckpointManager.archive:1",
)
"""The durable steps of a run, each at its n-th time."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Essence:
    """What a run that nothing happened to leaves of the small corpus."""
    place = Workplace(Command(tmp_path_factory.mktemp("small")))
    place.run("run", SMALL.write(place.folder / "source.jsonl"), *RUN, code=1)
    return essence(stored(place.folder, SMALL.accepted))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_killed_before_and_after_every_step_it_ends_as_if_nothing_had_been(
    place: Workplace, small: Essence, step: str, when: str
) -> None:
    source = SMALL.write(place.folder / "source.jsonl")
    place.run("run", source, *RUN, fault=f"kill:{when}:{step}", code=-signal.SIGKILL)
    begun = (place.state / "j.json").exists()
    if begun:
        place.check_books()
    result = place.resume() if begun else place.run("run", source, *RUN, "--json", code=1)
    counters = place.check(SMALL, result)
    if result.document["run"] == 1:
        assert counters["stored"] == len(SMALL.accepted)
        assert counters["duplicate"] == SMALL.duplicates
    assert len(place.embedded()) <= len(SMALL.lines) + len(SMALL.accepted) + IN_FLIGHT
    assert essence(stored(place.folder, SMALL.accepted)) == small


def test_killed_while_leftover_chunks_are_deleted_it_deletes_them_later(place: Workplace) -> None:
    source = SMALL.write(place.folder / "source.jsonl")
    place.run("run", source, *RUN, code=1)
    shrunk = Corpus([line if len(line) < 400 else line[:90] + '", "metadata": {}}' for line in SMALL.lines])
    assert shrunk.lines != SMALL.lines
    for fault in ("kill:before:Store.delete:1", "kill:after:Store.delete:1"):
        shrunk.write(source)
        place.run("resume", "j", fault=fault, code=-signal.SIGKILL)
    counters = place.check(shrunk, place.resume())
    assert counters["unchanged"] > 0


def test_killed_in_a_later_run_it_still_knows_what_is_unchanged(place: Workplace) -> None:
    source = SMALL.write(place.folder / "source.jsonl")
    place.run("run", source, *RUN, code=1)
    grown = Corpus([*make_corpus(200, seed=8, first=1000).lines, *SMALL.lines])
    grown.write(source)
    place.run("resume", "j", fault="kill:after:Ledger.commit:14", code=-signal.SIGKILL)
    before = len(place.embedded())
    result = place.resume()
    place.check(grown, result)
    assert result.document["run"] == 2
    assert result.counters["unchanged"] > 0
    assert len(place.embedded()) - before < len(grown.accepted)


def test_the_death_of_the_stores_process_stops_the_run_which_then_goes_on(place: Workplace) -> None:
    place = Workplace(replace(place.command, start=subprocess.Popen))  # the store's process is its child
    source = SMALL.write(place.folder / "source.jsonl")
    process = place.start("run", source, *RUN, "--quiet", fault=place.with_gate(3))
    with place.gate(process):
        (child,) = psutil.Process(process.pid).children()
        child.kill()
    failed = finish(process, 4)
    assert "the process of the store documents ended" in failed.err
    assert "ragingest resume j" in failed.err
    place.check(SMALL, place.resume())


def test_stats_tell_a_killed_run_from_one_that_works(place: Workplace) -> None:
    source = SMALL.write(place.folder / "source.jsonl")
    process = place.start("run", source, *RUN, "--quiet", fault=place.with_gate(3))
    with place.gate(process):
        assert place.command("stats", "j", "--json").document["status"] == "running"
        process.kill()
        process.communicate(timeout=SECONDS)
        assert place.command("stats", "j", "--json").document["status"] == "killed"
