"""Cohere's embed API: the contract, and what only its own shape of requests and answers can go wrong with."""

from __future__ import annotations

import asyncio
import base64
import struct
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest

from ragingest.embedders import open_api
from ragingest.embedders.cohere import CohereRequests
from ragingest.errors import RejectedError, TerminalError, TransientError, UsageError
from ragingest.jobs.embedding import embed_query
from ragingest.protocols import Answer, EmbeddingRequests
from tests.servers.openai_api import EmbeddingsServer, ServerConfig, vector_of

from .canned import Canned, Reply
from .requests_contract import KEY, EmbeddingRequestsContract, Outcome, refused, tell

MODEL = "embed-v4.0"
DIMENSIONS = 256


class TestCohere(EmbeddingRequestsContract):
    dimensions: ClassVar[int] = DIMENSIONS
    tells_rates: ClassVar[bool] = False

    def build(
        self,
        url: str,
        *,
        key: str = KEY,
        model: str | None = None,
        dimensions: int | None = DIMENSIONS,
        timeout: float = 60.0,
    ) -> EmbeddingRequests:
        return CohereRequests(model or MODEL, key, url, dimensions, timeout)


def embeddings(meta: Any = None, **kinds: object) -> Reply:
    return Reply(msgspec.json.encode({"id": "1", "embeddings": kinds, "texts": [], "meta": meta}))


def error(status: int, message: str) -> Reply:
    return Reply(msgspec.json.encode({"id": "1", "message": message}), status)


def b64(*numbers: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


def sent(api: EmbeddingRequests, count: int = 2) -> Outcome:
    async def run() -> Outcome:
        try:
            return await api.request([f"text {number}" for number in range(count)])
        except (TransientError, TerminalError, RejectedError) as failure:
            return failure
        finally:
            await api.close()

    return asyncio.run(run())


def answered(reply: Reply, count: int = 2) -> Outcome:
    """What comes of one request for `count` texts that gets this answer."""
    with Canned(reply) as server:
        return sent(CohereRequests(MODEL, KEY, server.url, None, 60.0), count)


GOOD = embeddings(base64=[b64(1, 2), b64(3, 4)])


def test_documents_are_asked_for_as_such_and_never_to_be_cut() -> None:
    with Canned(GOOD) as server:
        sent(CohereRequests(MODEL, "a-key", server.url + "/", 256, 60.0))
        [seen] = server.seen
    assert seen.target == "/v2/embed"
    assert seen.headers["authorization"] == "Bearer a-key"
    assert seen.body == {
        "model": MODEL,
        "texts": ["text 0", "text 1"],
        "input_type": "search_document",
        "embedding_types": ["base64"],
        "truncate": "NONE",
        "output_dimension": 256,
    }


def test_without_dimensions_none_are_asked_for() -> None:
    with Canned(GOOD) as server:
        sent(CohereRequests(MODEL, None, server.url, None, 60.0))
        [seen] = server.seen
    assert "output_dimension" not in seen.body
    assert "authorization" not in seen.headers


@pytest.mark.parametrize(("dimensions", "asked"), [(1536, None), (256, 256)])
def test_a_search_is_asked_for_as_a_search(
    dimensions: int, asked: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COHERE_API_KEY", KEY)
    row = vector_of("where?", dimensions)
    with Canned(embeddings(base64=[base64.b64encode(row.tobytes()).decode()])) as server:
        query = embed_query("cohere", MODEL, server.url, dimensions, "where?")
        [seen] = server.seen
    assert seen.body["input_type"] == "search_query"
    assert seen.body.get("output_dimension") == asked
    np.testing.assert_array_equal(query.dense, row)


def test_base64_and_numbers_are_the_same_to_it() -> None:
    for reply in (GOOD, embeddings(float=[[1, 2], [3, 4]])):
        outcome = answered(reply)
        assert isinstance(outcome, Answer)
        assert outcome.vectors.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("meta", "tokens"),
    [
        ({"billed_units": {"input_tokens": 7}, "tokens": {"input_tokens": 9}}, 7),
        ({"billed_units": {"input_tokens": 7.0}}, 7),
        ({"billed_units": {"input_tokens": None}}, 0),
        ({"billed_units": None}, 0),
        ({"api_version": {"version": "2"}}, 0),
        (None, 0),
    ],
)
def test_tokens_are_those_that_are_billed(meta: Any, tokens: int) -> None:
    outcome = answered(embeddings(meta, base64=[b64(1), b64(2)]))
    assert isinstance(outcome, Answer)
    assert outcome.tokens == tokens


@pytest.mark.parametrize(
    "spoilt",
    [
        embeddings(),
        embeddings(base64=[]),
        embeddings(base64=None, float=None),
        embeddings(int8=[[1], [2]]),
        embeddings(base64=[b64(1)]),
        embeddings(base64=[b64(1), b64(2), b64(3)]),
        embeddings(base64=[b64(1, 2), b64(1)]),
        embeddings(base64=["", ""]),
        embeddings(base64=["AAA=", "AAA="]),
        embeddings(base64=["no base64!", "no base64!"]),
        embeddings(base64=[b64(1), b64(float("nan"))]),
        embeddings(float=[[1], [1, 2]]),
        embeddings(float=[[1], [None]]),
        Reply(b'{"embeddings": [[1], [2]]}'),
        Reply(b'{"message": "in a 200"}'),
        Reply(b"{}"),
        Reply(b""),
        Reply(b"\xff\xfe<html>"),
    ],
    ids=lambda reply: reply.body.decode(errors="replace")[:80],
)
def test_an_answer_that_is_no_vectors_of_these_texts_is_transient(spoilt: Reply) -> None:
    refused(answered(spoilt), TransientError)


# -- refusals: statuses and words as documented at docs.cohere.com/reference/errors ----------------------


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "too many tokens: total number of tokens cannot exceed 512 - received 600."),
        (413, "request entity too large"),
        (422, "unprocessable"),
        (498, "the request contains a deny-listed token"),
    ],
)
def test_what_is_wrong_with_the_texts_is_rejected_with_the_servers_words(status: int, message: str) -> None:
    assert refused(answered(error(status, message)), RejectedError) == message


