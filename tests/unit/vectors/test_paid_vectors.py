from __future__ import annotations

import fcntl
import os
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from unittest import mock

import numpy as np
import pytest

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
    vectors,
)

DIMENSIONS = 8
RECORD = record_bytes(DIMENSIONS)
TEXTS = digests(range(100))

Open = Callable[..., PaidVectors]


@pytest.fixture(params=[False, True], ids=["spool", "cache"])
def keep(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def opened(tmp_path: Path, keep: bool) -> Iterator[Open]:
    """Opens the vectors of one job; closes all that were opened."""
    every: list[PaidVectors] = []

    def open_(model: str = MODEL, dimensions: int = DIMENSIONS, keep: bool = keep) -> PaidVectors:
        every.append(PaidVectors(tmp_path / "job.vectors", model, dimensions, keep))
        return every[-1]

    yield open_
    for paid in every:
        paid.close()


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The kernel refuses to make any file larger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def put_until_it_fails(paid: PaidVectors, texts: list[bytes]) -> int:
    """How many it was asked to keep, those of the put that failed included."""
    for start in range(0, len(texts), 10):
        try:
            put(paid, texts[start : start + 10])
        except TerminalError:
            return start + 10
    raise AssertionError("the disk was never full")


def slot_of(path: Path, key: bytes) -> int:
    """Where the record of `key` begins."""
    at = path.read_bytes().index(key) - (HEADER - 16)
    assert (at - BLOCK) % RECORD == 0
    return at


def test_a_vector_comes_back_to_the_bit(opened: Open) -> None:
    paid = opened()
    put(paid, TEXTS)
    assert found(paid, TEXTS) == set(TEXTS)
    assert found(paid, digests(["never put"])) == set()
    assert len(paid) == len(TEXTS)
    assert (paid.damaged, paid.warning) == (0, "")


def test_what_was_put_is_there_at_the_next_start(opened: Open) -> None:
    paid = opened()
    put(paid, TEXTS)
    paid.sync()
    paid.close()
    assert found(opened(), TEXTS) == set(TEXTS)


def test_vectors_in_any_layout_of_memory_are_kept(opened: Open) -> None:
    paid = opened()
    paid.put(TEXTS[:4], np.asfortranarray(vectors(TEXTS[:4], DIMENSIONS)))
    paid.put(TEXTS[4:6], np.repeat(vectors(TEXTS[4:6], DIMENSIONS), 2, axis=0)[::2])
    assert found(paid, TEXTS) == set(TEXTS[:6])


def test_returned_vectors_cannot_be_written_to(opened: Open) -> None:
    paid = opened()
    put(paid, TEXTS[:1])
    assert not paid.get(TEXTS[:1])[TEXTS[0]].flags.writeable


def test_nothing_is_a_batch_too(opened: Open) -> None:
    paid = opened()
    put(paid, TEXTS[:1])
    paid.put([], np.empty((0, DIMENSIONS), np.float32))
    paid.drop([])
    assert paid.get([]) == {}
    assert len(paid) == 1


@pytest.mark.parametrize(
    ("keys", "shape"),
    [(TEXTS[:2], (1, DIMENSIONS)), (TEXTS[:1], (1, DIMENSIONS + 1)), ([b"short"], (1, DIMENSIONS))],
)
def test_vectors_that_do_not_fit_their_texts_are_refused(
    opened: Open, keys: list[bytes], shape: tuple[int, int]
) -> None:
    paid = opened()
    with pytest.raises(ValueError):
        paid.put(keys, np.zeros(shape, np.float32))
    assert len(paid) == 0


def test_a_text_twice_in_a_batch_is_there_once(opened: Open) -> None:
    paid = opened()
    put(paid, [TEXTS[0], TEXTS[1], TEXTS[0]])
    put(paid, [TEXTS[1], TEXTS[2]])
    assert found(paid, [*TEXTS, TEXTS[0]]) == set(TEXTS[:3])
    assert len(paid) == 3
    paid.drop([TEXTS[0], TEXTS[0]])
    assert TEXTS[1] in found(paid, TEXTS)


def test_a_spool_forgets_what_is_dropped_and_a_cache_does_not(opened: Open, keep: bool) -> None:
    paid = opened()
    put(paid, TEXTS)
    paid.drop(TEXTS[:60] + digests(["never put"]))
    left = set(TEXTS) if keep else set(TEXTS[60:])
    assert found(paid, TEXTS) == left
    paid.close()
    assert found(opened(), TEXTS) == left


def test_a_spool_retains_what_is_waited_for_and_a_cache_everything(opened: Open, keep: bool) -> None:
    paid = opened()
    put(paid, TEXTS)
    paid.retain({*TEXTS[3:6], *digests(["never put"])})
    assert found(paid, TEXTS) == set(TEXTS if keep else TEXTS[3:6])
    paid.retain(set())
    assert len(paid) == (len(TEXTS) if keep else 0)


def test_another_model_or_dimension_is_another_file(opened: Open) -> None:
    paid = opened()
    put(paid, TEXTS)
    for other in (opened(model="other"), opened(dimensions=DIMENSIONS + 1)):
        assert found(other, TEXTS) == set()
        put(other, TEXTS[:1])
    assert found(paid, TEXTS) == set(TEXTS)
    assert paid.warning == ""


def test_a_file_under_the_name_of_another_model_is_set_aside_whole(opened: Open) -> None:
    paid, other = opened(), opened(model="other")
    put(paid, TEXTS)
    content = paid.path.read_bytes()
    paid.close()
    other.close()
    paid.path.replace(other.path)
    other = opened(model="other")
    assert found(other, TEXTS) == set()
    assert ".damaged" in other.warning
    assert other.path.with_name(other.path.name + ".damaged").read_bytes() == content


def test_a_cache_under_the_name_of_a_spool_is_not_used_as_one(tmp_path: Path) -> None:
    cache = PaidVectors(tmp_path / "job.vectors", MODEL, DIMENSIONS, keep=True)
    put(cache, TEXTS)
    content = cache.path.read_bytes()
    cache.close()
    spool = PaidVectors(tmp_path / "job.vectors", MODEL, DIMENSIONS, keep=False)
    spool.drop(TEXTS)
    assert len(spool) == 0
    assert cache.path.with_name(cache.path.name + ".damaged").read_bytes() == content
    spool.close()


# -- damage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 3, 4, 19, 20, RECORD - 1])
@pytest.mark.parametrize("reopened", [False, True])
def test_a_flipped_bit_costs_one_vector_and_is_counted(opened: Open, at: int, reopened: bool) -> None:
    paid = opened()
    put(paid, TEXTS)
    if reopened:
        paid.close()
    flip(paid.path, slot_of(paid.path, TEXTS[40]) + at, 0x10)
    if reopened:
        paid = opened()
    assert found(paid, TEXTS) == set(TEXTS) - {TEXTS[40]}
    assert found(paid, TEXTS) == set(TEXTS) - {TEXTS[40]}
    assert paid.damaged == 1
    put(paid, [TEXTS[40]])
    assert found(paid, TEXTS) == set(TEXTS)


@pytest.mark.parametrize("reopened", [False, True])
def test_a_cut_file_keeps_what_lies_before_the_cut(opened: Open, reopened: bool) -> None:
    paid = opened()
    put(paid, TEXTS)
    if reopened:
        paid.close()
    with paid.path.open("r+b") as file:
        file.truncate(BLOCK + 70 * RECORD + 5)
    if reopened:
        paid = opened()
    assert found(paid, TEXTS) == set(TEXTS[:70])
    assert paid.damaged >= 1
    put(paid, TEXTS[70:])
    assert found(paid, TEXTS) == set(TEXTS)


def test_a_zeroed_sector_costs_the_vectors_in_it(opened: Open) -> None:
    paid = opened()
    put(paid, TEXTS)
    paid.close()
    first = slot_of(paid.path, TEXTS[10])
    with paid.path.open("r+b") as file:
        file.seek(first)
        file.write(bytes(3 * RECORD))
    paid = opened()
    assert found(paid, TEXTS) == set(TEXTS) - set(TEXTS[10:13])
    assert paid.damaged == 3


@pytest.mark.parametrize("at", [0, 25, 60, BLOCK - 1])
def test_damage_in_front_of_the_records_costs_none(opened: Open, at: int) -> None:
    paid = opened()
    put(paid, TEXTS)
    paid.close()
    flip(paid.path, at)
    paid = opened()
    assert found(paid, TEXTS) == set(TEXTS)
    assert paid.damaged == 1
    assert str(paid.path) in paid.warning
    paid.close()
    assert opened().warning == ""


@pytest.mark.parametrize("garbage", [b"not ours\n", b"x" * BLOCK, bytes(10_000), os.urandom(20_000)])
def test_a_file_that_holds_nothing_of_ours_is_set_aside_and_a_new_one_begun(opened: Open, garbage: bytes) -> None:
    paid = opened()
    put(paid, TEXTS)
    paid.close()
    for attempt in ("", "2"):
        paid.path.write_bytes(garbage)
        paid = opened()
        aside = paid.path.with_name(f"{paid.path.name}.damaged{attempt}")
        assert aside.read_bytes() == garbage
        assert str(aside) in paid.warning
        put(paid, TEXTS[:5])
        assert found(paid, TEXTS) == set(TEXTS[:5])
        paid.close()


def test_a_spool_whose_records_are_all_dropped_is_no_cause_for_a_warning_about_losses(tmp_path: Path) -> None:
    paid = PaidVectors(tmp_path / "job.vectors", MODEL, DIMENSIONS, keep=False)
    put(paid, TEXTS)
    paid.drop(TEXTS)
    paid.sync()
    flip(paid.path, 0)
    again = PaidVectors(tmp_path / "job.vectors", MODEL, DIMENSIONS, keep=False)
    assert ".damaged" not in again.warning
    assert len(again) == 0
    paid.close()
    again.close()


# -- the disk --------------------------------------------------------------------------------------


def test_a_full_disk_is_explained_and_loses_nothing(opened: Open) -> None:
    paid = opened()
    put(paid, TEXTS[:50])
    with files_of_at_most(max(BLOCK + 70 * RECORD + 7, paid.path.stat().st_size)):
        with pytest.raises(TerminalError) as raised:
            put(paid, TEXTS[50:])
    assert str(paid.path) in raised.value.message
    assert "free disk space" in raised.value.hint
    assert found(paid, TEXTS) == set(TEXTS[:70])
    paid.close()
    paid = opened()
    assert found(paid, TEXTS) == set(TEXTS[:70])
    put(paid, TEXTS[70:])
    assert found(paid, TEXTS) == set(TEXTS)


def test_what_was_written_before_the_very_first_put_failed_is_kept(opened: Open) -> None:
    paid = opened()
    with full_after(3 * RECORD + 1), pytest.raises(TerminalError, match="No space left"):
        put(paid, TEXTS)
    paid.close()
    assert found(opened(), TEXTS) == set(TEXTS[:3])


def test_an_index_that_cannot_grow_loses_nothing(tmp_path: Path) -> None:
    """The records are small, so that the index is what is too large."""
    paid = PaidVectors(tmp_path / "all.vectors", MODEL, 1, keep=True)
    texts = digests(range(3000))
    paid.sync()
    with files_of_at_most(BLOCK + 3000 * record_bytes(1)):
        tried = put_until_it_fails(paid, texts)
    paid.close()
    paid = PaidVectors(tmp_path / "all.vectors", MODEL, 1, keep=True)
    assert found(paid, texts) == set(texts[:tried])
    paid.close()


def test_sync_reaches_the_disk_with_the_file_and_its_name(opened: Open, tmp_path: Path) -> None:
    paid = opened()
    put(paid, TEXTS)
    synced: list[int] = []
    with mock.patch.object(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino)):
        paid.sync()
    assert synced == [paid.path.stat().st_ino, tmp_path.stat().st_ino]


