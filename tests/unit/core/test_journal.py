from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragingest.checkpoint.journal import Journal, boot_identity, done_ranges, next_run
from ragingest.checkpoint.ledger import Ledger, LedgerRow
from ragingest.checkpoint.manager import CheckpointManager
from ragingest.checkpoint.ranges import RangeSet
from ragingest.checkpoint.state import Checkpoint, PartState
from ragingest.documents import Block, Stored
from ragingest.errors import TerminalError
from ragingest.events import Counters
from tests.unit.core.builders import checkpoint, document, reject


class Recorder:
    """Takes every call and writes it down in `steps`; `fail` names the one that raises."""

    def __init__(self, steps: list[str], name: str, fail: str = "") -> None:
        self._steps = steps
        self._name = name
        self._fail = fail

    def __getattr__(self, method: str) -> Any:
        def call(*args: Any) -> int:
            step = f"{self._name}.{method}"
            self._steps.append(step)
            if step == self._fail:
                raise TerminalError("the disk is full")
            return 77

        return call


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    manager = CheckpointManager(tmp_path)
    ledger = Ledger(manager.files("job").ledger)
    yield Journal(checkpoint(), manager, ledger, "line")
    ledger.close()


def in_memory(*parts: PartState) -> Journal:
    """A journal for what it does without its files."""
    value = checkpoint(parts=list(parts)) if parts else checkpoint()
    return Journal(value, CheckpointManager(Path()), cast("Ledger", None))


def block(start: int, end: int, offset: int | None = None, **counts: Any) -> Block:
    return Block(0, start, end, 100 * end if offset is None else offset, **counts)


# -- what is done ------------------------------------------------------------------------------------


@given(st.data())
def test_blocks_may_finish_in_any_order(data: st.DataObject) -> None:
    bounds = sorted(data.draw(st.sets(st.integers(1, 100), min_size=1, max_size=15)))
    blocks = [block(start, end) for start, end in zip([0, *bounds], bounds, strict=False)]
    order = data.draw(st.permutations(blocks))
    journal = in_memory()
    done: set[int] = set()
    for finished in order:
        journal.block_done(finished)
        done |= set(range(finished.start, finished.end))
        first_open = next(number for number in range(102) if number not in done)
        assert journal.done(0).total == len(done)
        assert journal.done(0).watermark == first_open
        assert journal.position(0) == (first_open, 100 * first_open)
    assert journal.done(0).as_lists() == [[0, bounds[-1]]]


@given(st.data())
def test_a_resumed_run_never_begins_behind_a_record_that_is_not_done(data: st.DataObject) -> None:
    before = RangeSet(data.draw(st.lists(st.tuples(st.integers(0, 30), st.integers(31, 60)), max_size=2)))
    before.add(0, data.draw(st.integers(0, 20)))
    start = before.watermark
    part = PartState(name="a", size=1, done=list(before), ordinal=start, offset=100 * start)
    bounds = sorted(data.draw(st.sets(st.integers(start + 1, 80), min_size=1, max_size=10)))
    blocks = [block(first, last) for first, last in zip([start, *bounds], bounds, strict=False)]
    journal = in_memory(part)
    position = journal.position(0)
    for finished in data.draw(st.permutations(blocks)):
        journal.block_done(finished)
        ordinal, offset = journal.position(0)
        assert position[0] <= ordinal <= journal.done(0).watermark
        assert offset == 100 * ordinal
        position = (ordinal, offset)
    assert journal.position(0) == (bounds[-1], 100 * bounds[-1])


def test_what_is_told_as_done_is_a_copy(journal: Journal) -> None:
    before = journal.done(0)
    journal.block_done(block(0, 5))
    assert before == RangeSet()
    before.add(7, 9)
    assert journal.done(0) == RangeSet([(0, 5)])


def test_a_journal_begins_where_the_checkpoint_ended() -> None:
    parts = [PartState(name="a"), PartState(name="b", done=[(0, 7), (9, 11)], ordinal=7, offset=70)]
    journal = in_memory(*parts)
    assert journal.done(1).as_lists() == [[0, 7], [9, 11]]
    assert journal.position(1) == (7, 70)
    journal.block_done(Block(1, 7, 9, 90))
    assert journal.done(0) == RangeSet()
    assert journal.position(1)[0] in (9, 11)


