"""Upserts over gRPC: protobuf writes ids and payloads, and the vectors follow as the bytes of the numpy array.

A message is a run of fields in any order, and a field that holds a message is `tag, length, content`
(protobuf.dev/programming-guides/encoding). So a point is what protobuf writes of id and payload, and `vectors`
behind that; and a request is the points one after the other. The numbers of the fields are those of Qdrant's
points.proto; the tests read what is written here with the client's own classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc
from qdrant_client.conversions.conversion import payload_to_grpc
from qdrant_client.grpc import PointsOperationResponse, PointStruct, SparseVector, UpdateStatus

from ragingest.documents import Document, EmbeddedBatch, Fault, point_id
from ragingest.errors import RejectedError
from ragingest.stores.metadata import encode_metadata, leaves
from ragingest.stores.qdrant_errors import ServerErrors
from ragingest.stores.qdrant_layout import DENSE, SPARSE

__all__ = ["OPTIONS", "GrpcUpserts"]

# Qdrant's gRPC takes messages of any size; this one keeps what is held at once to that of REST.
MAX_MESSAGE_BYTES = 32 * 1024 * 1024
# Retries are the business of one layer only, and that one waits long enough.
OPTIONS = {
    "grpc.enable_retries": 0,
    "grpc.max_send_message_length": -1,
    "grpc.max_receive_message_length": -1,
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
        self._head = _field(1, collection.encode()) + b"\x10\x01" + _field(4, b"\x08\x01")
        self.max_bytes = MAX_MESSAGE_BYTES - len(self._head)
        self._timeout = timeout
        self._metadata = (("api-key", key),) if key else ()
        self._errors = errors
        options = list(OPTIONS.items())
        self._channel = (
            grpc.secure_channel(target, grpc.ssl_channel_credentials(), options)
            if secure
            else grpc.insecure_channel(target, options)
        )
        self._upsert: Callable[..., PointsOperationResponse] = self._channel.unary_unary(
            "/qdrant.Points/Upsert", response_deserializer=PointsOperationResponse.FromString
        )

    def encode(self, batch: EmbeddedBatch, *, drop_text: bool) -> list[bytes | Fault]:
        """Each point as a field of the message, or why there is none."""
        encoded: list[bytes | Fault] = []
        checked: Document | None = None
        for chunk, vectors in zip(batch.chunks, _vectors(batch), strict=True):
            document = chunk.document
            try:
                if document is not checked:
                    encode_metadata(document.metadata)  # refuses NaN, which protobuf takes
                    checked = document
                point = PointStruct(
                    id={"uuid": point_id(document.id, chunk.number)},
                    payload=payload_to_grpc(
                        {
                            "id": document.id,
                            "chunk": chunk.number,
                            "chunks": document.chunks,
                            "text": "" if drop_text else chunk.text,
                            "digest": document.digest.hex(),
                            "metadata": document.metadata,
                        }
                    ),
                )
                encoded.append(_field(3, point.SerializeToString(), *vectors))
            except RejectedError as error:
                encoded.append(Fault(error.kind, str(error)))
            except (ValueError, TypeError, RecursionError) as error:
                encoded.append(_unfit(document.metadata, error))
        return encoded

    def send(self, wire: Sequence[bytes]) -> str:
        """One request on the wire; the status that the server gives the write.

        Raises:
            TransientError, RejectedError, TerminalError: as the contract of stores says.
        """
        message = b"".join((self._head, *wire))
        try:
            answer = self._upsert(message, timeout=self._timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._errors.of(error) from None
        return _STATUSES.get(answer.result.status, "unknown")

    def close(self) -> None:
        self._channel.close()


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
    first = _wrap(_field(1, DENSE.encode()) + _wrap(dense, 2, size), 1, size)
    for row, terms in zip(rows, batch.sparse, strict=True):
        weights = SparseVector(values=terms.values, indices=terms.indices).SerializeToString()
        second = _field(1, _field(1, SPARSE.encode()), _field(2, _field(102, weights)))
        # Vectors {vectors = 2 {vectors = 1, a map}}
        length = len(first) + size + len(second)
        named = _head(2, length)
        yield _head(4, len(named) + length), named, first, row, second


def _unfit(metadata: dict[str, Any], error: Exception) -> Fault:
    """Why protobuf takes no such metadata, in words that help."""
    for leaf in leaves(metadata):
        if isinstance(leaf.value, int) and not -(1 << 63) <= leaf.value < 1 << 63:
            return Fault(
                "integer_too_large",
                f'the metadata "{leaf.path}" is {leaf.value}, over 2**63 - 1, which gRPC cannot carry (http:// can)',
            )
    return Fault("payload", f"gRPC cannot carry this document: {error}")


def _wrap(head: bytes, number: int, size: int) -> bytes:
    """The head of a field that holds what begins with `head` and ends `size` bytes behind it."""
    return _head(number, len(head) + size) + head


# -- fields ----------------------------------------------------------------------------------------


def _field(number: int, *parts: bytes | memoryview) -> bytes:
    """A field of bytes, text or a message."""
    return b"".join((_head(number, sum(map(len, parts))), *parts))


def _head(number: int, length: int) -> bytes:
    return _varint(number << 3 | 2) + _varint(length)


def _varint(value: int) -> bytes:
    if value < 128:
        return _SMALL[value]
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    parts.append(value)
    return bytes(parts)


_SMALL = [bytes([value]) for value in range(128)]
