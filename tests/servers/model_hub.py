"""Hugging Face's server on loopback, as far as downloading one public model needs it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

__all__ = ["serving_model"]

COMMIT = "0" * 40


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, repository: str, folder: Path, *given: object) -> None:
        self._repository = repository
        self._folder = folder
        super().__init__(*given)  # type: ignore[arg-type]  # what the server gives every handler

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0]).strip("/")
        files = [str(file.relative_to(self._folder)) for file in sorted(self._folder.rglob("*")) if file.is_file()]
        about = f"api/models/{self._repository}"
        if path in (about, f"{about}/revision/main", f"{about}/revision/{COMMIT}"):
            siblings = [{"rfilename": name} for name in files]
            self._json({"id": self._repository, "sha": COMMIT, "private": False, "siblings": siblings})
            return
        for revision in ("main", COMMIT):
            name = path.removeprefix(f"{self._repository}/resolve/{revision}/").removeprefix("./")
            if name in files:
                self._answer(200, (self._folder / name).read_bytes())
                return
        known = path.startswith((about, self._repository))
        self._answer(404, b"", {"X-Error-Code": "EntryNotFound" if known else "RepoNotFound"})

    def _json(self, document: object) -> None:
        self._answer(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        etag = hashlib.sha256(body).hexdigest()
        for name, value in {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving_model(repository: str, folder: Path) -> Iterator[str]:
    """The URL of a server that has `folder` as the model `repository`, and nothing else."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, repository, folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