def test_files_are_for_their_owner_only(opened: Open, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        put(opened(), TEXTS)
    finally:
        os.umask(old)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


@pytest.mark.parametrize("end", ["", ".index"])
def test_a_symbolic_link_is_not_followed(opened: Open, tmp_path: Path, end: str) -> None:
    paid = opened(keep=True)
    paid.close()
    path = paid.path.with_name(paid.path.name + end)
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TerminalError, match=paid.path.name):
        opened(keep=True)
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_that_is_not_there_is_explained(tmp_path: Path, keep: bool) -> None:
    with pytest.raises(TerminalError, match="No such file"):
        PaidVectors(tmp_path / "missing" / "job.vectors", MODEL, DIMENSIONS, keep)


def test_all_files_of_a_job_are_known_and_no_others(opened: Open, tmp_path: Path) -> None:
    paid = opened()
    put(paid, TEXTS)
    put(opened(model="other"), TEXTS)
    ours = set(tmp_path.iterdir())
    assert len(ours) >= 2
    for name in ("job.vectors.ledger.sqlite", "job.json", "other.vectors.0123456789abcdef", "job.vectors.lock"):
        (tmp_path / name).touch()
    aside = tmp_path / (paid.path.name + ".damaged2")
    aside.touch()
    assert set(PaidVectors.files(tmp_path / "job.vectors")) == {*ours, aside}


