"""Which batches there are and which text is in which: through every step, every crash, and any history."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ragingest.checkpoint.batches import BatchLine, BatchStates, Refusal
from ragingest.errors import TerminalError

MODEL = "openai text-embedding-3-small 8"
REFUSAL = Refusal("refused_by_embedder", "no")


def digest(number: int) -> bytes:
    return hashlib.blake2b(str(number).encode(), digest_size=16).digest()


def lines(*numbers: int, size: int = 10) -> list[BatchLine]:
    return [BatchLine(digest(number), b"%09d\n" % number, size, 2, 1) for number in numbers]


def opened(path: Path, *, model: str = MODEL, run: int = 1, **changes: Any) -> BatchStates:
    return BatchStates(path, model, run, **{"max_texts": 5, "max_bytes": 1000, **changes})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "j.batches.sqlite"


@pytest.fixture
def states(path: Path) -> Iterator[BatchStates]:
    states = opened(path)
    yield states
    states.close()


def waiting(states: BatchStates, *numbers: int) -> set[int]:
    """Those of the texts that are in a batch."""
    known, _ = states.known([digest(number) for number in numbers])
    return {number for number in numbers if digest(number) in known}


@pytest.mark.parametrize(
    ("limits", "most_text_bytes", "sizes"),
    [
        ({}, math.inf, [5, 5, 2]),
        ({"max_bytes": 40}, math.inf, [4, 4, 4]),
        ({"max_texts": 100}, 35.0, [3, 3, 3, 3]),
        ({"max_texts": 100}, 5.0, [1] * 12),
        ({"max_texts": 100}, math.inf, [12]),
    ],
)
def test_texts_fill_one_batch_after_the_other(
    path: Path, limits: dict[str, Any], most_text_bytes: float, sizes: list[int]
) -> None:
    states = opened(path, **limits)
    states.add(lines(*range(7)), most_text_bytes)
    states.add(lines(*range(7, 12)), most_text_bytes)
    states.close_open()
    batches = states.in_state("filled")
    assert [batch.texts for batch in batches] == sizes
    written = b"".join(states.requests_of(batch.number).read_bytes() for batch in batches)
    assert written == b"".join(line.data for line in lines(*range(12)))
    for batch in batches:
        assert batch.file_bytes == states.requests_of(batch.number).stat().st_size
        assert (batch.text_bytes, batch.strange, batch.wide) == (10 * batch.texts, 2 * batch.texts, batch.texts)
    assert waiting(states, *range(20)) == set(range(12))
    states.close()


def test_a_batch_that_is_closed_gets_no_more(states: BatchStates) -> None:
    states.add(lines(1), math.inf)
    states.close_open()
    states.add(lines(2), math.inf)
    assert [batch.texts for batch in states.in_state("filled", "filling")] == [1, 1]


def test_steps_and_texts_are_there_after_a_restart(path: Path) -> None:
    states = opened(path)
    states.add(lines(*range(5)), math.inf)
    states.close_open()
    number = states.in_state("filled")[0].number
    states.update(number, state="uploading")
    uploaded = states.update(number, state="uploaded", file_id="file-1")
    assert not states.requests_of(number).exists()
    name, marker = states.file_name(uploaded), states.marker(uploaded)
    states.refuse({digest(9): REFUSAL})
    states.learn_queue(1000, None)
    states.close()
    states = opened(path)
    assert states.in_state("uploaded") == [uploaded]
    assert (states.file_name(uploaded), states.marker(uploaded)) == (name, marker)
    assert waiting(states, *range(9)) == set(range(5))
    assert states.known([digest(9)]) == (set(), {digest(9): REFUSAL})
    assert (states.queue_tokens, states.batch_tokens) == (1000, None)
    again = states.update(number, attempt=2)
    assert states.file_name(again) == name
    assert states.marker(again) != marker
    states.close()


def test_no_two_files_call_a_batch_by_the_same_name(tmp_path: Path) -> None:
    made = []
    for name in ("a.sqlite", "b.sqlite"):
        states = opened(tmp_path / name)
        states.add(lines(1), math.inf)
        (batch,) = states.in_state("filling")
        made.append((states.file_name(batch), states.marker(batch)))
        states.close()
    assert made[0][0] != made[1][0]
    assert made[0][1] != made[1][1]


def test_lines_that_no_commit_knows_of_are_cut_off(path: Path) -> None:
    states = opened(path)
    states.add(lines(1, 2), math.inf)
    file = states.requests_of(1)
    states.close()
    with file.open("ab") as appended:
        appended.write(b"half a li")
    states = opened(path)
    states.add(lines(3), math.inf)
    assert file.read_bytes() == b"".join(line.data for line in lines(1, 2, 3))
    states.close()


def test_a_file_that_nobody_knows_of_is_written_over(path: Path) -> None:
    states = opened(path)
    states.requests_of(1).write_bytes(b"left by a process that died before its first commit")
    states.add(lines(1), math.inf)
    assert states.requests_of(1).read_bytes() == lines(1)[0].data
    states.close()


@pytest.mark.parametrize("closed", [True, False])
def test_texts_whose_lines_are_lost_are_ordered_again(path: Path, closed: bool) -> None:
    states = opened(path)
    states.add(lines(1, 2), math.inf)
    if closed:
        states.close_open()
    os.truncate(states.requests_of(1), 15)
    states.close()
    states = opened(path)
    assert waiting(states, 1, 2) == set()
    assert not states.requests_of(1).exists()
    states.add(lines(1, 2), math.inf)
    (batch,) = states.in_state("filling")
    assert (batch.number, batch.texts) == (2, 2)
    states.close()


def fetched(states: BatchStates, *numbers: int, **result: Any) -> int:
    """Take a batch of these texts through all its steps; what `settle` says."""
    states.add(lines(*numbers), math.inf)
    states.close_open()
    (batch,) = states.in_state("filled")
    states.update(batch.number, state="created", batch_id=f"batch-{batch.number}")
    given = {"refused": {}, "failed": [], "answered": len(numbers), "tokens": 0, **result}
    return states.settle(batch.number, given.pop("refused"), given.pop("failed"), **given)


def test_what_came_of_a_batch_decides_what_is_ordered_again(states: BatchStates) -> None:
    tries = fetched(states, 1, 2, 3, 4, refused={digest(2): REFUSAL}, failed=[digest(3)], answered=1, tokens=7)
    assert tries == 1
    assert states.known([digest(n) for n in range(5)]) == (set(), {digest(2): REFUSAL})
    assert fetched(states, 3, 4, failed=[digest(3)], answered=1, tokens=2) == 2
    assert fetched(states, 3, answered=1, tokens=1) == 0
    assert states.totals == (3, 3, 4 - 1 + 2 + 1, 3, 10)
    fetched(states, 5, failed=[digest(5)], answered=0)
    states.forgive()
    assert fetched(states, 5, failed=[digest(5)], answered=0) == 1


def test_a_batch_that_brings_nothing_is_in_no_total(states: BatchStates) -> None:
    states.add(lines(1, 2), math.inf)
    states.close_open()
    states.update(1, state="created", batch_id="b")
    assert states.totals.submitted == 1
    states.release(1)
    assert states.totals == (0, 0, 0, 0, 0)
    assert waiting(states, 1, 2) == set()


def test_totals_are_of_one_run_and_of_what_is_under_way(path: Path) -> None:
    states = opened(path)
    fetched(states, 1, 2, tokens=5)
    states.add(lines(3), math.inf)
    states.close_open()
    states.update(2, state="created", batch_id="b")
    assert states.totals == (2, 1, 2, 2, 5)
    states.close()
    states = opened(path, run=2)
    assert states.totals == (1, 0, 0, 0, 0)
    states.close()
    for begun, submitted in ((True, 2), (False, 1)):
        states = opened(path, begun=begun)
        assert states.totals.submitted == submitted
        states.close()


def test_batches_of_another_model_are_forgotten(path: Path) -> None:
    states = opened(path)
    states.add(lines(1), math.inf)
    states.close_open()
    states.update(1, state="created", batch_id="b")
    states.add(lines(2), math.inf)
    states.close()
    states = opened(path, model="another")
    assert states.forgotten == 1
    assert waiting(states, 1, 2) == set()
    assert [file.name for file in path.parent.iterdir() if file.suffix == ".jsonl"] == []
    states.close()


def test_deleting_takes_its_own_files_and_no_others(path: Path) -> None:
    others = [
        path.with_name(name) for name in ("j.batches-1.json", "j.batches-x.jsonl", "j.json", "k.batches-1.jsonl")
    ]
    for other in others:
        other.touch()
    states = opened(path)
    states.add(lines(1), math.inf)
    states.answers_of(1, "output").touch()
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in (path, states.requests_of(1)))
    states.delete()
    assert sorted(path.parent.iterdir()) == sorted(others)
    states.close()


def test_a_file_that_is_none_of_ours_is_an_error_with_a_hint(path: Path) -> None:
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(TerminalError, match="state of the batches") as caught:
        opened(path)
    assert caught.value.hint


class AnyHistory(RuleBasedStateMachine):
    """A text is in one batch at most, and every file holds what its batch says, whatever happens."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(mkdtemp())
        self.path = self.folder / "j.batches.sqlite"
        self.states = opened(self.path)
        self.ordered: set[int] = set()
        self.refused: set[int] = set()

    @rule(numbers=st.sets(st.integers(0, 30), max_size=12))
    def order(self, numbers: set[int]) -> None:
        """As whoever orders does: only what is not known."""
        new = numbers - self.ordered - self.refused
        self.states.add(lines(*sorted(new)), math.inf)
        self.ordered |= new

    @rule()
    def close_open(self) -> None:
        self.states.close_open()

    @rule(torn=st.binary(max_size=5))
    def die(self, torn: bytes) -> None:
        """At any moment, with part of a line written."""
        torn_files = [self.states.requests_of(batch.number) for batch in self.states.in_state("filling")]
        self.states.close()
        for path in torn_files:
            with path.open("ab") as file:
                file.write(torn)
        self.states = opened(self.path)

    @precondition(lambda self: self.states.in_state("filled"))
    @rule(refuse=st.booleans(), fail=st.booleans())
    def settle(self, refuse: bool, fail: bool) -> None:
        batch = self.states.in_state("filled")[0]
        numbers = [int(line) for line in self.states.requests_of(batch.number).read_text().split()]
        self.states.update(batch.number, state="created", batch_id="b")
        refused = {digest(numbers[0]): REFUSAL} if refuse else {}
        failed = [digest(numbers[-1])] if fail and len(numbers) > 1 else []
        self.states.settle(
            batch.number, refused, failed, answered=len(numbers) - len(refused) - len(failed), tokens=1
        )
        self.ordered -= set(numbers)
        self.refused |= {numbers[0]} if refuse else set()

    @precondition(lambda self: self.states.in_state("filled"))
    @rule()
    def release(self) -> None:
        batch = self.states.in_state("filled")[-1]
        numbers = [int(line) for line in self.states.requests_of(batch.number).read_text().split()]
        self.states.release(batch.number)
        self.ordered -= set(numbers)

    @invariant()
    def every_text_is_where_it_should_be(self) -> None:
        known, refused = self.states.known([digest(number) for number in range(31)])
        assert known == {digest(number) for number in self.ordered}
        assert refused.keys() == {digest(number) for number in self.refused}
        unsent = self.states.in_state("filling", "filled")
        written = [self.states.requests_of(batch.number).read_text().split() for batch in unsent]
        assert [len(file) for file in written] == [batch.texts for batch in unsent]
        assert sorted(int(line) for file in written for line in file) == sorted(self.ordered)

    def teardown(self) -> None:
        if hasattr(self, "states"):
            self.states.close()
            shutil.rmtree(self.folder)


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)
