"""What a Qdrant server does with a request, whichever way it came: collections, each on Qdrant's own engine.

Requests are the client's own REST models. Checks and messages are those of Qdrant 1.16 and later.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as edge
from qdrant_client import models

__all__ = ["Engine", "RefusedError"]

DISTANCES = {
    models.Distance.COSINE: edge.Distance.Cosine,
    models.Distance.DOT: edge.Distance.Dot,
    models.Distance.EUCLID: edge.Distance.Euclid,
    models.Distance.MANHATTAN: edge.Distance.Manhattan,
}
INDEX_TYPES = {kind: getattr(edge.PayloadSchemaType, kind.value.title()) for kind in models.PayloadSchemaType}


class RefusedError(Exception):
    """The request is answered with this status and message, and with a Retry-After as written."""

    def __init__(self, status: int, message: str, retry_after: int | float | str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after = retry_after


class Engine:
    """All collections of a server. Callable from any thread; one request at a time.

    `polls` is how often a collection whose graph was switched on is shown as yellow before it is green.
    """

    def __init__(self, folder: Path, *, polls: int = 2) -> None:
        self._folder = folder
        self._polls = polls
        self._collections: dict[str, _Collection] = {}
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Drop every collection."""
        for name in self.names():
            self.drop(name)

    def names(self) -> list[str]:
        with self._lock:
            return sorted(self._collections)

    def exists(self, name: str) -> bool:
        with self._lock:
            return name in self._collections

    def create(self, name: str, request: models.CreateCollection) -> None:
        with self._lock:
            if name in self._collections:
                raise RefusedError(409, f"Wrong input: Collection `{name}` already exists!")
            self._collections[name] = _Collection(self._folder / uuid.uuid4().hex, request)

    def drop(self, name: str) -> bool:
        with self._lock:
            found = self._collections.pop(name, None)
            if found is not None:
                found.shard.close()
            return found is not None

    def info(self, name: str) -> models.CollectionInfo:
        with self._lock:
            return self._find(name).info()

    def change(self, name: str, request: models.UpdateCollection) -> None:
        with self._lock:
            self._find(name).change(request, self._polls)

    def index(self, name: str, request: models.CreateFieldIndex) -> None:
        with self._lock:
            self._find(name).index(request)

    def upsert(self, name: str, points: Sequence[models.PointStruct]) -> None:
        with self._lock:
            self._find(name).upsert(points)

    def delete(self, name: str, ids: Sequence[models.ExtendedPointId]) -> None:
        with self._lock:
            self._find(name).shard.update(edge.UpdateOperation.delete_points(_ids(ids)))

    def retrieve(self, name: str, request: models.PointRequest) -> list[models.Record]:
        with self._lock:
            found = self._find(name).shard.retrieve(
                _ids(request.ids), with_payload=bool(request.with_payload), with_vector=bool(request.with_vector)
            )
        return [_record(record) for record in found]

    def scroll(self, name: str, request: models.ScrollRequest) -> models.ScrollResult:
        with self._lock:
            collection = self._find(name)
            collection.check_filter(request.filter)
            found, following = collection.shard.scroll(
                edge.ScrollRequest(
                    offset=None if request.offset is None else _ids([request.offset])[0],
                    limit=request.limit or 10,
                    filter=_filter(request.filter),
                    with_payload=request.with_payload is not False,
                    with_vector=bool(request.with_vector),
                )
            )
        return models.ScrollResult(
            points=[_record(record) for record in found],
            next_page_offset=None if following is None else str(following),
        )

    def count(self, name: str, request: models.CountRequest) -> int:
        with self._lock:
            collection = self._find(name)
            collection.check_filter(request.filter)
            return collection.shard.count(edge.CountRequest(exact=True, filter=_filter(request.filter)))

    def query(self, name: str, request: models.QueryRequest) -> list[models.ScoredPoint]:
        with self._lock:
            return self._find(name).query(request)

    def _find(self, name: str) -> _Collection:
        try:
            return self._collections[name]
        except KeyError:
            raise RefusedError(404, f"Not found: Collection `{name}` doesn't exist!") from None


