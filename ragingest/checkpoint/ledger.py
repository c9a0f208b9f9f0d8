"""Which documents the job has stored: a SQLite file, so that memory does not grow with them.

SQLite in WAL mode, keyed by document id. Measured at 10 million random ids, looked up and written
in batches of 500: 14 us of CPU and 60 bytes on disk an id (1.5 us where ids come in order); LMDB
6 us, RocksDB 10 us. It was chosen because an ordinary commit survives SIGKILL without an fsync, a
loss of power leaves it consistent, and anybody can open it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from functools import update_wrapper
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from ragingest.checkpoint.ranges import RangeSet
from ragingest.documents import Stored
from ragingest.errors import TerminalError
from ragingest.sqlite import connect, transaction

__all__ = ["Ledger", "LedgerDamagedError", "LedgerRow"]

P = ParamSpec("P")
T = TypeVar("T")

LOOKUP = 500  # ids in one query; SQLite before 3.32 takes 999 parameters
CACHE_KIB = 2 * 1024  # reads go through the memory map: 16 MB cost as much CPU, and 12 MB more memory
WAL_PAGES = 4000  # 16 MB between copies of the WAL into the file

MOST_CHUNKS = 10_000_000  # of a document; what says more is damaged

# These tell of the disk or of other processes.
_NOT_DAMAGE = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_INTERRUPT,
}

_SCHEMA = """
CREATE TABLE IF NOT EXISTS documents (
    id TEXT PRIMARY KEY,
    digest BLOB NOT NULL,
    chunks INTEGER NOT NULL,
    run INTEGER NOT NULL,
    seen INTEGER NOT NULL,
    part INTEGER NOT NULL,
    ordinal INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT OR IGNORE INTO meta VALUES ('format', 1), ('sync', 0);
"""

_OF_THE_JOB = "(run > 0 OR seen > 0)"
"""Others were found in the store when the ledger was rebuilt from it: they may be another job's."""


class LedgerDamagedError(TerminalError):
    """The file is no ledger any more, or is at odds with itself."""


class LedgerRow(NamedTuple):
    """A document's id, and the columns of `Stored`."""

    id: str
    digest: bytes
    chunks: int
    run: int
    seen: int
    part: int
    ordinal: int


_TYPES = [str, bytes, int, int, int, int, int]


def _sound(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """The row, unless a flipped bit has made something else of it; SQLite itself has no checksums.

    Raises:
        DatabaseError: it has.
    """
    if [*map(type, row)] != _TYPES or not 0 <= row[2] <= MOST_CHUNKS:
        raise sqlite3.DatabaseError("a row of it makes no sense")
    return row


def _explained(method: Callable[Concatenate[Ledger, P], T]) -> Callable[Concatenate[Ledger, P], T]:
    def call(self: Ledger, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(self, *args, **kwargs)
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF in _NOT_DAMAGE:
                raise self._failed(str(error)) from None
            raise LedgerDamagedError(
                f"the ledger {self.path} is damaged: {error}",
                "start over with --fresh: what is stored already is overwritten, not doubled",
            ) from None

    return update_wrapper(call, method)


class Ledger:
    """Document id -> what of it is in the store. Used by one thread at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open()

    @_explained
    def _open(self) -> None:
        try:
            self._db = connect(
                self.path,
                _SCHEMA,
                "synchronous = NORMAL",
                f"cache_size = -{CACHE_KIB}",
                f"mmap_size = {1 << 36}",
                f"wal_autocheckpoint = {WAL_PAGES}",
            )
        except OSError as error:
            raise self._failed(error.strerror) from None

    def _failed(self, why: str | None) -> TerminalError:
        return TerminalError(
            f"the ledger {self.path} failed: {why}", "free disk space or mend its permissions, then resume"
        )

    @_explained
    def lookup(self, ids: Sequence[str]) -> dict[str, Stored]:
        """The rows of those `ids` that are known."""
        found: dict[str, Stored] = {}
        for start in range(0, len(ids), LOOKUP):
            some = ids[start : start + LOOKUP]
            query = f"SELECT * FROM documents WHERE id IN ({','.join('?' * len(some))})"
            for row in self._db.execute(query, some):
                found[row[0]] = Stored(*_sound(row)[1:])
        return found

    @_explained
    def commit(self, rows: Iterable[LedgerRow], removed: Iterable[str] = ()) -> None:
        """Write rows in one transaction. Survives the death of the process, not yet that of the machine."""
        with transaction(self._db) as db:
            db.executemany("INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            db.executemany("DELETE FROM documents WHERE id = ?", ((id_,) for id_ in removed))

    @_explained
    def sync(self) -> None:
        """Make all that is committed survive a loss of power: one commit that fsyncs the WAL."""
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("UPDATE meta SET value = value + 1 WHERE key = 'sync'")
        self._db.execute("PRAGMA synchronous = NORMAL")

    @_explained
    def distrust(self, run: int, done: Sequence[RangeSet]) -> int:
        """Empty the digests that `run` wrote outside `done` (one set a part); returns how many.

        After a loss of power the store may lack what was not flushed; those documents are done again.
        """
        doubtful = [
            (id_, digest)
            for id_, digest, part, ordinal in self._db.execute(
                "SELECT id, digest, part, ordinal FROM documents WHERE run = ?", (run,)
            )
            if part >= len(done) or ordinal not in done[part]
        ]
        self._db.executemany(
            "UPDATE documents SET digest = x'', seen = 0 WHERE id = ?", ((id_,) for id_, _ in doubtful)
        )
        return sum(digest != b"" for _, digest in doubtful)

    @_explained
    def distrust_all(self) -> None:
        """Empty every digest: all documents are new, but their number of chunks is still known."""
        self._db.execute("UPDATE documents SET digest = x'', seen = 0")

    @_explained
    def doubt(self, ids: Iterable[str]) -> None:
        """Empty the digests of those: the next run stores them again, whatever their content."""
        with transaction(self._db) as db:
            db.executemany("UPDATE documents SET digest = x'', seen = 0 WHERE id = ?", ((id_,) for id_ in ids))

    @_explained
    def touch(self, places: Iterable[tuple[str, int, int]], run: int) -> None:
        """Note that `run` has read these (id, part, ordinal), though what is stored of them is older."""
        with transaction(self._db) as db:
            db.executemany(
                "UPDATE documents SET seen = ?1, part = ?3, ordinal = ?4 WHERE id = ?2 AND seen <> ?1",
                ((run, *place) for place in places),
            )

    @_explained
    def unseen(self, run: int) -> tuple[int, int]:
        """How many documents an earlier run has read and `run` has not, and how many there are."""
        query = f"SELECT count(*) FILTER (WHERE seen <> ? AND {_OF_THE_JOB}), count(*) FROM documents"
        row = self._db.execute(query, (run,)).fetchone()
        return int(row[0]), int(row[1])

    @_explained
    def unseen_page(self, run: int, after: str | None, limit: int) -> list[LedgerRow]:
        """Up to `limit` rows of documents that `unseen` counts, in order of their ids, behind `after`."""
        rows = self._db.execute(
            f"SELECT * FROM documents WHERE (? IS NULL OR id > ?) AND seen <> ? AND {_OF_THE_JOB} ORDER BY id LIMIT ?",
            (after, after, run, limit),
        )
        return [LedgerRow(*_sound(row)) for row in rows]

    @_explained
    def page(self, after: str | None, limit: int) -> list[LedgerRow]:
        """Up to `limit` rows of documents that are stored whole, in order of their ids, behind `after`."""
        rows = self._db.execute(
            "SELECT * FROM documents WHERE (? IS NULL OR id > ?) AND digest <> x'' ORDER BY id LIMIT ?",
            (after, after, limit),
        )
        return [LedgerRow(*_sound(row)) for row in rows]

    @_explained
    def points(self) -> int:
        """How many points the documents have that are stored whole."""
        query = "SELECT coalesce(sum(chunks), 0) FROM documents WHERE digest <> x''"
        return int(self._db.execute(query).fetchone()[0])

    @_explained
    def count(self) -> int:
        """How many documents are known to be in the store, whole."""
        return int(self._db.execute("SELECT count(*) FROM documents WHERE digest <> x''").fetchone()[0])

    @_explained
    def is_empty(self) -> bool:
        """Whether no document is known to be in the store, whole: ends at the first one, unlike `count`."""
        return self._db.execute("SELECT 1 FROM documents WHERE digest <> x'' LIMIT 1").fetchone() is None

    @_explained
    def close(self) -> None:
        self._db.close()
