"""Vectors that were paid for, on disk before the store is asked to take them.

A file of fixed-size records (checksum, digest of the text, vector), each read back only if its
checksum holds, so that damage costs the records it hits and no other. The spool of a job knows its
records from a dict, as many as are pending, and uses the room of dropped ones again; the cache
shared by jobs only grows, and finds them through a SQLite file that is made anew from the records
whenever it is lost, damaged or behind.

Measured at 1,536 dimensions in batches of 100, CPU a vector on tmpfs: put and drop in the spool 3.1 us
(SQLite with BLOB rows: 8 to 14), put in the cache 8 us, of which 2 are the bare write (BLOB rows:
11 to 18), and 6.2 KB on disk (6.7 to 8.4). The index of 10 million vectors takes 14 to 23 us a put,
7 us a get, 28 bytes a vector on disk, and some 70 MB of memory in all.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from heapq import heappop, heappush
from itertools import count
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from ragingest.checkpoint.records import RecordFile, Vector
from ragingest.documents import TEXT_DIGEST_BYTES
from ragingest.errors import TerminalError
from ragingest.sqlite import connect, transaction

__all__ = ["PaidVectors"]

T = TypeVar("T")

SLACK_BYTES = 16 << 20  # room that a spool may keep for nothing
SPREAD = 4  # slots a pending record, beyond which a spool is made compact

MOVED = 500  # vectors at a time, from one file to another
LOOKUP = 500  # digests in one query
CATCH_UP = 200_000  # rows in one commit while the index is made: some 30 MB
INDEX_CACHE_KIB = 16 * 1024
INDEX_WAIT_SECONDS = 60

_SCHEMA = """
CREATE TABLE IF NOT EXISTS slots (digest BLOB PRIMARY KEY, slot INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT OR IGNORE INTO meta VALUES ('format', 1), ('covered', 0);
"""

# These tell of the disk or of other processes: an index made anew would meet them again.
_NOT_DAMAGE = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_IOERR,
}
_DAMAGE = {sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS}


class PaidVectors:
    """Digest of a text -> the vector that one model made of it. Used by one thread at a time, but for
    `likely` and `drop`, which any thread may call at any time and which never wait for the disk.

    The vectors of each model and number of dimensions have a file of their own, named after `path`.
    Without `keep` it belongs to one job, which drops what its store has confirmed; with `keep` it
    is a cache that any number of processes use at once.

    Raises (every method):
        TerminalError: the disk is full or the files cannot be used. What they hold stays there.
    """

    def __init__(self, path: Path, model: str, dimensions: int, keep: bool) -> None:
        identity = hashlib.blake2b(f"{model}\0{dimensions}".encode(), digest_size=8).hexdigest()
        self.path = path.with_name(f"{path.name}.{identity}")
        self.model = model
        self.dimensions = dimensions
        with self._explained():
            self._file = RecordFile(self.path, model, dimensions, "cache" if keep else "spool")
            try:
                self._kept: _Kept = _Cache(self._file) if keep else _Spool(self._file)
            except BaseException:
                self._file.close()
                raise

    @staticmethod
    def files(path: Path) -> list[Path]:
        """All files that were made for `path`, of any model, whole or set aside: what forgetting them deletes."""
        ours = re.compile(
            re.escape(path.name) + r"\.[0-9a-f]{16}(\.index(-wal|-shm)?|\.known(\.ids)?|\.damaged\d*)?"
        ).fullmatch
        return sorted(file for file in path.parent.glob("*") if ours(file.name))

    @property
    def damaged(self) -> int:
        """How many records this instance has found damaged; to `get` they are missing."""
        return self._file.damaged

    @property
    def warning(self) -> str:
        """What a person should know of damage to the files as such; empty if there was none."""
        return "; ".join(self._file.warnings)

    def likely(self, digests: Sequence[bytes]) -> Sequence[bytes]:
        """Those that `get` may find: it need not be asked for the others."""
        return self._kept.likely(digests)

    def get(self, digests: Sequence[bytes]) -> dict[bytes, Vector]:
        """The vectors, shape (d,), of those texts that are here and whole. Read-only arrays."""
        with self._explained():
            return self._kept.get(digests)

    def put(self, digests: Sequence[bytes], vectors: Vector) -> None:
        """Keep row i of `vectors`, shape (n, d), for text i; on return it survives the death of the process.

        A text that a spool has already keeps its vector. When the disk fills up in the middle,
        those that were written whole are kept.
        """
        if vectors.shape != (len(digests), self.dimensions):
            raise ValueError(f"{len(digests)} digests and vectors of shape {vectors.shape}")
        if not {TEXT_DIGEST_BYTES}.issuperset(map(len, digests)):
            raise ValueError(f"a digest has {TEXT_DIGEST_BYTES} bytes")
        with self._explained():
            if digests:
                self._kept.put(digests, vectors)

    def drop(self, digests: Sequence[bytes]) -> None:
        """The store has confirmed all that was waiting for these: a spool forgets them, a cache does not.

        A process that dies before the next `sync` may find them again, which is no harm: they are
        what the model made of these texts.
        """
        self._kept.drop(digests)

    def retain(self, digests: Set[bytes]) -> None:
        """Nothing waits for any other than these: the others are dropped."""
        self._kept.retain(digests)

    def move_to(self, cache: PaidVectors) -> None:
        """Put all that is in this spool there, and leave nothing here."""
        with self._explained():
            digests = self._kept.digests()
        for start in range(0, len(digests), MOVED):
            found = self.get(digests[start : start + MOVED])
            if found:
                cache.put(list(found), np.stack(list(found.values())))
        self.drop(digests)

    def sync(self) -> None:
        """Make all that was put survive a loss of power, and all that was dropped stay so."""
        with self._explained():
            self._kept.settle()
            self._file.sync()

    def __len__(self) -> int:
        """How many vectors are here. A cache counts them: O(n)."""
        with self._explained():
            return len(self._kept)

    def bytes_on_disk(self) -> int:
        """Of the file and its index."""
        with self._explained():
            return self._file.bytes_on_disk() + self._kept.index_bytes()

    def close(self) -> None:
        """A spool that holds nothing leaves no file."""
        with self._explained():
            self._kept.close()
            self._file.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise TerminalError(
                f"the paid vectors in {self.path} cannot be kept: {getattr(error, 'strerror', None) or error}",
                "free disk space or mend its permissions, then resume: what it holds is not bought again",
            ) from None


class _Kept(Protocol):
    """How the records of a file are found; the contract is that of `PaidVectors`."""

    def likely(self, digests: Sequence[bytes]) -> Sequence[bytes]: ...

    def get(self, digests: Sequence[bytes]) -> dict[bytes, Vector]: ...

    def put(self, digests: Sequence[bytes], vectors: Vector) -> None: ...

    def drop(self, digests: Sequence[bytes]) -> None: ...

    def settle(self) -> None:
        """Write down what is only in memory yet."""
        ...

    def retain(self, digests: Set[bytes]) -> None: ...

    def digests(self) -> list[bytes]:
        """All that are here."""
        ...

    def __len__(self) -> int: ...

    def index_bytes(self) -> int: ...

    def close(self) -> None: ...


class _Spool:
    """Pending vectors of one job: a dict of them, and the lowest free slots used first.

    The file is at most `SPREAD` times what is pending, and twice `SLACK_BYTES`, as of the last put
    or sync. What is dropped in between stays where it is until then, so a read finds it whole.
    """

    def __init__(self, file: RecordFile) -> None:
        self._file = file
        self._slots: dict[bytes, int] = {}
        self._owners: list[bytes | None] = []
        self._free: list[int] = []  # a heap; an entry counts only while its slot has no owner
        self._unmarked: set[int] = (
            set()
        )  # dropped, and the file does not say so: most are used again before it must
        self._slack = SLACK_BYTES // file.record_bytes
        self._changing = threading.Lock()
        for slot, digest in file.scan():
            if digest and digest not in self._slots:
                self._slots[digest] = slot
                self._owners.append(digest)
                continue
            if digest is None:
                file.damaged += 1
            if digest != b"":
                file.drop([slot])
            self._owners.append(None)
            heappush(self._free, slot)
        self._shrink()

    def likely(self, digests: Sequence[bytes]) -> Sequence[bytes]:
        slots = self._slots
        return [digest for digest in digests if digest in slots]

    def get(self, digests: Sequence[bytes]) -> dict[bytes, Vector]:
        found: dict[bytes, Vector] = {}
        for digest in digests:
            slot = self._slots.get(digest)
            if slot is None or digest in found:
                continue
            vector = self._file.vector_of(slot, digest)
            if vector is None:
                self.drop([digest])
            else:
                found[digest] = vector
        return found

    def put(self, digests: Sequence[bytes], vectors: Vector) -> None:
        self._shrink()
        rows = {digest: row for row, digest in enumerate(digests) if digest not in self._slots}
        if not rows:
            return
        new = list(rows)
        if len(new) < len(digests):
            vectors = vectors[list(rows.values())]
        records = self._file.encode(new, vectors)
        size = self._file.record_bytes
        with self._changing:
            slots = self._take(len(new))
        first = 0
        try:
            while first < len(new):
                end = first + 1
                while end < len(new) and slots[end] == slots[end - 1] + 1:
                    end += 1
                self._file.write(slots[first], records[first * size : end * size])
                self._own(new[first:end], slots[first:end])
                first = end
        except OSError:
            self._own_what_is_whole(new[first:], slots[first:])
            raise

    def drop(self, digests: Sequence[bytes]) -> None:
        with self._changing:
            slots = [self._slots.pop(digest) for digest in digests if digest in self._slots]
            self._unmarked.update(slots)
            owners, free = self._owners, self._free
            for slot in slots:
                owners[slot] = None
                heappush(free, slot)

    def settle(self) -> None:
        self._shrink()
        self._mark()

    def retain(self, digests: Set[bytes]) -> None:
        self.drop(list(self._slots.keys() - digests))

    def digests(self) -> list[bytes]:
        return list(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    def index_bytes(self) -> int:
        return 0

    def close(self) -> None:
        if self._slots:
            self._mark()
        else:
            self._file.path.unlink(missing_ok=True)

    def _mark(self) -> None:
        with self._changing:
            unmarked, self._unmarked = sorted(self._unmarked), set()
        self._file.drop(unmarked)

    def _take(self, n: int) -> list[int]:
        """The lowest `n` free slots, ascending, those behind the last included."""
        slots: list[int] = []
        owners, free, end = self._owners, self._free, len(self._owners)
        while free and len(slots) < n:
            slot = heappop(free)
            if slot < end and owners[slot] is None:
                slots.append(slot)
        more = n - len(slots)
        owners.extend([None] * more)
        slots.extend(range(end, end + more))
        return slots

    def _own(self, digests: Sequence[bytes], slots: Sequence[int]) -> None:
        with self._changing:
            for digest, slot in zip(digests, slots, strict=True):
                self._slots[digest] = slot
                self._owners[slot] = digest
            self._unmarked.difference_update(slots)

    def _own_what_is_whole(self, digests: Sequence[bytes], slots: Sequence[int]) -> None:
        for digest, slot in zip(digests, slots, strict=True):
            if self._file.holds(slot, digest):
                self._own([digest], [slot])
            else:
                with self._changing:
                    heappush(self._free, slot)

    def _shrink(self) -> None:
        """Give room back, when there is much."""
        owners = self._owners
        if len(owners) > max(self._slack, SPREAD * len(self._slots)):
            self._compact()
        with self._changing:
            while owners and owners[-1] is None:
                owners.pop()
            if self._file.slots() - len(owners) > self._slack:
                self._file.truncate(len(owners))
                self._unmarked = {slot for slot in self._unmarked if slot < len(owners)}

    def _compact(self) -> None:
        """Move the last records into the first free slots. At each moment every record is whole in one slot."""
        with self._changing:
            owners = list(self._owners)
        pending = len(owners) - owners.count(None)
        free = (slot for slot in range(pending) if owners[slot] is None)
        for slot in range(pending, len(owners)):
            digest = owners[slot]
            if digest is None:
                continue
            record = self._file.record_of(slot, digest)
            if record is None:
                self.drop([digest])
                continue
            target = next(free)
            self._file.write(target, record)
            with self._changing:
                self._owners[slot] = None
                self._unmarked.add(slot)
                if self._slots.get(digest) == slot:
                    self._slots[digest] = target
                    self._owners[target] = digest
                    self._unmarked.discard(target)
                else:  # dropped meanwhile
                    self._unmarked.add(target)
        with self._changing:
            self._free = [slot for slot, owner in enumerate(self._owners) if owner is None]


class _Cache:
    """All vectors ever put, by any process: appended to the file, found through an index on disk.

    The file is the truth. The index covers its first slots; whoever has the file's lock adds those
    that are not covered yet, so one who died between the two loses nothing.
    """

    def __init__(self, file: RecordFile) -> None:
        self._file = file
        self._index = file.path.with_name(file.path.name + ".index")
        self._db: sqlite3.Connection | None = None
        self._indexed(lambda _: None)

    def likely(self, digests: Sequence[bytes]) -> Sequence[bytes]:
        return digests

    def get(self, digests: Sequence[bytes]) -> dict[bytes, Vector]:
        return self._indexed(lambda db: self._get(db, digests))

    def put(self, digests: Sequence[bytes], vectors: Vector) -> None:
        records = self._file.encode(digests, vectors)

        def append(db: sqlite3.Connection) -> None:
            slot = self._file.slots()
            self._file.write(slot, records)
            _cover(db, zip(digests, count(slot), strict=False), slot + len(digests))

        self._indexed(append)

    def drop(self, digests: Sequence[bytes]) -> None:
        pass

    def settle(self) -> None:
        pass

    def retain(self, digests: Set[bytes]) -> None:
        pass

    def digests(self) -> list[bytes]:
        return self._indexed(lambda db: [digest for (digest,) in db.execute("SELECT digest FROM slots")])

    def __len__(self) -> int:
        return self._indexed(lambda db: int(db.execute("SELECT count(*) FROM slots").fetchone()[0]))

    def index_bytes(self) -> int:
        return sum(path.stat().st_size for path in self._index_files() if path.exists())

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _get(self, db: sqlite3.Connection, digests: Sequence[bytes]) -> dict[bytes, Vector]:
        found: dict[bytes, Vector] = {}
        lost: list[tuple[bytes]] = []
        for start in range(0, len(digests), LOOKUP):
            some = digests[start : start + LOOKUP]
            query = f"SELECT digest, slot FROM slots WHERE digest IN ({','.join('?' * len(some))})"
            for digest, slot in db.execute(query, some).fetchall():
                vector = self._file.vector_of(slot, digest)
                if vector is None:
                    lost.append((digest,))
                else:
                    found[digest] = vector
        if lost:
            db.executemany("DELETE FROM slots WHERE digest = ?", lost)
        return found

    def _indexed(self, action: Callable[[sqlite3.Connection], T]) -> T:
        """Do it alone among processes, with an index that covers the file; a damaged index is made anew, once."""
        with self._file.locked():
            try:
                return action(self._caught_up())
            except (sqlite3.DatabaseError, TypeError, ValueError, OverflowError) as error:
                code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
                if code & 0xFF in _NOT_DAMAGE and code not in _DAMAGE:
                    raise
                self._discard_index()
                self._file.warnings.append(f"{self._index} was damaged; it was made anew from {self._file.path}")
                return action(self._caught_up())

    def _caught_up(self) -> sqlite3.Connection:
        """The index, with every slot of the file in it."""
        db = self._db = self._db or self._connect()
        slots = self._file.slots()
        covered = max(0, int(db.execute("SELECT value FROM meta WHERE key = 'covered'").fetchone()[0]))
        if covered > slots:
            self._file.damaged += db.execute("DELETE FROM slots WHERE slot >= ?", (slots,)).rowcount
            _cover(db, (), slots)
        rows: list[tuple[bytes, int]] = []
        for slot, digest in self._file.scan(covered):
            if digest:
                rows.append((digest, slot))
            else:
                self._file.damaged += 1
            if len(rows) == CATCH_UP:
                _cover(db, rows, slot + 1)
                rows.clear()
        if covered < slots:
            _cover(db, rows, slots)
        return db

    def _connect(self) -> sqlite3.Connection:
        return connect(
            self._index,
            _SCHEMA,
            "synchronous = NORMAL",
            f"cache_size = -{INDEX_CACHE_KIB}",
            wait_seconds=INDEX_WAIT_SECONDS,
        )

    def _discard_index(self) -> None:
        """A process that has it open goes on with what it has, and stays right: the records are checked."""
        self.close()
        for path in self._index_files():
            path.unlink(missing_ok=True)

    def _index_files(self) -> list[Path]:
        return [self._index.with_name(self._index.name + end) for end in ("", "-wal", "-shm")]


def _cover(db: sqlite3.Connection, rows: Iterable[tuple[bytes, int]], covered: int) -> None:
    """Note where these are, and that the index knows the first `covered` slots."""
    with transaction(db):
        db.executemany("INSERT OR REPLACE INTO slots VALUES (?, ?)", sorted(rows))
        db.execute("UPDATE meta SET value = ? WHERE key = 'covered'", (covered,))
