"""The books of a run on disk, written with every request: a process that dies has counted what it sent.

A file of two slots that are written in turn, each with a checksum and with the number of times it was written. What
is written survives the death of the process, not a loss of power: then the checkpoint's books hold.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import msgspec
import xxhash

from ragingest.checkpoint.files import read_state
from ragingest.costs.books import Books
from ragingest.errors import TerminalError

__all__ = ["CountedBooks"]

SLOT_BYTES = 4096
CHECK_BYTES = 8
_HEAD = struct.Struct("<QQI")  # checksum of the rest, how often, length


class _Kept(msgspec.Struct, array_like=True):
    run: int
    books: Books


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Kept).decode


class CountedBooks:
    """Keeps `books` of a run in a file; those of one that was `begun` before first take up what the file has more.

    Raises (constructor and `write`):
        TerminalError: the disk is full, or the file cannot be used.
    """

    def __init__(self, path: Path, run: int, books: Books, *, begun: bool) -> None:
        self.path = path
        self._kept = _Kept(run, books)
        self._turn = 0
        self._handle = -1
        try:
            data = read_state(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._failed(error) from None
        found = [kept for at in (0, SLOT_BYTES) if (kept := _read(data[at : at + SLOT_BYTES])) is not None]
        if found:
            self._turn, last = max(found, key=lambda kept: kept[0])
            if begun and last.run == run:
                books.catch_up(last.books)

    def write(self) -> None:
        """Note the books as they are now."""
        self._turn += 1
        data = _encode(self._kept)
        head = _HEAD.pack(0, self._turn, len(data))[CHECK_BYTES:]
        check = xxhash.xxh3_64_intdigest(head + data).to_bytes(CHECK_BYTES, "little")
        try:
            if self._handle < 0:
                self._handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            os.pwrite(self._handle, check + head + data, self._turn % 2 * SLOT_BYTES)
        except OSError as error:
            raise self._failed(error) from None

    def _failed(self, error: OSError) -> TerminalError:
        return TerminalError(
            f"the books in {self.path} cannot be kept: {error.strerror or error}",
            "free disk space or mend its permissions, then resume",
        )

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def _read(slot: bytes) -> tuple[int, _Kept] | None:
    """How often a slot was written, and what; None if it is not whole."""
    if len(slot) < _HEAD.size:
        return None
    check, turn, length = _HEAD.unpack_from(slot)
    if xxhash.xxh3_64_intdigest(slot[CHECK_BYTES : _HEAD.size + length]) != check:
        return None
    try:
        return turn, _decode(slot[_HEAD.size : _HEAD.size + length])
    except msgspec.MsgspecError:
        return None  # of another version
