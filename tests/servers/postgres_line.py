"""A line to Postgres that fails right after a commit was applied: the client never hears of it."""

from __future__ import annotations

import contextlib
import selectors
import shutil
import socket
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

__all__ = ["FaultyLine"]

SOCKET = ".s.PGSQL.5432"
COMMITTED = b"COMMIT\0"
"""What stands in the server's answer to a COMMIT that is done."""


class FaultyLine:
    """Forwards connections to the server in `folder` while the `with` block runs.

    `faults` says what becomes of the next answers to a COMMIT: `cut`, the connection ends; `hang`, nothing
    arrives any more. Once they are used up, everything passes.
    """

    def __init__(self, server: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rg-line-"))
        self.faults: list[Literal["cut", "hang"]] = []
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
        hung = False
        with client, server, selectors.DefaultSelector() as ready, contextlib.suppress(OSError):
            ready.register(client, selectors.EVENT_READ, server)
            ready.register(server, selectors.EVENT_READ, client)
            while True:
                for key, _ in ready.select():
                    other: socket.socket = key.data
                    data = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]  # a socket
                    if not data:
                        return
                    if key.fileobj is server and COMMITTED in data and self.faults:
                        self.struck += 1
                        if self.faults.pop(0) == "cut":
                            return
                        hung = True
                    if not hung:
                        other.sendall(data)
