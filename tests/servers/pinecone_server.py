"""Pinecone on loopback: the control plane, and the data plane over gRPC and over REST, as its own client calls them.

It keeps records and finds them, enforces the documented limits (2 MB and 1,000 records an upsert, 40 KB of
metadata, 512 bytes of id), goes wrong on command, and counts. Every index has a port of its own, as it has a
host of its own in reality; HTTP/1.1 and HTTP/2 share it.

In a test, in a thread of its own::

    with PineconeServer(PineconeConfig(indexes=[IndexConfig(name="docs", dimension=8)])) as server:
        client = pinecone.Pinecone(api_key="pc-test", host=server.url)
        index = GrpcIndex(host=server.host("docs"), api_key="pc-test", secure=False)
        server.script([rate_limited(retry_after=1), None, reset_after()])    # one entry an upsert, then none
        assert server.books.upserts == 3
        assert server.records("docs", "v1").keys() == {"a#0"}

As a process::

    python -m tests.servers.pinecone_server --config '{"odds": [[0.3, {"kind": "status"}]]}'

The first line on stdout is the control plane's URL. GET /_books answers `PineconeBooks` as JSON, POST /_control
takes `PineconeControl`: `PineconeProcess` does both.

A request is read, its key is checked (401), the script of its endpoint is asked for a fault, what a fault refuses is
refused, the size is checked, and then it is done. A fault of the kind `slow` is answered late, after the work was
done; with `code="http"` a refusal comes as the plain HTTP status of a proxy, not as gRPC's. Endpoints of
scripts are the methods of the data plane (`Upsert`, `Delete`, `Fetch`, `List`, `Query`, `DescribeIndexStats`)
and `control`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal

import msgspec
from aiohttp import web
from google.protobuf import json_format

from tests.servers.faults import Fault, FaultSource, Script, ordered
from tests.servers.grpc_h2 import PREFACE, Call, GrpcProtocol
from tests.servers.pinecone_data import Index, IndexConfig, Limits, RefusedError, Stored
from tests.servers.pinecone_messages import MESSAGES, METHODS
from tests.servers.process import ServerProcess, serve
from tests.servers.remote import post_json, read_json
from tests.servers.threads import ServerThread, reset

__all__ = [
    "IndexConfig",
    "Limits",
    "PineconeBooks",
    "PineconeConfig",
    "PineconeControl",
    "PineconeProcess",
    "PineconeServer",
]

Endpoint = Literal["Upsert", "Delete", "Fetch", "List", "Query", "DescribeIndexStats", "control"]

HTML = b"<!DOCTYPE html><html><head><title>Just a moment...</title></head><body><h1>Checking</h1></body></html>"
MONTHLY = (
    "Request failed. You've reached your write unit limit for the current month (2000000). "
    "To continue writing data, upgrade your plan."
)
PER_SECOND = (
    "Request failed. You've reached the max upsert size limit per second for index docs. Pace your upserts or "
    "contact Pinecone Support (https://app.pinecone.io/organizations/-/settings/support/ticket) to request a "
    "higher limit."
)

# google/rpc/code.proto, whose codes name the HTTP statuses that they stand for.
GRPC_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 408: 4, 409: 10, 429: 8, 500: 13, 501: 12, 503: 14, 504: 4}
UNKNOWN = 2

REST = {
    ("POST", "/vectors/upsert"): "Upsert",
    ("POST", "/vectors/delete"): "Delete",
    ("GET", "/vectors/fetch"): "Fetch",
    ("GET", "/vectors/list"): "List",
    ("POST", "/query"): "Query",
    ("POST", "/describe_index_stats"): "DescribeIndexStats",
}


class PineconeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one server; can be written as JSON."""

    api_key: str | None = "pc-test"
    limits: Limits = Limits()
    indexes: list[IndexConfig] = []
    """Those that are there from the start."""
    only_digests: bool = False
    """Keep a digest of each record instead of the record: for measuring with many of them."""
    latency: float = 0.0
    """Seconds before every answer to an upsert."""
    script: list[Fault | None] | None = None
    odds: list[tuple[float, Fault]] | None = None
    seed: int = 0
    endpoint: Endpoint = "Upsert"


