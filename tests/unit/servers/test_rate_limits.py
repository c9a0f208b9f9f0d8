from __future__ import annotations

import asyncio

import aiohttp
import openai
import pytest

from tests.servers.openai_api import Books, EmbeddingsServer, ServerConfig
from tests.unit.servers.client import MODEL, Reply, Sdk, embed


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def many(server: EmbeddingsServer, number: int) -> list[int]:
    """The statuses of so many requests at once."""
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer sk-test"}) as session:

        async def one() -> int:
            body = {"model": MODEL, "input": "one", "dimensions": 1}
            async with session.post(f"{server.url}/v1/embeddings", json=body) as answer:
                await answer.read()
                return answer.status

        return list(await asyncio.gather(*(one() for _ in range(number))))


def test_requests_over_the_limit_get_429_until_the_window_has_moved_on() -> None:
    clock = Clock()
    with EmbeddingsServer(ServerConfig(rpm=2, window=60), clock=clock) as server:
        assert embed(server.url, "one").status == 200
        clock.now += 20
        assert embed(server.url, "two").status == 200
        refused = embed(server.url, "three")
        assert refused.status == 429
        assert refused.error["code"] == "rate_limit_exceeded"
        assert refused.error["type"] == "requests"
        assert "requests per min (RPM): Limit 2, Used 2, Requested 1" in refused.error["message"]
        assert refused.headers["retry-after"] == "40"
        assert refused.headers["retry-after-ms"] == "40000"
        clock.now += 39.9
        assert embed(server.url, "three").headers["retry-after"] == "1"
        clock.now += 0.1
        assert embed(server.url, "three").status == 200
        assert embed(server.url, "four").status == 429
        books = server.books
    assert books.limited == books.by_status["429"] == 3
    assert books.texts_answered == 3
    assert books.busiest(60) == (2, 3)  # `three` is two tokens


def test_tokens_over_the_limit_get_429_and_smaller_requests_still_fit() -> None:
    config = ServerConfig(tpm=100, tokens_per_ascii_byte=1.0)
    with EmbeddingsServer(config, clock=Clock()) as server:
        assert embed(server.url, "a" * 90).status == 200
        refused = embed(server.url, "b" * 11)
        assert refused.status == 429
        assert refused.error["type"] == "tokens"
        assert embed(server.url, "c" * 10).status == 200
        too_large = embed(server.url, "d" * 101)
        assert "Request too large" in too_large.error["message"]
        assert "retry-after" not in too_large.headers


def test_limits_change_while_it_runs() -> None:
    with EmbeddingsServer(clock=Clock()) as server:
        assert [embed(server.url, "one").status for _ in range(3)] == [200, 200, 200]
        server.set_limits(rpm=4)
        assert [embed(server.url, "one").status for _ in range(2)] == [200, 429]
        server.set_limits(rpm=None, tpm=5)
        assert [embed(server.url, "one").status for _ in range(2)] == [200, 429]
        server.set_limits(tpm=None)
        assert embed(server.url, "one").status == 200


def limits_of(reply: Reply) -> dict[str, str]:
    return {name: value for name, value in reply.headers.items() if name.startswith("x-ratelimit")}


def test_the_headers_say_what_is_left() -> None:
    clock = Clock()
    config = ServerConfig(rpm=100, tpm=1000, tokens_per_ascii_byte=1.0)
    with EmbeddingsServer(config, clock=clock) as server:
        embed(server.url, "a" * 100)
        clock.now += 59.88
        assert limits_of(embed(server.url, "")) == {}
        clock.now += 0.12
        assert limits_of(embed(server.url, "b" * 30)) == {
            "x-ratelimit-limit-requests": "100",
            "x-ratelimit-remaining-requests": "99",
            "x-ratelimit-reset-requests": "1m0s",
            "x-ratelimit-limit-tokens": "1000",
            "x-ratelimit-remaining-tokens": "970",
            "x-ratelimit-reset-tokens": "1m0s",
        }


@pytest.mark.parametrize(
    "config", [ServerConfig(rpm=5, rate_limit_headers=False), ServerConfig(rate_limit_headers=True)]
)
def test_the_headers_can_be_absent(config: ServerConfig) -> None:
    with EmbeddingsServer(config) as server:
        assert limits_of(embed(server.url, "one")) == {}


def test_a_429_can_keep_the_wait_to_itself() -> None:
    with EmbeddingsServer(ServerConfig(rpm=1, retry_after=False)) as server:
        embed(server.url, "one")
        assert "retry-after" not in embed(server.url, "two").headers


def test_of_a_hundred_at_once_exactly_the_limit_is_let_in() -> None:
    with EmbeddingsServer(ServerConfig(rpm=37), clock=Clock()) as server:
        statuses = asyncio.run(many(server, 100))
        books = server.books
    assert statuses.count(200) == 37
    assert books.by_status == {"200": 37, "429": 63}
    assert books.requests == 100
    assert books.busiest(60)[0] == 37


def test_the_sdk_sees_a_rate_limit(sdk: Sdk) -> None:
    with EmbeddingsServer(ServerConfig(rpm=1)) as server:
        client = sdk(server)
        client.embeddings.create(model=MODEL, input="one")
        with pytest.raises(openai.RateLimitError) as caught:
            client.embeddings.create(model=MODEL, input="two")
    assert caught.value.code == "rate_limit_exceeded"


def test_the_busiest_window_is_found_wherever_it_lies() -> None:
    clock = Clock()
    with EmbeddingsServer(ServerConfig(tokens_per_ascii_byte=1.0), clock=clock) as server:
        for pause, text in ((0, "aaaa"), (6, "a"), (5, "aa"), (4, "aaa"), (10, "a")):
            clock.now += pause
            embed(server.url, text)
        books: Books = server.books
    assert books.busiest(10) == (3, 6)
    assert books.busiest(100) == (5, 11)
    assert books.busiest(1) == (1, 4)
