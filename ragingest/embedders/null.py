"""No embedding at all: constant vectors. An instrument, to measure everything but the embedder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ragingest.documents import Chunk, EmbeddedBatch
from ragingest.protocols import EmbedderLimits, Query

__all__ = ["NullEmbedder"]


class NullEmbedder:
    name = "null"
    model = "constant"
    sparse = False
    limits = EmbedderLimits(max_texts=512, max_bytes=4 * 1024 * 1024, concurrency=2)
    tokenizer = None

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions

    def embed(self, chunks: Sequence[Chunk]) -> EmbeddedBatch:
        return EmbeddedBatch(list(chunks), np.ones((len(chunks), self.dimensions), dtype=np.float32))

    def embed_query(self, text: str) -> Query:
        return Query(np.ones(self.dimensions, dtype=np.float32))

    def close(self) -> None:
        pass
