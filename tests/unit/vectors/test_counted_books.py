"""`CountedBooks`: what was counted before the last write is known again, whatever became of the process or the file."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragingest.checkpoint.counted import SLOT_BYTES, CountedBooks
from ragingest.costs.books import BUCKETS, Books
from ragingest.errors import TerminalError

counts = st.integers(0, 2**40)
some_books = st.builds(
    Books,
    requests=counts,
    answered=counts,
    texts=counts,
    reused=counts,
    tokens=counts,
    throttled=counts,
    waited=st.floats(0, 1e9),
    latencies=st.dictionaries(st.integers(0, BUCKETS), st.integers(1, 1000)),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "job.books"


def written(path: Path, *states: Books, run: int = 1) -> None:
    """The file after these states, by a process that died behind the last write."""
    books = Books()
    counted = CountedBooks(path, run, books, begun=False)
    for state in states:
        books.catch_up(state)
        counted.write()
    counted.close()


def found(path: Path, checkpoint: Books | None = None, *, run: int = 1, begun: bool = True) -> Books:
    books = checkpoint or Books()
    CountedBooks(path, run, books, begun=begun).close()
    return books


def test_what_was_written_last_is_there_again(path: Path) -> None:
    last = Books(requests=7, answered=5, texts=500, tokens=9000, waited=1.5, latencies={3: 5})
    written(path, Books(requests=6), last)
    assert found(path) == last
    assert path.stat().st_mode & 0o777 == 0o600


def test_another_run_of_the_job_and_a_first_attempt_begin_at_nothing(path: Path) -> None:
    written(path, Books(requests=7), run=1)
    assert found(path, run=2) == Books()
    assert found(path, begun=False) == Books()


def test_a_checkpoint_that_knows_more_is_believed(path: Path) -> None:
    written(path, Books(requests=7, latencies={3: 2}))
    later = Books(requests=9, reused=4, price_per_million=0.02, latencies={3: 3, 4: 1})
    assert found(path, later) == Books(requests=9, reused=4, price_per_million=0.02, latencies={3: 3, 4: 1})


def test_the_price_is_that_of_the_present_attempt(path: Path) -> None:
    written(path, Books(requests=7, price_per_million=1))
    assert found(path, Books(price_per_million=2)).price_per_million == 2


@pytest.mark.parametrize("writes", [1, 2, 3, 10])
@pytest.mark.parametrize("at", [0, 8, 16, 20, 24])
def test_of_a_write_that_was_torn_the_one_before_is_left(path: Path, writes: int, at: int) -> None:
    written(path, *(Books(requests=number) for number in range(1, writes + 1)))
    data = bytearray(path.read_bytes())
    data[writes % 2 * SLOT_BYTES + at] ^= 1
    path.write_bytes(data)
    assert found(path).requests == writes - 1


@pytest.mark.parametrize("length", [0, 5, 30, SLOT_BYTES + 5])
def test_a_file_that_was_cut_is_no_reason_to_stop(path: Path, length: int) -> None:
    written(path, Books(requests=1))
    os.truncate(path, length)
    assert found(path, Books(requests=3)).requests == 3


@given(states=st.lists(some_books, min_size=1, max_size=4), checkpoint=some_books)
def test_nothing_that_was_counted_is_lost(
    tmp_path_factory: pytest.TempPathFactory, states: list[Books], checkpoint: Books
) -> None:
    path = tmp_path_factory.mktemp("books") / "job.books"
    written(path, *states)
    books = found(path, checkpoint)
    for state in states:
        before = Books()
        before.catch_up(books)
        before.catch_up(state)
        assert before == books


def test_a_full_disk_is_said_before_anything_is_sent(path: Path) -> None:
    counted = CountedBooks(path, 1, Books(), begun=False)
    with (
        mock.patch.object(os, "pwrite", side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))),
        pytest.raises(TerminalError, match="No space left") as caught,
    ):
        counted.write()
    assert "resume" in caught.value.hint
    counted.close()


def test_no_link_is_followed(path: Path, tmp_path: Path) -> None:
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TerminalError):
        CountedBooks(path, 1, Books(), begun=False).write()
    assert not (tmp_path / "elsewhere").exists()
