"""BM25 term weights as sparse vectors, computed by Qdrant's own code, beside any dense embedder.

The store applies the inverse document frequency at search time, so a document's weights do not
depend on the others. k = 1.2, b = 0.75, average length 256 tokens, English stemming and stop words.
"""

from __future__ import annotations

from collections.abc import Sequence

from ragingest.documents import Chunk, EmbeddedBatch, SparseVectors
from ragingest.errors import RejectedError
from ragingest.protocols import Embedder, EmbedderLimits, Query, Tokenizer

__all__ = ["BM25", "WithBM25"]


class BM25:
    """The weights themselves."""

    def __init__(self) -> None:
        from qdrant_edge import Bm25

        self._bm25 = Bm25()

    def encode(self, texts: Sequence[str]) -> SparseVectors:
        """Sparse vectors of documents; callable from any thread.

        Raises:
            RejectedError: a text of the batch cannot be encoded.
        """
        encode = self._bm25.embed_document
        try:
            return [encode(text) for text in texts]
        except (ValueError, TypeError) as error:
            raise RejectedError("bm25", f"no BM25 vector can be made of the text: {error}") from None

    def encode_query(self, text: str) -> object:
        return self._bm25.embed_query(text)


class WithBM25:
    """Adds BM25 vectors to the batches of another embedder."""

    sparse = True

    def __init__(self, dense: Embedder) -> None:
        self._dense = dense
        self._bm25 = BM25()

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
        batch.sparse = self._bm25.encode([chunk.text for chunk in batch.chunks])
        return batch

    def embed_query(self, text: str) -> Query:
        return Query(self._dense.embed_query(text).dense, self._bm25.encode_query(text))

    def close(self) -> None:
        self._dense.close()
