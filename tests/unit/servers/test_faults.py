from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import aiohttp
import msgspec
import numpy as np
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.servers.embeddings import shuffled
from tests.servers.faults import (
    QUOTA_CODES,
    Fault,
    RequestInfo,
    cut_body,
    cut_json,
    empty_data,
    forbidden,
    html,
    not_a_number,
    odds,
    out_of_order,
    quota,
    rate_limited,
    reset_after,
    reset_before,
    retryable,
    slow,
    status,
    wrong_count,
    wrong_dimension,
)
from tests.servers.openai_api import Books, EmbeddingsServer, digest_of, vector_of
from tests.unit.servers.client import MODEL, Sdk, decode, embed

TEXTS = ["one", "two", "three"]
TOKENS = 4


@pytest.fixture
def server() -> Iterator[EmbeddingsServer]:
    with EmbeddingsServer() as server:
        yield server


def expect_nothing_charged(books: Books) -> None:
    assert books.tokens_charged == 0
    assert books.accepted == []
    assert books.times_answered == books.times_lost == books.times_spoiled == {}


def expect_lost(books: Books) -> None:
    assert (books.texts_answered, books.texts_lost, books.texts_spoiled) == (0, 3, 0)
    assert books.tokens_lost == books.tokens_charged == TOKENS
    assert books.times_lost == {digest_of(text): 1 for text in TEXTS}
    assert len(books.accepted) == 1


def expect_spoiled(books: Books) -> None:
    assert (books.texts_answered, books.texts_lost, books.texts_spoiled) == (0, 0, 3)
    assert books.tokens_spoiled == books.tokens_charged == TOKENS
    assert books.times_spoiled == {digest_of(text): 1 for text in TEXTS}


@pytest.mark.parametrize(
    ("fault", "header", "value"),
    [
        (rate_limited(), "retry-after", None),
        (rate_limited(retry_after=2), "retry-after", "2"),
        (rate_limited(retry_after=0.25), "retry-after", "0.25"),
        (rate_limited(retry_after="Fri, 31 Dec 2027 23:59:59 GMT"), "retry-after", "Fri, 31 Dec 2027 23:59:59 GMT"),
        (rate_limited(retry_after_ms=120), "retry-after-ms", "120"),
    ],
)
def test_a_429_says_when_to_come_back_in_every_form(
    server: EmbeddingsServer, fault: Fault, header: str, value: str | None
) -> None:
    server.script([fault])
    reply = embed(server.url, TEXTS)
    assert reply.status == 429
    assert reply.error["code"] == "rate_limit_exceeded"
    assert reply.headers.get(header) == value
    assert server.books.limited == 0
    expect_nothing_charged(server.books)


@pytest.mark.parametrize("code", QUOTA_CODES)
def test_a_quota_429_carries_its_code(server: EmbeddingsServer, code: str) -> None:
    server.script([quota(code)])
    reply = embed(server.url, TEXTS)
    assert reply.status == 429
    assert reply.error["code"] == code
    assert "retry-after" not in reply.headers
    expect_nothing_charged(server.books)


@pytest.mark.parametrize(
    ("fault", "code"),
    [(status(500), 500), (status(503), 503), (status(408), 408), (status(409), 409), (forbidden(), 403)],
)
def test_a_status_is_an_error_as_json(server: EmbeddingsServer, fault: Fault, code: int) -> None:
    server.script([fault])
    reply = embed(server.url, TEXTS)
    assert reply.status == code
    assert reply.error["message"]
    assert server.books.by_status == {str(code): 1}
    assert server.books.faults == {fault.kind: 1}
    expect_nothing_charged(server.books)


def test_a_503_can_say_when_to_come_back(server: EmbeddingsServer) -> None:
    server.script([status(503, retry_after=1)])
    assert embed(server.url, TEXTS).headers["retry-after"] == "1"


def test_html_is_a_200_that_is_no_json(server: EmbeddingsServer) -> None:
    server.script([html()])
    reply = embed(server.url, TEXTS)
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/html")
    with pytest.raises(msgspec.DecodeError):
        assert reply.json
    expect_nothing_charged(server.books)


