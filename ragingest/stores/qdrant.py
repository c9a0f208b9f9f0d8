"""A Qdrant server, over REST (`http://`, `https://`) or gRPC (`grpc://`, `grpcs://`).

The client library does everything but the upserts, which go from numpy to the wire (`qdrant_rest`, `qdrant_grpc`).
Who embedded a collection stands in the collection's own metadata, where the server has that (1.16 and later).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import msgspec
from qdrant_client import QdrantClient, models

from ragingest.documents import EmbeddedBatch, Fault, point_id
from ragingest.errors import RejectedError, TerminalError, UsageError
from ragingest.pacing.retries import patiently
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
from ragingest.stores.qdrant_errors import MissingError, ServerErrors
from ragingest.stores.qdrant_grpc import OPTIONS, GrpcUpserts, is_timeout
from ragingest.stores.qdrant_layout import (
    DENSE,
    PREFETCH_FACTOR,
    SPARSE,
    check_dimensions,
    check_mode,
    described,
    hit_of,
    path_of,
    stored_point,
    wanted_values,
)
from ragingest.stores.qdrant_rest import RestUpserts

__all__ = ["QdrantStore"]

T = TypeVar("T")

# Qdrant advises 64 to 256 points a request.
MAX_POINTS = 256
CONCURRENCY = 8
REST_PORT = 6333
GRPC_PORT = 6334
# Qdrant's default, and what a bulk load ends with.
HNSW_M = 16
POLL_SECONDS = 1.0
OURS = "ragingest"
COMPLETED = "completed"
INDEX_REQUIRED = "Index required but not found"
# Of the data types that an index takes, those that `--filter` can match.
INDEX_TYPES = ("keyword", "integer", "bool", "uuid", "float", "datetime", "text", "geo")


class _Address(NamedTuple):
    rest: bool
    secure: bool
    host: str
    port: int


class QdrantStore:
    """A collection of a Qdrant server. Cosine distance; see `qdrant_layout` for what a point holds.

    Args:
        url: `http(s)://host[:6333][/prefix]` or `grpc(s)://host[:6334]`.
        timeout: seconds for one request.
        sleep: between two looks at a collection that is being indexed.

    The key is taken from QDRANT_API_KEY.
    """

    name = "qdrant"
    abilities = Abilities(layout=frozenset({"bulk", "on_disk", "quantization", "index_metadata"}))
    forgets = False
    memory_bytes = 0

    def __init__(
        self,
        url: str,
        collection: str,
        *,
        timeout: float,
        drop_text: bool = False,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        address = _address(url)
        key = _key()
        self._url = url
        self._collection = collection
        self._drop_text = drop_text
        self._sleep = sleep
        self._spec: CollectionSpec | None = None
        self._bulk = False
        self._errors = ServerErrors(url, collection, key)
        self._upserts: RestUpserts | GrpcUpserts
        if address.rest:
            self._upserts = RestUpserts(
                _with_port(url, address), collection, key, timeout, CONCURRENCY, self._errors
            )
        else:
            target = f"{address.host}:{address.port}"
            self._upserts = GrpcUpserts(target, address.secure, collection, key, timeout, self._errors)
        self._dial = partial(_client, url, address, key, timeout)
        self._client = self._dial()
        self.limits = StoreLimits(MAX_POINTS, self._upserts.max_bytes, CONCURRENCY, adaptive=True)

    # -- opening -----------------------------------------------------------------------------------

    def prepare(self, spec: CollectionSpec, layout: Layout = DEFAULT_LAYOUT) -> CollectionSpec:
        indexes = _indexes(layout.index_metadata)
        info = self._info()
        if info is None:
            self._create(spec, layout)
            info = self._existing()
        held = self._check(spec, info)
        if not _said_of(info) and not info.points_count:
            self._change(metadata=_saying(spec, bulk=False))
            held = spec
        self._spec = held
        self._bulk = layout.bulk
        for path, kind in indexes.items():
            if path not in info.payload_schema:
                self._call(
                    self._client.create_payload_index, self._collection, path, models.PayloadSchemaType(kind)
                )
        return held

    def _create(self, spec: CollectionSpec, layout: Layout) -> None:
        try:
            self._call(
                self._client.create_collection,
                self._collection,
                vectors_config=models.VectorParams(
                    size=spec.dimensions, distance=models.Distance.COSINE, on_disk=layout.on_disk or None
                ),
                sparse_vectors_config={SPARSE: models.SparseVectorParams(modifier=models.Modifier.IDF)}
                if spec.sparse
                else None,
                hnsw_config=models.HnswConfigDiff(m=0) if layout.bulk else None,
                quantization_config=_QUANTIZATION[layout.quantization] if layout.quantization else None,
                metadata=_saying(spec, bulk=layout.bulk),
            )
        except TerminalError:
            if self._info() is None:  # else another process was faster
                raise

    def describe(self, spec: CollectionSpec) -> None:
        bulk = bool(_said_of(self._existing()).get("bulk"))
        self._change(metadata=_saying(spec, bulk=bulk))
        self._spec = spec

    def open(self) -> CollectionSpec:
        info = self._info()
        if info is None:
            found = self._call(self._client.get_collections).collections
            known = ", ".join(sorted(collection.name for collection in found)) or "none"
            raise UsageError(
                f"there is no collection {self._collection} at {self._url}",
                f"run ragingest run first, or give --collection (there: {known})",
            )
        held = _held(info)
        if isinstance(held, str):
            raise TerminalError(
                f"the collection {self._collection} at {self._url} holds {held}, which ragingest does not read",
                "give another --collection",
            )
        self._spec = held
        return held

    def _check(self, spec: CollectionSpec, info: models.CollectionInfo) -> CollectionSpec:
        held = _held(info)
        if isinstance(held, str) or (held.dimensions, held.sparse) != (spec.dimensions, spec.sparse):
            there = held if isinstance(held, str) else described(held)
            raise TerminalError(
                f"the collection {self._collection} at {self._url} holds {there}, "
                f"but {spec.embedder} makes {described(spec)} for cosine distance",
                "give another --collection, or delete this one",
            )
        return held

    def _info(self) -> models.CollectionInfo | None:
        try:
            return self._call(self._client.get_collection, self._collection)
        except MissingError:
            return None

    def _existing(self) -> models.CollectionInfo:
        return self._call(self._client.get_collection, self._collection)

    def _call(self, method: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call the client, and sort what it raises; what the server will never do is for a person to mend."""
        try:
            return method(*args, **kwargs)
        except Exception as error:
            if is_timeout(error):
                self._client = self._dial()
            ours = self._errors.of(error)
            if ours is error:
                raise
            if isinstance(ours, RejectedError):
                ours = TerminalError(
                    f"{self._url} refused: {ours}", "check the collection's settings on the server"
                )
            raise ours from None

    # -- writing -----------------------------------------------------------------------------------

    def encode(self, batch: EmbeddedBatch) -> list[bytes | Fault]:
        return self._upserts.encode(batch, drop_text=self._drop_text)

    def upsert(self, batch: EmbeddedBatch) -> None:
        check_dimensions(self._collection, self._ready, batch.dense.shape[1])
        self._confirm(self._upserts.send(self._encoded(batch) if batch.wire is None else batch.wire))

    def _encoded(self, batch: EmbeddedBatch) -> list[bytes]:
        wire = []
        for point in self.encode(batch):
            if isinstance(point, Fault):
                raise RejectedError(*point)
            wire.append(point)
        return wire

    @property
    def _ready(self) -> CollectionSpec:
        if self._spec is None:
            raise RuntimeError("the store is used before prepare()")
        return self._spec

    def _confirm(self, status: str) -> None:
        """`acknowledged` and `wait_timeout` mean that it is in the log, not that it can be found."""
        if status != COMPLETED:
            raise self._errors.not_applied(status)

    def delete(self, points: Sequence[tuple[str, int]]) -> None:
        if points:
            result = self._call(
                self._client.delete,
                self._collection,
                models.PointIdsList(points=[point_id(*point) for point in points]),
                wait=True,
                ordering=models.WriteOrdering.MEDIUM,
            )
            self._confirm(str(result.status))

    def flush(self) -> None:
        """What is `completed` is in the server's log; syncing that is the server's business."""

    # -- reading -----------------------------------------------------------------------------------

    def count(self) -> int:
        return self._call(self._client.count, self._collection, exact=True).count

    def fetch(self, points: Sequence[tuple[str, int]]) -> list[StoredPoint]:
        if not points:
            return []
        ids = [point_id(*point) for point in points]
        found = self._call(self._client.retrieve, self._collection, ids, with_payload=True, with_vectors=True)
        return [self._stored(record) for record in found]

    def scan(self, after: str | None, limit: int) -> tuple[list[StoredPoint], str | None]:
        found, following = self._call(
            self._client.scroll, self._collection, offset=after, limit=limit, with_payload=True, with_vectors=True
        )
        return [self._stored(record) for record in found], None if following is None else str(following)

    def _stored(self, record: models.Record) -> StoredPoint:
        try:
            return stored_point(record.id, record.payload or {}, record.vector)
        except (KeyError, TypeError):
            raise TerminalError(
                f"the point {record.id} of the collection {self._collection} was not stored by ragingest",
                "give another --collection",
            ) from None

    def search(
        self, query: Query, limit: int, mode: SearchMode = "dense", filters: Mapping[str, str] | None = None
    ) -> list[Hit]:
        check_dimensions(self._collection, self._ready, len(query.dense))
        check_mode(self._collection, self._ready, query, mode)
        request = _request(query, limit, mode, _filter(filters))
        try:
            found = self._call(
                self._client.query_points, self._collection, limit=limit, with_payload=True, **request
            )
        except TerminalError as error:
            if INDEX_REQUIRED in error.message:
                raise UsageError(
                    f"the collection {self._collection} lets nobody filter by keys without an index",
                    f"load it with --index-metadata {','.join(filters or ())}",
                ) from None
            raise
        return [hit_of(point.score, point.payload or {}) for point in found.points]

    # -- after the load ----------------------------------------------------------------------------

    def finish(self, report: Callable[[float], None] = lambda _share: None) -> None:
        """Index what was loaded in bulk, and wait until that is done."""
        info = self._existing()
        if not self._is_deferred(info):
            return
        self._change(hnsw_config=models.HnswConfigDiff(m=HNSW_M))
        self._wait_until_indexed(report)
        if said := _said_of(info):
            self._change(metadata={OURS: {**said, "bulk": False}})

    def _change(self, **settings: Any) -> None:
        self._call(self._client.update_collection, self._collection, **settings)

    def _is_deferred(self, info: models.CollectionInfo) -> bool:
        """Whether a bulk load left the graph out; a server without metadata leaves it to this run to know."""
        said = _said_of(info)
        return bool(said.get("bulk")) if said else self._bulk and info.config.hnsw_config.m == 0

    def _wait_until_indexed(self, report: Callable[[float], None]) -> None:
        while True:
            info = patiently(self._existing)  # one by one: it may take hours
            broken = getattr(info.optimizer_status, "error", None)
            if broken or info.status == models.CollectionStatus.RED:
                raise TerminalError(
                    f"{self._url} could not index the collection {self._collection}: {broken or 'its status is red'}",
                    "see the server's log; every point is stored",
                )
            if info.status == models.CollectionStatus.GREEN:
                report(1.0)
                return
            report(min(1.0, (info.indexed_vectors_count or 0) / max(1, info.points_count or 0)))
            self._sleep(POLL_SECONDS)

    def close(self) -> None:
        self._upserts.close()
        self._client.close()


