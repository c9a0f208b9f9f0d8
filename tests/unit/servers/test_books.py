from __future__ import annotations

import asyncio
from collections import Counter

import aiohttp
import msgspec
import numpy as np
import pytest

from tests.servers.books import Bookkeeper, Charge
from tests.servers.faults import odds, retryable
from tests.servers.openai_api import Books, EmbeddingsServer, ServerConfig, digest_of, vector_of
from tests.servers.vectors import hash_of
from tests.unit.servers.client import MODEL, decode


class NaiveClient:
    """Sends each request until its answer is right, and counts as it goes."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = f"{url}/v1/embeddings"
        self.statuses: Counter[str] = Counter()

    async def embed(self, texts: list[str]) -> None:
        body = {"model": MODEL, "input": texts, "dimensions": 8, "encoding_format": "base64"}
        while not await self._try(texts, body):
            pass

    async def _try(self, texts: list[str], body: dict[str, object]) -> bool:
        status = "reset"
        try:
            async with self._session.post(self._url, json=body) as answer:
                status = str(answer.status)
                raw = await answer.read()
        except aiohttp.ClientError:
            return False
        finally:
            self.statuses[status] += 1
        try:
            data = sorted(msgspec.json.decode(raw)["data"], key=lambda item: item["index"])
            vectors = [decode(item["embedding"]) for item in data]
        except (msgspec.DecodeError, KeyError):
            return False
        return np.array_equal(
            [vector.tolist() for vector in vectors], [vector_of(text, 8).tolist() for text in texts]
        )


def test_a_client_that_counts_finds_its_own_numbers_in_the_books() -> None:
    requests = [[f"text {at + offset}" for offset in range(5)] for at in range(0, 1500, 5)]
    every = retryable(retry_after=0)

    async def run(server: EmbeddingsServer) -> Counter[str]:
        # Connections are not kept: a reset or cut one is then never met by the next request.
        connector = aiohttp.TCPConnector(force_close=True)
        headers = {"Authorization": "Bearer sk-test"}
        async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
            client = NaiveClient(session, server.url)
            await asyncio.gather(*(client.embed(texts) for texts in requests))
            return client.statuses

    with EmbeddingsServer(ServerConfig(tokens_per_ascii_byte=1.0)) as server:
        server.script(odds([(0.3 / len(every), fault) for fault in every], seed=11))
        statuses = asyncio.run(run(server))
        books = server.wait_until(lambda books: books.in_flight == 0)

    texts = [text for request in requests for text in request]
    assert books.times_answered == {digest_of(text): 1 for text in texts}
    assert books.texts_answered == 1500
    assert books.tokens_answered == sum(map(len, texts))
    assert books.by_status == dict(statuses)
    assert books.requests == statuses.total() > 300
    assert books.texts_received == 5 * books.requests
    assert set(books.faults) == {fault.kind for fault in every}
    charged = books.texts_answered + books.texts_lost + books.texts_spoiled
    assert charged == sum(accepted.texts for accepted in books.accepted)
    assert books.tokens_charged == sum(accepted.tokens for accepted in books.accepted)
    assert books.texts_lost == sum(books.times_lost.values()) > 0
    assert books.texts_spoiled == sum(books.times_spoiled.values()) > 0


def test_the_books_are_json_and_back() -> None:
    ledger = Bookkeeper()
    ledger.received("embeddings")
    ledger.parsed(2)
    ledger.accepted(3.5, 2, 7)
    ledger.closed("embeddings", "200", "slow", Charge([hash_of("one"), hash_of("two")], 7))
    books = ledger.copy()
    assert books.texts_answered == 2
    assert msgspec.json.decode(msgspec.json.encode(books), type=Books) == books


def test_a_copy_does_not_change_any_more() -> None:
    ledger = Bookkeeper()
    before = ledger.copy()
    ledger.closed("embeddings", "200", None, Charge([hash_of("one")], 1))
    ledger.accepted(0.0, 1, 1)
    assert before == Bookkeeper().copy()


def test_what_was_not_delivered_is_answered_no_more() -> None:
    ledger = Bookkeeper()
    charge = Charge([hash_of("one"), hash_of("one")], 2)
    ledger.closed("embeddings", "200", None, charge)
    assert ledger.copy().paid_again() == {digest_of("one"): 2}
    ledger.undelivered(charge)
    books = ledger.copy()
    assert (books.texts_answered, books.texts_lost) == (0, 2)
    assert books.times_answered == {}
    assert books.times_lost == {digest_of("one"): 2}
    assert books.tokens_charged == 2


def test_waiting_in_vain_ends_with_an_error() -> None:
    with pytest.raises(TimeoutError, match="never came to it"):
        Bookkeeper().wait_until(lambda books: books.requests == 1, timeout=0.0)