# -- room ------------------------------------------------------------------------------------------


def test_a_spool_uses_its_room_again(tmp_path: Path) -> None:
    paid = PaidVectors(tmp_path / "job.vectors", MODEL, 1536, keep=False)
    matrix = np.ones((50, 1536), np.float32)
    batches = [digests(f"{batch} {number}" for number in range(50)) for batch in range(40)]
    paid.put(batches[0], matrix)
    for before, batch in pairwise(batches):
        paid.put(batch, matrix)
        paid.drop(before)
    assert paid.bytes_on_disk() == BLOCK + 100 * record_bytes(1536)
    paid.close()


def test_a_spool_moves_to_a_cache_whole_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOVED", 7)
    spool = PaidVectors(tmp_path / "job.vectors", MODEL, DIMENSIONS, keep=False)
    cache = PaidVectors(tmp_path / "embeddings", MODEL, DIMENSIONS, keep=True)
    put(spool, TEXTS[:40])
    put(cache, TEXTS[30:50])
    flip(spool.path, slot_of(spool.path, TEXTS[3]) + HEADER)
    spool.move_to(cache)
    assert found(cache, TEXTS) == set(TEXTS[:50]) - {TEXTS[3]}
    assert len(spool) == 0
    spool.close()
    assert not spool.path.exists()
    cache.close()


