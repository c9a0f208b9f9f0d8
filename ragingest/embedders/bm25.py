"""BM25 term weights as sparse vectors, computed by Qdrant's own code, beside any dense embedder.

The store applies the inverse document frequency at search time, so a document's weights do not
depend on the others. k = 1.2, b = 0.75, average length 256 tokens, English stemming and stop words.
"""

from __future__ import annotations

from collections.abc import Sequence

from ragingest.documents import Chunk, EmbeddedBatch
from ragingest.errors import RejectedError
from ragingest.protocols import Embedder, EmbedderLimits, Query, Tokenizer

__all__ = ["WithBM25"]


class WithBM25:
    """Adds BM25 vectors to the batches of another embedder."""

    sparse = True

    def __init__(self, dense: Embedder) -> None:
        from qdrant_edge import Bm25

        self._dense = dense
        self._bm25 = Bm25()

    @property
    def name(self) -> str:
        return self._dense.name

    @property
    def model(self) -> str:
        return self._dense.model

    @property
    def dimensions(self) -> int:
        return self._dense.dimensions

    @property
    def limits(self) -> EmbedderLimits:
        return self._dense.limits

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self._dense.tokenizer

    def embed(self, chunks: Sequence[Chunk]) -> EmbeddedBatch:
        batch = self._dense.embed(chunks)
        encode = self._bm25.embed_document
        try:
            batch.sparse = [encode(chunk.text) for chunk in batch.chunks]
        except (ValueError, TypeError) as error:
            raise RejectedError("bm25", f"no BM25 vector can be made of the text: {error}") from None
        return batch

    def embed_query(self, text: str) -> Query:
        return Query(self._dense.embed_query(text).dense, self._bm25.embed_query(text))

    def close(self) -> None:
        self._dense.close()
