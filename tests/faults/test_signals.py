"""Ctrl-C and SIGTERM: nothing is begun any more, what is in flight is finished, and `resume` goes on from there."""

from __future__ import annotations

import signal
import subprocess

import pytest

from tests.e2e.command import NO_WORK
from tests.faults.harness import (
    SMALL_CHUNKS,
    SMALL_STEPS,
    Corpus,
    Workplace,
    finish,
    listens,
    make_corpus,
    wait_for,
)

RUN = ("--job", "j", *SMALL_CHUNKS, *SMALL_STEPS)
PROMPT_SECONDS = 10
"""A bound for ending while nothing is in flight; a read that is not interrupted would wait for ever."""


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return make_corpus(450, seed=4, padding=8000)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_does_nothing_twice(
    place: Workplace, corpus: Corpus, number: signal.Signals, code: int
) -> None:
    source = corpus.write(place.folder / "source.jsonl")
    process = place.start("run", source, *RUN, "--json", fault=place.with_gate(3))
    with place.gate(process):
        process.send_signal(number)
    stopped = finish(process, code)
    assert "what is in flight is finished" in stopped.err
    assert "go on with: ragingest resume j" in stopped.err
    assert stopped.document["status"] == place.command.checkpoint("j")["status"] == "interrupted"
    assert stopped.document["exit_code"] == code
    assert 0 < stopped.counters["read"] < len(corpus.lines)
    assert stopped.counters["embedded"] == stopped.counters["chunks"] == len(place.embedded())

    result = place.resume()
    assert f"continued: {stopped.counters['read']:,} records are done" in result.err
    counters = place.check(corpus, result)
    assert counters["embedded"] == counters["chunks"] == len(place.embedded())
    assert result.document["attempts"] == 2


def test_a_second_interrupt_leaves_what_is_in_flight(place: Workplace, corpus: Corpus) -> None:
    source = corpus.write(place.folder / "source.jsonl")
    told = place.folder / "stderr"
    with told.open("wb") as stderr:
        process = place.start("run", source, *RUN, "--json", fault=place.with_gate(3), stderr=stderr)
    with place.gate(process):
        process.send_signal(signal.SIGINT)
        assert wait_for(process, lambda: b"once more stops at once" in told.read_bytes())
        process.send_signal(signal.SIGINT)
        assert wait_for(process, lambda: b"stopping at once" in told.read_bytes())
    stopped = finish(process, 130)
    assert stopped.document["status"] == "interrupted"
    assert stopped.counters["chunks"] < stopped.counters["embedded"]
    assert b"go on with: ragingest resume j" in told.read_bytes()
    place.check(corpus, place.resume())


@pytest.mark.parametrize(
    ("form", "head"), [("jsonl", b""), ("jsonl", b'{"id": "a", "te'), ("json", b""), ("json", b'{"about": {"a": 1')]
)
def test_an_interrupt_ends_the_wait_for_input(place: Workplace, form: str, head: bytes) -> None:
    process = place.start("run", "-", "--job", "j", "--format", form, *NO_WORK, "--json", stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(head)
    process.stdin.flush()
    assert wait_for(process, lambda: listens(process))
    process.send_signal(signal.SIGINT)
    process.wait(PROMPT_SECONDS)
    stopped = finish(process, 130)
    assert stopped.document["status"] == "interrupted"
    assert stopped.counters["read"] == 0


def test_an_interrupted_stream_is_fed_again_and_only_the_rest_is_embedded(place: Workplace) -> None:
    whole = make_corpus(250, seed=5)
    lines = [f"{line}\n".encode() for line in whole.lines]
    first = Corpus(whole.lines[:120])
    process = place.start("run", "-", *RUN, "--json", stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(b"".join(lines[:120]))
    process.stdin.flush()
    assert wait_for(process, lambda: place.known() == len(first.accepted))
    process.send_signal(signal.SIGTERM)
    process.wait(PROMPT_SECONDS)
    stopped = finish(process, 143)
    assert stopped.counters["read"] == 120
    place.check_content(first)

    process = place.start("resume", "j", "--json", stdin=subprocess.PIPE)
    _, err = process.communicate(b"".join(lines), timeout=PROMPT_SECONDS * 6)
    assert b"is a stream: it is read from its start" in err
    result = place.command("stats", "j", "--json")
    counters = place.check(whole, result)
    assert counters["unchanged"] > 0
    assert counters["embedded"] + stopped.counters["embedded"] == len(place.embedded())
    assert counters["embedded"] < len(whole.accepted) + whole.duplicates


def test_a_second_process_on_the_job_exits_at_once(place: Workplace) -> None:
    process = place.start("run", "-", "--job", "j", *NO_WORK, "--json", stdin=subprocess.PIPE)
    assert wait_for(process, lambda: listens(process))
    for arguments in (("run", "-", "--job", "j", *NO_WORK), ("resume", "j"), ("run", "-", "--job", "j", "--fresh")):
        second = place.command(*arguments, "--quiet", code=5)
        assert "the job j is being worked on by another process" in second.err
        assert len(second.err.splitlines()) == 2
    process.communicate(b'{"id": "a", "text": "still there"}\n', timeout=PROMPT_SECONDS)
    assert process.returncode == 0
    assert place.command.checkpoint("j")["counters"]["stored"] == 1