class _Collection:
    def __init__(self, folder: Path, request: models.CreateCollection) -> None:
        vectors = request.vectors
        if isinstance(vectors, models.VectorParams):
            vectors = {"": vectors}
        self.dense: dict[str, models.VectorParams] = vectors or {}
        self.sparse: dict[str, models.SparseVectorParams] = request.sparse_vectors or {}
        self.request = request
        self.hnsw = models.HnswConfig(m=16, ef_construct=100, full_scan_threshold=10_000)
        self.optimizers = models.OptimizersConfig(
            deleted_threshold=0.2,
            vacuum_min_vector_number=1000,
            default_segment_number=0,
            indexing_threshold=10_000,
            flush_interval_sec=5,
        )
        self.metadata = dict(request.metadata or {})
        self.strict = request.strict_mode_config
        self.schema: dict[str, models.PayloadSchemaType] = {}
        self.unindexed = 0
        """Polls for which it is shown as yellow."""
        self._merge(request.hnsw_config, request.optimizers_config)
        folder.mkdir(parents=True)
        self.shard = edge.EdgeShard.create(str(folder), self._config())

    def _config(self) -> edge.EdgeConfig:
        return edge.EdgeConfig(
            vectors={
                name: edge.EdgeVectorParams(size=vector.size, distance=DISTANCES[vector.distance])
                for name, vector in self.dense.items()
            },
            sparse_vectors={
                name: edge.EdgeSparseVectorParams(
                    modifier=edge.Modifier.Idf if vector.modifier == models.Modifier.IDF else None
                )
                for name, vector in self.sparse.items()
            },
            hnsw_config=edge.HnswIndexConfig(m=0, ef_construct=100, full_scan_threshold=10_000),
        )

    def _merge(self, hnsw: models.HnswConfigDiff | None, optimizers: models.OptimizersConfigDiff | None) -> None:
        if hnsw is not None:
            self.hnsw = self.hnsw.model_copy(update=hnsw.model_dump(exclude_none=True))
        if optimizers is not None:
            self.optimizers = self.optimizers.model_copy(update=optimizers.model_dump(exclude_none=True))

    def change(self, request: models.UpdateCollection, polls: int) -> None:
        before = self.hnsw.m
        self._merge(request.hnsw_config, request.optimizers_config)
        if before == 0 and self.hnsw.m:
            self.unindexed = polls
        for key, value in (request.metadata or {}).items():
            if value is None:
                self.metadata.pop(key, None)
            else:
                self.metadata[key] = value
        if request.strict_mode_config is not None:
            self.strict = request.strict_mode_config

    def info(self) -> models.CollectionInfo:
        points = self.shard.count(edge.CountRequest(exact=True))
        left = self.unindexed
        self.unindexed = max(0, left - 1)
        vectors: Any = self.dense
        if self.dense.keys() == {""}:
            vectors = self.dense[""]
        strict = None
        if self.strict is not None:
            strict = models.StrictModeConfigOutput(**self.strict.model_dump(exclude_none=True))
        return models.CollectionInfo(
            status=models.CollectionStatus.YELLOW if left else models.CollectionStatus.GREEN,
            optimizer_status=models.OptimizersStatusOneOf.OK,
            points_count=points,
            indexed_vectors_count=points // (left + 1) if self.hnsw.m else 0,
            segments_count=1,
            config=models.CollectionConfig(
                params=models.CollectionParams(
                    vectors=vectors or None,
                    sparse_vectors=self.sparse or None,
                    shard_number=self.request.shard_number or 1,
                ),
                hnsw_config=self.hnsw,
                optimizer_config=self.optimizers,
                wal_config=models.WalConfig(wal_capacity_mb=32, wal_segments_ahead=0),
                quantization_config=self.request.quantization_config,
                strict_mode_config=strict,
                metadata=self.metadata or None,
            ),
            payload_schema={
                name: models.PayloadIndexInfo(data_type=kind, points=points) for name, kind in self.schema.items()
            },
        )

    def index(self, request: models.CreateFieldIndex) -> None:
        kind = request.field_schema
        if not isinstance(kind, models.PayloadSchemaType):
            raise RefusedError(400, "this server indexes by a type's name only")
        self.shard.update(edge.UpdateOperation.create_field_index(request.field_name, INDEX_TYPES[kind]))
        self.schema[request.field_name] = kind

    # Points.

    def upsert(self, points: Sequence[models.PointStruct]) -> None:
        most = self._strict("upsert_max_batchsize")
        if most is not None and len(points) > most:
            raise RefusedError(
                400,
                f'Bad request: Limit exceeded {len(points)} > {most} for "upsert limit". '
                f'Help: Reduce the "upsert limit" parameter to or below {most}.',
            )
        made = [
            edge.Point(_ids([point.id])[0], self._vectors(point.vector), point.payload or {}) for point in points
        ]
        self.shard.update(edge.UpdateOperation.upsert_points(made))

    def _strict(self, name: str) -> Any:
        return getattr(self.strict, name) if self.strict is not None and self.strict.enabled else None

    def _vectors(self, vector: Any) -> Any:
        named = vector if isinstance(vector, dict) else {"": vector}
        made: dict[str, Any] = {}
        for name, one in named.items():
            if isinstance(one, models.SparseVector):
                if name not in self.sparse:
                    raise RefusedError(400, f"Wrong input: Not existing vector name error: {name}")
                if len(set(one.indices)) != len(one.indices):
                    raise RefusedError(422, "Validation error: indices: must be unique")
                made[name] = edge.SparseVector(list(one.indices), list(one.values))
                continue
            if name not in self.dense:
                raise RefusedError(400, f"Wrong input: Not existing vector name error: {name}")
            self._check_size(name, len(one))
            made[name] = list(one)
        return made

    def _check_size(self, name: str, given: int) -> None:
        size = self.dense[name].size
        if given != size:
            raise RefusedError(400, f"Wrong input: Vector dimension error: expected dim: {size}, got {given}")

    # Searching.

    def check_filter(self, only: models.Filter | None) -> None:
        if only is not None and self._strict("unindexed_filtering_retrieve") is False:
            for key in sorted(_keys(only) - self.schema.keys()):
                raise RefusedError(
                    400,
                    f'Bad request: Index required but not found for "{key}" of one of the following types: '
                    "[bool, integer, keyword, uuid]. Help: Create an index for this key or use a different filter.",
                )

    def query(self, request: models.QueryRequest) -> list[models.ScoredPoint]:
        prefetches = request.prefetch or []
        if isinstance(prefetches, models.Prefetch):
            prefetches = [prefetches]
        for only in (request.filter, *(prefetch.filter for prefetch in prefetches)):
            self.check_filter(only)
        found = self.shard.query(
            edge.QueryRequest(
                limit=request.limit or 10,
                query=self._scoring(request.query, request.using),
                prefetches=[
                    edge.Prefetch(
                        limit=prefetch.limit or 10,
                        query=self._scoring(prefetch.query, prefetch.using),
                        filter=_filter(prefetch.filter),
                    )
                    for prefetch in prefetches
                ],
                filter=_filter(request.filter),
                with_payload=bool(request.with_payload),
            )
        )
        return [
            models.ScoredPoint(id=str(point.id), version=point.version, score=point.score, payload=point.payload)
            for point in found
        ]

    def _scoring(self, query: Any, using: str | None) -> Any:
        if isinstance(query, models.NearestQuery):
            query = query.nearest
        if isinstance(query, models.FusionQuery):
            if query.fusion != models.Fusion.DBSF:
                raise RefusedError(400, "this server fuses by DBSF only")
            return edge.Fusion.Dbsf()
        name = using or ""
        if isinstance(query, models.SparseVector):
            if name not in self.sparse:
                raise RefusedError(400, f"Wrong input: Not existing vector name error: {name}")
            return edge.Query.Nearest(edge.SparseVector(list(query.indices), list(query.values)), using=name)
        if name not in self.dense:
            raise RefusedError(400, f"Wrong input: Not existing vector name error: {name}")
        self._check_size(name, len(query))
        return edge.Query.Nearest(list(query), using=name)


