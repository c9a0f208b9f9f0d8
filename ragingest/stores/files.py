"""Points for those who load them elsewhere: a working file, and at the end of a run one that other tools read.

    <folder>/<collection>/points.sqlite    every point as it is now; what a run is resumed into
    <folder>/<collection>/points.<ending>  all of them, written whole when a run has come to its end

An upsert is a transaction of the working file, so a point that was stored twice is there once, and one that
was deleted is not, whatever crashed in between. That costs the disk twice the space.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import msgspec
import numpy as np

from ragingest.documents import EmbeddedBatch, Fault, point_id
from ragingest.errors import TerminalError, UsageError
from ragingest.protocols import (
    DEFAULT_LAYOUT,
    Abilities,
    CollectionSpec,
    Hit,
    Query,
    SearchMode,
    StoredPoint,
    StoreLimits,
)
from ragingest.settings import Layout
from ragingest.sqlite import transaction
from ragingest.stores.columns import columns_of
from ragingest.stores.metadata import encode_metadata

__all__ = ["Export", "FileStore", "Row"]

WORKING_FILE = "points.sqlite"
# After a SIGKILL the kernel needs a moment to take the lock away.
LOCK_SECONDS = 3.0
PAGE_BYTES = 16384
WAL_PAGES = 4096
"""64 MB between copies of the log into the file."""
LOOKUP = 500
REPORT_ROWS = 1000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS points (
    number INTEGER PRIMARY KEY,
    point_id TEXT NOT NULL UNIQUE,
    id TEXT NOT NULL,
    chunk INTEGER NOT NULL,
    chunks INTEGER NOT NULL,
    text TEXT NOT NULL,
    digest TEXT NOT NULL,
    metadata BLOB NOT NULL,
    dense BLOB NOT NULL,
    indices BLOB,
    weights BLOB
);
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
INSERT OR IGNORE INTO meta VALUES ('changes', 0), ('sync', 0);
"""
_COLUMNS = "point_id, id, chunk, chunks, text, digest, metadata, dense, indices, weights"
_UPSERT = f"""
INSERT INTO points ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (point_id) DO UPDATE SET chunks = excluded.chunks, text = excluded.text, digest = excluded.digest,
    metadata = excluded.metadata, dense = excluded.dense, indices = excluded.indices, weights = excluded.weights
"""


class Row(NamedTuple):
    """A point as it is kept: `metadata` is JSON, vectors and weights are little-endian float32, indices uint32."""

    point_id: str
    id: str
    chunk: int
    chunks: int
    text: str
    digest: str
    metadata: bytes
    dense: bytes
    indices: bytes | None
    weights: bytes | None


class Export(Protocol):
    """A format of the file that others read."""

    name: str
    """Of the store."""
    ending: str

    def write(self, file: IO[bytes], spec: CollectionSpec, rows: Iterable[Row]) -> None:
        """Write all rows; holds a bounded number of them.

        Raises:
            OSError: the disk is full, or fails.
        """
        ...


