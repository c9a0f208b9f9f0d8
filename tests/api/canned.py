"""An HTTP server that answers what it is told, byte for byte, for answers that no real service would send."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple, Self

import msgspec

__all__ = ["Canned", "Reply", "Seen", "embeddings", "error"]


class Reply(NamedTuple):
    body: bytes
    status: int = 200
    headers: Mapping[str, str] = {}


class Seen(NamedTuple):
    """A request that came: its target, its headers by names in lower case, its body."""

    target: str
    headers: dict[str, str]
    body: Any


def embeddings(*rows: object, tokens: int | None = 7, indexes: Sequence[int] | None = None) -> Reply:
    """An answer with these embeddings, whatever they are, under these indexes."""
    data = [
        {"object": "embedding", "embedding": row, "index": index}
        for row, index in zip(rows, indexes or range(len(rows)), strict=True)
    ]
    usage = None if tokens is None else {"prompt_tokens": tokens, "total_tokens": tokens}
    return Reply(msgspec.json.encode({"object": "list", "data": data, "model": "m", "usage": usage}))


def error(status: int, fields: object, **headers: str) -> Reply:
    """An error as OpenAI writes it; a keyword names a header, with _ for -."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(msgspec.json.encode({"error": fields}), status, named)


class Canned:
    """Serves while the `with` block runs. The last reply is given again and again."""

    def __init__(self, *replies: Reply) -> None:
        self.seen: list[Seen] = []
        self._replies = list(replies)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        canned = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                canned.seen.append(Seen(self.path, headers, msgspec.json.decode(body)))
                reply = canned._replies[min(len(canned.seen), len(canned._replies)) - 1]
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name in the base class
                pass

        return Handler