def test_another_thread_may_drop_while_a_spool_is_written_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLACK_BYTES", 20 * RECORD)
    paid = PaidVectors(tmp_path / "job.vectors", MODEL, DIMENSIONS, keep=False)
    batches = [digests(f"{batch} {number}" for number in range(30)) for batch in range(200)]
    put_already: SimpleQueue[list[bytes] | None] = SimpleQueue()

    def confirm() -> None:
        while (batch := put_already.get()) is not None:
            paid.drop(batch[1:])

    confirming = threading.Thread(target=confirm)
    confirming.start()
    for number, batch in enumerate(batches):
        put(paid, batch)
        put_already.put(batch)
        assert batch[0] in found(paid, batch)
        if number % 20 == 0:
            paid.sync()
    put_already.put(None)
    confirming.join()
    paid.sync()
    left = {batch[0] for batch in batches}
    assert found(paid, [key for batch in batches for key in batch]) == left
    assert paid.damaged == 0
    paid.close()
    again = PaidVectors(tmp_path / "job.vectors", MODEL, DIMENSIONS, keep=False)
    assert found(again, [key for batch in batches for key in batch]) == left
    again.close()


@pytest.mark.parametrize("left", [0, 1, 20])
def test_a_spool_gives_room_back_after_an_outage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    """Also when the last ones that are pending lie at the end of the file."""
    monkeypatch.setattr(module, "SLACK_BYTES", 10 * RECORD)
    paid = PaidVectors(tmp_path / "job.vectors", MODEL, DIMENSIONS, keep=False)
    texts = digests(range(2000))
    put(paid, texts)
    for start in range(0, 2000 - left, 90):
        paid.drop(texts[start : min(start + 90, 2000 - left)])
    paid.sync()
    assert paid.bytes_on_disk() <= BLOCK + (max(10, 4 * left) + 10) * RECORD
    assert found(paid, texts) == set(texts[2000 - left :])
    put(paid, texts[:100])
    assert found(paid, texts) == {*texts[:100], *texts[2000 - left :]}
    paid.close()


