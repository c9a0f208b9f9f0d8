"""An embedding service on loopback: OpenAI's embeddings (Azure's too), files and batches, and Cohere's embed.

It rejects what is over the documented limits, counts requests and tokens in true sliding windows, goes wrong
on command, and keeps exact books. Vectors are a function of the text (`vector_of`).

In a test, in a thread of its own::

    with EmbeddingsServer(ServerConfig(rpm=600, window=1.0)) as server:
        client = openai.OpenAI(api_key="sk-test", base_url=server.base_url)
        server.script([rate_limited(retry_after=1), None, cut_body()])      # one entry a request, then none
        server.script(odds([(0.3, status(500))], seed=7))                    # or by probability
        server.script(lambda request: html() if request.ordinal < 3 else None)
        server.set_limits(rpm=300)
        assert server.books.texts_answered == 100                            # `books` is a copy, taken now
        assert server.books.times_answered[digest_of("a text")] == 1

As a process, for tests that kill the client, and for measurements that must not share an interpreter::

    python -m tests.servers.openai_api --port 0 --config '{"rpm": 600, "odds": [[0.3, {"kind": "status"}]]}'

The first line on stdout is its URL. GET /_books answers `Books` as JSON (`read_books(url)`), POST /_control
takes `Control` as JSON (`control(url, rpm=300)`). `tests.servers.process` starts and stops it.

What happens to a request, in this order: its body is read (413 over `max_body_bytes`), its key is checked
(401), its JSON is parsed (400), the script is asked for a fault, what a fault refuses is refused, the
request is checked (400, 404), the rate limits admit it (429), it is computed, and the answer is bent or cut as
the fault says. So a request that the script or a check refused uses up no limit, and a fault that needs an
answer does nothing to a request that has none.

A script is for the embedding endpoints unless `endpoint="files"` or `"batches"` is given: there the faults that
refuse, cut or reset work, and `reset_after` means that the file or the batch was made and nobody heard of it.

A batch goes through `validating`, `in_progress`, `finalizing`, `completed` as it is looked at
(`polls_per_state`), or by `server.advance()`; `batch_outcomes` make it expire, fail or be cancelled.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
from aiohttp import BodyPartReader, ClientPayloadError, web

from tests.servers import faults
from tests.servers.answers import Answer, ApiError, Dialect, refused_by_fault, refused_by_limits
from tests.servers.batches import BatchStore, FileStore, page
from tests.servers.books import Bookkeeper, Books, Charge, Outcome
from tests.servers.config import BatchOutcome, Control, ServerConfig
from tests.servers.embeddings import Embedder, EmbeddingsRequest, parse_cohere, parse_openai
from tests.servers.faults import Fault, FaultSource, Script, ordered
from tests.servers.limits import RateLimits
from tests.servers.process import serve
from tests.servers.remote import control, read_books
from tests.servers.threads import ServerThread, listening, reset
from tests.servers.vectors import digest_of, vector_of

__all__ = [
    "BatchOutcome",
    "Books",
    "Control",
    "EmbeddingsServer",
    "ServerConfig",
    "control",
    "digest_of",
    "read_books",
    "vector_of",
]

Endpoint = Literal["embeddings", "files", "batches"]
Unset = msgspec.UnsetType


@dataclass(frozen=True, slots=True)
class _Call:
    """A request that was parsed: its texts for the script, and the rest of the work."""

    texts: Sequence[str]
    run: Callable[[Fault | None], Answer]
    input_type: str = ""


_Parse = Callable[[web.Request], Awaitable[_Call]]


class EmbeddingsServer(ServerThread):
    """The server in a thread of its own, while the `with` block runs. All methods may be called from any thread.

    `clock` is what the rate limits count by.
    """

    def __init__(
        self, config: ServerConfig | None = None, *, port: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self.config = config or ServerConfig()
        self._port = port
        self._clock = clock
        self._latency = self.config.latency
        self._lock = threading.RLock()  # around all state that a request changes, but the books
        self._ledger = Bookkeeper()
        self._limits = RateLimits(self.config.rpm, self.config.tpm, self.config.window)
        self._embedder = Embedder(self.config)
        self._scripts: dict[Endpoint, Script] = {"embeddings": Script(), "files": Script(), "batches": Script()}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._files = FileStore()
        self._batches = BatchStore(self.config, self._files, self._embedder, self._ledger)
        self._play(self.config)

    @property
    def base_url(self) -> str:
        """What a client of OpenAI's API takes."""
        return f"{self.url}/v1"

    @property
    def books(self) -> Books:
        """A copy of the books as they are now."""
        return self._ledger.copy()

    def wait_until(self, condition: Callable[[Books], bool], timeout: float = 30.0) -> Books:
        """Wait for the books to say something; looked at after each change, so not for one in a hot loop.

        Raises:
            TimeoutError: they did not in time.
        """
        return self._ledger.wait_until(condition, timeout)

    def set_limits(
        self, *, rpm: int | Unset | None = msgspec.UNSET, tpm: int | Unset | None = msgspec.UNSET
    ) -> None:
        """Change a limit for the requests to come; what was used before still counts. None takes it away."""
        with self._lock:
            if rpm is not msgspec.UNSET:
                self._limits.requests.limit = rpm
            if tpm is not msgspec.UNSET:
                self._limits.tokens.limit = tpm

    def set_latency(self, seconds: float) -> None:
        self._latency = seconds

    def script(self, source: FaultSource | None, *, endpoint: Endpoint = "embeddings") -> None:
        """Faults for the requests to come, in place of those ordered before. None orders none.

        A callable is called in the server's thread, one request at a time.
        """
        with self._lock:
            self._scripts[endpoint].replace(source)

    def plan_batches(self, outcomes: Sequence[BatchOutcome]) -> None:
        """What becomes of the batches created from now on."""
        with self._lock:
            self._batches.plan(outcomes)

    def advance(self, batch_id: str = "all") -> None:
        """Move a batch, or all, one state on."""
        with self._lock:
            self._batches.advance(batch_id)

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        async with listening(self._application(), self._port) as self.url:
            try:
                yield
            finally:
                # Slow answers are not waited for.
                for task in self._tasks:
                    task.cancel()

    def _release(self) -> None:
        self._files.close()

    def _application(self) -> web.Application:
        application = web.Application(
            client_max_size=2**31
        )  # out of the way: the services have limits of their own
        route = application.router.add_route

        def answer(method: str, path: str, endpoint: Endpoint, parse: _Parse, dialect: Dialect = "openai") -> None:
            async def handle(request: web.Request) -> web.StreamResponse:
                task = asyncio.current_task()
                assert task is not None
                self._tasks.add(task)
                try:
                    return await self._exchange(request, endpoint, parse, dialect)
                except Exception as error:
                    self._crashes.append(error)
                    raise
                finally:
                    self._tasks.discard(task)

            route(method, path, handle)

        answer("POST", "/v1/embeddings", "embeddings", self._parse_openai)
        answer("POST", "/openai/v1/embeddings", "embeddings", self._parse_azure)
        answer("POST", "/openai/deployments/{name}/embeddings", "embeddings", self._parse_azure)
        answer("POST", "/v2/embed", "embeddings", self._parse_cohere, "cohere")
        answer("POST", "/v1/files", "files", self._parse_upload)
        answer("GET", "/v1/files", "files", self._parse_list_files)
        answer("GET", "/v1/files/{id}", "files", self._parse_get_file)
        answer("GET", "/v1/files/{id}/content", "files", self._parse_content)
        answer("DELETE", "/v1/files/{id}", "files", self._parse_delete_file)
        answer("POST", "/v1/batches", "batches", self._parse_create_batch)
        answer("GET", "/v1/batches", "batches", self._parse_list_batches)
        answer("GET", "/v1/batches/{id}", "batches", self._parse_poll)
        answer("POST", "/v1/batches/{id}/cancel", "batches", self._parse_cancel)
        route("GET", "/_books", self._show_books)
        route("POST", "/_control", self._take_control)
        return application

    # One request, from its first byte to the last of its answer.

    async def _exchange(
        self, request: web.Request, endpoint: Endpoint, parse: _Parse, dialect: Dialect
    ) -> web.StreamResponse:
        with self._ledger.flight(endpoint):
            fault: Fault | None = None
            try:
                try:
                    call = await self._admit(request, endpoint, parse)
                except (ConnectionError, ClientPayloadError):
                    self._ledger.broken()
                    return web.Response()
                with self._lock:
                    fault = self._scripts[endpoint].next_fault(endpoint, call.texts)
                if fault is not None and fault.delay:
                    await asyncio.sleep(fault.delay)
                if fault is not None and not faults.has_effect(fault, endpoint, dialect):
                    fault = None
                if fault is not None and fault.kind in faults.REFUSED:
                    if fault.kind == "reset_before":
                        self._ledger.closed(endpoint, "reset", fault.kind, None)
                        reset(request.transport)
                        return web.Response()
                    answer = refused_by_fault(fault, dialect)
                else:
                    with self._lock:
                        answer = call.run(fault)
            except ApiError as error:
                answer = error.answer(dialect)
                if fault is not None and fault.kind != "slow":
                    fault = None  # there is no answer that it could bend
            if endpoint == "embeddings" and self._latency:
                await asyncio.sleep(self._latency)
            return await self._deliver(request, endpoint, answer, fault)

    async def _admit(self, request: web.Request, endpoint: Endpoint, parse: _Parse) -> _Call:
        """Read and parse; the body is read to its end before anything is answered."""
        if request.content_type != "multipart/form-data":
            await request.read()
        self._ledger.received(endpoint)
        limit = self.config.max_body_bytes
        if endpoint == "embeddings" and limit is not None and len(await request.read()) > limit:
            raise ApiError(413, f"Maximum content size limit ({limit}) exceeded.")
        if self.config.api_key is not None:
            scheme, _, key = request.headers.get("Authorization", "").partition(" ")
            if "api-key" in request.headers and request.path.startswith("/openai/"):
                scheme, key = "bearer", request.headers["api-key"]
            elif request.path.startswith("/openai/deployments/"):
                key = ""  # what a bearer brings there is a token of Entra
            if scheme.lower() != "bearer" or not key:
                raise ApiError(401, "You didn't provide an API key.")
            if key != self.config.api_key:
                raise ApiError(401, f"Incorrect API key provided: {key[:3]}***.", code="invalid_api_key")
        call = await parse(request)
        if endpoint == "embeddings":
            self._ledger.parsed(len(call.texts), call.input_type)
        return call

    async def _deliver(
        self, request: web.Request, endpoint: Endpoint, answer: Answer, fault: Fault | None
    ) -> web.StreamResponse:
        kind = fault.kind if fault else None
        outcome: Outcome = "lost" if kind in faults.LOST else "spoiled" if kind in faults.SPOILED else "answered"
        # Before the first byte: whoever has the answer finds it in the books.
        self._ledger.closed(
            endpoint, "reset" if kind == "reset_after" else str(answer.status), kind, answer.charge, outcome
        )
        if kind == "reset_after":
            reset(request.transport)
            return web.Response()
        body = answer.body
        if kind in ("cut_body", "cut_json") and isinstance(body, Path):
            body = body.read_bytes()
        if isinstance(body, Path):
            return web.FileResponse(body)
        whole = len(body)
        if kind in ("cut_body", "cut_json"):
            body = body[: whole // 2]
        response: web.StreamResponse
        try:
            if kind == "cut_body":
                response = web.StreamResponse(status=answer.status, headers=answer.headers)
                response.content_type = answer.content_type
                response.content_length = whole
                await response.prepare(request)
                await response.write(body)
                if request.transport is not None:
                    request.transport.close()
                return response
            response = web.Response(
                body=body, status=answer.status, headers=answer.headers, content_type=answer.content_type
            )
            await response.prepare(request)
            await response.write_eof()
            delivered = request.transport is not None
        except ConnectionError:
            delivered = False
        if not delivered and answer.charge is not None and outcome == "answered":
            self._ledger.undelivered(answer.charge)
        return response

    # The endpoints.

    async def _parse_azure(self, request: web.Request) -> _Call:
        """As OpenAI's, for the model that is deployed under a name: that in the path, or that in the body."""
        parsed = parse_openai(await request.read())
        name = request.match_info.get("name")
        if name is not None and "api-version" not in request.query:
            raise ApiError(404, "Resource not found", code="404")
        model = self.config.deployments.get(name or parsed.model)
        if model is None:
            raise ApiError(404, "The API deployment for this resource does not exist.", code="DeploymentNotFound")
        return self._openai_call(msgspec.structs.replace(parsed, model=model))

    async def _parse_openai(self, request: web.Request) -> _Call:
        return self._openai_call(parse_openai(await request.read()))

    def _openai_call(self, parsed: EmbeddingsRequest) -> _Call:

        def run(fault: Fault | None) -> Answer:
            charge = self._embedder.check(parsed)
            headers = self._pass_limits(charge, parsed.model, "openai")
            return replace(self._embedder.answer(parsed, charge, fault), headers=headers)

        return _Call(parsed.texts, run)

    async def _parse_cohere(self, request: web.Request) -> _Call:
        parsed = parse_cohere(await request.read())

        def run(fault: Fault | None) -> Answer:
            charge = self._embedder.check_cohere(parsed)
            self._pass_limits(charge, parsed.model, "cohere")
            return self._embedder.answer_cohere(parsed, charge, fault)

        return _Call(parsed.texts, run, parsed.input_type)

    def _pass_limits(self, charge: Charge, model: str, dialect: Dialect) -> dict[str, str]:
        """Take the request from the limits; the headers that say what is left.

        Raises:
            ApiError: 429, it does not fit now.
        """
        now = self._clock()
        refusal = self._limits.admit(charge.tokens, now)
        headers = self._limits.headers(now) if self.config.rate_limit_headers and dialect == "openai" else {}
        if refusal is not None:
            self._ledger.limited()
            error = refused_by_limits(refusal, model, dialect, tell_wait=self.config.retry_after)
            error.headers.update(headers)
            raise error
        self._ledger.accepted(now, len(charge.hashes), charge.tokens)
        return headers

    async def _parse_upload(self, request: web.Request) -> _Call:
        purpose, filename, path = "", "", None
        size = 0
        async for part in await request.multipart():
            assert isinstance(part, BodyPartReader)
            if part.name == "purpose":
                purpose = await part.text()
            elif part.name == "file":
                filename, path = part.filename or "upload", self._files.new_path()
                with path.open("wb") as file:
                    while chunk := await part.read_chunk(2**18):
                        size += len(chunk)
                        if size <= self.config.max_file_bytes:
                            file.write(chunk)
        if path is None or purpose != "batch":
            raise ApiError(400, "'file' and 'purpose' (here: 'batch') are required properties.")
        if size > self.config.max_file_bytes:
            raise ApiError(413, f"The file is {size} bytes, at most {self.config.max_file_bytes} are allowed.")
        if size == 0:
            raise ApiError(400, "The file is empty.")
        stored = path

        def run(_fault: Fault | None) -> Answer:
            self._ledger.file_uploaded()
            return Answer.json(self._files.add(stored, filename, purpose).describe())

        return _Call((), run)

    async def _parse_list_files(self, request: web.Request) -> _Call:
        query = request.query
        return _Call((), lambda _fault: Answer.json(self._files.page(page(query), query.get("purpose"))))

    async def _parse_get_file(self, request: web.Request) -> _Call:
        file_id = request.match_info["id"]
        return _Call((), lambda _fault: Answer.json(self._files.get(file_id).describe()))

    async def _parse_content(self, request: web.Request) -> _Call:
        file_id = request.match_info["id"]
        return _Call((), lambda _fault: Answer(200, self._files.get(file_id).path))

    async def _parse_delete_file(self, request: web.Request) -> _Call:
        file_id = request.match_info["id"]
        return _Call((), lambda _fault: Answer.json(self._files.delete(file_id)))

    async def _parse_create_batch(self, request: web.Request) -> _Call:
        body = await request.read()
        return _Call((), lambda _fault: self._batches.create(body))

    async def _parse_list_batches(self, request: web.Request) -> _Call:
        query = request.query
        return _Call((), lambda _fault: self._batches.page(page(query)))

    async def _parse_poll(self, request: web.Request) -> _Call:
        batch_id = request.match_info["id"]
        return _Call((), lambda _fault: self._batches.poll(batch_id))

    async def _parse_cancel(self, request: web.Request) -> _Call:
        batch_id = request.match_info["id"]
        return _Call((), lambda _fault: self._batches.cancel(batch_id))

    # For the test, not for the client.

    async def _show_books(self, _request: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode(self.books), content_type="application/json")

    async def _take_control(self, request: web.Request) -> web.Response:
        change = msgspec.json.decode(await request.read(), type=Control)
        self.set_limits(rpm=change.rpm, tpm=change.tpm)
        if change.latency is not None:
            self.set_latency(change.latency)
        if change.batch_outcomes is not None:
            self.plan_batches(change.batch_outcomes)
        if change.advance is not None:
            self.advance(change.advance)
        self._play(change)
        return web.json_response({})

    def _play(self, order: ServerConfig | Control) -> None:
        if (source := ordered(order)) is not None:
            self.script(source, endpoint=order.script_endpoint)


if __name__ == "__main__":
    serve(ServerConfig, EmbeddingsServer)
