"""Qdrant Edge: Qdrant's engine inside the process, a folder a collection.

<folder>/<collection>/collection.json   which embedder made it, dimensions, vectors
<folder>/<collection>/shard/            the engine's files
<folder>/<collection>/lock              one process a collection
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import qdrant_edge as edge
from filelock import FileLock, Timeout

from ragingest.documents import EmbeddedBatch, Fault, point_id
from ragingest.errors import RejectedError, TerminalError, UsageError
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
from ragingest.stores.columns import Columns, columns_of
from ragingest.stores.qdrant_layout import (
    DENSE,
    PREFETCH_FACTOR,
    SPARSE,
    check_dimensions,
    check_mode,
    described,
    hit_of,
    stored_point,
    wanted_values,
)

__all__ = ["QdrantEdgeStore", "collections", "read_spec"]

# The engine writes through memory maps: a full disk would end the process instead of failing a call.
# A segment that is written to keeps its ids and words in memory, a kilobyte a point with texts of 600 characters, and
# builds them up again whenever it is opened. So after this many points it is closed for good, and its words are on disk.
# That takes a fifth of the CPU that writing them took.
SEGMENT_POINTS = 100_000
FREE_BYTES_NEEDED = 128 * 1024 * 1024
SPEC_FILE = "collection.json"
# After a SIGKILL the store's own process needs a moment to notice that it is alone.
LOCK_SECONDS = 3.0


class QdrantEdgeStore:
    """A collection in a folder. Cosine distance; searched exactly (no HNSW graph is built)."""

    name = "qdrant-edge"
    # 100 to 500 points an upsert are fastest; the bytes only bound what is held at once.
    limits = StoreLimits(max_points=256, max_bytes=8_000_000, concurrency=1)
    abilities = Abilities()
    forgets = False
    memory_bytes = 0

    def __init__(self, folder: Path, collection: str, *, drop_text: bool = False) -> None:
        self._folder = folder / collection
        self._collection = collection
        self._drop_text = drop_text
        self._shard: edge.EdgeShard | None = None
        self._lock: FileLock | None = None
        self._spec: CollectionSpec | None = None
        self._written = 0
        """Points since a segment was closed last."""

    # -- opening -----------------------------------------------------------------------------------

    def prepare(self, spec: CollectionSpec, layout: Layout = DEFAULT_LAYOUT) -> CollectionSpec:
        self._acquire(create=True)
        try:
            return self._prepare(spec)
        except BaseException:
            self.close()
            raise

    def _prepare(self, spec: CollectionSpec) -> CollectionSpec:
        self._check_disk()
        existing = read_spec(self._folder)
        if existing is None:
            self._write_spec(spec)
        elif (existing.dimensions, existing.sparse) != (spec.dimensions, spec.sparse):
            raise TerminalError(
                f"the collection {self._collection} holds {described(existing)}, "
                f"but {spec.embedder} makes {described(spec)}",
                f"give another --collection, or remove {self._folder}",
            )
        self._spec = existing or spec
        shard = self._folder / "shard"
        with self._engine("cannot be opened"):
            if not shard.exists():
                unfinished = self._folder / "shard.new"
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                edge.EdgeShard.create(str(unfinished), _config(spec)).close()
                unfinished.rename(shard)
            self._shard = edge.EdgeShard.load(str(shard), _config(spec))
        return self._spec

    def describe(self, spec: CollectionSpec) -> None:
        self._write_spec(spec)
        self._spec = spec

    def open(self) -> CollectionSpec:
        spec = read_spec(self._folder)
        if spec is None:
            known = ", ".join(collections(self._folder.parent)) or "none"
            raise UsageError(
                f"there is no collection {self._collection} in {self._folder.parent}",
                f"run ragingest run first, or give --collection (there: {known})",
            )
        return self.prepare(spec)

    def _acquire(self, *, create: bool) -> None:
        try:
            if create:
                self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = FileLock(self._folder / "lock", timeout=LOCK_SECONDS, mode=0o600)
            self._lock.acquire(poll_interval=0.02)
        except Timeout:
            self._lock = None
            raise TerminalError(
                f"the collection {self._collection} is open in another process ({self._folder})",
                "wait for it to end; an embedded collection takes one process at a time",
            ) from None
        except OSError as error:
            self._lock = None
            raise self._failed("cannot be written", error.strerror or error) from None

    def _write_spec(self, spec: CollectionSpec) -> None:
        try:
            temporary = self._folder / f"{SPEC_FILE}.tmp"
            temporary.write_bytes(msgspec.json.format(msgspec.json.encode(spec), indent=1))
            temporary.rename(self._folder / SPEC_FILE)
        except OSError as error:
            raise self._failed("cannot be written", error.strerror or error) from None

    def _check_disk(self) -> None:
        free = shutil.disk_usage(self._folder).free
        if free < FREE_BYTES_NEEDED:
            raise TerminalError(
                f"the disk of {self._folder} has {free / 1e6:.0f} MB left; the store stops at "
                f"{FREE_BYTES_NEEDED / 1e6:.0f} MB, before it is full",
                "free some space, then resume",
            )

    @contextmanager
    def _engine(self, what: str) -> Iterator[None]:
        """Turn whatever the engine raises into a `TerminalError`."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  # the engine raises nothing more specific
            raise self._failed(what, error) from None

    def _failed(self, what: str, error: object) -> TerminalError:
        return TerminalError(
            f"the collection {self._collection} in {self._folder} {what}: {error}",
            "check the folder, its permissions and the free disk space, then resume",
        )

    @property
    def _held(self) -> CollectionSpec:
        assert self._spec is not None
        return self._spec

    @property
    def _open_shard(self) -> edge.EdgeShard:
        if self._shard is None:
            raise RuntimeError("the store is used before prepare()")
        return self._shard

    # -- writing -----------------------------------------------------------------------------------

    def encode(self, batch: EmbeddedBatch) -> list[bytes | Fault] | None:
        return None

    def upsert(self, batch: EmbeddedBatch) -> None:
        self.upsert_columns(columns_of(batch, drop_text=self._drop_text))

    def upsert_columns(self, columns: Columns) -> None:
        """`upsert`, of a batch that came from another process."""
        shard = self._open_shard
        self._check_disk()
        # The engine would apply half of a batch of wrong vectors, and write it to its log.
        check_dimensions(self._collection, self._held, columns.dense.shape[1])
        points = []
        for row, numbers in enumerate(columns.dense):
            # Half the CPU of a list of floats, which leave the caches before the engine reads them.
            vector = memoryview(numbers)
            vectors: Any = vector
            if columns.sparse is not None:
                vectors = {DENSE: vector, SPARSE: edge.SparseVector(*columns.sparse[row])}
            document, chunk = columns.ids[row], columns.chunks[row]
            payload = {
                "id": document,
                "chunk": chunk,
                "chunks": columns.totals[row],
                "text": columns.texts[row],
                "digest": columns.digests[row],
                "metadata": columns.metadata[row],
            }
            try:
                points.append(edge.Point(point_id(document, chunk), vectors, payload))
            except (ValueError, TypeError, OverflowError) as error:
                raise RejectedError("payload", f"the store cannot keep this document: {error}") from None
        with self._engine("refused an upsert"):
            shard.update(edge.UpdateOperation.upsert_points(points))
            self._written += len(points)
            if self._written >= SEGMENT_POINTS:
                self._written = 0
                shard.optimize()

    def delete(self, points: Sequence[tuple[str, int]]) -> None:
        shard = self._open_shard
        with self._engine("refused a deletion"):
            shard.update(edge.UpdateOperation.delete_points([point_id(*point) for point in points]))

    def flush(self) -> None:
        shard = self._open_shard
        with self._engine("could not flush to disk"):
            shard.flush()

    # -- reading -----------------------------------------------------------------------------------

    def count(self) -> int:
        shard = self._open_shard
        with self._engine("could not be counted"):
            return shard.count(edge.CountRequest(exact=True))

    def fetch(self, points: Sequence[tuple[str, int]]) -> list[StoredPoint]:
        shard = self._open_shard
        ids: list[Any] = [point_id(*point) for point in points]
        with self._engine("could not be read"):
            records = shard.retrieve(ids, with_payload=True, with_vector=True)
        return [stored_point(record.id, record.payload or {}, record.vector) for record in records]

    def scan(self, after: str | None, limit: int) -> tuple[list[StoredPoint], str | None]:
        shard = self._open_shard
        request = edge.ScrollRequest(offset=after, limit=limit, with_payload=True, with_vector=True)
        with self._engine("could not be read"):
            records, following = shard.scroll(request)
        return [
            stored_point(record.id, record.payload or {}, record.vector) for record in records
        ], None if following is None else str(following)

    def search(
        self, query: Query, limit: int, mode: SearchMode = "dense", filters: Mapping[str, str] | None = None
    ) -> list[Hit]:
        shard = self._open_shard
        check_mode(self._collection, self._held, query, mode)
        check_dimensions(self._collection, self._held, len(query.dense))
        only = _filter(filters)
        weights = query.sparse
        if isinstance(weights, tuple):
            weights = edge.SparseVector(*weights)
        dense = edge.Query.Nearest(query.dense.tolist(), using=DENSE)
        if mode == "hybrid":
            each = limit * PREFETCH_FACTOR
            sparse = edge.Query.Nearest(weights, using=SPARSE)  # type: ignore[arg-type]  # checked above
            request = edge.QueryRequest(
                limit=limit,
                query=edge.Fusion.Dbsf(),  # type: ignore[arg-type]  # the stub leaves out nested variants
                prefetches=[
                    edge.Prefetch(limit=each, query=dense, filter=only),
                    edge.Prefetch(limit=each, query=sparse, filter=only),
                ],
                with_payload=True,
            )
        else:
            chosen = dense
            if mode == "sparse":
                chosen = edge.Query.Nearest(weights, using=SPARSE)  # type: ignore[arg-type]  # checked above
            request = edge.QueryRequest(limit=limit, query=chosen, with_payload=True, filter=only)
        with self._engine("could not be searched"):
            found = shard.query(request)
        return [hit_of(point.score, point.payload or {}) for point in found]

    def finish(self, report: Callable[[float], None] = lambda _share: None) -> None:
        pass

    def close(self) -> None:
        if self._shard is not None:
            self._shard.close()
            self._shard = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def read_spec(folder: Path) -> CollectionSpec | None:
    """What the collection in `folder` holds; None if there is none.

    Raises:
        TerminalError: its description is damaged.
    """
    path = folder / SPEC_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=CollectionSpec)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise TerminalError(f"{folder} is not a folder", "give another --store-path or --collection") from None
    except (OSError, ValueError) as error:
        raise TerminalError(
            f"{path} cannot be read: {error}", "restore it, or remove the folder and run again"
        ) from None


