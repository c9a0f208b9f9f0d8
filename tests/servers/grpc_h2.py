"""The server's half of gRPC on HTTP/2 without TLS, as an asyncio protocol: whole control of what goes wrong.

One message in, one message out. grpc's own servers cannot reset a connection, answer with a page of a proxy,
or cut an answer off; this one hands its transport to whoever answers.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import H2Error, StreamClosedError
from h2.settings import SettingCodes, Settings

__all__ = ["PREFACE", "Call", "GrpcProtocol"]

PREFACE = b"PRI * HTTP/2.0"
WINDOW = 2**24
FRAME = 2**20
SETTINGS = {
    SettingCodes.HEADER_TABLE_SIZE: 4096,
    SettingCodes.MAX_CONCURRENT_STREAMS: 1000,
    SettingCodes.INITIAL_WINDOW_SIZE: WINDOW,
    SettingCodes.MAX_FRAME_SIZE: FRAME,
}


@dataclass(slots=True, eq=False)
class Call:
    """One call: what was asked, and the ways of answering it. An answer after the client's reset goes nowhere."""

    protocol: GrpcProtocol
    stream: int
    headers: dict[str, str]
    body: bytearray = field(default_factory=bytearray)

    @property
    def path(self) -> str:
        return self.headers[":path"]

    @property
    def message(self) -> bytes:
        """The request's one message.

        Raises:
            ValueError: that is not what it sent.
        """
        compressed, length = struct.unpack(">BI", self.body[:5])
        if compressed or length != len(self.body) - 5:
            raise ValueError("not one uncompressed message")
        return bytes(self.body[5:])

    def answer(self, message: bytes, metadata: Mapping[str, str], *, part: float = 1.0) -> None:
        """The message and OK; of less than all of it only so much, and then the end of the stream."""
        self.protocol.send(
            self.stream, [(":status", "200"), ("content-type", "application/grpc"), *metadata.items()]
        )
        framed = struct.pack(">BI", 0, len(message)) + message
        if part < 1.0:
            self.protocol.send_data(self.stream, framed[: int(len(framed) * part)], trailers=None)
        else:
            self.protocol.send_data(self.stream, framed, trailers=[("grpc-status", "0")])

    def fail(self, code: int, message: str, metadata: Mapping[str, str]) -> None:
        """A gRPC status without a message."""
        headers = [(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", str(code))]
        headers += [("grpc-message", quote(message, safe=" /:,.()'")), *metadata.items()]
        self.protocol.send(self.stream, headers, end=True)

    def answer_http(self, status: int, content_type: str, body: bytes, headers: Mapping[str, str]) -> None:
        """What somebody in between would say, who knows nothing of gRPC."""
        head = [(":status", str(status)), ("content-type", content_type), *headers.items()]
        self.protocol.send(self.stream, head)
        self.protocol.send_data(self.stream, body, trailers=[])

    @property
    def transport(self) -> asyncio.Transport:
        return self.protocol.transport


Handle = Callable[[Call], Awaitable[None]]


class GrpcProtocol(asyncio.Protocol):
    """One connection. `handle` is called, as a task of its own, with each request that has come whole."""

    transport: asyncio.Transport

    def __init__(self, handle: Handle, tasks: set[asyncio.Task[None]]) -> None:
        self._handle = handle
        self._tasks = tasks
        self._connection = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        # From the first frame on: clients use a changed setting before they acknowledge it.
        self._connection.local_settings = Settings(client=False, initial_values=SETTINGS)
        self._connection.max_inbound_frame_size = FRAME
        self._calls: dict[int, Call] = {}
        self._waiting: dict[int, tuple[bytes, list[tuple[str, str]] | None]] = {}
        """Data that the client has no window for, and the trailers after it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._connection.initiate_connection()
        self._connection.increment_flow_control_window(WINDOW)
        self._flush()

    def data_received(self, data: bytes) -> None:
        try:
            events = self._connection.receive_data(data)
        except H2Error:
            self.transport.close()
            return
        for event in events:
            self._on(event)
        self._flush()

    def _on(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            headers = {str(name): str(value) for name, value in event.headers}
            self._calls[event.stream_id] = Call(self, event.stream_id, headers)
        elif isinstance(event, DataReceived):
            self._connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if call := self._calls.get(event.stream_id):
                call.body += event.data
        elif isinstance(event, StreamEnded):
            if call := self._calls.pop(event.stream_id, None):
                task: asyncio.Task[None] = asyncio.ensure_future(self._handle(call))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        elif isinstance(event, StreamReset):
            self._calls.pop(event.stream_id, None)
            self._waiting.pop(event.stream_id, None)
        elif isinstance(event, WindowUpdated):
            for stream in list(self._waiting):
                self._send_waiting(stream)
        elif isinstance(event, ConnectionTerminated):
            self.transport.close()

    def send(self, stream: int, headers: list[tuple[str, str]], *, end: bool = False) -> None:
        try:
            self._connection.send_headers(stream, headers, end_stream=end)
        except (H2Error, KeyError):
            return
        self._flush()

    def send_data(self, stream: int, data: bytes, trailers: list[tuple[str, str]] | None) -> None:
        """Data, and then trailers; None resets the stream instead of ending it."""
        self._waiting[stream] = (data, trailers)
        self._send_waiting(stream)
        self._flush()

    def _send_waiting(self, stream: int) -> None:
        data, trailers = self._waiting.pop(stream)
        try:
            while data:
                room = min(
                    self._connection.local_flow_control_window(stream), self._connection.max_outbound_frame_size
                )
                if room <= 0:
                    self._waiting[stream] = (data, trailers)
                    return
                self._connection.send_data(stream, data[:room])
                data = data[room:]
            if trailers is None:
                self._connection.reset_stream(stream, ErrorCodes.INTERNAL_ERROR)
            elif trailers:
                self._connection.send_headers(stream, trailers, end_stream=True)
            else:
                self._connection.end_stream(stream)
        except (H2Error, StreamClosedError, KeyError):
            return

    def _flush(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(self._connection.data_to_send())
