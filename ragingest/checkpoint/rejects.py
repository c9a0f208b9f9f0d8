"""The rejects file: one JSON line a record that could not be ingested, with its reason and itself."""

from __future__ import annotations

import base64
import codecs
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from ragingest.documents import Reject
from ragingest.errors import TerminalError

__all__ = ["RECORD_LIMIT", "RejectsFile", "as_line"]

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
            raise TerminalError(
                f"the rejects file {self.path} cannot be written: {error.strerror}",
                "free disk space or mend its permissions, then resume",
            ) from None
        del self._waiting[:lines]
        self.written += len(data)
        return self.written


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
