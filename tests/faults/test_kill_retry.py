"""SIGKILL in the middle of a retry: tried again, it ends as if nothing had been."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.e2e.command import Result, balanced, counts, read_lines
from tests.faults.harness import SMALL_CHUNKS, SMALL_STEPS, Corpus, Workplace, make_corpus, write_checkpoint

CORPUS = make_corpus(600, seed=5)
RUN = ("source.jsonl", "--job", "j", *SMALL_CHUNKS, *SMALL_STEPS)
STAY = 3
"""Rejects that nobody mends."""


def mended(place: Workplace) -> Path:
    """An edited copy of the rejects file: all but some of its records are good now, each with an id of its own."""
    lines = place.command.rejects("j")
    assert len(lines) > 2 * STAY
    for number, line in enumerate(lines[STAY:]):
        text = " ".join(f"mended{number}x{n}" for n in range(5 if number % 4 else 60))
        line["record"] = json.dumps({"id": f"mended-{number}", "text": text, "metadata": {}})
    path = place.folder / "mended.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def as_mended(place: Workplace) -> Corpus:
    """What the store must hold in the end."""
    lines = list(CORPUS.lines)
    for line in read_lines(place.folder / "mended.jsonl")[STAY:]:
        lines[line["position"]["line"] - 1] = line["record"]
    return Corpus(lines)


def retry(place: Workplace, *arguments: str, code: int = 1, fault: str = "") -> Result:
    return place.run("retry", "j", "--from", "mended.jsonl", "--json", *arguments, code=code, fault=fault)


@pytest.fixture
def loaded(place: Workplace) -> Workplace:
    CORPUS.write(place.folder / "source.jsonl")
    place.run("run", *RUN, code=1)
    mended(place)
    return place


def check_state(place: Workplace) -> None:
    """The checkpoint, and the rejects that are told of, agree at every moment."""
    counters = counts(place.command.checkpoint("j")["counters"])
    assert balanced(counters)
    found = place.command("failures", "j", "--json", code=1).document
    assert sum(group["count"] for group in found["groups"]) == counters["rejected"] == found["rejected"]
    kinds = place.command.checkpoint("j")["reject_kinds"]
    assert sum(kinds.values()) == counters["rejected"]


@pytest.mark.parametrize(
    "fault",
    [
        "kill:before:CheckpointManager.save:1",
        "kill:after:Store.upsert:1",
        "kill:after:Ledger.commit:2",
        "kill:after:RejectsEdition.write:1",
        "kill:before:RejectsEdition.settle:1",
    ],
)
def test_a_retry_that_is_killed_is_repeated_without_harm(loaded: Workplace, fault: str) -> None:
    retry(loaded, fault=fault, code=-signal.SIGKILL)
    check_state(loaded)
    expected = as_mended(loaded)
    result = retry(loaded)
    counters = loaded.check(expected, result)
    assert counters["rejected"] == STAY
    assert counters["stored"] == len(expected.accepted)
    assert not (set(loaded.state.glob("j.rejects.jsonl.*")))


def test_killed_after_the_store_has_confirmed_nothing_is_embedded_again(loaded: Workplace) -> None:
    retry(loaded, fault="kill:before:RejectsEdition.write:1", code=-signal.SIGKILL)
    before = loaded.embedded()
    assert any(line.startswith("mended-") for line in before)
    expected = as_mended(loaded)
    loaded.check(expected, retry(loaded))
    again = loaded.embedded()[len(before) :]
    assert set(again).isdisjoint(before)


@pytest.mark.parametrize("afterwards", ["retry", "run"])
def test_after_a_restart_of_the_machine_what_a_retry_had_not_flushed_is_not_believed(
    loaded: Workplace, afterwards: str
) -> None:
    retry(loaded, "--checkpoint-interval", "3600", fault="kill:before:RejectsEdition.write:1", code=-signal.SIGKILL)
    lost = {id_ for id_ in loaded.in_ledger() if id_.startswith("mended-")}
    assert lost
    loaded.lose(lost)
    write_checkpoint(loaded.state / "j.json", boot="another boot")
    expected = as_mended(loaded)
    if afterwards == "retry":
        result = retry(loaded)
    else:
        expected.write(loaded.folder / "source.jsonl")
        result = loaded.run("run", *RUN, "--json", code=1)
    assert f"restarted since: {len(lost):,} documents are stored again" in result.err
    loaded.check(expected, result)


def test_a_killed_retry_may_be_followed_by_a_run(loaded: Workplace) -> None:
    retry(loaded, fault="kill:before:RejectsEdition.settle:1", code=-signal.SIGKILL)
    expected = as_mended(loaded)
    expected.write(loaded.folder / "source.jsonl")
    counters = loaded.check(expected, loaded.run("run", *RUN, "--json", code=1))
    assert counters["unchanged"] >= len(expected.accepted) - CORPUS.duplicates
    assert list(loaded.state.glob("j.rejects.jsonl.*")) == []


def test_a_full_disk_under_the_list_is_one_message_and_the_next_retry_is_right(loaded: Workplace) -> None:
    failed = retry(loaded, fault="full:before:write_durably:2", code=4)
    assert "No space left" in failed.err
    check_state(loaded)
    loaded.check(as_mended(loaded), retry(loaded))
