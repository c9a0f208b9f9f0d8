"""What the servers on loopback share: a thread with an event loop, HTTP on a port, the sudden end of a connection."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from types import TracebackType
from typing import Self

from aiohttp import web

__all__ = ["ServerThread", "listening", "reset"]


class ServerThread:
    """An asyncio server in a thread of its own, while the `with` block runs.

    A subclass serves in `_serving`, which sets `url`; `_release` gives back what the thread leaves behind. What is
    put into `_crashes` is raised at the end of the block.
    """

    def __init__(self) -> None:
        self.url = ""
        self._crashes: list[BaseException] = []
        self._failure: OSError | None = None
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve()), name=type(self).__name__, daemon=True
        )

    def _serving(self) -> AbstractAsyncContextManager[None]:
        raise NotImplementedError

    def _release(self) -> None:
        pass

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            self._thread.join()
            self._release()
            raise self._failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._release()
        if kind is None and self._crashes:
            raise RuntimeError("the server itself failed in a request, and answered 500") from self._crashes[0]

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        try:
            async with self._serving():
                self._started.set()
                await self._stop.wait()
        except OSError as error:
            if self._started.is_set():
                raise
            self._failure = error
        finally:
            self._started.set()


@asynccontextmanager
async def listening(application: web.Application, port: int) -> AsyncIterator[str]:
    """The URL of an application that is served on that port; 0 for any."""
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def reset(transport: asyncio.BaseTransport | None) -> None:
    """End the connection with a RST."""
    if isinstance(transport, asyncio.Transport):
        connection: socket.socket = transport.get_extra_info("socket")
        with suppress(OSError):  # the client is gone
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