def test_a_cut_body_ends_before_its_content_length(server: EmbeddingsServer) -> None:
    server.script([cut_body()])
    with pytest.raises(http.client.IncompleteRead) as caught:
        embed(server.url, TEXTS)
    assert caught.value.partial
    assert caught.value.expected
    assert server.books.by_status == {"200": 1}
    expect_lost(server.books)


def test_cut_json_has_the_length_that_it_announces(server: EmbeddingsServer) -> None:
    server.script([cut_json()])
    reply = embed(server.url, TEXTS)
    assert reply.status == 200
    assert int(reply.headers["content-length"]) == len(reply.body)
    with pytest.raises(msgspec.DecodeError):
        assert reply.json
    expect_lost(server.books)


def test_a_reset_before_the_work_charges_nothing(server: EmbeddingsServer) -> None:
    server.script([reset_before()])
    with pytest.raises(ConnectionResetError):
        embed(server.url, TEXTS)
    assert server.books.by_status == {"reset": 1}
    assert server.books.texts_received == 3
    expect_nothing_charged(server.books)


def test_a_reset_after_the_work_is_charged_and_unanswered(server: EmbeddingsServer) -> None:
    server.script([reset_after()])
    with pytest.raises(ConnectionResetError):
        embed(server.url, TEXTS)
    assert server.books.by_status == {"reset": 1}
    expect_lost(server.books)


@pytest.mark.parametrize("encoding_format", ["base64", "float"])
def test_out_of_order_means_another_order_with_the_right_index(
    server: EmbeddingsServer, encoding_format: str
) -> None:
    server.script([out_of_order()])
    data = embed(server.url, TEXTS, encoding_format=encoding_format).json["data"]
    assert [item["index"] for item in data] != [0, 1, 2]
    assert sorted(item["index"] for item in data) == [0, 1, 2]
    for item in data:
        np.testing.assert_array_equal(decode(item["embedding"]), vector_of(TEXTS[item["index"]], 8))
    assert server.books.texts_answered == 3


@given(st.integers(2, 50))
def test_any_two_vectors_or_more_change_their_order(number: int) -> None:
    items = [b"%d" % index for index in range(number)]
    assert shuffled(items) != items
    assert sorted(shuffled(items)) == sorted(items)


@pytest.mark.parametrize(
    ("surplus", "texts", "vectors"), [(-1, 3, 2), (-2, 3, 1), (-3, 3, 4), (-1, 1, 2), (2, 3, 5)]
)
def test_a_wrong_count_is_never_the_right_one_nor_none(
    server: EmbeddingsServer, surplus: int, texts: int, vectors: int
) -> None:
    server.script([wrong_count(surplus)])
    reply = embed(server.url, TEXTS[:texts])
    assert len(reply.json["data"]) == vectors
    assert server.books.texts_spoiled == texts


@pytest.mark.parametrize("encoding_format", ["base64", "float"])
def test_a_wrong_dimension_is_one_too_many(server: EmbeddingsServer, encoding_format: str) -> None:
    server.script([wrong_dimension()])
    reply = embed(server.url, TEXTS, encoding_format=encoding_format)
    assert reply.vectors.shape == (3, 9)
    assert reply.json["usage"]["total_tokens"] == TOKENS
    expect_spoiled(server.books)


def test_nan_in_base64_is_in_the_first_vector_only(server: EmbeddingsServer) -> None:
    server.script([not_a_number()])
    vectors = embed(server.url, TEXTS).vectors
    assert np.isnan(vectors).sum() == 1
    assert np.isnan(vectors[0, 0])
    np.testing.assert_array_equal(vectors[1:], [vector_of(text, 8) for text in TEXTS[1:]])
    expect_spoiled(server.books)


def test_nan_in_json_is_null(server: EmbeddingsServer) -> None:
    server.script([not_a_number()])
    assert embed(server.url, TEXTS, encoding_format="float").json["data"][0]["embedding"][0] is None


