"""Pinecone: serverless indexes and their namespaces.

Upserts go over gRPC in protobuf built from the array (pinecone_wire): a third of the bytes of JSON, and no
Python floats. Everything else goes through Pinecone's own client.
"""

from __future__ import annotations

import os
import re
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import grpc
from pinecone import Pinecone, PineconeValueError, RetryConfig
from pinecone.errors import (
    ApiError,
    ConflictError,
    NotFoundError,
    PineconeConnectionError,
    PineconeError,
    PineconeTimeoutError,
)
from pinecone.grpc import GrpcIndex
from pinecone.models.indexes.deployment import PodDeployment

from ragingest.documents import EmbeddedBatch, Fault
from ragingest.errors import TOO_LARGE, RejectedError, TerminalError, TransientError, UsageError
from ragingest.pacing.rate_limiter import parse_retry_after
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
from ragingest.stores.pinecone_wire import (
    CHUNK,
    ID,
    TEXT,
    PointEncoder,
    namespace_field,
    original,
    point_id,
    stored_point,
)
from ragingest.version import __version__

__all__ = ["PineconeStore"]

KEY = "PINECONE_API_KEY"
MAX_REQUEST_BYTES = 2_000_000
MAX_RECORDS = 1_000
MAX_DIMENSIONS = 20_000
MAX_DELETIONS = 1_000
MAX_TOP_K = 10_000
LIST_PAGE = 100
# gRPC's own bound on an answer is 4 MiB; a record's metadata may take 40 KB of it.
FETCH_BYTES = 3_500_000
RECORD_BYTES = 42_000

API_VERSION = "2025-10"
METRIC = "cosine"
CONTROL_PLANE = "https://api.pinecone.io"
INDEX_SECONDS = 300
CONNECT_SECONDS = 10.0
DEFAULT_NAMESPACE = "__default__"
MAX_NAMESPACE_BYTES = 512

# Words of Pinecone's errors (docs.pinecone.io, database limits).
_SPENT = re.compile(r"for the current month|upgrade your plan", re.IGNORECASE).search
_OVERSIZE = re.compile(
    r"(request|message|payload|batch)\b.*\b(size|length|larger|large|exceeds)|maximum supported size", re.IGNORECASE
).search
_OTHER_SIZE = re.compile(r"metadata size|per second", re.IGNORECASE).search
# As gRPC's core, rustls and OpenSSL say it.
_TLS = re.compile(
    r"CERTIFICATE_VERIFY_FAILED|invalid peer certificate|InvalidContentType|WRONG_VERSION_NUMBER|record layer failure"
).search
_HTTP_STATUS = re.compile(r"(?:http2 header with|response with) status: (\d{3})").search

_INTEGER = re.compile(r"-?\d{1,19}", re.ASCII).fullmatch
_INDEX_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,43}[a-z0-9])?").fullmatch
_TAG = re.compile(r"[ -~]{1,120}").fullmatch
_TAGS = {"embedder": "ragingest-embedder", "model": "ragingest-model", "base_url": "ragingest-base-url"}

# google/rpc/code.proto: the HTTP status that each gRPC status stands for.
_STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNIMPLEMENTED: 404,
}
_UNREACHED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)

_OPTIONS = [
    ("grpc.enable_retries", 0),
    ("grpc.primary_user_agent", f"ragingest/{__version__}"),
    # A channel has a connection of its own, so that another one is another connection.
    ("grpc.use_local_subchannel_pool", 1),
    # By default it would come to look only every two minutes whether a server is back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
]


