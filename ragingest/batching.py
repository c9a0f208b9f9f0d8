"""Filling batches: by count and by bytes, up to the limit and never over it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np

from ragingest.documents import EmbeddedBatch

__all__ = [
    "PointPacker",
    "StreamingBatcher",
    "calculate_batch_size",
    "pick_rows",
    "point_sizes",
    "slice_batch",
]

T = TypeVar("T")


def _no_size(_item: object) -> int:
    return 0


class StreamingBatcher(Generic[T]):
    """Cuts a stream of items into batches of at most `max_count` items and `max_bytes` bytes.

    Holds one open batch, whatever the length of the stream. An item that alone is over `max_bytes`
    gets a batch of its own: whether it can be sent is for the receiver to say.

    Args:
        max_count: items in a batch, at least 1.
        max_bytes: sum of the sizes in a batch; None for no bound.
        size: bytes of an item; asked once for each.
    """

    def __init__(self, max_count: int, max_bytes: int | None = None, size: Callable[[T], int] = _no_size) -> None:
        if max_count < 1 or (max_bytes is not None and max_bytes < 1):
            raise ValueError("a batch holds at least one item and one byte")
        self.max_count = max_count
        self.max_bytes = max_bytes
        self._size = size
        self._open: list[T] = []
        self._bytes = 0

    def add(self, item: T) -> list[list[T]]:
        """Take an item; return the batch, if any, that it completes or does not fit into."""
        size = self._size(item) if self.max_bytes is not None else 0
        full: list[list[T]] = []
        if self._open and self.max_bytes is not None and self._bytes + size > self.max_bytes:
            full = [self.flush()]
        self._open.append(item)
        self._bytes += size
        return [self.flush()] if len(self._open) >= self.max_count else full

    def flush(self) -> list[T]:
        """Return the open batch, which may be empty, and start another."""
        batch, self._open, self._bytes = self._open, [], 0
        return batch

    def batch_stream(self, items: Iterable[T]) -> Iterator[list[T]]:
        """Yield the batches of `items`, the last one as it is; no batch is empty."""
        for item in items:
            yield from self.add(item)
        rest = self.flush()
        if rest:
            yield rest


def calculate_batch_size(
    embedding_dim: int,
    avg_metadata_bytes: float = 500,
    max_request_mb: float = 2.0,
    safety_margin: float = 1.0,
    *,
    bytes_per_dimension: float = 4.0,
    overhead_bytes: float = 0,
    max_count: int = 1000,
) -> int:
    """How many records of an average size fit into one upsert request: the plan, not the packing.

    With the defaults this is the formula behind Pinecone's table of batch sizes (386 dimensions
    without metadata: 1000; 768 and 500 bytes: 559; 1536 and 2,000 bytes: 245). It counts binary
    vectors without ids and framing; for another encoding give its `bytes_per_dimension` and
    `overhead_bytes`. A megabyte is 1,000,000 bytes.

    Args:
        embedding_dim: numbers in a vector.
        avg_metadata_bytes: encoded metadata of a record, in bytes.
        max_request_mb: the server's limit for a request body, in MB.
        safety_margin: the part of that limit to use, in (0, 1].
        bytes_per_dimension: encoded bytes of one number of a vector.
        overhead_bytes: id and framing of a record, in bytes.
        max_count: the server's limit for records in a request.

    Returns:
        At least 1, at most `max_count`.

    Raises:
        ValueError: an argument makes no sense.
    """
    if embedding_dim < 1 or bytes_per_dimension <= 0 or max_request_mb <= 0 or max_count < 1:
        raise ValueError("dimension, its bytes, request size and count must be positive")
    if avg_metadata_bytes < 0 or overhead_bytes < 0:
        raise ValueError("metadata and overhead must not be negative")
    if not 0 < safety_margin <= 1:
        raise ValueError("safety_margin is a part of the limit: over 0, at most 1")
    record_bytes = embedding_dim * bytes_per_dimension + avg_metadata_bytes + overhead_bytes
    budget = max_request_mb * 1_000_000 * safety_margin
    return max(1, min(max_count, int(budget // record_bytes)))


class PointPacker:
    """Repacks embedded batches into upserts of at most `max_points` points and `max_bytes` bytes.

    A batch that fits as it is passes through without a copy. A point that alone is over the limit
    gets an upsert of its own: whether it can be stored is for the store to say.

    Args:
        max_points: points in an upsert, at least 1.
        max_bytes: sum of the points' sizes in an upsert (`point_sizes`); None for no bound.
    """

    def __init__(self, max_points: int, max_bytes: int | None) -> None:
        self._max_points = max_points
        self._max_bytes = max_bytes
        self._open: list[EmbeddedBatch] = []
        self._points = 0
        self._bytes = 0

    def shrink(self, max_bytes: int) -> None:
        """The store takes less than was thought."""
        self._max_bytes = max_bytes if self._max_bytes is None else min(self._max_bytes, max_bytes)

    def overfull(self, batch: EmbeddedBatch) -> bool:
        """Whether a batch of several points is over the limit of bytes as it is now."""
        return (
            self._max_bytes is not None
            and len(batch.chunks) > 1
            and batch.wire is not None
            and sum(point_sizes(batch)) > self._max_bytes
        )

    def add(self, batch: EmbeddedBatch) -> list[EmbeddedBatch]:
        """Take a batch; return the upserts that it completes."""
        count = len(batch.chunks)
        if self._max_bytes is None and not self._open and count == self._max_points:
            return [batch]
        sizes = point_sizes(batch) if self._max_bytes is not None else None
        full: list[EmbeddedBatch] = []
        start = 0
        for row in range(count):
            size = sizes[row] if sizes is not None else 0
            over = self._max_bytes is not None and self._points and self._bytes + size > self._max_bytes
            if over or self._points >= self._max_points:
                full += self._close(batch, start, row)
                start = row
            self._points += 1
            self._bytes += size
        if start < count:
            self._open.append(slice_batch(batch, start, count))
        if self._points >= self._max_points:
            full += self.flush()
        return full

    def _close(self, batch: EmbeddedBatch, start: int, end: int) -> list[EmbeddedBatch]:
        if start < end:
            self._open.append(slice_batch(batch, start, end))
        return self.flush()

    def flush(self) -> list[EmbeddedBatch]:
        """The open upsert, if it holds anything, and start another."""
        parts, self._open, self._points, self._bytes = self._open, [], 0, 0
        if len(parts) <= 1:
            return parts
        chunks = [chunk for part in parts for chunk in part.chunks]
        sparse = None
        if parts[0].sparse is not None:
            sparse = [vector for part in parts for vector in part.sparse or ()]
        wire = None
        if parts[0].wire is not None:
            wire = [point for part in parts for point in part.wire or ()]
        return [EmbeddedBatch(chunks, np.concatenate([part.dense for part in parts]), sparse, wire)]


def point_sizes(batch: EmbeddedBatch) -> list[int]:
    """Bytes of each point: as it will be sent, or of its vector as float32 and its text."""
    if batch.wire is not None:
        return list(map(len, batch.wire))
    vector = batch.dense.shape[1] * 4
    return [vector + chunk.size for chunk in batch.chunks]


def slice_batch(batch: EmbeddedBatch, start: int, end: int) -> EmbeddedBatch:
    """Rows [start, end) of a batch; the vectors are a view."""
    if start == 0 and end == len(batch.chunks):
        return batch
    sparse = None if batch.sparse is None else batch.sparse[start:end]
    wire = None if batch.wire is None else batch.wire[start:end]
    return EmbeddedBatch(batch.chunks[start:end], batch.dense[start:end], sparse, wire)


def pick_rows(batch: EmbeddedBatch, rows: Sequence[int]) -> EmbeddedBatch:
    """Those rows of a batch, in that order."""
    return EmbeddedBatch(
        [batch.chunks[row] for row in rows],
        batch.dense[np.asarray(rows, dtype=np.intp)],
        None if batch.sparse is None else [batch.sparse[row] for row in rows],
        None if batch.wire is None else [batch.wire[row] for row in rows],
    )