def collections(folder: Path) -> list[str]:
    """Names of the collections in a folder."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if (path / SPEC_FILE).is_file())


def _config(spec: CollectionSpec) -> edge.EdgeConfig:
    words = edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf, memory=edge.Memory.Cold)
    return edge.EdgeConfig(
        vectors=edge.EdgeVectorParams(size=spec.dimensions, distance=edge.Distance.Cosine),
        sparse_vectors={SPARSE: words} if spec.sparse else None,
        # Building the graph holds the GIL (13 s for 20,000 x 384) and exact search needs none.
        hnsw_config=edge.HnswIndexConfig(m=0, ef_construct=100, full_scan_threshold=10_000),
        # A segment is closed once, and not merged with others again and again: that would take quadratic time.
        optimizers=edge.EdgeOptimizersConfig(
            default_segment_number=1,
            max_segment_size=_kilobytes(SEGMENT_POINTS, spec.dimensions),
            indexing_threshold=_kilobytes(SEGMENT_POINTS // 2, spec.dimensions),
        ),
        id_tracker_memory=edge.Memory.Cold,
    )


def _kilobytes(points: int, dimensions: int) -> int:
    """Of their dense vectors, by which the engine measures segments."""
    return max(1, points * dimensions * 4 // 1024)


def _filter(filters: Mapping[str, str] | None) -> edge.Filter | None:
    conditions: list[Any] = [
        edge.Filter(
            should=[
                edge.FieldCondition(key=path, match=edge.MatchValue(_value(value))) for path, value in alternatives
            ]
        )
        for alternatives in wanted_values(filters)
    ]
    return edge.Filter(must=conditions) if conditions else None


def _value(value: str | int | bool) -> Any:
    """The engine's binding takes Python's True for the integer 1, and numpy's for what it is."""
    return np.bool_(value) if isinstance(value, bool) else value