class PineconeStore:
    """A namespace of a serverless index, cosine metric.

    Args:
        index: its name.
        namespace: within the index; None for the default one.
        host: URL of the index itself. None: the control plane says where it is, and creates it.
        key: the API key.
        timeout: seconds for one request.
        drop_text: keep the texts out of the metadata.
    """

    name = "pinecone"
    abilities = Abilities(sparse=False)
    forgets = False
    memory_bytes = 0

    def __init__(
        self,
        index: str,
        namespace: str | None = None,
        *,
        host: str | None = None,
        key: str | None = None,
        timeout: float = 60.0,
        drop_text: bool = False,
    ) -> None:
        self._name = index
        self._namespace = _checked_namespace(namespace)
        self._host = host
        self._key = (key or "").strip()
        self._timeout = timeout
        self._encoder = PointEncoder(drop_text=drop_text)
        self._suffix = namespace_field(self._namespace)
        self._own_names = {self._namespace} if self._namespace else {"", DEFAULT_NAMESPACE}
        self._dimensions = 0
        self._tags: Mapping[str, str] = {}
        self._control: Pinecone | None = None
        self._index: GrpcIndex | None = None
        self._channel: grpc.Channel | None = None
        self._send: Any = None
        self._lock = threading.Lock()
        self._authorities: bytes | None = None
        self.limits = StoreLimits(
            max_points=MAX_RECORDS,
            max_bytes=MAX_REQUEST_BYTES - len(self._suffix),
            concurrency=16,
            adaptive=True,
        )

    # -- opening -----------------------------------------------------------------------------------

    def prepare(self, spec: CollectionSpec, layout: Layout = DEFAULT_LAYOUT) -> CollectionSpec:
        if spec.sparse:
            raise UsageError("the store pinecone keeps no sparse vectors", "leave BM25 out")
        if spec.dimensions > MAX_DIMENSIONS:
            raise TerminalError(
                f"Pinecone takes vectors of {MAX_DIMENSIONS:,} dimensions at most, and {spec.embedder} makes "
                f"{spec.dimensions:,}",
                "give fewer --dimensions, or another --model",
            )
        with self._opening():
            self._connect(lambda: self._described_or_created(spec))
            stats = self._stats()
            self._check_index(spec, stats)
        # Where there are several namespaces, nobody knows which of them the tags are about.
        alone = stats.namespaces.keys() <= self._own_names
        return self._said() if alone else CollectionSpec(self._dimensions, False, "", "")

    def describe(self, spec: CollectionSpec) -> None:
        if self._control is not None:  # an index that is reached by its host alone has no tags
            # An empty value takes a tag away.
            tags = {**dict.fromkeys(_TAGS.values(), ""), **_tags(spec)}
            with self._client_errors():
                self._control.indexes.configure(self._name, tags=tags)

    def open(self) -> CollectionSpec:
        with self._opening():
            self._connect(self._located)
            stats = self._stats()
            self._check_namespace(stats.namespaces)
        self._dimensions = stats.dimension or 0
        return self._said()

    def _located(self) -> str:
        try:
            return self._found(self._control_plane.indexes.describe(self._name))
        except NotFoundError:
            known = ", ".join(sorted(index.name for index in self._control_plane.indexes.list())) or "none"
            raise UsageError(
                f"there is no index {self._name}", f"run ragingest run first, or give --index (there: {known})"
            ) from None

    def _said(self) -> CollectionSpec:
        """What the index says of itself."""
        base_url = self._tags.get(_TAGS["base_url"])
        return CollectionSpec(
            self._dimensions,
            False,
            self._tags.get(_TAGS["embedder"], ""),
            self._tags.get(_TAGS["model"], ""),
            {"base_url": base_url} if base_url else {},
        )

    @contextmanager
    def _opening(self) -> Iterator[None]:
        """Leave nothing open where it fails."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _connect(self, locate: Callable[[], str]) -> None:
        """Find the index, and connect to it.

        Raises:
            UsageError: there is no key, or no such file of authorities.
        """
        if not self._key:
            raise UsageError("there is no key for Pinecone", f"put it into the environment variable {KEY}")
        self._authorities = _authorities()
        if self._host is None:
            with self._client_errors():
                self._host = locate()
        self._dial()

    def _dial(self) -> None:
        """Connect to the index; anew after a time-out, since a connection that has died goes on saying nothing."""
        host = self._host
        assert host is not None
        secure = urlsplit(host).scheme != "http"
        with self._client_errors():
            self._index = GrpcIndex(
                host=host,
                api_key=self._key,
                secure=secure,
                timeout=self._timeout,
                connect_timeout=CONNECT_SECONDS,
                retry_config=RetryConfig(max_retries=0),
                proxy_url=_proxy_for(host),
            )
        target = urlsplit(host).netloc
        self._channel = (
            grpc.secure_channel(target, grpc.ssl_channel_credentials(self._authorities), options=_OPTIONS)
            if secure
            else grpc.insecure_channel(target, options=_OPTIONS)
        )
        self._send = self._channel.unary_unary("/VectorService/Upsert")

    def _redial(self, dead: object) -> None:
        """Leave the connections of that index or channel, once; calls under way on them come to their own end."""
        with self._lock:
            if dead in (self._index, self._channel):
                self._dial()

    @property
    def _control_plane(self) -> Pinecone:
        if self._control is None:
            self._control = Pinecone(
                api_key=self._key,
                timeout=self._timeout,
                retry_config=RetryConfig(max_retries=0),
                proxy_url=_proxy_for(os.environ.get("PINECONE_CONTROLLER_HOST") or CONTROL_PLANE),
            )
        return self._control

    def _described_or_created(self, spec: CollectionSpec) -> str:
        control = self._control_plane
        tags = _tags(spec)
        try:
            model = control.indexes.describe(self._name)
        except NotFoundError:
            return self._created(spec, tags)
        if tags and not (model.tags or {}).get(_TAGS["embedder"]):
            # So that a search needs no options. A key that may not change indexes loads all the same.
            with suppress(ApiError):
                control.indexes.configure(self._name, tags=tags)
        return self._found(model)

    def _created(self, spec: CollectionSpec, tags: dict[str, str]) -> str:
        if not _INDEX_NAME(self._name):
            raise UsageError(
                f"{self._name!r} cannot be the name of a Pinecone index",
                "use lower-case letters, digits and hyphens, 45 at most (--index)",
            )
        control = self._control_plane
        try:
            model = control.indexes.create(
                name=self._name,
                dimension=spec.dimensions,
                metric=METRIC,
                spec={
                    "serverless": {
                        "cloud": os.environ.get("PINECONE_CLOUD") or "aws",
                        "region": os.environ.get("PINECONE_REGION") or "us-east-1",
                    }
                },
                tags=tags or None,
                timeout=INDEX_SECONDS,
            )
        except ConflictError:  # made by somebody else meanwhile
            model = control.indexes.describe(self._name)
        return self._found(model)

    def _found(self, model: Any) -> str:
        """Where the index is."""
        self._tags = model.tags or {}
        if isinstance(model.deployment, PodDeployment):
            raise TerminalError(
                f"the index {self._name} runs on pods, whose ids cannot be listed",
                "give another --index: one that is missing is created as a serverless one",
            )
        if not model.status.ready or not model.host:
            raise TransientError(f"the index {self._name} is not ready yet: {model.status.state}")
        return str(model.host)

    def _check_index(self, spec: CollectionSpec, stats: Any) -> None:
        if stats.vector_type not in (None, "dense"):
            raise TerminalError(
                f"the index {self._name} holds {stats.vector_type} vectors, but {spec.embedder} makes dense ones",
                "give another --index",
            )
        if stats.dimension != spec.dimensions:
            raise TerminalError(
                f"the index {self._name} holds {stats.dimension}-dimensional vectors, "
                f"but {spec.embedder} makes {spec.dimensions}-dimensional ones",
                "give another --index, or the embedder that made this one",
            )
        if stats.metric not in (None, METRIC):
            raise TerminalError(
                f"the index {self._name} compares by {stats.metric}, but ragingest loads for {METRIC}",
                "give another --index",
            )
        self._dimensions = spec.dimensions

    def _check_namespace(self, namespaces: Mapping[str, Any]) -> None:
        """A search in a namespace that is not there would find nothing, without a word."""
        if not self._namespace or self._namespace in namespaces or self._listed(None, 1)[0]:
            return
        known = ", ".join(sorted(filter(None, namespaces))) or "none"
        raise UsageError(
            f"the index {self._name} has no namespace {self._namespace}",
            f"run ragingest run first, or give --namespace (there: {known})",
        )

    # -- writing -----------------------------------------------------------------------------------

    def encode(self, batch: EmbeddedBatch) -> list[bytes | Fault] | None:
        return self._encoder.encode(batch)

    def upsert(self, batch: EmbeddedBatch) -> None:
        if batch.dense.shape[1] != self._dimensions:
            raise TerminalError(
                f"the index {self._name} holds {self._dimensions}-dimensional vectors, "
                f"not {batch.dense.shape[1]}-dimensional ones",
                "give another --index, or the embedder that made this one",
            )
        wire = batch.wire
        if wire is None:
            wire = []
            for point in self._encoder.encode(batch):
                if isinstance(point, Fault):
                    raise RejectedError(*point)
                wire.append(point)
        body = b"".join((*wire, self._suffix))
        channel, send = self._channel, self._send
        try:
            answer = send(
                body,
                timeout=self._timeout,
                metadata=(("api-key", self._key), ("x-pinecone-api-version", API_VERSION)),
            )
        except grpc.RpcError as error:
            raise self._refused(error, channel) from None
        if (stored := _upserted_count(answer)) != len(batch.chunks):
            raise TransientError(f"{self._host} stored {stored} of {len(batch.chunks)} points")

    def _refused(self, error: Any, channel: grpc.Channel | None) -> Exception:
        details = str(error.details())
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            self._redial(channel)
        if error.code() in _UNREACHED and not _HTTP_STATUS(details):
            return self._unreached(details)
        told = {
            key: str(value)
            for key, value in (*(error.initial_metadata() or ()), *(error.trailing_metadata() or ()))
        }
        return self._sorted(_STATUSES.get(error.code(), 500), details, parse_retry_after(told, datetime.now(UTC)))

    def delete(self, points: Sequence[tuple[str, int]]) -> None:
        ids = [point_id(*point) for point in points]
        for start in range(0, len(ids), MAX_DELETIONS):
            # 404: nothing has been stored in the namespace yet.
            with self._client_errors(), suppress(NotFoundError):
                self._open_index.delete(ids=ids[start : start + MAX_DELETIONS], namespace=self._namespace)

    def flush(self) -> None:
        pass

    # -- reading -----------------------------------------------------------------------------------

    def count(self) -> int:
        """Points in the namespace, as Pinecone's statistics say; they lag some seconds behind writes.

        Where they say none, the ids are listed.
        """
        namespaces = self._stats().namespaces
        counted = sum(summary.vector_count for name, summary in namespaces.items() if name in self._own_names)
        return counted or self._count_listed()

    def _count_listed(self) -> int:
        count = 0
        after = None
        while True:
            ids, after = self._listed(after, LIST_PAGE)
            count += len(ids)
            if after is None:
                return count

    def fetch(self, points: Sequence[tuple[str, int]]) -> list[StoredPoint]:
        return self._fetched([point_id(*point) for point in points])

    def _fetched(self, ids: Sequence[str]) -> list[StoredPoint]:
        at_once = max(1, FETCH_BYTES // (RECORD_BYTES + 4 * self._dimensions))
        found: list[StoredPoint] = []
        for start in range(0, len(ids), at_once):
            with self._client_errors():
                answer = self._open_index.fetch(ids=ids[start : start + at_once], namespace=self._namespace)
            found += [stored_point(id_, vector.values, vector.metadata) for id_, vector in answer.vectors.items()]
        return found

    def scan(self, after: str | None, limit: int) -> tuple[list[StoredPoint], str | None]:
        ids, following = self._listed(after, min(limit, LIST_PAGE))
        return self._fetched(ids), following

    def _listed(self, after: str | None, limit: int) -> tuple[list[str], str | None]:
        with self._client_errors():
            page = self._open_index.list_paginated(limit=limit, pagination_token=after, namespace=self._namespace)
        following = page.pagination.next if page.pagination is not None else None
        return [item.id for item in page.vectors if item.id is not None], following or None

    def search(
        self, query: Query, limit: int, mode: SearchMode = "dense", filters: Mapping[str, str] | None = None
    ) -> list[Hit]:
        if mode != "dense":
            raise UsageError(f"the index {self._name} has no sparse vectors", "search with --dense")
        if len(query.dense) != self._dimensions:
            raise UsageError(
                f"the index {self._name} holds {self._dimensions}-dimensional vectors, "
                f"not {len(query.dense)}-dimensional ones",
                "give the embedder that made this one",
            )
        if limit > MAX_TOP_K:
            raise UsageError(f"Pinecone finds {MAX_TOP_K:,} records at most", "give a smaller --limit")
        with self._client_errors():
            found = self._open_index.query(
                vector=query.dense.tolist(),
                top_k=limit,
                namespace=self._namespace,
                filter=_filter(filters),
                include_metadata=True,
            )
        hits = []
        for match in found.matches:
            metadata = match.metadata or {}
            hits.append(
                Hit(
                    match.score,
                    str(metadata.get(ID, match.id)),
                    int(metadata.get(CHUNK, 0)),
                    str(metadata.get(TEXT, "")),
                    original(metadata),
                )
            )
        return hits

    def finish(self, report: Callable[[float], None] = lambda _share: None) -> None:
        pass

    def close(self) -> None:
        for part in (self._index, self._channel, self._control):
            if part is not None:
                part.close()
        self._index = self._channel = self._control = None

    def _stats(self) -> Any:
        with self._client_errors():
            return self._open_index.describe_index_stats()

    @property
    def _open_index(self) -> GrpcIndex:
        if self._index is None:
            raise RuntimeError("the store is used before prepare()")
        return self._index

    # -- what went wrong ---------------------------------------------------------------------------

    @contextmanager
    def _client_errors(self) -> Iterator[None]:
        """Sort what the client raises; of reading and deleting nothing is `RejectedError`."""
        index = self._index
        try:
            yield
        except ApiError as error:
            sorted_ = self._sorted(error.status_code, error.message, getattr(error, "retry_after", None))
            if isinstance(sorted_, RejectedError):
                sorted_ = TerminalError(
                    f"Pinecone refused a request: {sorted_}", "check the index and the settings"
                )
            raise sorted_ from None
        except PineconeTimeoutError as error:
            if index is not None:
                self._redial(index)
            raise self._unreached(error.message) from None
        except PineconeConnectionError as error:
            raise self._unreached(error.message) from None
        except PineconeValueError as error:
            raise UsageError(
                f"Pinecone's client refuses this: {self._without_key(error.message)}",
                f"check --index, --namespace, --url and {KEY}",
            ) from None
        except PineconeError as error:
            raise TransientError(f"Pinecone answered oddly: {self._without_key(str(error))}") from None

    def _unreached(self, message: str) -> Exception:
        where = self._host or "Pinecone's control plane"
        told = f"{where} cannot be reached: {self._without_key(message)}"
        if _TLS(message):
            return TerminalError(
                f"TLS: {told}",
                "check --url (https or http?), or name the authority that signed its certificate: SSL_CERT_FILE=...",
            )
        return TransientError(told)

    def _sorted(self, status: int, message: str, retry_after: float | None) -> Exception:
        """The error that an answer stands for, as `calls` and the pipeline take it."""
        if (proxied := _HTTP_STATUS(message)) and int(proxied[1]) >= 400:
            status = int(proxied[1])
        message = self._without_key(message)
        said = f"Pinecone answered {status}: {message}"
        if status == 401:
            return TerminalError(said, f"check the key in {KEY}")
        if status == 403:
            return TerminalError(said, f"the key in {KEY} may not do this: give one with write access to the index")
        if status == 402 or (status == 429 and _SPENT(message)):
            return TerminalError(
                said, "the plan's limit is reached: upgrade it or wait for the month's end, then resume"
            )
        if status == 404:
            return TerminalError(said, "check --index, --url, PINECONE_CLOUD and PINECONE_REGION")
        if status == 413 or (status in (400, 429) and _OVERSIZE(message) and not _OTHER_SIZE(message)):
            return RejectedError(TOO_LARGE, said)
        if status in (408, 409, 429) or status >= 500:
            return TransientError(said, retry_after, throttled=status in (429, 503))
        if status in (400, 422) and _OTHER_SIZE(message):
            return RejectedError("metadata_too_large", said)
        if status in (400, 422):
            return RejectedError("refused_by_store", said)
        return TerminalError(said, "check --index and --url")

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _proxy_for(host: str) -> str | None:
    """The proxy that the environment names for that address; gRPC's core looks for it by itself."""
    parts = urlsplit(host)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


