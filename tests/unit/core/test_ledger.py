from __future__ import annotations

import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragingest.checkpoint.ledger import LOOKUP, Ledger, LedgerDamagedError, LedgerRow
from ragingest.checkpoint.ranges import RangeSet
from ragingest.documents import Stored
from ragingest.errors import TerminalError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "job.ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    ledger = Ledger(path)
    yield ledger
    ledger.close()


def row(id: str, ordinal: int = 0, *, run: int = 1, part: int = 0, digest: bytes = b"digest") -> LedgerRow:  # noqa: A002
    return LedgerRow(id, digest, 1, run, run, part, ordinal)


def copies(path: Path, folder: Path) -> Path:
    """The files as a kill at this moment leaves them."""
    folder.mkdir()
    for file in path.parent.glob(path.name + "*"):
        shutil.copy(file, folder)
    return folder / path.name


def test_what_is_committed_is_found(ledger: Ledger) -> None:
    ledger.commit([LedgerRow("a", b"\x00\xff", 3, 1, 2, 4, 5), row("b")])
    assert ledger.lookup(["a", "c"]) == {"a": Stored(b"\x00\xff", 3, 1, 2, 4, 5)}


def test_a_later_row_replaces_an_earlier_one(ledger: Ledger) -> None:
    ledger.commit([row("a", 1), row("a", 2)])
    ledger.commit([row("a", 3, run=2)])
    assert ledger.lookup(["a"]) == {"a": Stored(b"digest", 1, 2, 2, 0, 3)}
    assert ledger.count() == 1


@settings(max_examples=25)  # each makes a file
@given(st.lists(st.text(min_size=1, max_size=6), unique=True, max_size=20), st.data())
def test_ids_of_any_text_are_kept_apart(ids: list[str], data: st.DataObject) -> None:
    known = set(data.draw(st.lists(st.sampled_from(ids), unique=True) if ids else st.just([])))
    with TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger")
        try:
            ledger.commit(row(id_, ordinal) for ordinal, id_ in enumerate(ids) if id_ in known)
            found = ledger.lookup(ids)
        finally:
            ledger.close()
    assert {id_: stored.ordinal for id_, stored in found.items()} == {id_: ids.index(id_) for id_ in known}


@pytest.mark.parametrize("count", [0, 1, LOOKUP - 1, LOOKUP, LOOKUP + 1, 3 * LOOKUP + 7])
def test_any_number_of_ids_may_be_looked_up_at_once(ledger: Ledger, count: int) -> None:
    ids = [f"id{number}" for number in range(count)]
    ledger.commit(row(id_, ordinal) for ordinal, id_ in enumerate(ids))
    found = ledger.lookup([*ids, "unknown"])
    assert {id_: stored.ordinal for id_, stored in found.items()} == {id_: n for n, id_ in enumerate(ids)}


def test_what_is_removed_is_unknown(ledger: Ledger) -> None:
    ledger.commit([row("a"), row("b")])
    ledger.commit([row("c")], ["a", "never known"])
    assert ledger.lookup(["a", "b", "c"]).keys() == {"b", "c"}


def test_rows_that_break_on_the_way_leave_nothing_of_their_transaction(ledger: Ledger) -> None:
    def rows() -> Iterator[LedgerRow]:
        yield row("a")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ledger.commit(rows())
    assert ledger.is_empty()
    ledger.commit([row("b")])
    assert ledger.lookup(["a", "b"]).keys() == {"b"}


def test_the_count_is_of_documents_that_are_whole(ledger: Ledger) -> None:
    assert (ledger.count(), ledger.is_empty()) == (0, True)
    ledger.commit([row("c", digest=b"")])
    assert (ledger.count(), ledger.is_empty()) == (0, True)
    ledger.commit([row("a"), row("b")])
    assert (ledger.count(), ledger.is_empty()) == (2, False)


def test_what_is_known_survives_closing(path: Path) -> None:
    first = Ledger(path)
    first.commit([row("a")])
    first.sync()
    first.close()
    second = Ledger(path)
    assert second.lookup(["a"]).keys() == {"a"}
    second.close()


# -- distrust ----------------------------------------------------------------------------------------


def test_after_a_loss_of_power_only_what_the_run_left_undone_is_distrusted(ledger: Ledger) -> None:
    ledger.commit(
        [
            row("done", 3),
            row("not done", 4),
            row("earlier run", 4, run=7),
            row("other part done", 9, part=1),
            row("other part not done", 3, part=1),
            row("unknown part", 0, part=2),
        ]
    )
    assert ledger.distrust(1, [RangeSet([(0, 4)]), RangeSet([(9, 10)])]) == 3
    found = ledger.lookup(
        ["done", "not done", "earlier run", "other part done", "other part not done", "unknown part"]
    )
    trusted = {id_ for id_, stored in found.items() if stored.digest}
    assert trusted == {"done", "earlier run", "other part done"}
    for id_ in found.keys() - trusted:
        assert (found[id_].digest, found[id_].seen, found[id_].chunks) == (b"", 0, 1)
    assert ledger.count() == 3


