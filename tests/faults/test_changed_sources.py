"""The source changes while a job is unfinished: positions are believed only where they still mean the same."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.command import Result, opened
from tests.faults.harness import SMALL_CHUNKS, SMALL_STEPS, Corpus, Workplace, finish, make_corpus

RUN = ("--job", "j", *SMALL_CHUNKS, *SMALL_STEPS)
CHANGED = "has changed since: it is read from its start"


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return make_corpus(450, seed=21, padding=8000)


def begin(place: Workplace, corpus: Corpus, name: str = "source.jsonl") -> tuple[Path, int]:
    """A job that was stopped half-way; its source, and how many records are done."""
    source = corpus.write(place.folder / name)
    process = place.start("run", source, *RUN, "--json", fault=place.with_gate(3))
    with place.gate(process):
        process.send_signal(signal.SIGTERM)
    stopped = finish(process, 143)
    done = stopped.counters["read"]
    assert 0 < done < len(corpus.lines)
    return source, done


def test_appended_records_are_read_from_where_it_stopped(place: Workplace, corpus: Corpus) -> None:
    source, done = begin(place, corpus)
    grown = Corpus([*corpus.lines, *make_corpus(100, seed=22, first=5000).lines])
    grown.write(source)
    result = place.resume()
    assert f"continued: {done:,} records are done" in result.err
    assert CHANGED not in result.err
    counters = place.check(grown, result)
    assert counters["embedded"] == counters["chunks"] == len(place.embedded())


def test_a_rewritten_source_is_read_from_its_start(place: Workplace, corpus: Corpus) -> None:
    source, _ = begin(place, corpus)
    rewritten = Corpus([line.replace("}}", ', "again": true}}') for line in reversed(corpus.lines)])
    assert rewritten.accepted.keys() == corpus.accepted.keys()
    rewritten.write(source)
    result = place.resume()
    assert CHANGED in result.err
    assert result.document["run"] == 2
    place.check(rewritten, result)


def test_a_source_killed_over_and_then_reordered_ends_with_the_right_content(
    place: Workplace, corpus: Corpus
) -> None:
    source = corpus.write(place.folder / "source.jsonl")
    place.run("run", source, *RUN, fault="kill:after:Ledger.commit:12", code=-signal.SIGKILL)
    reordered = Corpus([*corpus.lines[200:], *corpus.lines[:200]])
    reordered.write(source)
    result = place.resume()
    assert CHANGED in result.err
    counters = place.check(reordered, result)
    assert counters["unchanged"] > 0


def test_of_a_truncated_source_all_that_is_left_is_stored(place: Workplace, corpus: Corpus) -> None:
    source, done = begin(place, corpus)
    rest = Corpus(corpus.lines[: done - 20])
    rest.write(source)
    result = place.resume()
    assert CHANGED in result.err
    counters = result.counters
    assert counters["read"] == len(rest.lines)
    place.check_rejects(rest)
    with opened(place.folder) as store:
        found = {
            point.id: bytes.fromhex(point.digest) for point in store.fetch([(id_, 0) for id_ in rest.accepted])
        }
    assert found == rest.accepted


def test_a_compressed_source_that_grew_is_read_from_its_start(place: Workplace) -> None:
    corpus = make_corpus(6000, seed=23)
    source, _ = begin(place, corpus, "source.jsonl.gz")
    grown = Corpus([*corpus.lines, *make_corpus(50, seed=24, first=9000).lines])
    grown.write(source)
    result = place.resume()
    assert CHANGED in result.err
    counters = place.check(grown, result)
    assert counters["unchanged"] > 0


# -- while it is read --------------------------------------------------------------------------------


def _append(source: Path, to: Corpus) -> None:
    with source.open("a") as file:
        file.writelines(f"{line}\n" for line in to.lines[len(source.read_bytes().splitlines()) :])


def _replace(source: Path, to: Corpus) -> None:
    to.write(source.with_name("new.jsonl")).replace(source)


def _write_over(source: Path, to: Corpus) -> None:
    to.write(source)


def while_it_runs(place: Workplace, source: Path, change: Callable[[], None], *more: str, code: int) -> Result:
    """A run during which `change` happens, when some of the source is stored and most of it not yet read."""
    process = place.start("run", source, *RUN, *more, "--json", "--quiet", fault=place.with_gate(3))
    with place.gate(process):
        change()
    return finish(process, code)


def test_what_is_appended_while_it_runs_is_read_too(place: Workplace, corpus: Corpus) -> None:
    source = corpus.write(place.folder / "source.jsonl")
    grown = Corpus([*corpus.lines, *make_corpus(100, seed=22, first=5000).lines])
    result = while_it_runs(place, source, lambda: _append(source, grown), code=1)
    place.check(grown, result)
    again = place.resume()
    assert again.counters["embedded"] <= 2 * grown.duplicates


def test_a_source_that_is_replaced_while_it_runs_is_read_as_it_was_and_the_next_run_sees_the_new_one(
    place: Workplace, corpus: Corpus
) -> None:
    source = corpus.write(place.folder / "source.jsonl")
    new = Corpus([*corpus.lines[300:], *make_corpus(100, seed=25, first=7000, padding=8000).lines])
    result = while_it_runs(place, source, lambda: _replace(source, new), code=1)
    place.check(corpus, result)
    result = place.resume("--delete-missing", "--yes")
    place.check(new, result)
    assert result.counters["unchanged"] > 0


@pytest.mark.parametrize(
    ("name", "change"),
    [("source.jsonl", "cut"), ("source.jsonl", "grown before"), ("source.json", "reversed")],
)
def test_a_source_that_is_written_over_while_it_runs_fails_the_run_which_deletes_nothing(
    place: Workplace, corpus: Corpus, name: str, change: str
) -> None:
    source = corpus.write(place.folder / name)
    place.run("run", source, *RUN, code=1)
    changed = {
        "cut": Corpus(corpus.lines[:40]),
        "reversed": Corpus([line.replace("}}", ', "again": true}}') for line in reversed(corpus.lines)]),
        "grown before": Corpus([*make_corpus(100, seed=26, first=8000).lines, *corpus.lines]),
    }[change]
    older = Corpus([line.replace("}}", ', "older": true}}') for line in corpus.lines])
    older.write(source)
    failed = while_it_runs(place, source, lambda: _write_over(source, changed), "--delete-missing", "--yes", code=4)
    if name.endswith("l"):
        assert "was changed while it was read" in failed.err
        assert "resume once nobody writes it" in failed.err
    assert failed.counters["removed"] == 0
    result = place.resume("--delete-missing", "--yes")
    assert result.document["run"] == 3
    place.check(changed, result)