# -- where -----------------------------------------------------------------------------------------


def _address(url: str) -> _Address:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https", "grpc", "grpcs") or parts.hostname is None:
        raise UsageError(
            f"--url {url} is no address of a Qdrant server",
            "write http://host:6333 for REST, or grpc://host:6334 for gRPC (https:// and grpcs:// with TLS)",
        )
    rest = parts.scheme.startswith("http")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return _Address(rest, parts.scheme.endswith("s"), host, parts.port or (REST_PORT if rest else GRPC_PORT))


def _with_port(url: str, address: _Address) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{address.host}:{address.port}{parts.path}"


def _key() -> str:
    key = os.environ.get("QDRANT_API_KEY", "").strip()
    if not (key.isascii() and (key.isprintable() or not key)):
        raise UsageError("the key holds characters that no key has", "look at QDRANT_API_KEY")
    return key


def _client(url: str, address: _Address, key: str, timeout: float) -> QdrantClient:
    # As a header, since the client prints a warning for each key that it is given over http://.
    common: dict[str, Any] = {
        "timeout": math.ceil(timeout),
        "headers": {"api-key": key} if key else None,
        "check_compatibility": False,
        "verify": address.rest and address.secure,  # loading the certificates takes its time
    }
    if address.rest:
        return QdrantClient(url=_with_port(url, address), **common)
    return QdrantClient(
        host=address.host,
        grpc_port=address.port,
        https=address.secure,
        prefer_grpc=True,
        pool_size=1,
        grpc_options=dict(OPTIONS),
        **common,
    )