class FileStore:
    """A collection in a folder, for one process at a time. It cannot be searched.

    Args:
        folder: holds collections.
        collection: its folder in there.
        export: what is written at the end.
    """

    limits = StoreLimits(max_points=512, max_bytes=8_000_000, concurrency=1)
    abilities = Abilities(search=False)
    forgets = False
    memory_bytes = 0

    def __init__(self, folder: Path, collection: str, export: Export, *, drop_text: bool = False) -> None:
        self.name = export.name
        self._folder = folder / collection
        self._collection = collection
        self._export = export
        self._drop_text = drop_text
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._spec: CollectionSpec | None = None

    # -- opening -----------------------------------------------------------------------------------

    def prepare(self, spec: CollectionSpec, layout: Layout = DEFAULT_LAYOUT) -> CollectionSpec:
        with self._explained("cannot be opened"):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._connect()
            existing = self._read_spec()
            if existing is None:
                with transaction(self._ready) as db:
                    db.execute("INSERT INTO meta VALUES ('spec', ?)", [msgspec.json.encode(spec)])
            elif (existing.dimensions, existing.sparse) != (spec.dimensions, spec.sparse):
                raise TerminalError(
                    f"the collection {self._collection} holds {_described(existing)}, "
                    f"but {spec.embedder} makes {_described(spec)}",
                    f"give another --collection, or remove {self._folder}",
                )
        self._spec = existing or spec
        return self._spec

    def describe(self, spec: CollectionSpec) -> None:
        with self._explained("cannot be written"), transaction(self._ready) as db:
            db.execute("UPDATE meta SET value = ? WHERE key = 'spec'", [msgspec.json.encode(spec)])
        self._spec = spec

    def open(self) -> CollectionSpec:
        if not (self._folder / WORKING_FILE).is_file():
            parent = self._folder.parent
            known = ", ".join(sorted(path.parent.name for path in parent.glob(f"*/{WORKING_FILE}"))) or "none"
            raise UsageError(
                f"there is no collection {self._collection} in {parent}",
                f"run ragingest run first, or give --collection (there: {known})",
            )
        with self._explained("cannot be opened"):
            self._connect()
            self._spec = self._read_spec()
        if self._spec is None:
            raise UsageError(f"the collection {self._collection} in {self._folder} is empty", "load it first")
        return self._spec

    def _connect(self) -> None:
        path = self._folder / WORKING_FILE
        db = sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False)
        self._db = db
        # Before anything is read: the first process to come has the file for itself until it ends.
        for pragma in (
            "locking_mode = EXCLUSIVE",
            f"page_size = {PAGE_BYTES}",
            "journal_mode = WAL",
            "synchronous = NORMAL",
            f"wal_autocheckpoint = {WAL_PAGES}",
        ):
            db.execute(f"PRAGMA {pragma}")
        db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")

    def _read_spec(self) -> CollectionSpec | None:
        row = self._ready.execute("SELECT value FROM meta WHERE key = 'spec'").fetchone()
        return None if row is None else msgspec.json.decode(row[0], type=CollectionSpec)

    @property
    def _ready(self) -> sqlite3.Connection:
        if self._db is None:
            raise RuntimeError("the store is used before prepare()")
        return self._db

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """One thread at a time; SQLite's errors and the system's as sentences."""
        try:
            with self._lock:
                yield
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
                raise TerminalError(
                    f"the collection {self._collection} is open in another process ({self._folder})",
                    "wait for it to end; a collection of files takes one process at a time",
                ) from None
            raise self._failed(what, error) from None
        except (sqlite3.DatabaseError, msgspec.MsgspecError) as error:
            raise TerminalError(
                f"the file {self._folder / WORKING_FILE} is damaged: {error}",
                f"restore it, or remove {self._folder} and load it again with --fresh",
            ) from None
        except OSError as error:
            raise self._failed(what, error.strerror or error) from None

    def _failed(self, what: str, error: object) -> TerminalError:
        return TerminalError(
            f"the collection {self._collection} in {self._folder} {what}: {error}",
            "check the folder, its permissions and the free disk space, then resume",
        )

    # -- writing -----------------------------------------------------------------------------------

    def encode(self, batch: EmbeddedBatch) -> list[bytes | Fault] | None:
        return None

    def upsert(self, batch: EmbeddedBatch) -> None:
        given = batch.dense.shape[1]
        if self._spec is not None and given != self._spec.dimensions:
            raise TerminalError(
                f"the collection {self._collection} holds {_described(self._spec)}, not {given}-dimensional ones",
                "give another --collection, or the embedder that made this one",
            )
        rows = self._rows(batch)
        with self._explained("cannot be written"), transaction(self._ready) as db:
            db.executemany(_UPSERT, rows)
            _note_change(db)

    def _rows(self, batch: EmbeddedBatch) -> list[Row]:
        columns = columns_of(batch, drop_text=self._drop_text)
        width = columns.dense.shape[1] * 4
        dense = columns.dense.astype("<f4").tobytes()
        rows = []
        for number, id_ in enumerate(columns.ids):
            indices = weights = None
            if columns.sparse is not None:
                terms, values = columns.sparse[number]
                indices, weights = np.asarray(terms, "<u4").tobytes(), np.asarray(values, "<f4").tobytes()
            rows.append(
                Row(
                    point_id(id_, columns.chunks[number]),
                    id_,
                    columns.chunks[number],
                    columns.totals[number],
                    columns.texts[number],
                    columns.digests[number],
                    encode_metadata(columns.metadata[number]),
                    dense[number * width : (number + 1) * width],
                    indices,
                    weights,
                )
            )
        return rows

    def delete(self, points: Sequence[tuple[str, int]]) -> None:
        ids = [(point_id(*point),) for point in points]
        with self._explained("cannot be written"), transaction(self._ready) as db:
            db.executemany("DELETE FROM points WHERE point_id = ?", ids)
            _note_change(db)

    def flush(self) -> None:
        # A commit with FULL syncs the log, and so everything that was committed before.
        with self._explained("cannot be written"):
            self._ready.execute("PRAGMA synchronous = FULL")
            try:
                with transaction(self._ready) as db:
                    db.execute("UPDATE meta SET value = value + 1 WHERE key = 'sync'")
            finally:
                self._ready.execute("PRAGMA synchronous = NORMAL")

    # -- reading -----------------------------------------------------------------------------------

    def count(self) -> int:
        with self._explained("cannot be read"):
            return int(self._ready.execute("SELECT count(*) FROM points").fetchone()[0])

    def fetch(self, points: Sequence[tuple[str, int]]) -> list[StoredPoint]:
        ids = [point_id(*point) for point in points]
        found: list[StoredPoint] = []
        with self._explained("cannot be read"):
            for start in range(0, len(ids), LOOKUP):
                some = ids[start : start + LOOKUP]
                marks = ", ".join("?" * len(some))
                query = f"SELECT {_COLUMNS} FROM points WHERE point_id IN ({marks})"
                found += [_stored(Row(*row)) for row in self._ready.execute(query, some)]
        return found

    def scan(self, after: str | None, limit: int) -> tuple[list[StoredPoint], str | None]:
        query = f"SELECT number, {_COLUMNS} FROM points WHERE number > ? ORDER BY number LIMIT ?"
        with self._explained("cannot be read"):
            rows = self._ready.execute(query, [int(after or 0), limit]).fetchall()
        return [_stored(Row(*row[1:])) for row in rows], str(rows[-1][0]) if len(rows) == limit else None

    def search(
        self, query: Query, limit: int, mode: SearchMode = "dense", filters: Mapping[str, str] | None = None
    ) -> list[Hit]:
        raise UsageError(f"the store {self.name} cannot search", "search the collection it was loaded into")

    # -- the file for others -----------------------------------------------------------------------

    def finish(self, report: Callable[[float], None] = lambda _share: None) -> None:
        """Write the file anew, unless it is there and nothing has changed since."""
        assert self._spec is not None
        path = self._folder / f"points.{self._export.ending}"
        with self._explained(f"cannot be written out to {path.name}"):
            db = self._ready
            changes = db.execute("SELECT value FROM meta WHERE key = 'changes'").fetchone()[0]
            written = db.execute("SELECT value FROM meta WHERE key = ?", [path.name]).fetchone()
            if written is None or written[0] != changes or not path.is_file():
                total = db.execute("SELECT count(*) FROM points").fetchone()[0]
                rows = db.execute(f"SELECT {_COLUMNS} FROM points ORDER BY number")
                with _replaced(path) as file:
                    self._export.write(file, self._spec, _reporting(map(Row._make, rows), total, report))
                with transaction(self._ready):
                    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", [path.name, changes])
        report(1.0)

    def close(self) -> None:
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None


def _note_change(db: sqlite3.Connection) -> None:
    db.execute("UPDATE meta SET value = value + 1 WHERE key = 'changes'")


def _reporting(rows: Iterable[Row], total: int, report: Callable[[float], None]) -> Iterator[Row]:
    for number, row in enumerate(rows):
        if number % REPORT_ROWS == 0:
            report(number / total)
        yield row


@contextmanager
def _replaced(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of the one at `path`, whole and on the disk, when the block ends without an error."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _stored(row: Row) -> StoredPoint:
    sparse = None
    if row.indices is not None and row.weights is not None:
        terms, weights = np.frombuffer(row.indices, "<u4"), np.frombuffer(row.weights, "<f4")
        sparse = dict(zip(terms.tolist(), weights.tolist(), strict=True))
    metadata: dict[str, Any] = msgspec.json.decode(row.metadata)
    dense = np.frombuffer(row.dense, "<f4").astype(np.float32)
    return StoredPoint(row.point_id, row.id, row.chunk, row.chunks, row.text, row.digest, metadata, dense, sparse)


def _described(spec: CollectionSpec) -> str:
    return f"{spec.dimensions}-dimensional vectors {'with' if spec.sparse else 'without'} BM25"