# -- the books ---------------------------------------------------------------------------------------


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 4), min_size=1, max_size=8))
def test_read_is_stored_and_unchanged_and_duplicate_and_rejected(outcomes: list[tuple[int, int, int, int]]) -> None:
    journal = in_memory()
    start = 0
    for stored, unchanged, duplicate, rejected in outcomes:
        read = stored + unchanged + duplicate + rejected
        rejects = [reject(ordinal=start) for _ in range(rejected)]
        journal.block_done(
            block(
                start,
                start + read + 1,
                read=read,
                stored=stored,
                unchanged=unchanged,
                duplicate=duplicate,
                rejects=rejects,
                chunks=2 * stored,
            )
        )
        start += read + 1
        assert journal.counters.balanced
    totals = [sum(column) for column in zip(*outcomes, strict=True)]
    counters = journal.counters
    assert [counters.stored, counters.unchanged, counters.duplicate, counters.rejected] == totals
    assert (counters.read, counters.chunks) == (sum(totals), 2 * totals[0])
    assert journal.rejects.waiting() == totals[3]
    assert journal.reject_kinds == ({"invalid_json": totals[3]} if totals[3] else {})


def test_kinds_of_rejects_are_counted(journal: Journal) -> None:
    rejects = [reject(kind=kind) for kind in ("empty_text", "invalid_json", "empty_text")]
    journal.block_done(block(0, 3, read=3, rejects=rejects))
    assert journal.reject_kinds == {"empty_text": 2, "invalid_json": 1}


# -- the ledger --------------------------------------------------------------------------------------


def test_what_the_store_has_confirmed_is_looked_up_by_id(journal: Journal) -> None:
    stored, other = document("a", ordinal=4), document("b")
    stored.chunks = 3
    journal.commit([stored])
    assert journal.lookup([stored, other]) == {"a": Stored(stored.digest, 3, 1, 1, 0, 4)}


def test_what_was_refused_is_forgotten(journal: Journal) -> None:
    journal.commit([document("a"), document("b")])
    journal.commit([], [document("a")])
    assert journal.lookup([document("a"), document("b")]).keys() == {"b"}


def test_an_unchanged_document_is_seen_by_this_run_and_stays_stored_by_the_one_before(journal: Journal) -> None:
    seen = document("a", ordinal=9)
    seen.previous = Stored(seen.digest, 2, run=5, seen=5, part=0, ordinal=3)
    journal.seen([seen])
    assert journal.lookup([seen]) == {"a": Stored(seen.digest, 2, run=5, seen=1, part=0, ordinal=9)}


def test_an_intention_knows_the_most_chunks_that_may_be_in_the_store_and_vouches_for_none(journal: Journal) -> None:
    new, shorter, longer = document("new", ordinal=7), document("shorter"), document("longer")
    new.chunks, shorter.chunks, longer.chunks = 4, 2, 9
    shorter.previous = Stored(b"digest", 6, run=3, seen=3, part=0, ordinal=1)
    longer.previous = Stored(b"digest", 6, run=3, seen=3, part=0, ordinal=1)
    journal.intend([new, shorter, longer])
    found = journal.lookup([new, shorter, longer])
    assert {id_: stored.chunks for id_, stored in found.items()} == {"new": 4, "shorter": 6, "longer": 9}
    assert {stored.digest for stored in found.values()} == {b""}


# -- saving ------------------------------------------------------------------------------------------


def test_a_checkpoint_is_saved_after_all_that_it_claims(journal: Journal) -> None:
    steps: list[str] = []
    journal.block_done(block(0, 1, read=1, rejects=[reject()]))
    snapshot = journal.snapshot("running")
    _record(journal, steps)
    saved = journal.save(snapshot, Recorder(steps, "store").flush)
    assert steps == ["store.flush", "rejects.write", "ledger.sync", "manager.save"]
    assert saved.rejects_bytes == 77


@pytest.mark.parametrize("fail", ["store.flush", "rejects.write", "ledger.sync"])
def test_no_checkpoint_is_saved_when_something_that_it_claims_is_not(journal: Journal, fail: str) -> None:
    steps: list[str] = []
    snapshot = journal.snapshot("running")
    _record(journal, steps, fail)
    with pytest.raises(TerminalError):
        journal.save(snapshot, Recorder(steps, "store", fail).flush)
    assert steps[-1] == fail
    assert "manager.save" not in steps