@settings(max_examples=25)  # each makes a file
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 2)), max_size=30), st.integers(0, 30))
def test_distrust_follows_the_done_ranges(rows: list[tuple[int, int]], end: int) -> None:
    done = RangeSet([(0, end)])
    with TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger")
        try:
            ids = [f"id{number}" for number in range(len(rows))]
            ledger.commit(row(id_, ordinal, run=run) for id_, (ordinal, run) in zip(ids, rows, strict=True))
            told = ledger.distrust(1, [done])
            found = ledger.lookup(ids)
        finally:
            ledger.close()
    expected = {id_ for id_, (ordinal, run) in zip(ids, rows, strict=True) if run == 1 and ordinal >= end}
    assert {id_ for id_, stored in found.items() if not stored.digest} == expected
    assert told == len(expected)


def test_a_fresh_start_distrusts_all_and_still_knows_the_chunks(ledger: Ledger) -> None:
    ledger.commit([LedgerRow("a", b"digest", 5, 1, 1, 0, 0), row("b", run=2)])
    ledger.distrust_all()
    assert ledger.lookup(["a", "b"]) == {"a": Stored(b"", 5, 1, 0, 0, 0), "b": Stored(b"", 1, 2, 0, 0, 0)}
    assert (ledger.count(), ledger.is_empty()) == (0, True)


# -- death and damage --------------------------------------------------------------------------------


def test_what_is_committed_survives_a_kill_without_a_sync(ledger: Ledger, path: Path, tmp_path: Path) -> None:
    ledger.commit([row("a")])
    left = Ledger(copies(path, tmp_path / "left"))
    assert left.lookup(["a"]).keys() == {"a"}
    left.close()


def test_an_open_transaction_is_not_visible_after_a_kill(ledger: Ledger, path: Path, tmp_path: Path) -> None:
    ledger.commit([row("before")])

    def rows() -> Iterator[LedgerRow]:
        # Far more than the cache holds, so that some of it is in the file when the process dies.
        for number in range(40_000):
            yield row(f"{number:06}" * 80, digest=b"x" * 100)
        copies(path, tmp_path / "left")

    ledger.commit(rows())
    assert ledger.count() == 40_001
    assert (tmp_path / "left" / (path.name + "-wal")).stat().st_size > 1_000_000
    left = Ledger(tmp_path / "left" / path.name)
    assert left.lookup(["before"]).keys() == {"before"}
    assert left.count() == 1
    left.close()


def test_files_of_a_ledger_are_for_their_owner_only(ledger: Ledger, path: Path) -> None:
    ledger.commit([row("a")])
    files = list(path.parent.iterdir())
    assert {file.name for file in files} == {path.name, path.name + "-wal", path.name + "-shm"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


@pytest.mark.parametrize("content", [b"no database" * 1000, b"SQLite format 3\0" + b"\xff" * 8192])
def test_a_file_that_is_no_ledger_is_an_error_that_names_the_way_out(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(LedgerDamagedError) as caught:
        Ledger(path)
    assert str(path) in caught.value.message
    assert "--fresh" in caught.value.hint


def test_a_ledger_that_is_damaged_inside_is_an_error_that_names_the_way_out(path: Path) -> None:
    ledger = Ledger(path)
    ledger.commit(row(f"id{number}") for number in range(5000))
    ledger.close()
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle:] = b"\xff" * (len(data) - middle)
    path.write_bytes(data)
    damaged = Ledger(path)
    try:
        with pytest.raises(LedgerDamagedError) as caught:
            damaged.lookup([f"id{number}" for number in range(5000)])
    finally:
        damaged.close()
    assert "--fresh" in caught.value.hint


@pytest.mark.parametrize(
    "change",
    [
        "digest = 5",
        "digest = 'x'",
        "chunks = 'x'",
        "chunks = 1.5",
        "chunks = -1",
        "chunks = 1 << 40",
        "run = x'00'",
        "ordinal = 'x'",
        "id = CAST(x'ff' AS TEXT)",
    ],
)
def test_a_row_that_makes_no_sense_is_damage(ledger: Ledger, change: str) -> None:
    ledger.commit([row("a")])
    ledger._db.execute(f"UPDATE documents SET {change}")
    with pytest.raises(LedgerDamagedError):
        ledger.page(None, 10)
    if "id" not in change.split():
        with pytest.raises(LedgerDamagedError):
            ledger.lookup(["a"])


def test_a_ledger_without_its_tables_is_damaged_and_no_matter_of_the_disk(ledger: Ledger) -> None:
    ledger._db.execute("DROP TABLE documents")
    with pytest.raises(LedgerDamagedError, match="no such table"):
        ledger.lookup(["a"])


def test_a_full_disk_is_named_as_the_reason_and_the_ledger_goes_on_afterwards(ledger: Ledger) -> None:
    ledger.commit([row("a")])
    ledger._db.execute("PRAGMA max_page_count = 20")
    with pytest.raises(TerminalError, match="disk is full") as caught:
        ledger.commit(row(f"id{number}" * 20) for number in range(5000))
    assert "free disk space" in caught.value.hint
    assert ledger.lookup(["a", "id1" * 20]).keys() == {"a"}
    ledger._db.execute("PRAGMA max_page_count = 100000")
    ledger.commit([row("b")])
    assert ledger.count() == 2


def test_a_ledger_in_the_place_of_a_folder_or_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(TerminalError):
        Ledger(tmp_path / "folder")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    with pytest.raises(TerminalError):
        Ledger(tmp_path / "link")
    assert not (tmp_path / "precious").exists()
