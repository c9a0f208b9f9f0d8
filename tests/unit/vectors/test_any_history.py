"""Whatever happens to it, `get` returns the right vector or none; and only damage loses one."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import ClassVar
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from ragingest.checkpoint import vectors as module
from ragingest.checkpoint.vectors import PaidVectors
from ragingest.errors import TerminalError
from tests.unit.vectors.support import (
    BLOCK,
    HEADER,
    MODEL,
    KilledError,
    dies_after,
    digests,
    flip,
    found,
    full_after,
    put,
    record_bytes,
)

DIMENSIONS = 3
RECORD = record_bytes(DIMENSIONS)
SLACK = 4  # records
TEXTS = digests(range(40))

some_texts = st.lists(st.sampled_from(TEXTS), max_size=12, unique=True)
anywhere = st.floats(0, 1, exclude_max=True)
budgets = st.integers(0, 13 * RECORD)


class History(RuleBasedStateMachine):
    """`sure`: put, not dropped, not damaged. `doubtful`: may be there or not. All others are not there.

    `dropped`: since the last sync; these may come back if the process dies.
    """

    keep: ClassVar[bool]

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.slack = mock.patch.object(module, "SLACK_BYTES", SLACK * RECORD)
        self.slack.start()
        self.lives = 0
        self.sure: set[bytes] = set()
        self.doubtful: set[bytes] = set()
        self.dropped: set[bytes] = set()
        self.paid = self.open()

    def open(self) -> PaidVectors:
        folder = self.root / str(self.lives)
        folder.mkdir(exist_ok=True)
        return PaidVectors(folder / "job.vectors", MODEL, DIMENSIONS, self.keep)

    def teardown(self) -> None:
        self.paid.close()
        self.slack.stop()
        shutil.rmtree(self.root)

    def die(self) -> Path:
        """What a killed process leaves behind: the files as they are. Returns the copied record file."""
        self.lives += 1
        self.doubtful |= self.dropped - self.sure
        self.dropped.clear()
        shutil.copytree(self.paid.path.parent, self.root / str(self.lives))
        self.paid.close()
        return self.root / str(self.lives) / self.paid.path.name

    # -- what a run does ---------------------------------------------------------------------------

    @rule(keys=some_texts)
    def get(self, keys: list[bytes]) -> None:
        there = found(self.paid, keys)
        assert there <= self.sure | self.doubtful
        assert self.sure.intersection(keys) <= there
        self.doubtful.difference_update(keys)
        self.sure |= there

    @rule(keys=some_texts)
    def get_and_put(self, keys: list[bytes]) -> None:
        self.get(keys)
        put(self.paid, keys)
        self.sure.update(keys)

    @rule(keys=some_texts)
    def drop(self, keys: list[bytes]) -> None:
        self.paid.drop(keys)
        if not self.keep:
            self.dropped.update(keys)
            self.sure.difference_update(keys)
            self.doubtful.difference_update(keys)

    @rule()
    def sync(self) -> None:
        self.paid.sync()
        self.dropped.clear()
        if not self.keep:
            most = max(SLACK, module.SPREAD * len(self.paid)) + SLACK
            assert self.paid.bytes_on_disk() <= BLOCK + most * RECORD

    @rule()
    def reopen(self) -> None:
        self.paid.close()
        self.dropped.clear()
        self.paid = self.open()

    @invariant()
    def counts_what_is_there(self) -> None:
        if not self.doubtful:
            assert len(self.paid) == len(self.sure)

    # -- what happens to it ------------------------------------------------------------------------

    @rule()
    def killed(self) -> None:
        self.die()
        self.paid = self.open()

    @rule(keys=some_texts, budget=budgets)
    def killed_while_putting(self, keys: list[bytes], budget: int) -> None:
        self.get(keys)
        try:
            with dies_after(budget):
                put(self.paid, keys)
        except KilledError:
            self.doubtful.update(set(keys) - self.sure)
            if self.keep:
                self.unsure(keys)
        else:
            self.sure.update(keys)
        self.die()
        self.paid = self.open()

    @rule(keys=some_texts, budget=budgets)
    def killed_while_dropping(self, keys: list[bytes], budget: int) -> None:
        try:
            with dies_after(budget):
                self.paid.drop(keys)
                self.paid.sync()
        except KilledError:
            self.dropped.update(self.sure & set(keys))
            self.unsure(keys)
        else:
            self.dropped.clear()
            self.forget(keys)
        self.die()
        self.paid = self.open()

    @rule(keys=some_texts, budget=budgets)
    def disk_full_while_putting(self, keys: list[bytes], budget: int) -> None:
        self.get(keys)
        try:
            with full_after(budget):
                put(self.paid, keys)
        except TerminalError:
            self.doubtful.update(set(keys) - self.sure)
        else:
            self.sure.update(keys)

    @rule(at=anywhere, bits=st.integers(1, 255))
    def flipped(self, at: float, bits: int) -> None:
        """In the file that is open: only the text whose record it hits is lost."""
        if self.size():
            position = int(at * self.size())
            self.hit(position, position + 1)
            flip(self.paid.path, position, bits)

    @rule(at=anywhere)
    def cut(self, at: float) -> None:
        position = int(at * self.size())
        self.hit(position, self.size())
        with self.paid.path.open("r+b") as file:
            file.truncate(position)

    @precondition(lambda self: self.keep)
    @rule(at=anywhere, bits=st.integers(1, 255), end=st.sampled_from(["", "-wal"]))
    def index_flipped(self, at: float, bits: int, end: str) -> None:
        path = self.die()
        index = path.with_name(f"{path.name}.index{end}")
        if index.exists() and index.stat().st_size:
            flip(index, int(at * index.stat().st_size), bits)
            self.unsure(TEXTS)
        self.paid = self.open()

    @precondition(lambda self: self.keep)
    @rule()
    def index_lost(self) -> None:
        path = self.die()
        for index in path.parent.glob("*.index*"):
            index.unlink()
        self.paid = self.open()

    # -- the model ---------------------------------------------------------------------------------

    def size(self) -> int:
        return self.paid.path.stat().st_size

    def unsure(self, keys: list[bytes]) -> None:
        self.doubtful |= self.sure.intersection(keys)
        self.sure.difference_update(keys)

    def forget(self, keys: list[bytes]) -> None:
        if not self.keep:
            self.sure.difference_update(keys)
            self.doubtful.difference_update(keys)

    def hit(self, start: int, end: int) -> None:
        """The texts whose records overlap with these bytes of the file are in doubt."""
        data = self.paid.path.read_bytes()
        for at in range(BLOCK, len(data), RECORD):
            if at < end and at + RECORD > start:
                self.unsure([data[at + HEADER - 16 : at + HEADER]])


class SpoolHistory(History):
    keep = False


class CacheHistory(History):
    keep = True


def test_a_spool_returns_no_wrong_vector_and_loses_only_what_was_hit() -> None:
    run_state_machine_as_test(SpoolHistory, settings=settings(max_examples=60, stateful_step_count=30))


def test_a_cache_returns_no_wrong_vector_and_loses_only_what_was_hit() -> None:
    run_state_machine_as_test(CacheHistory, settings=settings(max_examples=20, stateful_step_count=25))


@pytest.mark.parametrize("keep", [False, True])
def test_a_put_that_is_killed_at_any_byte_hurts_no_other_vector(tmp_path: Path, keep: bool) -> None:
    """Some of the new records go into room that was used before."""
    before, gone, new = TEXTS[:4], TEXTS[4:6], TEXTS[6:10]
    for budget in range(0, 4 * RECORD, 5 if keep else 1):
        folder = tmp_path / str(budget)
        folder.mkdir()
        paid = PaidVectors(folder / "job.vectors", MODEL, DIMENSIONS, keep)
        put(paid, before + gone)
        paid.drop(gone)
        with dies_after(budget), pytest.raises(KilledError):
            put(paid, new)
        copy = tmp_path / f"{budget} after"
        shutil.copytree(folder, copy)
        paid.close()

        paid = PaidVectors(copy / "job.vectors", MODEL, DIMENSIONS, keep)
        there = found(paid, TEXTS)
        assert there.issuperset(before)
        assert there.intersection(new) == set(new[: budget // RECORD])
        assert paid.damaged == (budget % RECORD > 0)
        paid.close()