# -- what a collection says of itself --------------------------------------------------------------


def _saying(spec: CollectionSpec, *, bulk: bool) -> dict[str, Any]:
    return {
        OURS: {
            "embedder": spec.embedder,
            "model": spec.model,
            "extra": msgspec.to_builtins(spec.extra),
            "bulk": bulk,
        }
    }


def _said_of(info: models.CollectionInfo) -> dict[str, Any]:
    said = (info.config.metadata or {}).get(OURS)
    return said if isinstance(said, dict) else {}


def _held(info: models.CollectionInfo) -> CollectionSpec | str:
    """What the collection holds, and who made it if it says so; in words if it is nothing of ours."""
    params = info.config.params
    vectors = params.vectors if isinstance(params.vectors, dict) else {DENSE: params.vectors}
    sparse = params.sparse_vectors or {}
    dense = vectors.get(DENSE)
    if (
        dense is not None
        and vectors.keys() == {DENSE}
        and dense.distance == models.Distance.COSINE
        and dense.multivector_config is None
        and sparse.keys() <= {SPARSE}
        and all(vector.modifier == models.Modifier.IDF for vector in sparse.values())
    ):
        said = _said_of(info)
        return CollectionSpec(
            dense.size, bool(sparse), said.get("embedder", ""), said.get("model", ""), said.get("extra") or {}
        )
    kinds = [
        f"{name or 'unnamed'} ({vector.size}-dimensional, {vector.distance})"
        for name, vector in vectors.items()
        if vector is not None
    ]
    kinds += [
        f"{name} (sparse, {'IDF' if vector.modifier == models.Modifier.IDF else 'without IDF'})"
        for name, vector in sparse.items()
    ]
    return f"the vectors {', '.join(kinds) or 'of no kind'}"


