"""Texts over a model's limit, embedded by their beginning."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from ragingest.costs.books import Books
from ragingest.costs.tokens import TokenEstimator
from ragingest.documents import Chunk, Document, EmbeddedBatch, Record, SparseVector, document_digest
from ragingest.embedders.truncation import Truncation
from ragingest.errors import RejectedError

LIMIT = 100
PROSE = "words of a long text that goes on and on "


class Server:
    """Embeds what has at most so many bytes, and refuses the rest."""

    def __init__(self, takes: int) -> None:
        self.takes = takes
        self.asked: list[str] = []

    async def embed(self, chunks: list[Chunk]) -> EmbeddedBatch:
        [chunk] = chunks
        self.asked.append(chunk.text)
        chunk.digest = chunk.text.encode()[-16:]
        if len(chunk.text.encode()) > self.takes:
            raise RejectedError("refused_by_embedder", "too many tokens")
        return EmbeddedBatch(chunks, np.full((1, 2), len(chunk.text), dtype=np.float32))


def chunk_of(text: str) -> Chunk:
    document = Document("d", text, {}, document_digest(text, {}), Record(0, 0, b""))
    return Chunk(document, 0, text, len(text.encode()))


def embedded(server: Server, chunk: Chunk, books: Books, *, exact: bool = False) -> EmbeddedBatch:
    truncation = Truncation(
        server.embed,
        TokenEstimator(),
        LIMIT,
        (lambda text: len(text) // 3) if exact else None,
        books,
        lambda texts: [SparseVector([len(text)], [1.0]) for text in texts],
    )
    return asyncio.run(truncation.embed(chunk))


def test_what_fits_is_embedded_as_it_is() -> None:
    server, books, chunk = Server(1000), Books(), chunk_of("short")
    assert embedded(server, chunk, books).chunks == [chunk]
    assert (server.asked, books.truncated) == (["short"], 0)


@pytest.mark.parametrize("exact", [True, False])
def test_what_does_not_is_cut_once_and_counted_and_the_chunk_stays_whole(exact: bool) -> None:
    server, books, chunk = Server(1000), Books(), chunk_of(PROSE * 50)
    batch = embedded(server, chunk, books, exact=exact)
    [asked] = server.asked
    assert chunk.text.startswith(asked)
    assert LIMIT < len(asked) < len(chunk.text)
    assert batch.chunks == [chunk]
    assert chunk.text == PROSE * 50
    assert batch.dense.tolist() == [[len(asked)] * 2]
    assert batch.sparse == [SparseVector([len(chunk.text)], [1.0])]
    assert chunk.digest == asked.encode()[-16:]  # by which its paid vector is found again
    assert books.truncated == 1


def test_a_beginning_that_is_refused_after_all_is_cut_to_what_certainly_fits() -> None:
    server, books, chunk = Server(LIMIT), Books(), chunk_of("图书馆" + PROSE * 50)
    embedded(server, chunk, books)
    likely, certain = server.asked
    assert len(likely) > len(certain)
    assert LIMIT - 4 < len(certain.encode()) <= LIMIT
    assert chunk.digest == certain.encode()[-16:]
    assert books.truncated == 1


def test_a_whole_text_that_was_not_in_doubt_and_is_refused_is_cut_too() -> None:
    text = (PROSE * 8)[:300]
    server, books, chunk = Server(LIMIT), Books(), chunk_of(text)
    embedded(server, chunk, books)
    assert server.asked == [text, text[:LIMIT]]
    assert books.truncated == 1


@pytest.mark.parametrize(
    ("text", "exact", "requests"), [("short", False, 1), (PROSE * 50, True, 1), (PROSE * 50, False, 2)]
)
def test_what_is_refused_for_something_else_than_its_length_is_rejected(
    text: str, exact: bool, requests: int
) -> None:
    server, books = Server(0), Books()
    with pytest.raises(RejectedError):
        embedded(server, chunk_of(text), books, exact=exact)
    assert (len(server.asked), books.truncated) == (requests, 0)