def test_empty_data_has_no_vector(server: EmbeddingsServer) -> None:
    server.script([empty_data()])
    assert embed(server.url, TEXTS).json["data"] == []
    expect_spoiled(server.books)


def test_a_slow_answer_outlasts_an_impatient_client(server: EmbeddingsServer) -> None:
    server.script([slow(3600)])
    with pytest.raises(TimeoutError):
        embed(server.url, TEXTS, timeout=0.05)
    server.wait_until(lambda books: books.requests == 1)
    assert server.books.in_flight == 1
    assert embed(server.url, TEXTS).status == 200


def test_a_slow_answer_is_a_good_one(server: EmbeddingsServer) -> None:
    server.script([slow(0.001)])
    assert embed(server.url, TEXTS).vectors.shape == (3, 8)
    assert server.books.faults == {"slow": 1}
    assert server.books.texts_answered == 3


def test_a_delay_goes_with_any_fault(server: EmbeddingsServer) -> None:
    server.script([msgspec.structs.replace(status(503), delay=3600)])
    with pytest.raises(TimeoutError):
        embed(server.url, TEXTS, timeout=0.05)


def test_the_latency_holds_back_every_answer_and_can_change(server: EmbeddingsServer) -> None:
    server.set_latency(3600)

    async def five_at_once() -> None:
        async with aiohttp.ClientSession(headers={"Authorization": "Bearer sk-test"}) as session:
            requests = [
                asyncio.create_task(_post(session, f"{server.url}/v1/embeddings", {"model": MODEL, "input": "one"}))
                for _ in range(5)
            ]
            await asyncio.to_thread(server.wait_until, lambda books: books.in_flight == 5)
            for request in requests:
                request.cancel()
            await asyncio.gather(*requests, return_exceptions=True)

    asyncio.run(five_at_once())
    assert server.books.most_in_flight == 5
    server.set_latency(0)
    assert embed(server.url, TEXTS).status == 200


async def _post(session: aiohttp.ClientSession, url: str, body: dict[str, str]) -> None:
    async with session.post(url, json=body) as answer:
        await answer.read()


def test_an_answer_whose_client_is_gone_moves_from_answered_to_lost(server: EmbeddingsServer) -> None:
    texts = [f"text {number}" for number in range(2048)]
    body = msgspec.json.encode({"model": "text-embedding-3-large", "input": texts, "encoding_format": "base64"})
    host = urlsplit(server.url)
    # 33 MB that nobody reads: more than the buffers on the way hold.
    with socket.create_connection((host.hostname, host.port)) as connection:
        connection.sendall(_head(len(body)) + body)
        server.wait_until(lambda books: books.texts_answered == 2048)
    books = server.wait_until(lambda books: books.in_flight == 0)
    assert books.times_answered == {}
    assert books.texts_answered == books.tokens_answered == 0
    assert books.texts_lost == 2048
    assert books.times_lost[digest_of("text 7")] == 1
    assert books.by_status == {"200": 1}


def test_a_client_that_dies_while_it_sends_made_no_request(server: EmbeddingsServer) -> None:
    host = urlsplit(server.url)
    with socket.create_connection((host.hostname, host.port)) as connection:
        connection.sendall(_head(1000) + b'{"model": ')
        server.wait_until(lambda books: books.in_flight == 1)
    books = server.wait_until(lambda books: books.in_flight == 0)
    assert books.broken == 1
    assert books.requests == 0
    assert books.by_status == {}


def _head(length: int) -> bytes:
    return (
        b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer sk-test\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % length
    )


def test_a_list_goes_one_entry_a_request_and_then_all_is_well(server: EmbeddingsServer) -> None:
    server.script([status(500), None, status(503)])
    assert [embed(server.url, "one").status for _ in range(5)] == [500, 200, 503, 200, 200]


def test_a_new_script_replaces_the_rest_of_the_old(server: EmbeddingsServer) -> None:
    server.script([status(500)] * 9)
    assert embed(server.url, "one").status == 500
    server.script(None)
    assert embed(server.url, "one").status == 200


