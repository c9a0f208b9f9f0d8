"""Upserts over gRPC: the bytes of `qdrant.UpsertPoints` around those of the numpy array.

The numbers of the fields are those of Qdrant's points.proto; the tests read what is written here with the client's
own classes, which take three times as long to write it.
"""

from __future__ import annotations

import math
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grpc
from qdrant_client.grpc import PointsOperationResponse, SparseVector, UpdateStatus

from ragingest.documents import Document, EmbeddedBatch, Fault, point_id
from ragingest.errors import RejectedError
from ragingest.stores.metadata import encode_metadata, leaves
from ragingest.stores.protobuf import field, head_of, key_of, varint
from ragingest.stores.qdrant_errors import ServerErrors
from ragingest.stores.qdrant_layout import DENSE, SPARSE

__all__ = ["OPTIONS", "GrpcUpserts", "is_timeout"]

# Qdrant's gRPC takes messages of any size; this one keeps what is held at once to that of REST.
MAX_MESSAGE_BYTES = 32 * 1024 * 1024
# Retries are the business of one layer only, and that one waits long enough.
OPTIONS = {
    "grpc.enable_retries": 0,
    "grpc.max_send_message_length": -1,
    "grpc.max_receive_message_length": -1,
    # A channel has a connection of its own, so that another one is another connection.
    "grpc.use_local_subchannel_pool": 1,
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 2000,
}
_STATUSES = {
    UpdateStatus.Acknowledged: "acknowledged",
    UpdateStatus.Completed: "completed",
    UpdateStatus.ClockRejected: "clock_rejected",
    UpdateStatus.WaitTimeout: "wait_timeout",
}


