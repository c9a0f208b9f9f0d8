"""What Pinecone's indexes hold and refuse, without a word about how requests reach them."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, takewhile
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from google.protobuf.struct_pb2 import ListValue

from tests.servers.pinecone_messages import MESSAGES

__all__ = ["Index", "IndexConfig", "Limits", "RefusedError", "Stored"]

LIST_LIMIT = 100


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Pinecone's documented ones."""

    request_bytes: int = 2_000_000
    """Of an upsert."""
    records: int = 1_000
    metadata_bytes: int = 40_960
    id_bytes: int = 512
    dimensions: int = 20_000
    deletions: int = 1_000
    upserts_per_second: int | None = None


class IndexConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    dimension: int | None = None
    metric: str = "cosine"
    vector_type: str = "dense"
    tags: dict[str, str] = {}
    cloud: str = "aws"
    region: str = "us-east-1"
    pods: bool = False


class RefusedError(Exception):
    """A request that the service refuses, with the HTTP status that its gRPC status stands for."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Stored(NamedTuple):
    """A record; only the digest of its bytes where the server is told to keep no more."""

    values: npt.NDArray[np.float32]
    metadata: dict[str, Any]
    digest: bytes


class Index:
    """One index and its namespaces. Not thread-safe."""

    def __init__(self, config: IndexConfig, limits: Limits, *, only_digests: bool = False) -> None:
        self.config = config
        self.tags = dict(config.tags)
        self.ready = True
        self.lag = False
        """Statistics say what they said when this was set."""
        self.namespaces: dict[str, dict[str, Stored]] = {}
        self._limits = limits
        self._only_digests = only_digests
        self._counted: dict[str, int] = {}
        self._sorted: dict[str, list[str]] = {}
        """Ids of a namespace in their order, until one of them changes."""
        self.methods: dict[str, Callable[[Any], Any]] = {
            "Upsert": self.upsert,
            "Delete": self.delete,
            "Fetch": self.fetch,
            "List": self.list,
            "Query": self.query,
            "DescribeIndexStats": self.describe,
        }

    def upsert(self, request: Any) -> Any:
        """All or nothing."""
        if not request.vectors:
            raise RefusedError(400, "No vectors provided")
        if len(request.vectors) > self._limits.records:
            raise RefusedError(
                400,
                f"Batch size of {len(request.vectors)} exceeds the maximum of {self._limits.records} vectors",
            )
        records = {vector.id: self._checked(vector) for vector in request.vectors}
        self.namespaces.setdefault(_name(request.namespace), {}).update(records)
        self._sorted.pop(_name(request.namespace), None)
        return MESSAGES["UpsertResponse"](upserted_count=len(request.vectors))

    def _checked(self, vector: Any) -> Stored:
        limits = self._limits
        if not 0 < len(vector.id) <= limits.id_bytes:
            raise RefusedError(
                400, f"Vector id must have 1 to {limits.id_bytes} characters, but got {len(vector.id)}"
            )
        if not vector.id.isascii() or "\0" in vector.id:
            raise RefusedError(400, f"Vector ID must be ASCII, but got '{vector.id}'")
        values = np.array(vector.values, dtype=np.float32)
        if len(values) != self.config.dimension:
            raise RefusedError(
                400,
                f"Vector dimension {len(values)} does not match the dimension of the index {self.config.dimension}",
            )
        if not np.isfinite(values).all() or not values.any():
            raise RefusedError(
                400, f"Dense vectors must contain at least one non-zero value. Vector ID {vector.id}"
            )
        metadata = dict(_plain(vector.metadata))
        size = len(json.dumps(_as_json(metadata), ensure_ascii=False, separators=(",", ":")).encode())
        if size > limits.metadata_bytes:
            raise RefusedError(
                400,
                f"Metadata size is {size} bytes, which exceeds the limit of {limits.metadata_bytes} bytes per vector",
            )
        digest = hashlib.blake2b(vector.SerializeToString(deterministic=True), digest_size=16).digest()
        if self._only_digests:
            return Stored(values[:0], {}, digest)
        return Stored(values, metadata, digest)

    def delete(self, request: Any) -> Any:
        records = self.namespaces.get(_name(request.namespace))
        if records is None:
            raise RefusedError(404, "Namespace not found")
        if len(request.ids) > self._limits.deletions:
            raise RefusedError(400, f"Cannot delete more than {self._limits.deletions} ids at once")
        self._sorted.pop(_name(request.namespace), None)
        for id_ in request.ids:
            records.pop(id_, None)
        if request.delete_all:
            records.clear()
        return MESSAGES["DeleteResponse"]()

    def forget(self, ids: Sequence[str]) -> None:
        """Lose records, in whatever namespace."""
        self._sorted.clear()
        for records in self.namespaces.values():
            for id_ in ids:
                records.pop(id_, None)

    def fetch(self, request: Any) -> Any:
        records = self.namespaces.get(_name(request.namespace), {})
        answer = MESSAGES["FetchResponse"](namespace=request.namespace)
        for id_ in request.ids:
            if id_ in records:
                made = answer.vectors[id_]
                made.id = id_
                made.values.extend(records[id_].values.tolist())
                made.metadata.update(records[id_].metadata)
        answer.usage.read_units = len(request.ids)
        return answer

    def list(self, request: Any) -> Any:
        name = _name(request.namespace)
        limit = request.limit or LIST_LIMIT
        if limit > LIST_LIMIT:
            raise RefusedError(400, f"limit must be at most {LIST_LIMIT}")
        if name not in self._sorted:
            self._sorted[name] = sorted(self.namespaces.get(name, {}))
        ids = self._sorted[name]
        start = max(bisect_right(ids, request.pagination_token), bisect_left(ids, request.prefix))
        page = list(takewhile(lambda id_: id_.startswith(request.prefix), islice(ids, start, start + limit + 1)))
        answer = MESSAGES["ListResponse"](namespace=request.namespace)
        for id_ in page[:limit]:
            answer.vectors.add(id=id_)
        if len(page) > limit:
            answer.pagination.next = page[limit - 1]
        return answer

    def query(self, request: Any) -> Any:
        if len(request.vector) != self.config.dimension:
            raise RefusedError(
                400,
                f"Query vector dimension {len(request.vector)} does not match the dimension of the index "
                f"{self.config.dimension}",
            )
        condition = dict(_plain(request.filter))
        found = [
            (id_, stored)
            for id_, stored in self.namespaces.get(_name(request.namespace), {}).items()
            if _matches(condition, stored.metadata)
        ]
        answer = MESSAGES["QueryResponse"](namespace=request.namespace)
        if not found:
            return answer
        rows = np.stack([stored.values for _, stored in found])
        query = np.array(request.vector, dtype=np.float32)
        scores = rows @ query / (np.linalg.norm(rows, axis=1) * np.linalg.norm(query))
        for row in np.argsort(-scores, kind="stable")[: request.top_k].tolist():
            id_, stored = found[row]
            match = answer.matches.add(id=id_, score=float(scores[row]))
            if request.include_values:
                match.values.extend(stored.values.tolist())
            if request.include_metadata:
                match.metadata.update(stored.metadata)
        return answer

    def describe(self, _request: Any) -> Any:
        if not self.lag:
            self._counted = {name: len(records) for name, records in self.namespaces.items()}
        answer = MESSAGES["DescribeIndexStatsResponse"](
            total_vector_count=sum(self._counted.values()),
            metric=self.config.metric,
            vector_type=self.config.vector_type,
        )
        if self.config.dimension is not None:
            answer.dimension = self.config.dimension
        for name, count in self._counted.items():
            answer.namespaces[name].vector_count = count
        return answer


def _name(namespace: str) -> str:
    """The default namespace has two names."""
    return namespace or "__default__"


def _plain(struct: Any) -> Iterator[tuple[str, Any]]:
    for key, value in struct.items():
        yield key, _value(key, value)


def _value(key: str, value: Any) -> Any:
    if isinstance(value, ListValue):
        return [_value(key, item) for item in value]
    if hasattr(value, "fields"):
        return dict(_plain(value))
    return value


def _as_json(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata with whole numbers as such.

    Raises:
        RefusedError: it holds what Pinecone does not keep.
    """
    checked: dict[str, Any] = {}
    for key, value in metadata.items():
        if key.startswith("$"):
            raise RefusedError(400, f"Metadata keys must not start with $, got '{key}'")
        if isinstance(value, list):
            fits = all(isinstance(item, str) for item in value)
        else:
            fits = isinstance(value, str | bool) or (isinstance(value, float) and bool(np.isfinite(value)))
        if not fits:
            raise RefusedError(
                400,
                f"Metadata value must be a string, number, boolean or list of strings, got '{json.dumps(value)}' "
                f"for field '{key}'",
            )
        checked[key] = int(value) if type(value) is float and value.is_integer() else value
    return checked


def _matches(condition: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    """Pinecone's filter language, as far as equality goes: $eq, $in, $and, $or."""
    return all(_fulfils(key, wanted, metadata) for key, wanted in condition.items())


def _fulfils(key: str, wanted: Any, metadata: Mapping[str, Any]) -> bool:
    if key == "$and":
        return all(_matches(inner, metadata) for inner in wanted)
    if key == "$or":
        return any(_matches(inner, metadata) for inner in wanted)
    if key.startswith("$"):
        raise RefusedError(400, f"unknown operator '{key}'")
    if not isinstance(wanted, Mapping):
        wanted = {"$eq": wanted}
    if key not in metadata:
        return False
    there: Sequence[Any] = metadata[key] if isinstance(metadata[key], list) else [metadata[key]]
    for operator, operand in wanted.items():
        if operator not in ("$eq", "$in"):
            raise RefusedError(400, f"unknown operator '{operator}'")
        values = operand if operator == "$in" else [operand]
        if not any(type(one) is type(other) and one == other for one in there for other in values):
            return False
    return True
