"""A TCP proxy on loopback that makes a bad network of a good one: slow, narrow, cut, half-open."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

__all__ = ["CUT", "HALF_OPEN", "REFUSED", "FaultProxy", "Weather"]

PIECE = 4096
SSL_REQUEST_BYTES = 8
"""Of Postgres' protocol."""


@dataclass(frozen=True)
class Weather:
    """What one connection meets.

    `latency` in seconds, each way; `bandwidth` in bytes a second, of answers, and `upload` of requests;
    `cut_after` bytes of an answer the connection is reset, `dead_after` so many nothing comes any more and
    nobody is told; `silent`: that from the start.
    """

    latency: float = 0.0
    bandwidth: float | None = None
    upload: float | None = None
    cut_after: int | None = None
    dead_after: int | None = None
    silent: bool = False


REFUSED = Weather(cut_after=0)
CUT = Weather(cut_after=1500)
HALF_OPEN = Weather(silent=True)


class FaultProxy:
    """Passes connections on to the server at `url`; each takes the next weather, and the last goes on for ever.

    Runs in a thread of its own while the `with` block does. With `tls`, the files of a certificate and
    its key, it speaks TLS, and plainly to the server behind it; with `asked` only after the client has
    asked for it, as Postgres' does. `url` may also be the path of a Unix socket.
    """

    def __init__(
        self,
        url: str | Path,
        weather: Iterable[Weather] = (),
        *,
        tls: tuple[Path, Path] | None = None,
        asked: bool = False,
    ) -> None:
        self._to = url
        self._weather: Iterator[Weather] = iter(weather)
        self._now = Weather()
        self._tls = tls
        self._asked = asked
        self._context: ssl.SSLContext | None = None
        self.connections = 0
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        context = None
        if self._tls is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(*self._tls)
            context.set_alpn_protocols(["h2", "http/1.1"])  # what gRPC insists on, and what all others choose
        self._context = context
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=None if self._asked else context)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self._now = next(self._weather, self._now)
        weather = self._now
        try:
            if weather.silent:
                await reader.read(-1)
                return
            if self._asked and self._context is not None:
                await reader.readexactly(SSL_REQUEST_BYTES)
                writer.write(b"S")
                await writer.start_tls(self._context)
            there_reader, there = await self._open()
            try:
                async with asyncio.TaskGroup() as group:
                    request = Weather(latency=weather.latency, bandwidth=weather.upload)
                    group.create_task(_pump(reader, there, request))
                    group.create_task(_pump(there_reader, writer, weather))
            finally:
                there.close()
        except* (OSError, _CutError):
            _reset(writer)
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._to, Path):
            return await asyncio.open_unix_connection(self._to)
        parts = urlsplit(self._to)
        return await asyncio.open_connection(parts.hostname, parts.port)


class _CutError(Exception):
    pass


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, weather: Weather) -> None:
    passed = 0
    while data := await reader.read(PIECE):
        await asyncio.sleep(weather.latency + (len(data) / weather.bandwidth if weather.bandwidth else 0.0))
        if weather.cut_after is not None and passed + len(data) > weather.cut_after:
            writer.write(data[: weather.cut_after - passed])
            with suppress(OSError):
                await writer.drain()
            raise _CutError
        passed += len(data)
        if weather.dead_after is not None and passed > weather.dead_after:
            continue
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN, as a crashed peer or a firewall does."""
    raw = writer.get_extra_info("socket")
    with suppress(OSError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