def _record(journal: Journal, steps: list[str], fail: str = "") -> None:
    journal.ledger.close()
    for name in ("rejects", "ledger", "manager"):
        setattr(journal, name, Recorder(steps, name, fail))


def test_a_snapshot_is_a_value_that_later_blocks_do_not_change(journal: Journal) -> None:
    journal.block_done(block(0, 2, read=2, stored=1, rejects=[reject()]))
    taken, waiting = journal.snapshot("running", "why")
    journal.block_done(block(2, 5, read=3, stored=2, rejects=[reject(kind="empty_text")]))
    assert waiting == 1
    assert (taken.status, taken.message, taken.boot) == ("running", "why", boot_identity())
    assert (taken.counters.read, taken.reject_kinds) == (2, {"invalid_json": 1})
    assert (taken.parts[0].done, taken.parts[0].ordinal, taken.parts[0].offset) == ([(0, 2)], 2, 200)


def test_what_is_saved_is_loaded_again_with_its_rejects_and_goes_on_there(journal: Journal) -> None:
    journal.block_done(block(0, 2, read=2, stored=1, rejects=[reject(b"first")]))
    snapshot = journal.snapshot("running")
    journal.block_done(block(2, 3, read=1, rejects=[reject(b"second")]))
    saved = journal.save(snapshot, lambda: None)
    loaded = journal.manager.load("job")
    assert loaded is not None
    assert loaded.checkpoint.parts == saved.parts
    assert loaded.checkpoint.counters == Counters(read=2, stored=1, rejected=1, nameless=1)
    path = journal.manager.files("job").rejects
    assert loaded.checkpoint.rejects_bytes == path.stat().st_size
    assert [json.loads(line)["record"] for line in path.read_bytes().splitlines()] == ["first"]

    again = Journal(loaded.checkpoint, journal.manager, journal.ledger, "line")
    again.block_done(block(2, 3, read=1, rejects=[reject(b"second")]))
    final = again.save(again.snapshot("completed"), lambda: None)
    assert final.counters == Counters(read=3, stored=1, rejected=2, nameless=2)
    assert final.parts[0].done == [(0, 3)]
    records = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [line["record"] for line in records] == ["first", "second"]
    assert records[1]["position"] == {"part": "corpus.jsonl", "line": 1, "offset": 0}


def test_the_time_of_all_attempts_is_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 102.5])
    monkeypatch.setattr("ragingest.checkpoint.journal.time.monotonic", lambda: next(clock))
    journal = Journal(checkpoint(seconds=10.0), CheckpointManager(Path()), cast("Ledger", None))
    assert journal.seconds == 12.5


# -- runs --------------------------------------------------------------------------------------------


def test_the_next_run_has_done_nothing_and_keeps_what_the_job_is() -> None:
    before = checkpoint(
        run=4,
        status="completed",
        attempts=3,
        seconds=9.0,
        parts=[PartState(name="corpus.jsonl", done=[(0, 9)], ordinal=9, offset=90)],
        counters=Counters(read=9, stored=8, rejected=1),
        reject_kinds={"empty_text": 1},
        rejects_bytes=70,
        message="why",
    )
    parts = [PartState(name="corpus.jsonl", size=200)]
    after = next_run(before, parts)
    assert (after.run, after.status, after.attempts, after.seconds) == (5, "running", 1, 0.0)
    assert (after.counters, after.reject_kinds, after.rejects_bytes) == (Counters(), {}, 0)
    assert (after.parts, after.message) == (parts, "")
    assert (after.job, after.settings, after.fingerprint) == (before.job, before.settings, before.fingerprint)
    assert before.counters.read == 9


def test_the_done_ranges_of_all_parts_come_in_their_order() -> None:
    value: Checkpoint = checkpoint(parts=[PartState(name="a", done=[(0, 2)]), PartState(name="b", done=[(4, 5)])])
    assert done_ranges(value) == [RangeSet([(0, 2)]), RangeSet([(4, 5)])]


def test_a_boot_has_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert boot_identity()
    assert boot_identity() == boot_identity()

    def missing(*_: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert boot_identity().startswith("booted ")


def test_a_row_names_the_columns_of_what_is_stored() -> None:
    assert LedgerRow._fields == ("id", *Stored._fields)
