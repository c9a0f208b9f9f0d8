from __future__ import annotations

import errno
import os
import stat
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragingest.checkpoint.rejects import RejectsEdition, reject_lines
from ragingest.checkpoint.state import edition_of
from ragingest.errors import TerminalError

LINES = [f"line {n}\n".encode() for n in range(10)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "job.rejects.jsonl"
    made.write_bytes(b"".join(LINES))
    return made


def edition(path: Path, number: int = 0) -> RejectsEdition:
    return RejectsEdition(path, path.stat().st_size, number)


def test_lines_are_taken_off_and_replaced_and_the_file_is_whole_until_it_is_settled(path: Path) -> None:
    with closing(edition(path)) as rejects:
        rejects.change(2)
        rejects.change(5, b"new five\n")
        length = rejects.write(rejects.waiting())
        assert path.read_bytes() == b"".join(LINES)
        expected = b"".join(LINES[:2] + LINES[3:5] + LINES[6:]) + b"new five\n"
        assert edition_of(path, 1).read_bytes() == expected
        assert (length, rejects.edition) == (len(expected), 1)
        rejects.settle()
        assert path.read_bytes() == expected
        assert not edition_of(path, 1).exists()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_changes_that_a_snapshot_did_not_see_wait(path: Path) -> None:
    with closing(edition(path)) as rejects:
        rejects.change(0)
        seen = rejects.waiting()
        rejects.change(1)
        rejects.write(seen)
        rejects.settle()
        assert path.read_bytes() == b"".join(LINES[1:])
        rejects.write(rejects.waiting())
        rejects.settle()
        assert path.read_bytes() == b"".join(LINES[2:])


def test_nothing_to_change_writes_nothing(path: Path) -> None:
    with closing(edition(path, 3)) as rejects:
        assert rejects.write(0) == path.stat().st_size
        rejects.settle()
        assert rejects.edition == 3
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_job_without_rejects_needs_no_file(tmp_path: Path) -> None:
    with closing(RejectsEdition(tmp_path / "none", 0, 0)) as rejects:
        assert rejects.write(0) == 0


def test_a_full_disk_loses_no_change(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with closing(edition(path)) as rejects:
        rejects.change(0)
        with monkeypatch.context() as context:
            context.setattr(os, "fsync", full)
            with pytest.raises(TerminalError, match="cannot be written: No space left"):
                rejects.write(1)
        assert path.read_bytes() == b"".join(LINES)
        rejects.write(1)
        rejects.settle()
    assert path.read_bytes() == b"".join(LINES[1:])


changes = st.lists(
    st.tuples(st.integers(0, 9), st.none() | st.binary(max_size=5)), unique_by=lambda change: change[0]
)


@given(changes, st.sets(st.integers(0, 10)))
def test_however_it_is_saved_each_line_is_kept_replaced_or_gone(
    tmp_path_factory: pytest.TempPathFactory, todo: list[tuple[int, bytes | None]], saves: set[int]
) -> None:
    path = tmp_path_factory.mktemp("edition") / "job.rejects.jsonl"
    path.write_bytes(b"".join(LINES) + b"behind the checkpoint")
    with closing(RejectsEdition(path, sum(map(len, LINES)), 0)) as rejects:
        for step, (line, new) in enumerate(todo):
            rejects.change(line, b"" if new is None else b"new " + new.hex().encode() + b"\n")
            if step in saves:
                rejects.write(rejects.waiting())
                rejects.settle()
        length = rejects.write(rejects.waiting())
        rejects.settle()
    gone = {line for line, _ in todo}
    added = [b"new " + new.hex().encode() + b"\n" for _, new in todo if new is not None]
    assert list(reject_lines(path, length)) == [LINES[n] for n in range(10) if n not in gone] + added
