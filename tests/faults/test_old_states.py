"""Checkpoints of every version so far are read for ever, and their jobs go on where they stopped."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ragingest.checkpoint.state import FORMAT, decode, encode
from tests.faults.harness import Workplace
from tests.faults.old_states.making import CORPUS, DONE, HOME, checkpoints, moved, write_source

ALL = [path for number in range(1, FORMAT + 1) for path in checkpoints(number)]
ADD = "add one: python -m tests.faults.old_states"


def test_every_format_has_its_examples_and_the_last_one_has_the_fields_of_this_version() -> None:
    assert {path.parent.name for path in ALL} == {f"format_{number}" for number in range(1, FORMAT + 1)}, ADD
    last = ALL[-1].read_bytes()
    assert encode(decode(last)) == last, ADD


@pytest.mark.parametrize("path", ALL, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_job_that_an_earlier_version_began_is_finished(place: Workplace, path: Path) -> None:
    write_source(place.folder / "source.jsonl")
    place.state.mkdir()
    (place.state / "j.json").write_bytes(moved(path.read_bytes(), HOME, str(place.folder)))
    for beside in ("j.ledger.sqlite", "j.rejects.jsonl"):
        shutil.copy(path.with_name(beside), place.state)

    result = place.resume("--max-errors", "100%")
    assert f"continued: {DONE} records are done" in result.err
    counters = result.counters
    assert (counters["read"], counters["stored"]) == (len(CORPUS.lines), len(CORPUS.accepted))
    assert counters["embedded"] == counters["stored"]
    assert len(place.embedded()) == len(CORPUS.lines) - DONE
    assert place.in_ledger() == set(CORPUS.accepted)
    place.check_rejects(CORPUS)