@pytest.mark.parametrize(
    ("status", "message", "advice"),
    [
        (401, "invalid api token", "COHERE_API_KEY"),
        (403, "no permission", "COHERE_API_KEY"),
        (404, "model 'x' not found, make sure the correct model ID was used", f"--model {MODEL}"),
        (402, "Please add or update your payment method to continue", "money or quota"),
        (429, "You are using a Trial key, which is limited to 1000 API calls / month.", "money or quota"),
    ],
)
def test_what_no_waiting_mends_is_terminal(status: int, message: str, advice: str) -> None:
    outcome = answered(error(status, message))
    assert message in refused(outcome, TerminalError)
    assert isinstance(outcome, TerminalError)
    assert advice in outcome.hint


@pytest.mark.parametrize(
    "message",
    [
        "You are past the per minute request limit, please wait and try again later.",
        "You are using a Trial key, which is limited to 40 API calls / minute.",
        "trial token rate limit exceeded, limit is 100000 tokens per minute",
        "Please wait and try again later",
    ],
)
def test_limits_of_a_minute_are_waited_for(message: str) -> None:
    outcome = answered(error(429, message))
    assert message in refused(outcome, TransientError)
    assert isinstance(outcome, TransientError)
    assert outcome.throttled


@pytest.mark.parametrize("status", [499, 500, 503, 504])
def test_cancelled_and_failed_requests_are_tried_again(status: int) -> None:
    refused(answered(error(status, "request cancelled")), TransientError)


# -- keys ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["COHERE_API_KEY", "CO_API_KEY"])
def test_the_key_may_stand_where_coheres_own_client_looks_for_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in ("COHERE_API_KEY", "CO_API_KEY"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, KEY)
    with EmbeddingsServer(ServerConfig(api_key=KEY)) as server:
        outcome = sent(open_api("cohere", MODEL, base_url=server.url, dimensions=256, timeout=60.0))
        assert isinstance(outcome, Answer)
        monkeypatch.setenv(name, "another-5ecre7")
        refusal = sent(open_api("cohere", MODEL, base_url=server.url, dimensions=256, timeout=60.0))
    assert name in tell(refusal)
    assert "another-5ecre7" not in tell(refusal)


def test_without_a_key_only_a_server_of_ones_own_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COHERE_API_KEY", "")
    monkeypatch.setenv("CO_API_KEY", "")
    with pytest.raises(UsageError, match="COHERE_API_KEY"):
        open_api("cohere", MODEL, base_url=None, dimensions=None, timeout=60.0)
    with EmbeddingsServer(ServerConfig(api_key=None)) as server:
        api = open_api("cohere", MODEL, base_url=server.url, dimensions=256, timeout=60.0)
        assert isinstance(sent(api), Answer)
