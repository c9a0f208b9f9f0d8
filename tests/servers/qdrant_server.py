"""A Qdrant server on loopback: its documented REST and gRPC, with Qdrant Edge, the same engine, behind both.

It validates requests with the client's own models, keeps Qdrant's limits and strict mode, goes wrong on command
and counts.

In a test, in threads of its own::

    with QdrantServer(QdrantConfig(api_key="secret")) as server:
        client = QdrantClient(url=server.url)                     # or the gRPC port, of server.grpc_url
        server.script([rate_limited(retry_after=1), None, reset_after()])   # one entry an upsert, then none
        server.script(odds([(0.3, status(500))], seed=7), endpoints=None)   # of whatever request
        server.next_statuses(["wait_timeout"])                    # what the next write says of itself
        assert server.books.points == 100                         # `books` is a copy, taken now

As a process, for tests that kill the client and for measurements::

    with QdrantProcess(QdrantConfig(odds=[(0.3, status(500))])) as server:
        server.url, server.grpc_url, server.books, server.control(script=[])

Faults mean the same in both protocols. What REST answers by a status, gRPC answers by the code that Qdrant gives
it; `html` comes from a proxy, which gRPC meets as UNKNOWN; a connection that is reset before is UNAVAILABLE; and
what is lost after the write was applied (`reset_after`, `cut_body`, `cut_json`) is DEADLINE_EXCEEDED. The `delay` of a
fault that loses an answer comes after the write.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import orjson
from aiohttp import web
from pydantic import BaseModel, ValidationError
from qdrant_client import models

from tests.servers import qdrant_grpc
from tests.servers.faults import LOST, REFUSED, Fault, FaultSource, Script, ordered
from tests.servers.process import ServerProcess, serve
from tests.servers.qdrant_books import Bookkeeper, QdrantBooks, QdrantConfig, QdrantControl
from tests.servers.qdrant_engine import Engine, RefusedError
from tests.servers.remote import post_json, read_json
from tests.servers.threads import ServerThread, listening, reset

__all__ = ["QdrantBooks", "QdrantConfig", "QdrantProcess", "QdrantServer"]

M = TypeVar("M", bound=BaseModel)

UPSERTS = ("upsert",)


class ResetError(Exception):
    """The connection ends with a RST."""


class ProxyError(Exception):
    """A proxy answers in the place of the server."""


class Desk:
    """What both protocols share: the engine, the books, the key, the faults. Callable from any thread."""

    def __init__(self, config: QdrantConfig, folder: Path) -> None:
        self.config = config
        self.engine = Engine(folder, polls=config.polls)
        self.books = Bookkeeper()
        self._lock = threading.Lock()
        self._script = Script()
        self._endpoints: Collection[str] | None = UPSERTS
        self._statuses: list[str] = []
        self.play(config, UPSERTS)

    def play(self, order: QdrantConfig | QdrantControl, endpoints: Collection[str]) -> None:
        if (source := ordered(order)) is not None:
            self.order(source, endpoints)

    def order(self, source: FaultSource | None, endpoints: Collection[str] | None) -> None:
        with self._lock:
            self._endpoints = endpoints
            self._script.replace(source)

    def set_statuses(self, statuses: Sequence[str]) -> None:
        with self._lock:
            self._statuses = list(statuses)

    def fault(self, endpoint: str, ids: Sequence[str]) -> Fault | None:
        with self._lock:
            if self._endpoints is not None and endpoint not in self._endpoints:
                return None
            return self._script.next_fault(endpoint, ids)

    def status(self, *, wait: bool) -> str:
        """What a write says of itself."""
        with self._lock:
            if self._statuses:
                return self._statuses.pop(0)
        return "completed" if wait else "acknowledged"

    def check_key(self, given: str | None) -> None:
        if self.config.api_key is not None and given != self.config.api_key:
            raise RefusedError(
                401,
                "Invalid API key or JWT" if given else "Must provide an API key or an Authorization bearer token",
            )

    @staticmethod
    def loses(fault: Fault) -> bool:
        return fault.kind in LOST

    @staticmethod
    def refuse(fault: Fault | None) -> None:
        """Raise what a fault puts in the place of the work.

        Raises:
            RefusedError: a status.
        """
        if fault is None or fault.kind not in REFUSED:
            return
        after = fault.retry_after
        if fault.kind in ("rate_limited", "quota"):
            raise RefusedError(429, "Rate limiting exceeded: Write rate limit exceeded, retry later", after)
        if fault.kind == "forbidden":
            raise RefusedError(403, "Forbidden: Global manage access is required")
        if fault.kind == "reset_before":
            raise RefusedError(503, "Connection reset by peer")
        if fault.kind == "html":
            raise RefusedError(502, "Received http2 header with status: 200")
        raise RefusedError(fault.status, "Service internal error: ordered by the script", after)

    def filtered(self, request: M) -> M:
        """The request as an older Qdrant understands it, if this is one."""
        return request if self.config.keeps_metadata else request.model_copy(update={"metadata": None})


class QdrantServer(ServerThread):
    """The server in threads of its own, while the `with` block runs. All methods may be called from any thread."""

    def __init__(self, config: QdrantConfig | None = None, *, port: int = 0) -> None:
        super().__init__()
        self.config = config or QdrantConfig()
        self.grpc_url = ""
        self._port = port
        self._folder = tempfile.TemporaryDirectory(prefix="qdrant-")
        self._desk = Desk(self.config, Path(self._folder.name))

    @property
    def books(self) -> QdrantBooks:
        """A copy of the books as they are now."""
        return self._desk.books.copy(self.grpc_url)

    @property
    def engine(self) -> Engine:
        """What it holds, to look at and to change behind the client's back."""
        return self._desk.engine

    def script(self, source: FaultSource | None, *, endpoints: Collection[str] | None = UPSERTS) -> None:
        """Faults for the requests to come, in place of those ordered before. None for `endpoints` means all."""
        self._desk.order(source, endpoints)

    def next_statuses(self, statuses: Sequence[str]) -> None:
        """What the next writes say of themselves, instead of `completed`."""
        self._desk.set_statuses(statuses)

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        service, port = qdrant_grpc.serve(self._desk)
        self.grpc_url = f"grpc://127.0.0.1:{port}"
        try:
            async with listening(self._application(), self._port) as self.url:
                yield
        finally:
            service.stop(grace=0).wait()

    def _release(self) -> None:
        self._desk.engine.clear()
        self._folder.cleanup()

    # -- REST --------------------------------------------------------------------------------------

    def _application(self) -> web.Application:
        application = web.Application(client_max_size=2**31)  # out of the way: Qdrant has a limit of its own
        engine = self._desk.engine

        def route(method: str, path: str, endpoint: str, work: Callable[[web.Request, bytes], Any]) -> None:
            application.router.add_route(method, path, self._handler(endpoint, work))

        def name(request: web.Request) -> str:
            return request.match_info["name"]

        route("GET", "/", "version", lambda _request, _body: None)
        route(
            "GET",
            "/collections",
            "list_collections",
            lambda _request, _body: {"collections": [{"name": each} for each in engine.names()]},
        )
        route(
            "GET",
            "/collections/{name}/exists",
            "exists",
            lambda request, _body: {"exists": engine.exists(name(request))},
        )
        route(
            "GET",
            "/collections/{name}",
            "get_collection",
            lambda request, _body: engine.info(name(request)).model_dump(mode="json"),
        )
        route("PUT", "/collections/{name}", "create_collection", self._create)
        route("PATCH", "/collections/{name}", "update_collection", self._change)
        route(
            "DELETE", "/collections/{name}", "delete_collection", lambda request, _body: engine.drop(name(request))
        )
        route("PUT", "/collections/{name}/index", "index", self._index)
        route("PUT", "/collections/{name}/points", "upsert", self._upsert)
        route("POST", "/collections/{name}/points/delete", "delete", self._delete)
        route(
            "POST",
            "/collections/{name}/points",
            "get",
            lambda request, body: [
                _shown(record) for record in engine.retrieve(name(request), _parsed(models.PointRequest, body))
            ],
        )
        route("POST", "/collections/{name}/points/scroll", "scroll", self._scroll)
        route(
            "POST",
            "/collections/{name}/points/count",
            "count",
            lambda request, body: {"count": engine.count(name(request), _parsed(models.CountRequest, body))},
        )
        route(
            "POST",
            "/collections/{name}/points/query",
            "query",
            lambda request, body: {
                "points": [
                    {"id": point.id, "version": point.version, "score": point.score, "payload": point.payload}
                    for point in engine.query(name(request), _parsed(models.QueryRequest, body))
                ]
            },
        )
        application.router.add_route("GET", "/_books", self._show_books)
        application.router.add_route("POST", "/_control", self._take_control)
        return application

    def _handler(
        self, endpoint: str, work: Callable[[web.Request, bytes], Any]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            where, fault, how = f"rest {endpoint}", None, "lost"
            self._desk.books.received(where)
            try:
                body = await request.read()
                began = time.monotonic()
                try:
                    fault = await self._admit(request, endpoint, body)
                    if endpoint == "version":
                        answer: dict[str, Any] = {"title": "qdrant - vector search engine", "version": "1.20.0"}
                    else:
                        answer = {"result": work(request, body)}
                        answer |= {"status": "ok", "time": time.monotonic() - began}
                except RefusedError as error:
                    how = str(error.status)
                    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
                    return web.json_response(
                        {"status": {"error": error.message}, "time": 0.0}, status=error.status, headers=headers
                    )
                if fault is not None and fault.kind in LOST:
                    await asyncio.sleep(fault.delay)
                    return await _broken(request, fault, orjson.dumps(answer))
                how = "200"
                return web.Response(body=orjson.dumps(answer), content_type="application/json")
            except ProxyError:
                how = "html"
                return web.Response(text="<html>Welcome to nginx!</html>", content_type="text/html")
            except ResetError:
                how = "reset"
                reset(request.transport)
                return web.Response()
            except ConnectionError:
                return web.Response()
            except Exception as error:
                self._crashes.append(error)
                raise
            finally:
                self._desk.books.answered(where, how, fault)

        return handle

    async def _admit(self, request: web.Request, endpoint: str, body: bytes) -> Fault | None:
        """The fault that is to bend the answer.

        Raises:
            RefusedError, ResetError, ProxyError: there is to be none.
        """
        limit = self.config.max_body_bytes
        if len(body) > limit:
            self._desk.books.too_large()
            raise RefusedError(
                self.config.oversize_status,
                f"Payload error: JSON payload ({len(body)} bytes) is larger than allowed (limit: {limit} bytes).",
            )
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        self._desk.check_key(request.headers.get("api-key") or bearer)
        fault = self._desk.fault(endpoint, _ids_in(body) if endpoint == "upsert" else ())
        if fault is None:
            return None
        if fault.delay and fault.kind not in LOST:
            await asyncio.sleep(fault.delay)
        if fault.kind == "reset_before":
            raise ResetError
        if fault.kind == "html":
            raise ProxyError
        self._desk.refuse(fault)
        return fault

    def _create(self, request: web.Request, body: bytes) -> bool:
        wanted = self._desk.filtered(_parsed(models.CreateCollection, body))
        self._desk.engine.create(request.match_info["name"], wanted)
        return True

    def _change(self, request: web.Request, body: bytes) -> bool:
        wanted = self._desk.filtered(_parsed(models.UpdateCollection, body))
        self._desk.engine.change(request.match_info["name"], wanted)
        return True

    def _index(self, request: web.Request, body: bytes) -> Any:
        self._desk.engine.index(request.match_info["name"], _parsed(models.CreateFieldIndex, body))
        return self._done(request)

    def _upsert(self, request: web.Request, body: bytes) -> Any:
        points = _parsed(models.PointsList, body).points
        self._desk.engine.upsert(request.match_info["name"], points)
        self._desk.books.applied(len(points), len(body))
        return self._done(request)

    def _delete(self, request: web.Request, body: bytes) -> Any:
        self._desk.engine.delete(request.match_info["name"], _parsed(models.PointIdsList, body).points)
        return self._done(request)

    def _done(self, request: web.Request) -> Any:
        if request.query.get("ordering", "weak") not in ("weak", "medium", "strong"):
            raise RefusedError(400, "Wrong input: unknown variant, expected one of `weak`, `medium`, `strong`")
        return {"operation_id": 1, "status": self._desk.status(wait=request.query.get("wait") == "true")}

    def _scroll(self, request: web.Request, body: bytes) -> Any:
        page = self._desk.engine.scroll(request.match_info["name"], _parsed(models.ScrollRequest, body))
        return {"points": [_shown(record) for record in page.points], "next_page_offset": page.next_page_offset}

    # For the test, not for the client.

    async def _show_books(self, _request: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode(self.books), content_type="application/json")

    async def _take_control(self, request: web.Request) -> web.Response:
        change = msgspec.json.decode(await request.read(), type=QdrantControl)
        self._desk.play(change, change.endpoints or UPSERTS)
        if change.statuses is not None:
            self.next_statuses(change.statuses)
        return web.json_response({})


def _parsed(model: type[M], body: bytes) -> M:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        raise RefusedError(
            400, f"Format error in JSON body: {first['msg']} at {'.'.join(map(str, first['loc']))}"
        ) from None


def _ids_in(body: bytes) -> list[str]:
    try:
        return [str(point["id"]) for point in orjson.loads(body)["points"]]
    except (ValueError, KeyError, TypeError):
        return []


def _shown(record: models.Record) -> dict[str, Any]:
    vector: Any = record.vector
    if isinstance(vector, dict):
        vector = {
            name: one.model_dump() if isinstance(one, models.SparseVector) else one for name, one in vector.items()
        }
    return {"id": record.id, "payload": record.payload, "vector": vector}


async def _broken(request: web.Request, fault: Fault, body: bytes) -> web.StreamResponse:
    """The answer to a write that was applied, lost on its way."""
    if fault.kind == "reset_after":
        reset(request.transport)
        return web.Response()
    half = body[: len(body) // 2]
    if fault.kind == "cut_json":
        return web.Response(body=half, content_type="application/json")
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.content_length = len(body)
    await response.prepare(request)
    await response.write(half)
    if request.transport is not None:
        request.transport.close()
    return response


class QdrantProcess(ServerProcess):
    """The server as a process of its own."""

    def __init__(self, config: QdrantConfig | None = None, **options: Any) -> None:
        given = msgspec.json.encode(config or QdrantConfig()).decode()
        super().__init__("tests.servers.qdrant_server", ["--config", given], **options)

    @property
    def books(self) -> QdrantBooks:
        return read_json(f"{self.url}/_books", QdrantBooks)

    @property
    def grpc_url(self) -> str:
        return self.books.grpc_url

    def control(self, **changes: Any) -> None:
        """Change it while it runs; the names are those of `QdrantControl`."""
        post_json(f"{self.url}/_control", QdrantControl(**changes))


if __name__ == "__main__":
    serve(QdrantConfig, QdrantServer)