def test_a_record_that_was_moved_and_dropped_does_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLACK_BYTES", 4 * RECORD)
    paid = PaidVectors(tmp_path / "job.vectors", MODEL, DIMENSIONS, keep=False)
    put(paid, TEXTS[:5])
    paid.drop(TEXTS[:4])
    paid.sync()
    assert slot_of(paid.path, TEXTS[4]) == BLOCK
    paid.drop(TEXTS[4:5])
    paid.sync()
    again = PaidVectors(tmp_path / "job.vectors", MODEL, DIMENSIONS, keep=False)
    assert found(again, TEXTS) == set()
    paid.close()
    again.close()


def test_a_move_cut_short_by_a_kill_leaves_one_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLACK_BYTES", 4 * RECORD)
    paid = PaidVectors(tmp_path / "job.vectors", MODEL, DIMENSIONS, keep=False)
    put(paid, TEXTS[:5])
    paid.drop(TEXTS[:4])
    with dies_after(RECORD), pytest.raises(KilledError):
        paid.sync()
    assert paid.path.read_bytes().count(TEXTS[4]) == 2
    second = PaidVectors(tmp_path / "job.vectors", MODEL, DIMENSIONS, keep=False)
    # The dropped ones come back too, but for the one whose room was used: nobody had said so in the file.
    assert found(second, TEXTS) == set(TEXTS[1:5])
    second.drop(TEXTS[1:5])
    second.sync()
    third = PaidVectors(tmp_path / "job.vectors", MODEL, DIMENSIONS, keep=False)
    assert found(third, TEXTS) == set()
    for each in (paid, second, third):
        each.close()


def test_a_move_cut_short_by_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLACK_BYTES", 4 * RECORD)
    paid = PaidVectors(tmp_path / "job.vectors", MODEL, DIMENSIONS, keep=False)
    put(paid, TEXTS[:9])
    paid.drop(TEXTS[:7])
    with full_after(RECORD + HEADER + 5), pytest.raises(TerminalError):
        paid.sync()
    put(paid, TEXTS[20:30])
    assert found(paid, TEXTS) == {*TEXTS[7:9], *TEXTS[20:30]}
    paid.close()


def test_a_spool_with_nothing_pending_leaves_no_file(tmp_path: Path) -> None:
    paid = PaidVectors(tmp_path / "job.vectors", MODEL, DIMENSIONS, keep=False)
    put(paid, TEXTS)
    paid.drop(TEXTS)
    paid.close()
    assert list(tmp_path.iterdir()) == []


# -- the index of a cache --------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path) -> PaidVectors:
    """Closed again; it knows where its file is."""
    paid = PaidVectors(tmp_path / "all.vectors", MODEL, DIMENSIONS, keep=True)
    put(paid, TEXTS)
    paid.close()
    return paid


