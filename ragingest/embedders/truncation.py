"""Texts that are over a model's limit, embedded by their beginning: only where the user has said so, and counted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from msgspec.structs import replace

from ragingest.costs.books import Books
from ragingest.costs.tokens import TokenEstimator, longest_beginning
from ragingest.documents import Chunk, EmbeddedBatch, SparseVectors
from ragingest.errors import RejectedError
from ragingest.protocols import Embedder, EmbedderLimits, Query, Tokenizer

__all__ = ["Truncating", "Truncation"]


class Truncation:
    """Embeds one chunk by an API, cut if it has to be.

    The chunk itself keeps its whole text: the store gets it so, and sparse vectors are made of it.

    Args:
        embed: what embeds chunks as they are.
        limit: tokens that the model takes of a text.
        count: exact tokens of a text, if they can be known here.
        books: counts the texts that were cut.
        sparse: makes the sparse vectors of texts; None for none.
    """

    def __init__(
        self,
        embed: Callable[[list[Chunk]], Awaitable[EmbeddedBatch]],
        estimator: TokenEstimator,
        limit: int,
        count: Callable[[str], int] | None,
        books: Books,
        sparse: Callable[[Sequence[str]], SparseVectors] | None,
    ) -> None:
        self._embed = embed
        self._estimator = estimator
        self._limit = limit
        self._count = count
        self._books = books
        self._sparse = sparse

    async def embed(self, chunk: Chunk) -> EmbeddedBatch:
        """Embed as much of the text as the model takes.

        What only likely fits may be refused; then by its bytes, which certainly fit. So cutting costs
        one request more at most.

        Raises:
            RejectedError, TerminalError: as `embed` does.
        """
        if self._estimator.fits(chunk.text, self._limit):
            return await self._embed([chunk])
        *first, last = await asyncio.to_thread(self._estimator.beginnings, chunk.text, self._limit, self._count)
        for beginning in first:
            with suppress(RejectedError):
                return await self._embed_as(chunk, beginning)
        return await self._embed_as(chunk, last)

    async def _embed_as(self, chunk: Chunk, beginning: str) -> EmbeddedBatch:
        if len(beginning) == len(chunk.text):
            return await self._embed([chunk])
        part = _cut(chunk, beginning)
        batch = await self._embed([part])
        self._books.truncated += 1
        # By this digest the paid vector is known until the store has confirmed the chunk.
        chunk.digest = part.digest
        batch.chunks = [chunk]
        if self._sparse is not None:
            batch.sparse = await asyncio.to_thread(self._sparse, [chunk.text])
        return batch


class Truncating:
    """Another embedder of this process, which has a tokenizer, given no more of a text than it takes.

    Args:
        tell: is called with the number of texts that were cut, by one thread at a time.
    """

    def __init__(self, embedder: Embedder, tell: Callable[[int], None]) -> None:
        self._embedder = embedder
        self._tell = tell
        self._telling = threading.Lock()

    @property
    def name(self) -> str:
        return self._embedder.name

    @property
    def model(self) -> str:
        return self._embedder.model

    @property
    def dimensions(self) -> int:
        return self._embedder.dimensions

    @property
    def sparse(self) -> bool:
        return self._embedder.sparse

    @property
    def limits(self) -> EmbedderLimits:
        return self._embedder.limits

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self._embedder.tokenizer

    def embed(self, chunks: Sequence[Chunk]) -> EmbeddedBatch:
        parts = [self._part(chunk) for chunk in chunks]
        batch = self._embedder.embed(parts)
        batch.chunks = list(chunks)
        cut = sum(part is not chunk for part, chunk in zip(parts, chunks, strict=True))
        if cut:
            with self._telling:
                self._tell(cut)
        return batch

    def _part(self, chunk: Chunk) -> Chunk:
        limit, tokenizer = self.limits.max_tokens_per_text, self.tokenizer
        if limit is None or tokenizer is None or chunk.size <= limit:
            return chunk
        beginning = longest_beginning(chunk.text, lambda part: len(tokenizer.encode([part])[0]) <= limit)
        return chunk if len(beginning) == len(chunk.text) else _cut(chunk, beginning)

    def embed_query(self, text: str) -> Query:
        return self._embedder.embed_query(text)

    def close(self) -> None:
        self._embedder.close()


def _cut(chunk: Chunk, beginning: str) -> Chunk:
    return replace(chunk, text=beginning, size=len(beginning.encode()), tokens=None, digest=None)
