"""Which text the store has where: so that one that comes again in a run is read back, not bought again.

Tables of fingerprints that lead into a log of (document id, chunk number). What they say is a hint:
whoever follows it compares the text that the store has there. So they need neither checksums nor an
fsync; one that is lost or damaged costs money, never truth.

The law: hashing into buckets with two choices (Azar et al. 1999), in tables each eight times as large as
the one before. Nothing is moved when one is full, so no call takes long. They are mapped files: pages
that the kernel can drop, not memory of the process.

Measured in batches of 100, on a machine with other work: 2 to 3 us of CPU to note a text, 0.6 us a table to
miss one; a million texts take two tables, and 53 MB of disk with their ids.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from ragingest.documents import Chunk, Vectors
from ragingest.errors import RagingestError, TerminalError, TransientError
from ragingest.protocols import StoredPoint

__all__ = ["KnownTexts", "StoredTexts"]

Numbers = npt.NDArray[np.uint64]

Place = tuple[str, int]
"""Document id and chunk number."""

HEAD_BYTES = 65_536  # a mapping begins at a multiple of what the machine calls a page
SLOT_BYTES = 16  # fingerprint and place, 8 bytes each; a fingerprint of 0 is none
FIRST_SLOTS = 1 << 18
GROWTH = 8
BUCKET = 8  # slots; a text may stand in any slot of two buckets
ENTRY_BITS = 12  # of a place: which one of the entries written together
LENGTH = struct.Struct("<I")
_encode = msgspec.msgpack.Encoder().encode
_decode: Callable[[bytes], list[Place]] = msgspec.msgpack.Decoder(list[Place]).decode

_IN_BUCKET = np.arange(BUCKET, dtype=np.uint64)

FETCH = 100  # points in one question to the store


class KnownTexts:
    """Digest of a text -> where the store has it. `find` may be called from any thread, all else from one.

    Two files, `path` and `path`.ids; those of another `identity` are begun `anew` too. When the disk is
    full, what comes is not noted.

    Raises:
        TerminalError: the files cannot be opened.
    """

    def __init__(self, path: Path, identity: str, *, anew: bool = False) -> None:
        self.path = path
        self._head = hashlib.blake2b(f"ragingest texts 1\0{identity}".encode()).digest()
        self._tables: list[_Table] = []
        self._table = _open(path)
        try:
            self._log = _open(path.with_name(f"{path.name}.ids"))
        except BaseException:
            os.close(self._table)
            raise
        if anew or os.pread(self._table, len(self._head), 0) != self._head:
            os.ftruncate(self._table, 0)
            os.ftruncate(self._log, 0)
            os.pwrite(self._table, self._head, 0)
            os.ftruncate(self._table, HEAD_BYTES)
        self._end = os.fstat(self._log).st_size
        while self._start(len(self._tables) + 1) <= os.fstat(self._table).st_size:
            self._map()

    def find(self, digests: Sequence[bytes]) -> dict[bytes, int]:
        """The places, to be `read`, of those that are known. In mapped memory."""
        found: dict[bytes, int] = {}
        keys = _fingerprints(digests)
        for table in self._tables:  # the latest place of a text is in the latest table
            for number, place in table.find(keys):
                found[digests[number]] = place
        return found

    def read(self, place: int) -> Place | None:
        """What stands at a place; None if that cannot be made out."""
        offset, number = place >> ENTRY_BITS, place & (1 << ENTRY_BITS) - 1
        try:
            (length,) = LENGTH.unpack(os.pread(self._log, LENGTH.size, offset))
            return _decode(os.pread(self._log, length, offset + LENGTH.size))[number]
        except (OSError, struct.error, msgspec.MsgspecError, UnicodeDecodeError, OverflowError, IndexError):
            return None

    def note(self, places: Mapping[bytes, Place]) -> None:
        """The store has these texts there; survives the death of the process."""
        digests = list(places)
        most = 1 << ENTRY_BITS
        with suppress(OSError):
            for start in range(0, len(digests), most):
                some = digests[start : start + most]
                first = self._append([places[digest] for digest in some]) << ENTRY_BITS
                self._enter(_fingerprints(some), np.arange(first, first + len(some), dtype=np.uint64))

    def _append(self, places: list[Place]) -> int:
        """Where they stand in the log now."""
        entry = _encode(places)
        entry = LENGTH.pack(len(entry)) + entry
        if os.pwrite(self._log, entry, self._end) < len(entry):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        at = self._end
        self._end += len(entry)
        return at

    def _enter(self, keys: Numbers, places: Numbers) -> None:
        left = self._tables[-1].enter(keys, places) if self._tables else np.arange(len(keys))
        if len(left):
            start, end = (self._start(len(self._tables) + more) for more in (0, 1))
            _reserve(self._table, start, end - start)
            self._map()
            self._enter(keys[left], places[left])

    def _map(self) -> None:
        number = len(self._tables)
        slots = FIRST_SLOTS * GROWTH**number
        self._tables.append(_Table(mmap.mmap(self._table, slots * SLOT_BYTES, offset=self._start(number))))

    @staticmethod
    def _start(number: int) -> int:
        """The byte at which table `number` begins."""
        slots: int = FIRST_SLOTS * (GROWTH**number - 1) // (GROWTH - 1)
        return HEAD_BYTES + SLOT_BYTES * slots

    def close(self) -> None:
        if self._log < 0:
            return
        self._tables.clear()
        os.close(self._table)
        os.close(self._log)
        self._log = -1


class _Table:
    """Fingerprints, and behind them as many places: a reader who comes between the two reads a wrong hint."""

    def __init__(self, mapped: mmap.mmap) -> None:
        numbers: Numbers = np.frombuffer(mapped, "<u8")
        self._keys, self._places = numbers.reshape(2, -1)
        self._buckets = np.uint64(len(self._keys) // BUCKET - 1)

    def find(self, keys: Numbers) -> Iterator[tuple[int, int]]:
        """(number of the key, its place) of those that are here."""
        slots = self._slots(keys)
        rows, columns = np.nonzero(self._keys[slots] == keys[:, None])
        return zip(rows.tolist(), self._places[slots[rows, columns]].tolist(), strict=True)

    def enter(self, keys: Numbers, places: Numbers) -> Numbers:
        """The numbers of those for which there was no room."""
        numbers = np.arange(len(keys), dtype=np.uint64)
        while True:
            slots = self._slots(keys)
            held = self._keys[slots]
            here = held == keys[:, None]
            empty = (held == 0).reshape(len(keys), 2, BUCKET)
            room = empty.sum(axis=2)
            empty[:, 0] &= (room[:, 0] >= room[:, 1])[:, None]  # into the emptier one, so that both fill alike
            empty[:, 1] &= (room[:, 0] < room[:, 1])[:, None]
            usable = np.where(here.any(axis=1, keepdims=True), here, empty.reshape(held.shape))
            fits = usable.any(axis=1)
            chosen = slots[np.arange(len(keys)), usable.argmax(axis=1)]
            self._keys[chosen[fits]] = keys[fits]  # of several that choose the same slot one gets it
            done = fits & (self._keys[chosen] == keys)
            self._places[chosen[done]] = places[done]
            again = fits & ~done
            if not again.any():
                break
            left = ~done
            numbers, keys, places = numbers[left], keys[left], places[left]
        without_room: Numbers = numbers[~fits]
        return without_room

    def _slots(self, keys: Numbers) -> Numbers:
        """Where a key may stand: the slots of its two buckets, one row a key."""
        first, second = keys & self._buckets, (keys >> np.uint64(32)) & self._buckets
        both = np.stack([first, second], axis=1)[:, :, None]
        slots: Numbers = both * np.uint64(BUCKET) + _IN_BUCKET
        return slots.reshape(len(keys), 2 * BUCKET)


class StoredTexts:
    """Vectors of texts that the store has confirmed, read back from it.

    A vector comes back as the store keeps it: one for cosines scaled to length 1, which is the same
    direction, and as exact as the store's numbers are.

    Args:
        fetch: reads points; as `Store.fetch`.
    """

    def __init__(self, known: KnownTexts, fetch: Callable[[Sequence[Place]], list[StoredPoint]]) -> None:
        self._known = known
        self._fetch = fetch
        self._new: dict[bytes, Place] = {}
        self._settling: dict[bytes, Place] = {}
        self._changing = threading.Lock()

    def confirmed(self, chunks: Iterable[Chunk]) -> None:
        """The store has these, whose digests are known. In memory."""
        with self._changing:
            for chunk in chunks:
                if chunk.digest is not None:
                    self._new[chunk.digest] = (chunk.document.id, chunk.number)

    def likely(self, digests: Sequence[bytes]) -> list[bytes]:
        """Those that `get` may find: it need not be asked for the others. From any thread."""
        with self._changing:
            new = [digest for digest in digests if digest in self._new or digest in self._settling]
        return [*new, *self._known.find(list(digests))] if new else list(self._known.find(list(digests)))

    def get(self, texts: Mapping[bytes, str]) -> dict[bytes, Vectors]:
        """The vectors, shape (d,), of those texts that the store still has where it had them. Blocks."""
        places = self._places(texts)
        asked = list(places)
        found: dict[bytes, Vectors] = {}
        try:
            for start in range(0, len(asked), FETCH):
                some = asked[start : start + FETCH]
                points = {(point.id, point.chunk): point for point in self._fetch([places[d] for d in some])}
                for digest in some:
                    point = points.get(places[digest])
                    if point is not None and _is_of(point, digest, texts[digest]):
                        found[digest] = point.dense
        except (TransientError, RagingestError):
            pass  # whoever writes to the store hears of it too, and waits or stops; here it can be done without
        return found

    def settle(self) -> None:
        """Write down what is only in memory yet. By one thread at a time."""
        with self._changing:
            self._settling, self._new = self._new, {}
        if self._settling:
            self._known.note(self._settling)
        self._settling = {}

    def _places(self, texts: Mapping[bytes, str]) -> dict[bytes, Place]:
        offsets = self._known.find(list(texts))
        places = {digest: place for digest, at in offsets.items() if (place := self._known.read(at)) is not None}
        with self._changing:
            for newer in (self._settling, self._new):
                places.update({digest: newer[digest] for digest in texts if digest in newer})
        return places

    def close(self) -> None:
        self.settle()
        self._known.close()


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise TerminalError(
            f"{path} cannot be opened: {error.strerror}",
            "delete it: it only spares buying a text twice; then resume",
        ) from None


def _is_of(point: StoredPoint, digest: bytes, text: str) -> bool:
    """Whether the vector of a point is that of a text; where the store keeps no texts, by the document's digest."""
    return point.text == text or (point.chunks == 1 and point.digest.startswith(digest.hex()))


def _fingerprints(digests: Sequence[bytes]) -> Numbers:
    """The first 8 of their 16 bytes, as numbers; never 0."""
    keys: Numbers = np.maximum(np.frombuffer(b"".join(digests), "<u8")[::2], 1)
    return keys


def _reserve(handle: int, start: int, length: int) -> None:
    """Let the file have room: a mapped page for which the disk has none would kill the process.

    Raises:
        OSError: there is no room.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, start, length)
        return
    zeros = bytes(1 << 20)
    for at in range(start, start + length, len(zeros)):
        os.pwrite(handle, zeros[: start + length - at], at)
