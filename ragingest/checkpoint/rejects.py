"""The rejects file: one JSON line a record that could not be ingested, with its reason and itself."""

from __future__ import annotations

import base64
import codecs
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec

from ragingest.checkpoint.files import create_state, open_state, sync_folder
from ragingest.checkpoint.ranges import RangeSet
from ragingest.checkpoint.state import edition_of
from ragingest.documents import Reject
from ragingest.errors import TerminalError

__all__ = ["RECORD_LIMIT", "Claim", "RejectsEdition", "RejectsFile", "as_line", "reject_lines"]

RECORD_LIMIT = 256 * 1024
"""Bytes of a rejected record that are kept; a longer one is cut and marked so."""


class RejectsFile:
    """Appends to the file; what lies behind the length that a checkpoint knows is redone, so it is cut off.

    Lines wait in memory until `write`. `append` and `waiting` belong to the event loop's thread,
    `write` may run in another.
    """

    def __init__(self, path: Path, length: int) -> None:
        self.path = path
        self.written = length
        self._waiting: list[bytes] = []

    def append(self, reject: Reject, part: str, unit: str) -> None:
        self._waiting.append(as_line(reject, part, unit))

    def waiting(self) -> int:
        """How many lines are not on disk yet."""
        return len(self._waiting)

    def write(self, lines: int) -> int:
        """Put the first `lines` of those that wait on disk, fsynced; return the file's length.

        Cuts off what no checkpoint knows. After an error all of them still wait.

        Raises:
            TerminalError: the disk is full or cannot be written.
        """
        data = b"".join(self._waiting[:lines])
        if not data and not self.path.exists():
            return self.written
        try:
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            with os.fdopen(handle, "wb") as file:
                # A file that somebody took away since starts anew: a gap would read as garbage.
                self.written = min(self.written, os.fstat(file.fileno()).st_size)
                file.truncate(self.written)
                file.seek(self.written)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _failed(self.path, error) from None
        del self._waiting[:lines]
        self.written += len(data)
        return self.written


class Claim(NamedTuple):
    """A line of the rejects file, counted from 0, whose record is tried again: its kind, whether it has an id,
    and what its position counts."""

    line: int
    kind: str
    named: bool
    unit: str


class RejectsEdition:
    """The rejects of a finished run, while lines of them are taken off or replaced.

    `write` makes a new edition beside the file; `settle` puts it in the file's place once a checkpoint
    tells of it. So at every moment the file of the checkpoint is there. Lines wait as in `RejectsFile`.
    """

    def __init__(self, path: Path, length: int, edition: int) -> None:
        self.path = path
        self.edition = edition
        self.length = length
        self._listed = length
        self._gone = RangeSet()
        self._changes: list[tuple[int, bytes]] = []
        self._current: Path | None = None
        self._added_from = 0
        with self._explained():
            self._list = open_state(path) if length else BytesIO()
        self._added: BinaryIO = BytesIO()

    def change(self, line: int, new: bytes = b"") -> None:
        """Replace a line of the file as it was at the beginning; without `new`, take it off."""
        self._changes.append((line, new))

    def waiting(self) -> int:
        """How many changes are not on disk yet."""
        return len(self._changes)

    def write(self, changes: int) -> int:
        """Make an edition with the first `changes` of those that wait, fsynced; return its length.

        Raises:
            TerminalError: the disk is full or cannot be written. All of them still wait.
        """
        if not changes:
            return self.length
        gone = RangeSet(self._gone)
        for line, _ in self._changes[:changes]:
            gone.add(line, line + 1)
        target = edition_of(self.path, self.edition + 1)
        temporary = target.with_name(target.name + ".tmp")
        with self._explained():
            with create_state(temporary) as file:
                self._list.seek(0)
                for number, kept in enumerate(_lines(self._list, self._listed)):
                    if number not in gone:
                        file.write(kept)
                added_from = file.tell()
                self._added.seek(self._added_from)
                shutil.copyfileobj(self._added, file)
                file.writelines(new for _, new in self._changes[:changes])
                length = file.tell()
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
            sync_folder(target.parent)
            self._added.close()
            self._added = open_state(target)
        del self._changes[:changes]
        self._gone, self._added_from, self._current = gone, added_from, target
        self.edition += 1
        self.length = length
        return length

    def settle(self) -> None:
        """A checkpoint tells of the last edition: it is the file now."""
        if self._current is not None:
            with self._explained():
                self._current.replace(self.path)
            self._current = None

    def close(self) -> None:
        self._list.close()
        self._added.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _failed(self.path, error) from None


def reject_lines(path: Path, length: int) -> Iterator[bytes]:
    """The lines in the first `length` bytes, which are those that a checkpoint vouches for.

    Raises:
        TerminalError: the file is there, but cannot be read.
    """
    try:
        with open_state(path) as file:
            yield from _lines(file, length)
    except FileNotFoundError:
        return
    except OSError as error:
        raise TerminalError(
            f"the rejects file {path} cannot be read: {error.strerror}", "check its permissions"
        ) from None


def _lines(file: BinaryIO, length: int) -> Iterator[bytes]:
    while (rest := length - file.tell()) > 0 and (line := file.readline(rest)):
        yield line


def _failed(path: Path, error: OSError) -> TerminalError:
    return TerminalError(
        f"the rejects file {path} cannot be written: {error.strerror}",
        "free disk space or mend its permissions, then resume",
    )


def as_line(reject: Reject, part: str, unit: str) -> bytes:
    """The line of a reject. `record` is its text, or `record_base64` its bytes where they are no UTF-8."""
    record = reject.record
    kept = record.raw[:RECORD_LIMIT]
    line: dict[str, Any] = {
        "position": {"part": part, unit: record.ordinal + 1, "offset": record.offset},
        "id": reject.id,
        "stage": reject.stage,
        "error": reject.fault.kind,
        "message": reject.fault.message,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if len(kept) < len(record.raw) or reject.fault.kind == "too_large":
        line["cut"] = True
    try:
        # A cut may go through a character: its first bytes are left out.
        line["record"] = codecs.getincrementaldecoder("utf-8")().decode(kept, final="cut" not in line)
    except UnicodeDecodeError:
        line["record_base64"] = base64.b64encode(kept).decode()
    return msgspec.json.encode(line) + b"\n"