class GrpcUpserts:
    """Encodes points and sends them. Used by several threads at once."""

    def __init__(
        self, target: str, secure: bool, collection: str, key: str, timeout: float, errors: ServerErrors
    ) -> None:
        # UpsertPoints: collection_name = 1, wait = 2, ordering = 4 {type = 1: Medium}
        self._head = field(1, collection.encode()) + b"\x10\x01" + field(4, b"\x08\x01")
        self.max_bytes = MAX_MESSAGE_BYTES - len(self._head)
        self._timeout = timeout
        self._metadata = (("api-key", key),) if key else ()
        self._errors = errors
        self._target = target
        self._secure = secure
        self._dialling = threading.Lock()
        self._dial()

    def _dial(self) -> None:
        options = list(OPTIONS.items())
        self._channel = (
            grpc.secure_channel(self._target, grpc.ssl_channel_credentials(), options)
            if self._secure
            else grpc.insecure_channel(self._target, options)
        )
        self._upsert: Callable[..., PointsOperationResponse] = self._channel.unary_unary(
            "/qdrant.Points/Upsert", response_deserializer=PointsOperationResponse.FromString
        )

    def _redial(self, dead: object) -> None:
        """Leave a connection that may have died in silence, once; calls under way on it come to their own end."""
        with self._dialling:
            if dead is self._upsert:
                self._dial()

    def encode(self, batch: EmbeddedBatch, *, drop_text: bool) -> list[bytes | Fault]:
        """Each point as a field of the message, or why there is none."""
        encoded: list[bytes | Fault] = []
        known: Document | None = None
        of_document = b""
        for chunk, vectors in zip(batch.chunks, _vectors(batch), strict=True):
            document = chunk.document
            try:
                if document is not known:
                    of_document = _entries(
                        _PAYLOAD,
                        {
                            "id": document.id,
                            "chunks": document.chunks,
                            "digest": document.digest.hex(),
                            "metadata": document.metadata,
                        },
                    )
                    known = document
                of_chunk = _entries(_PAYLOAD, {"chunk": chunk.number, "text": "" if drop_text else chunk.text})
            except (ValueError, TypeError, AttributeError, RecursionError) as error:
                encoded.append(_unfit(document.metadata, error))
                continue
            uuid = point_id(document.id, chunk.number).encode()
            encoded.append(field(3, _UUID, uuid, of_document, of_chunk, *vectors))
        return encoded

    def send(self, wire: Sequence[bytes]) -> str:
        """One request on the wire; the status that the server gives the write.

        Raises:
            TransientError, RejectedError, TerminalError: as the contract of stores says.
        """
        message = b"".join((self._head, *wire))
        upsert = self._upsert
        try:
            answer = upsert(message, timeout=self._timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            if is_timeout(error):
                self._redial(upsert)
            raise self._errors.of(error) from None
        return _STATUSES.get(answer.result.status, "unknown")

    def close(self) -> None:
        self._channel.close()


def is_timeout(error: BaseException) -> bool:
    """Whether a call has had no answer in time: then its connection may have died."""
    return isinstance(error, grpc.RpcError) and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED


# -- vectors ---------------------------------------------------------------------------------------


def _vectors(batch: EmbeddedBatch) -> Iterator[tuple[bytes | memoryview, ...]]:
    """PointStruct.vectors of each row, in pieces."""
    size = batch.dense.shape[1] * 4
    numbers = memoryview(batch.dense.astype("<f4", copy=False).tobytes())
    rows = (numbers[start : start + size] for start in range(0, len(numbers), size))
    dense = _wrap(_wrap(b"", 1, size), 101, size)  # Vector {dense = 101 {data = 1}}
    if batch.sparse is None:
        head = _wrap(_wrap(dense, 1, size), 4, size)  # Vectors {vector = 1}
        for row in rows:
            yield head, row
        return
    first = _wrap(field(1, DENSE.encode()) + _wrap(dense, 2, size), 1, size)
    for row, terms in zip(rows, batch.sparse, strict=True):
        weights = SparseVector(values=terms.values, indices=terms.indices).SerializeToString()
        second = field(1, field(1, SPARSE.encode()), field(2, field(102, weights)))
        # Vectors {vectors = 2 {vectors = 1, a map}}
        length = len(first) + size + len(second)
        named = head_of(2, length)
        yield head_of(4, len(named) + length), named, first, row, second


def _wrap(head: bytes, number: int, size: int) -> bytes:
    """The head of a field that holds what begins with `head` and ends `size` bytes behind it."""
    return head_of(number, len(head) + size) + head


# -- payload ---------------------------------------------------------------------------------------

_UUID = b"\x0a\x26\x12\x24"  # PointStruct {id = 1 {uuid = 2: 36 bytes}}
_PAYLOAD = b"\x1a"  # PointStruct {payload = 3}
_FIELDS = b"\x0a"  # Struct {fields = 1}
_UNSIGNED = (1 << 64) - 1
_double = struct.Struct("<d").pack


def _entries(tag: bytes, values: Mapping[str, Any]) -> bytes:
    """Entries of a map of values, each with that tag before it.

    Raises:
        ValueError: a value that gRPC cannot carry.
    """
    parts: list[bytes] = []
    for key, value in values.items():
        head, content = key_of(key), _value(value)
        parts += (tag, varint(len(head) + len(content)), head, content)
    return b"".join(parts)


def _value(value: Any) -> bytes:
    """A `Value` of json_with_int.proto, with its length before it.

    null = 1, double = 2, integer = 3, string = 4, bool = 5, struct = 6, list = 7
    """
    kind = type(value)
    if kind is str:
        return _wrapped(b"\x22", value.encode())
    if kind is int and -(1 << 63) <= value < 1 << 63:
        number = varint(value & _UNSIGNED)
        return b"%c\x18%b" % (len(number) + 1, number)
    if kind is float and math.isfinite(value):
        return b"\x09\x11" + _double(value)
    if kind is bool:
        return b"\x02\x28\x01" if value else b"\x02\x28\x00"
    if value is None:
        return b"\x02\x08\x00"
    if kind is dict:
        return _wrapped(b"\x32", _entries(_FIELDS, value))
    if kind is list:
        return _wrapped(b"\x3a", b"".join([b"\x0a" + _value(item) for item in value]))
    raise ValueError(f"{value!r} of the type {kind.__name__}")


def _wrapped(tag: bytes, content: bytes) -> bytes:
    """A message of one field, with its length before it."""
    length = varint(len(content))
    return b"".join((varint(len(length) + len(content) + 1), tag, length, content))


def _unfit(metadata: dict[str, Any], error: Exception) -> Fault:
    """Why gRPC takes no such metadata, in words that help."""
    try:
        encode_metadata(metadata)
    except RejectedError as known:
        return Fault(known.kind, str(known))
    for leaf in leaves(metadata):
        if isinstance(leaf.value, int) and not -(1 << 63) <= leaf.value < 1 << 63:
            return Fault(
                "integer_too_large",
                f'the metadata "{leaf.path}" is {leaf.value}, over 2**63 - 1, which gRPC cannot carry (http:// can)',
            )
    return Fault("payload", f"gRPC cannot carry this document: {error}")