def _authorities() -> bytes | None:
    """The certificates in SSL_CERT_FILE, as the other clients take them; None: those that gRPC brings along.

    Raises:
        UsageError: there is no such file, or no certificate in it.
    """
    path = os.environ.get("SSL_CERT_FILE")
    if not path:
        return None
    try:
        certificates = Path(path).read_bytes()
        ssl.create_default_context(cafile=path)
    except OSError as error:  # ssl's own errors are such, too
        raise UsageError(
            f"SSL_CERT_FILE={path} cannot be read: {error.strerror or error}", "name a file of PEM certificates"
        ) from None
    return certificates


def _checked_namespace(namespace: str | None) -> str:
    """The namespace; empty for the default one.

    Raises:
        UsageError: Pinecone takes no such name.
    """
    if namespace is None or namespace == DEFAULT_NAMESPACE:
        return ""
    if not (namespace.isascii() and 0 < len(namespace) <= MAX_NAMESPACE_BYTES and "\0" not in namespace):
        raise UsageError(
            f"{namespace!r} cannot be a namespace of Pinecone", f"use 1 to {MAX_NAMESPACE_BYTES} ASCII characters"
        )
    return namespace


def _tags(spec: CollectionSpec) -> dict[str, str]:
    """Who embedded, as tags of the index, which take 120 visible characters each; nothing if that is too little."""
    made_by = {"embedder": spec.embedder, "model": spec.model, "base_url": str(spec.extra.get("base_url") or "")}
    tags = {_TAGS[name]: value for name, value in made_by.items() if value}
    return tags if all(map(_TAG, tags.values())) else {}


def _filter(filters: Mapping[str, str] | None) -> dict[str, Any] | None:
    """Equality with the text, or with the number or boolean that it says; of a list, with one of its elements."""
    if not filters:
        return None
    conditions = []
    for key, text in filters.items():
        if key.startswith("$"):
            raise UsageError(f"Pinecone cannot filter by the key {key!r}", "its keys do not begin with $")
        values: list[Any] = [text]
        if _INTEGER(text) and int(text) == float(text):
            values.append(int(text))
        if text in ("true", "false"):
            values.append(text == "true")
        conditions.append({"$or": [{key: {"$eq": value}} for value in values]})
    return {"$and": conditions}


def _upserted_count(answer: bytes) -> int:
    """`upserted_count`, field 1 of an UpsertResponse; 0 if it is not there."""
    if answer[:1] != b"\x08":
        return 0
    count = 0
    for place, byte in enumerate(answer[1:6]):
        count |= (byte & 127) << 7 * place
        if byte < 128:
            break
    return count
