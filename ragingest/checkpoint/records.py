"""Records of one size in numbered slots of a file: damage costs the records that it hits, and no other."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash

from ragingest.checkpoint.files import sync_folder
from ragingest.documents import TEXT_DIGEST_BYTES

__all__ = ["RecordFile", "Vector"]

Vector = npt.NDArray[np.float32]

CHECK_BYTES = 8  # XXH3: a fifth of the CPU of CRC-32, and it keeps the interpreter's lock for so short a text
HEADER_BYTES = CHECK_BYTES + TEXT_DIGEST_BYTES
BLOCK_BYTES = 4096  # in front of the records: whose they are
_OFFSETS = range(1 << 62)
DROPPED = b"dropped".ljust(HEADER_BYTES, b".")


class RecordFile:
    """Records of one size in numbered slots, behind a block that says whose they are.

    A checksum covers the digest and the vector and begins from the block, so a record of another
    model, of other dimensions or of another use is as good as damaged.
    """

    def __init__(self, path: Path, model: str, dimensions: int, use: str) -> None:
        self.path = path
        self.damaged = 0
        self.warnings: list[str] = []
        self.record_bytes = HEADER_BYTES + 4 * dimensions
        told = msgspec.json.encode({"model": model, "dimensions": dimensions, "use": use})
        seed = hashlib.blake2b(told, digest_size=16).hexdigest().encode()
        block = b"ragingest vectors 2\n" + seed + b"\n" + told[: BLOCK_BYTES // 2] + b"\n"
        self._block = block.ljust(BLOCK_BYTES, b"\n")
        self._seed = xxhash.xxh3_64_intdigest(self._block)
        self._folder_synced = False
        self._encoded = np.empty((0, self.record_bytes), np.uint8)  # memory used again is not zeroed again
        self._handle = self._open()
        try:
            with self.locked():
                pass
        except BaseException:
            self.close()
            raise

    def _open(self) -> int:
        return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone among all processes that have the file; opens it anew if it was replaced. Not reentrant."""
        fcntl.flock(self._handle, fcntl.LOCK_EX)
        try:
            while not self._is_ours():
                former, self._handle = self._handle, self._open()
                os.close(former)
                self._folder_synced = False
                fcntl.flock(self._handle, fcntl.LOCK_EX)
            yield
        finally:
            fcntl.flock(self._handle, fcntl.LOCK_UN)

    def _is_ours(self) -> bool:
        """Whether what is locked is the file at `path`, with our block; sets a file aside that has none of our records."""
        try:
            if not os.path.samestat(self.path.lstat(), os.fstat(self._handle)):
                return False
        except FileNotFoundError:
            return False
        block = self._read(BLOCK_BYTES, 0)
        if block == self._block:
            return True
        if not self._block.startswith(block):
            if not self._has_records_of_ours():
                self._set_aside()
                return False
            self.damaged += 1
            self.warnings.append(f"{self.path} was damaged where it says whose it is; that was mended")
        self._write(self._block, 0)
        return True

    def _has_records_of_ours(self) -> bool:
        """One that is whole, or nothing but dropped ones."""
        damaged = self.slots() == 0
        for _, digest in self.scan():
            if digest:
                return True
            damaged |= digest is None
        return not damaged

    def _set_aside(self) -> None:
        for number in count(1):
            aside = self.path.with_name(f"{self.path.name}.damaged{number if number > 1 else ''}")
            if not aside.exists():
                self.path.rename(aside)
                self.warnings.append(
                    f"{self.path} is damaged as a whole: it is now {aside}, and a new one is begun"
                )
                return

    def slots(self) -> int:
        """How many there are, a cut last one included."""
        return max(0, -(-(os.fstat(self._handle).st_size - BLOCK_BYTES) // self.record_bytes))

    def encode(self, digests: Sequence[bytes], vectors: Vector) -> memoryview:
        """The bytes of records, one behind the other, until the next call."""
        if len(self._encoded) < len(digests):
            self._encoded = np.empty((len(digests), self.record_bytes), np.uint8)
        data = self._encoded[: len(digests)]
        data[:, CHECK_BYTES:HEADER_BYTES] = np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), -1)
        data[:, HEADER_BYTES:] = np.ascontiguousarray(vectors, "<f4").view(np.uint8)
        view = data.reshape(-1).data
        size, seed, check = self.record_bytes, self._seed, xxhash.xxh3_64_digest
        checks = b"".join([check(view[at + CHECK_BYTES : at + size], seed) for at in range(0, len(view), size)])
        data[:, :CHECK_BYTES] = np.frombuffer(checks, np.uint8).reshape(-1, CHECK_BYTES)
        return view

    def write(self, slot: int, records: memoryview | bytes) -> None:
        """Put encoded records into `slot` and those that follow it."""
        self._write(records, self._offset(slot))

    def read(self, slot: int) -> bytes | None:
        """The record if it is whole; `DROPPED` if it was dropped; None if it is damaged."""
        data = self._read(self.record_bytes, self._offset(slot))
        if data.startswith(DROPPED):
            return DROPPED
        whole = len(data) == self.record_bytes
        if whole and xxhash.xxh3_64_digest(memoryview(data)[CHECK_BYTES:], self._seed) == data[:CHECK_BYTES]:
            return data
        return None

    def holds(self, slot: int, digest: bytes) -> bool:
        """Whether the record is whole and that of `digest`."""
        data = self.read(slot)
        return data is not None and data[CHECK_BYTES:HEADER_BYTES] == digest

    def record_of(self, slot: int, digest: bytes) -> bytes | None:
        """The record, if it is whole and that of `digest`; else None, and it counts as damaged."""
        data = self.read(slot)
        if data is None or data[CHECK_BYTES:HEADER_BYTES] != digest:
            self.damaged += 1
            return None
        return data

    def vector_of(self, slot: int, digest: bytes) -> Vector | None:
        """As `record_of`, decoded."""
        data = self.record_of(slot, digest)
        return None if data is None else np.frombuffer(data, "<f4", offset=HEADER_BYTES)

    def scan(self, first: int = 0) -> Iterator[tuple[int, bytes | None]]:
        """(slot, digest) from slot `first` on; the digest is empty for a dropped record, None for a damaged one."""
        for slot in range(first, self.slots()):
            data = self.read(slot)
            if data is DROPPED:
                yield slot, b""
            else:
                yield slot, data and data[CHECK_BYTES:HEADER_BYTES]

    def drop(self, slots: Iterable[int]) -> None:
        handle, size = self._handle, self.record_bytes
        for slot in slots:
            if os.pwrite(handle, DROPPED, BLOCK_BYTES + slot * size) < HEADER_BYTES:
                self._write(DROPPED, self._offset(slot))

    def truncate(self, slots: int) -> None:
        os.ftruncate(self._handle, self._offset(slots))

    def bytes_on_disk(self) -> int:
        return os.fstat(self._handle).st_size

    def sync(self) -> None:
        os.fsync(self._handle)
        if not self._folder_synced:
            sync_folder(self.path.parent)
            self._folder_synced = True

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _offset(self, slot: int) -> int:
        return BLOCK_BYTES + slot * self.record_bytes

    def _read(self, length: int, offset: int) -> bytes:
        """What can be read: a bad sector, or an offset that no file has, is as good as a missing record."""
        if offset not in _OFFSETS:
            return b""
        try:
            return os.pread(self._handle, length, offset)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return b""

    def _write(self, data: memoryview | bytes, offset: int) -> None:
        rest = memoryview(data)
        while rest:
            written = os.pwrite(self._handle, rest, offset)
            rest = rest[written:]
            offset += written