def reopened(paid: PaidVectors) -> PaidVectors:
    return PaidVectors(paid.path.parent / "all.vectors", MODEL, DIMENSIONS, keep=True)


def test_a_lost_index_is_made_anew(cache: PaidVectors) -> None:
    cache.path.with_name(cache.path.name + ".index").unlink()
    paid = reopened(cache)
    assert found(paid, TEXTS) == set(TEXTS)
    assert len(paid) == len(TEXTS)
    paid.close()


@pytest.mark.parametrize("garbage", [b"no database" * 1000, b"SQLite format 3\0" + b"\xff" * 8176])
def test_a_damaged_index_is_made_anew_with_a_warning(cache: PaidVectors, garbage: bytes) -> None:
    index = cache.path.with_name(cache.path.name + ".index")
    index.write_bytes(garbage)
    paid = reopened(cache)
    assert found(paid, TEXTS) == set(TEXTS)
    assert str(index) in paid.warning
    assert paid.damaged == 0
    paid.close()


def test_an_index_damaged_during_the_run_is_made_anew(cache: PaidVectors) -> None:
    paid = reopened(cache)
    more = digests(f"more {number}" for number in range(100))
    put(paid, more[:50])
    for end in ("", "-wal"):
        index = cache.path.with_name(f"{cache.path.name}.index{end}")
        with index.open("r+b") as file:
            file.write(b"\xee" * index.stat().st_size)
    other = reopened(cache)  # finds the damage, and begins a new index that the first one does not see
    assert found(other, [*TEXTS, *more]) == {*TEXTS, *more[:50]}
    put(paid, more[50:])
    assert found(paid, [*TEXTS, *more]) == {*TEXTS, *more}
    assert found(other, [*TEXTS, *more]) == {*TEXTS, *more}
    paid.close()
    assert found(other, [*TEXTS, *more]) == {*TEXTS, *more}
    other.close()
    last = reopened(cache)
    assert (len(last), last.warning, last.damaged) == (200, "", 0)
    last.close()


def test_two_users_of_a_cache_see_each_others_vectors(cache: PaidVectors) -> None:
    first, second = reopened(cache), reopened(cache)
    more = digests(["one", "two", "three"])
    put(first, more[:1])
    put(second, more[1:2])
    put(first, more[2:])
    assert found(first, more) == found(second, more) == set(more)
    assert len(first) == len(second) == len(TEXTS) + 3
    first.close()
    second.close()


def test_a_cache_deleted_during_the_run_is_begun_again(cache: PaidVectors) -> None:
    paid = reopened(cache)
    cache.path.unlink()
    put(paid, digests(["one"]))
    assert found(paid, [*TEXTS, *digests(["one"])]) == set(digests(["one"]))
    paid.close()
    paid = reopened(cache)
    assert found(paid, digests(["one"])) == set(digests(["one"]))
    paid.close()


def test_a_kill_before_the_index_knows_loses_nothing_even_after_a_cut(cache: PaidVectors) -> None:
    with cache.path.open("r+b") as file:
        file.truncate(BLOCK + 10 * RECORD)
    paid = reopened(cache)
    assert paid.damaged == 90
    with mock.patch.object(module, "_cover", side_effect=KilledError), pytest.raises(KilledError):
        put(paid, TEXTS[50:60])
    other = reopened(cache)
    assert found(other, TEXTS) == {*TEXTS[:10], *TEXTS[50:60]}
    paid.close()
    other.close()


def test_a_cache_writes_only_while_it_has_the_lock(cache: PaidVectors) -> None:
    paid = reopened(cache)
    real = os.pwrite
    refused = 0

    def pwrite(handle: int, data: memoryview, offset: int) -> int:
        nonlocal refused
        with cache.path.open("rb") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        refused += 1
        return real(handle, data, offset)

    with mock.patch.object(os, "pwrite", pwrite):
        put(paid, digests(["one"]))
    assert refused == 1
    with cache.path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    paid.close()