class PineconeControl(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Changes to a running server."""

    script: list[Fault | None] | None = None
    odds: list[tuple[float, Fault]] | None = None
    seed: int = 0
    endpoint: Endpoint = "Upsert"
    forget: dict[str, list[str]] = {}
    """Records to lose: index to ids, in whatever namespace."""


class PineconeBooks(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since the start."""

    requests: dict[str, dict[str, int]]
    """By endpoint and HTTP status (or the one that the gRPC status stands for), and `reset`."""
    faults: dict[str, int]
    accepted: list[tuple[int, int]]
    """(records, bytes) of each upsert that was done, in their order."""
    too_large: int
    """Upserts over a limit of bytes or records."""
    most_in_flight: int
    records: dict[str, dict[str, int]]
    """By index and namespace."""
    hosts: dict[str, str]
    """Of each index."""

    @property
    def upserts(self) -> int:
        return sum(self.requests.get("Upsert", {}).values())


class PineconeServer(ServerThread):
    """The server in a thread of its own, while the `with` block runs. All methods may be called from any thread."""

    def __init__(self, config: PineconeConfig | None = None, *, port: int = 0) -> None:
        super().__init__()
        self.config = config or PineconeConfig()
        self._port = port
        self._lock = threading.RLock()
        self._indexes: dict[str, Index] = {}
        self._ports: dict[int, Index] = {}
        self._hosts: dict[str, str] = {}
        self._scripts: dict[str, Script] = {}
        self._requests: dict[str, Counter[str]] = {}
        self._faults: Counter[str] = Counter()
        self._accepted: list[tuple[int, int]] = []
        self._too_large = 0
        self._in_flight = 0
        self._most_in_flight = 0
        self._moments: deque[float] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._runner: web.AppRunner | None = None
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.Transport] = set()
        self._play(self.config)

    @property
    def books(self) -> PineconeBooks:
        """A copy of the books as they are now."""
        with self._lock:
            return PineconeBooks(
                requests={name: dict(counts) for name, counts in self._requests.items()},
                faults=dict(self._faults),
                accepted=list(self._accepted),
                too_large=self._too_large,
                most_in_flight=self._most_in_flight,
                records={
                    name: {namespace: len(records) for namespace, records in index.namespaces.items()}
                    for name, index in self._indexes.items()
                },
                hosts=dict(self._hosts),
            )

    def host(self, index: str) -> str:
        """Where that index is served."""
        with self._lock:
            return self._hosts[index]

    def records(self, index: str, namespace: str = "__default__") -> dict[str, Stored]:
        """A copy of what a namespace holds."""
        with self._lock:
            return dict(self._indexes[index].namespaces.get(namespace, {}))

    def index(self, name: str) -> Index:
        """The index itself, to look at it and to spoil it."""
        with self._lock:
            return self._indexes[name]

    def script(self, source: FaultSource | None, *, endpoint: Endpoint = "Upsert") -> None:
        """Faults for the requests to come, in place of those ordered before. None orders none."""
        with self._lock:
            self._scripts.setdefault(endpoint, Script()).replace(source)

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        application = web.Application(client_max_size=2**31)
        application.router.add_route("*", "/{path:.*}", self._handle_http)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        try:
            self.url = await self._listen(None, self._port)
            for config in self.config.indexes:
                await self._create(config)
            yield
        finally:
            for task in self._tasks:
                task.cancel()
            for server in self._servers:
                server.close()
            for connection in self._connections:
                connection.abort()
            await self._runner.cleanup()

    async def _listen(self, index: Index | None, port: int = 0) -> str:
        server = await asyncio.get_running_loop().create_server(self._protocol, "127.0.0.1", port, backlog=1024)
        self._servers.append(server)
        port = server.sockets[0].getsockname()[1]
        if index is not None:
            self._ports[port] = index
        return f"http://127.0.0.1:{port}"

    def _protocol(self) -> asyncio.Protocol:
        assert self._runner is not None
        assert self._runner.server is not None
        return _Either(
            self._runner.server, lambda: GrpcProtocol(self._handle_grpc, self._tasks), self._connections.add
        )

    async def _create(self, config: IndexConfig) -> Index:
        index = Index(config, self.config.limits, only_digests=self.config.only_digests)
        host = await self._listen(index)
        with self._lock:
            self._indexes[config.name] = index
            self._hosts[config.name] = host
        return index

    # -- the data plane ----------------------------------------------------------------------------

    async def _handle_grpc(self, call: Call) -> None:
        port: int = call.transport.get_extra_info("sockname")[1]
        method, request_class = METHODS[call.path]

        def fail(status: int, message: str, headers: Mapping[str, str]) -> None:
            call.fail(GRPC_CODES.get(status, UNKNOWN), message, headers)

        def answer(message: Any, part: float) -> None:
            call.answer(message.SerializeToString(), {}, part=part)

        await self._exchange(
            method,
            self._ports[port],
            call.headers.get("api-key"),
            len(call.body) - 5,
            lambda: request_class.FromString(call.message),
            _Ways(fail, answer, call.answer_http, lambda: reset(call.transport)),
        )

    async def _handle_http(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        transport = request.transport
        body = await request.read()
        index = self._ports.get(transport.get_extra_info("sockname")[1])
        if index is None:
            return await self._control_plane(request, body)
        method = REST[request.method, request.path]
        answers: list[web.Response] = []

        def fail(status: int, message: str, headers: Mapping[str, str]) -> None:
            value = {"code": GRPC_CODES.get(status, UNKNOWN), "message": message, "details": []}
            answers.append(_json(value, status, headers))

        def answer(message: Any, part: float) -> None:
            text = json_format.MessageToJson(message).encode()
            answers.append(web.Response(body=text[: int(len(text) * part)], content_type="application/json"))

        def http(status: int, content_type: str, content: bytes, headers: Mapping[str, str]) -> None:
            answers.append(web.Response(status=status, body=content, headers=headers, content_type=content_type))

        def broken() -> None:
            reset(transport)
            answers.append(web.Response())

        parse = _from_query if request.method == "GET" else _from_json
        source: Any = request.query if request.method == "GET" else body
        await self._exchange(
            method,
            index,
            request.headers.get("Api-Key"),
            len(body),
            lambda: parse(source, MESSAGES[f"{method}Request"]),
            _Ways(fail, answer, http, broken),
        )
        return answers[0]

    async def _exchange(
        self,
        method: str,
        index: Index,
        key: str | None,
        size: int,
        parse: Callable[[], Any],
        ways: _Ways,
    ) -> None:
        """One request, whichever way it came."""
        with self._lock:
            self._in_flight += 1
            self._most_in_flight = max(self._most_in_flight, self._in_flight)
        try:
            await self._answer(method, index, key, size, parse, ways)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._crashes.append(error)
            raise
        finally:
            with self._lock:
                self._in_flight -= 1

    async def _answer(
        self, method: str, index: Index, key: str | None, size: int, parse: Callable[[], Any], ways: _Ways
    ) -> None:
        if self.config.api_key not in (None, key):
            return self._fail(method, ways, 401, f"Invalid API Key: {key}")
        with self._lock:
            fault = self._scripts.setdefault(method, Script()).next_fault(method, ())
        if fault is not None and self._refused(method, fault, ways):
            return None
        try:
            with self._lock:
                self._check_size(method, size)
                self._check_rate(method)
                request = parse()
                answer = index.methods[method](request)
                if method == "Upsert":
                    self._accepted.append((len(request.vectors), size))
        except RefusedError as refused:
            return self._fail(method, ways, refused.status, refused.message)
        if method == "Upsert" and self.config.latency:
            await asyncio.sleep(self.config.latency)
        kind = fault.kind if fault is not None else None
        if fault is not None and kind in ("slow", "reset_after", "cut_body"):
            self._count(method, "reset" if kind == "reset_after" else "200", kind)
            await asyncio.sleep(fault.delay)
            if kind == "reset_after":
                return ways.reset()
            return ways.answer(answer, 0.5 if kind == "cut_body" else 1.0)
        self._count(method, "200")
        return ways.answer(answer, 1.0)

    def _refused(self, method: str, fault: Fault, ways: _Ways) -> bool:
        """Whether the fault refuses the request; if so, it is answered."""
        headers = {} if fault.retry_after is None else {"retry-after": str(fault.retry_after)}
        if fault.kind == "reset_before":
            self._count(method, "reset", fault.kind)
            ways.reset()
        elif fault.kind == "html":
            self._count(method, "200", fault.kind)
            ways.http(200, "text/html", HTML, headers)
        elif fault.kind in ("rate_limited", "quota", "forbidden", "status"):
            status = {"rate_limited": 429, "quota": 429, "forbidden": 403}.get(fault.kind, fault.status)
            message = {"rate_limited": PER_SECOND, "quota": MONTHLY}.get(fault.kind, "Something went wrong")
            self._count(method, str(status), fault.kind)
            if fault.code == "http":
                ways.http(status, "text/html", HTML, headers)
            else:
                ways.fail(status, message, headers)
        else:
            return False
        return True

    def _fail(self, method: str, ways: _Ways, status: int, message: str) -> None:
        self._count(method, str(status))
        ways.fail(status, message, {})

    def _count(self, method: str, status: str, fault: str | None = None) -> None:
        with self._lock:
            self._requests.setdefault(method, Counter())[status] += 1
            if fault is not None:
                self._faults[fault] += 1

    def _check_size(self, method: str, size: int) -> None:
        limit = self.config.limits.request_bytes
        if method == "Upsert" and size > limit:
            self._too_large += 1
            raise RefusedError(400, f"Request size {size} exceeds the maximum supported size of {limit} bytes")

    def _check_rate(self, method: str) -> None:
        limit = self.config.limits.upserts_per_second
        if method != "Upsert" or limit is None:
            return
        now = time.monotonic()
        while self._moments and self._moments[0] <= now - 1:
            self._moments.popleft()
        if len(self._moments) >= limit:
            raise RefusedError(429, PER_SECOND)
        self._moments.append(now)

    # -- the control plane -------------------------------------------------------------------------

    async def _control_plane(self, request: web.Request, body: bytes) -> web.StreamResponse:
        if request.path == "/_books":
            return web.Response(body=msgspec.json.encode(self.books), content_type="application/json")
        if request.path == "/_control":
            self._change(msgspec.json.decode(body, type=PineconeControl))
            return _json({})
        transport = request.transport
        assert transport is not None
        if self.config.api_key not in (None, request.headers.get("Api-Key")):
            return self._control_error(401, "Invalid API Key")
        with self._lock:
            fault = self._scripts.setdefault("control", Script()).next_fault("control", ())
        if fault is not None:
            answers: list[web.Response] = []
            ways = _Ways(
                lambda status, message, headers: answers.append(_error(status, message, headers)),
                lambda _message, _part: None,
                lambda status, kind, content, headers: answers.append(
                    web.Response(status=status, body=content, headers=headers, content_type=kind)
                ),
                lambda: reset(transport),
            )
            if self._refused("control", fault, ways):
                return answers[0] if answers else web.Response()
        try:
            answer = await self._control(request.method, request.path, body)
        except RefusedError as refused:
            return self._control_error(refused.status, refused.message)
        self._count("control", str(answer.status))
        return answer

    def _control_error(self, status: int, message: str) -> web.Response:
        self._count("control", str(status))
        return _error(status, message, {})

    async def _control(self, method: str, path: str, body: bytes) -> web.Response:
        _, collection, *rest = path.split("/")
        if collection != "indexes":
            raise RefusedError(404, f"no such path: {path}")
        if not rest:
            if method == "POST":
                return _json(self._described(await self._create_index(msgspec.json.decode(body))), 201)
            return _json({"indexes": [self._described(index) for index in self._indexes.values()]})
        index = self._indexes.get(rest[0])
        if index is None:
            raise RefusedError(404, f"Resource {rest[0]} not found")
        if method == "PATCH":
            changed = {**index.tags, **(msgspec.json.decode(body).get("tags") or {})}
            index.tags = {name: value for name, value in changed.items() if value}
        elif method == "DELETE":
            with self._lock:
                del self._indexes[rest[0]]
            return web.Response(status=202)
        return _json(self._described(index))

    async def _create_index(self, asked: dict[str, Any]) -> Index:
        if asked["name"] in self._indexes:
            raise RefusedError(409, f"Resource {asked['name']} already exists")
        (field,) = asked["schema"]["fields"].values()
        deployment = asked.get("deployment") or {}
        if deployment.get("region") not in (None, "us-east-1", "us-west-2", "eu-west-1"):
            raise RefusedError(
                404, f"Resource cloud: {deployment['cloud']} region: {deployment['region']} not found"
            )
        if not 0 < field["dimension"] <= self.config.limits.dimensions:
            raise RefusedError(400, f"dimension must be at most {self.config.limits.dimensions}")
        return await self._create(
            IndexConfig(
                name=asked["name"],
                dimension=field["dimension"],
                metric=field["metric"],
                tags=asked.get("tags") or {},
                cloud=deployment.get("cloud", "aws"),
                region=deployment.get("region", "us-east-1"),
            )
        )

    def _described(self, index: Index) -> dict[str, Any]:
        config = index.config
        dense = {"type": "dense_vector", "dimension": config.dimension, "metric": config.metric}
        sparse = {"type": "sparse_vector", "metric": "dotproduct"}
        fields = {"_values": dense} if config.vector_type == "dense" else {"_sparse_values": sparse}
        managed = {"deployment_type": "managed", "cloud": config.cloud, "region": config.region}
        pods = {"deployment_type": "pod", "pod_type": "p1.x1", "replicas": 1, "shards": 1}
        return {
            "name": config.name,
            "host": self._hosts[config.name],
            "status": {"ready": index.ready, "state": "Ready" if index.ready else "Initializing"},
            "schema": {"fields": fields},
            "deployment": {**(pods if config.pods else managed), "environment": f"{config.cloud}-{config.region}"},
            "deletion_protection": "disabled",
            "tags": index.tags,
        }

    def _change(self, change: PineconeControl) -> None:
        with self._lock:
            for name, ids in change.forget.items():
                self._indexes[name].forget(ids)
        self._play(change)

    def _play(self, order: PineconeConfig | PineconeControl) -> None:
        if (source := ordered(order)) is not None:
            self.script(source, endpoint=order.endpoint)


class _Ways(msgspec.Struct):
    """How a request can be answered, on the connection that it came by."""

    fail: Callable[[int, str, Mapping[str, str]], None]
    answer: Callable[[Any, float], None]
    """The message, and how much of it."""
    http: Callable[[int, str, bytes, Mapping[str, str]], None]
    reset: Callable[[], None]


class _Either(asyncio.Protocol):
    """Hands a connection to the protocol that its first bytes are of."""

    def __init__(
        self,
        http: Callable[[], asyncio.Protocol],
        grpc: Callable[[], asyncio.Protocol],
        opened: Callable[[asyncio.Transport], None],
    ) -> None:
        self._http = http
        self._grpc = grpc
        self._opened = opened
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._opened(transport)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        protocol = self._grpc() if data.startswith(PREFACE[: len(data)]) else self._http()
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        protocol.data_received(data)


def _from_json(body: bytes, kind: Any) -> Any:
    try:
        return json_format.Parse(body, kind())
    except json_format.ParseError as error:
        raise RefusedError(400, str(error)) from error


def _from_query(query: Any, kind: Any) -> Any:
    message = kind()
    for name in query:
        field = {"paginationToken": "pagination_token"}.get(name, name)
        if field == "ids":
            message.ids.extend(query.getall("ids"))
        else:
            setattr(message, field, int(query[name]) if field == "limit" else query[name])
    return message


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode(value), headers=headers, content_type="application/json"
    )


def _error(status: int, message: str, headers: Mapping[str, str]) -> web.Response:
    code = {400: "INVALID_ARGUMENT", 404: "NOT_FOUND", 409: "ALREADY_EXISTS"}.get(status, "UNKNOWN")
    return _json({"status": status, "error": {"code": code, "message": message}}, status, headers)


class PineconeProcess(ServerProcess):
    """The server as a process of its own."""

    def __init__(self, config: PineconeConfig | None = None) -> None:
        encoded = msgspec.json.encode(config or PineconeConfig()).decode()
        super().__init__("tests.servers.pinecone_server", ["--config", encoded])

    @property
    def books(self) -> PineconeBooks:
        return read_json(f"{self.url}/_books", PineconeBooks)

    def host(self, index: str) -> str:
        """Where that index is served."""
        return self.books.hosts[index]

    def control(self, change: PineconeControl) -> None:
        post_json(f"{self.url}/_control", change)


if __name__ == "__main__":
    serve(PineconeConfig, PineconeServer)