def _ids(ids: Sequence[models.ExtendedPointId]) -> list[Any]:
    """Ids as the engine takes them.

    Raises:
        RefusedError: neither an unsigned integer nor a UUID.
    """
    for point_id in ids:
        try:
            if isinstance(point_id, int) and not 0 <= point_id < 1 << 64:
                raise ValueError
            if isinstance(point_id, str):
                uuid.UUID(point_id)
        except ValueError:
            raise RefusedError(
                400,
                f"Format error in JSON body: value {point_id} is not a valid point ID, "
                "valid values are either an unsigned integer or a UUID",
            ) from None
    return [str(point_id) if isinstance(point_id, uuid.UUID) else point_id for point_id in ids]


def _record(record: edge.Record) -> models.Record:
    return models.Record(id=str(record.id), payload=record.payload, vector=_vector_out(record.vector))


def _vector_out(vector: Any) -> Any:
    if isinstance(vector, edge.SparseVector):
        return models.SparseVector(indices=vector.indices, values=vector.values)
    if isinstance(vector, dict):
        named = {name: _vector_out(one) for name, one in vector.items()}
        return named[""] if named.keys() == {""} else named
    return vector


def _keys(only: models.Filter) -> set[str]:
    found: set[str] = set()
    for condition in _conditions(only.must) + _conditions(only.should) + _conditions(only.must_not):
        found |= _keys(condition) if isinstance(condition, models.Filter) else {condition.key}
    return found


def _conditions(given: Any) -> list[Any]:
    if given is None:
        return []
    return list(given) if isinstance(given, list) else [given]


def _filter(only: models.Filter | None) -> edge.Filter | None:
    if only is None:
        return None
    make: Callable[[Any], list[Any] | None] = lambda given: [_condition(one) for one in _conditions(given)] or None  # noqa: E731
    return edge.Filter(must=make(only.must), should=make(only.should), must_not=make(only.must_not))


def _condition(condition: Any) -> Any:
    if isinstance(condition, models.Filter):
        return _filter(condition)
    if isinstance(condition, models.FieldCondition) and isinstance(condition.match, models.MatchValue):
        value: Any = condition.match.value
        if isinstance(value, bool):
            value = np.bool_(value)  # the binding takes Python's True for the integer 1
        return edge.FieldCondition(key=condition.key, match=edge.MatchValue(value))
    raise RefusedError(400, "this server filters by values only")