def test_a_callable_sees_the_request(server: EmbeddingsServer) -> None:
    seen: list[RequestInfo] = []

    def script(request: RequestInfo) -> Fault | None:
        seen.append(request)
        return status(500) if "two" in request.texts else None

    server.script(script)
    assert embed(server.url, TEXTS).status == 500
    assert embed(server.url, ["one"]).status == 200
    assert seen == [RequestInfo(0, "embeddings", TEXTS), RequestInfo(1, "embeddings", ["one"])]


def test_what_has_no_answer_cannot_be_bent(server: EmbeddingsServer) -> None:
    server.script([cut_body(), reset_after()])
    assert embed(server.url, ["POISON"]).status == 400
    assert embed(server.url, ["one"], model="gpt-x").status == 404
    assert server.books.faults == {}


def test_a_refused_request_uses_up_no_limit(server: EmbeddingsServer) -> None:
    server.set_limits(rpm=1)
    server.script([status(500), html(), rate_limited(), cut_json()])
    statuses = [embed(server.url, text).status for text in ("one", "one", "one", "POISON", "one", "one")]
    assert statuses == [500, 200, 429, 400, 200, 429]
    assert server.books.limited == 1


@given(st.integers(0, 2**32))
def test_odds_with_the_same_seed_draw_the_same(seed: int) -> None:
    chances = [(0.2, status(500)), (0.3, html())]
    first, second = odds(chances, seed), odds(chances, seed)
    assert [next(first) for _ in range(20)] == [next(second) for _ in range(20)]


def test_odds_draw_each_fault_as_often_as_they_say() -> None:
    draw = odds([(0.2, status(500)), (0.1, html())], seed=3)
    drawn = [next(draw) for _ in range(20_000)]
    assert drawn.count(status(500)) == pytest.approx(4000, rel=0.1)
    assert drawn.count(html()) == pytest.approx(2000, rel=0.1)
    assert drawn.count(None) == 20_000 - drawn.count(status(500)) - drawn.count(html())


@pytest.mark.parametrize("chances", [[], [(0.7, html()), (0.4, html())], [(-0.1, html())]])
def test_odds_that_make_no_sense_are_refused(chances: list[tuple[float, Fault]]) -> None:
    with pytest.raises(ValueError, match="add up to at most 1"):
        odds(chances, seed=1)


def test_every_fault_that_deserves_another_try_leaves_the_server_well(server: EmbeddingsServer) -> None:
    every = retryable()
    server.script(every)
    for _ in every:
        with contextlib.suppress(OSError, http.client.HTTPException):
            embed(server.url, TEXTS)
    books = server.books
    assert sum(books.faults.values()) == books.requests == len(every)
    assert sum(books.by_status.values()) == len(every)
    assert embed(server.url, TEXTS).status == 200
    assert server.books.texts_answered == 6


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (rate_limited(), openai.RateLimitError),
        (quota(), openai.RateLimitError),
        (status(500), openai.InternalServerError),
        (status(409), openai.ConflictError),
        (forbidden(), openai.PermissionDeniedError),
        (reset_before(), openai.APIConnectionError),
        (reset_after(), openai.APIConnectionError),
        (cut_body(), openai.APIConnectionError),
        (empty_data(), ValueError),
    ],
)
def test_the_sdk_takes_a_fault_for_what_it_is(
    server: EmbeddingsServer, sdk: Sdk, fault: Fault, error: type[Exception]
) -> None:
    server.script([fault])
    client = sdk(server)
    with pytest.raises(error):
        client.embeddings.create(model=MODEL, input=TEXTS)


@pytest.mark.parametrize(("fault", "error"), [(html(), AttributeError), (cut_json(), ValueError)])
def test_the_sdk_raises_no_error_of_its_own_for_a_body_that_is_no_json(
    server: EmbeddingsServer, sdk: Sdk, fault: Fault, error: type[Exception]
) -> None:
    server.script([fault])
    client = sdk(server)
    with pytest.raises(error) as caught:
        client.embeddings.create(model=MODEL, input=TEXTS)
    assert not isinstance(caught.value, openai.OpenAIError)
