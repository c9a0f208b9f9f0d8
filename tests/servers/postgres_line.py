"""A line to Postgres that fails when something is committed: before the server hears of it, or the client."""

from __future__ import annotations

import contextlib
import selectors
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

__all__ = ["FaultyLine", "LineFault"]

SOCKET = ".s.PGSQL.5432"
COMMIT = b"COMMIT\0"
"""Ends what asks for it, and is in the server's answer when it is done."""

LineFault = Literal["lost", "cut", "hang"]
"""The connection ends before the COMMIT arrives; after it is applied; or then nothing arrives any more."""


class FaultyLine:
    """Forwards connections to the server in `folder` while the `with` block runs.

    `faults` says what becomes of the next COMMITs (None: it passes), until it is used up.
    """

    def __init__(self, server: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rg-line-"))
        self.faults: Iterator[LineFault | None] = iter(())
        self.struck = 0
        self._server = server
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.folder / SOCKET))
        self._listener.listen()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(30)
        shutil.rmtree(self.folder)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=[client], daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        server = socket.socket(socket.AF_UNIX)
        server.connect(str(self._server / SOCKET))
        fault: LineFault | None = None
        hung = False
        with client, server, selectors.DefaultSelector() as ready, contextlib.suppress(OSError):
            ready.register(client, selectors.EVENT_READ, server)
            ready.register(server, selectors.EVENT_READ, client)
            while True:
                for key, _ in ready.select():
                    other: socket.socket = key.data
                    data = key.fileobj.recv(1 << 18)  # type: ignore[union-attr]  # a socket
                    if not data:
                        return
                    if COMMIT in data and other is server:
                        fault = next(self.faults, None)
                        self.struck += fault is not None
                    if COMMIT in data and fault is not None:
                        hung = fault == "hang" and other is client
                        if fault == "lost" or (fault == "cut" and other is client):
                            return
                    if not hung:
                        other.sendall(data)