_QUANTIZATION: dict[str, models.QuantizationConfig] = {
    "scalar": models.ScalarQuantization(
        scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, quantile=0.99, always_ram=True)
    ),
    "binary": models.BinaryQuantization(binary=models.BinaryQuantizationConfig(always_ram=True)),
}


def _indexes(asked: Sequence[str]) -> dict[str, str]:
    """Path and data type of each index that `--index-metadata` asks for.

    Raises:
        UsageError: a type that there is not, or a key that no path can name.
    """
    indexes = {}
    for item in asked:
        key, colon, kind = item.rpartition(":")
        if not colon:
            key, kind = item, "keyword"
        if kind not in INDEX_TYPES:
            raise UsageError(
                f"--index-metadata {item}: Qdrant has no index of the type {kind}",
                f"write key:type with one of {', '.join(INDEX_TYPES)}",
            )
        indexes[path_of(key)] = kind
    return indexes


# -- searching -------------------------------------------------------------------------------------


def _request(query: Query, limit: int, mode: SearchMode, only: models.Filter | None) -> dict[str, Any]:
    dense = query.dense.tolist()
    if mode == "dense":
        return {"query": dense, "query_filter": only}
    assert query.sparse is not None
    sparse = models.SparseVector(indices=query.sparse.indices, values=query.sparse.values)
    if mode == "sparse":
        return {"query": sparse, "using": SPARSE, "query_filter": only}
    each = limit * PREFETCH_FACTOR
    return {
        "query": models.FusionQuery(fusion=models.Fusion.DBSF),
        "prefetch": [
            models.Prefetch(query=dense, limit=each, filter=only),
            models.Prefetch(query=sparse, using=SPARSE, limit=each, filter=only),
        ],
    }


def _filter(filters: Mapping[str, str] | None) -> models.Filter | None:
    conditions: list[models.Condition] = [
        models.Filter(
            should=[
                models.FieldCondition(key=path, match=models.MatchValue(value=value))
                for path, value in alternatives
            ]
        )
        for alternatives in wanted_values(filters)
    ]
    return models.Filter(must=conditions) if conditions else None
