"""A batch of points as plain columns: what crosses the border of a process, and what engines take."""

from __future__ import annotations

from typing import Any, NamedTuple

from ragingest.documents import EmbeddedBatch, Vectors

__all__ = ["Columns", "columns_of"]


class Columns(NamedTuple):
    """One entry a point in every list; `dense` has shape (n, d), `sparse` holds (indices, weights)."""

    ids: list[str]
    chunks: list[int]
    totals: list[int]
    texts: list[str]
    digests: list[str]
    metadata: list[dict[str, Any]]
    dense: Vectors
    sparse: list[tuple[list[int], list[float]]] | None


def columns_of(batch: EmbeddedBatch, *, drop_text: bool = False) -> Columns:
    """The batch as columns; without the texts if they are to be kept out of the store."""
    documents = [chunk.document for chunk in batch.chunks]
    return Columns(
        [document.id for document in documents],
        [chunk.number for chunk in batch.chunks],
        [document.chunks for document in documents],
        [""] * len(documents) if drop_text else [chunk.text for chunk in batch.chunks],
        [document.digest.hex() for document in documents],
        [document.metadata for document in documents],
        batch.dense,
        None if batch.sparse is None else [(vector.indices, vector.values) for vector in batch.sparse],
    )
