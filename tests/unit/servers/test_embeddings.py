from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import openai
import pytest

from tests.servers.openai_api import EmbeddingsServer, ServerConfig, digest_of, vector_of
from tests.unit.servers.client import Reply, embed, send

SMALL = ServerConfig(
    max_inputs=4, max_tokens_per_text=10, max_tokens_per_request=25, tokens_per_ascii_byte=1.0, max_body_bytes=2000
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with EmbeddingsServer(SMALL) as server:
        yield server.url


@pytest.mark.parametrize("encoding_format", ["base64", "float"])
@pytest.mark.parametrize("dimensions", [1, 8, 100])
def test_the_vectors_are_those_of_the_texts_in_their_order(url: str, encoding_format: str, dimensions: int) -> None:
    reply = embed(url, ["one", "two", "three"], encoding_format=encoding_format, dimensions=dimensions)
    assert reply.status == 200
    np.testing.assert_array_equal(reply.vectors, [vector_of(text, dimensions) for text in ("one", "two", "three")])
    assert [item["index"] for item in reply.json["data"]] == [0, 1, 2]


def test_a_single_string_is_one_input(url: str) -> None:
    np.testing.assert_array_equal(embed(url, "one").vectors, [vector_of("one", 8)])


def test_without_dimensions_the_model_has_its_own(url: str) -> None:
    assert embed(url, "one", dimensions=None).vectors.shape == (1, 1536)
    assert embed(url, "one", dimensions=None, model="text-embedding-3-large").vectors.shape == (1, 3072)


def test_usage_counts_the_tokens_of_all_texts(url: str) -> None:
    assert embed(url, ["abc", "défg"]).json["usage"] == {"prompt_tokens": 8, "total_tokens": 8}


def test_the_sdk_reads_the_vectors(url: str) -> None:
    with openai.OpenAI(api_key="sk-test", base_url=f"{url}/v1", max_retries=0) as client:
        for encoding in (openai.omit, "float", "base64"):
            answer = client.embeddings.create(
                model="text-embedding-3-small", input=["one", "two"], encoding_format=encoding, dimensions=8
            )
            assert answer.usage.prompt_tokens == 6
            if encoding != "base64":
                found = np.array([item.embedding for item in answer.data], dtype=np.float32)
                np.testing.assert_array_equal(found, [vector_of("one", 8), vector_of("two", 8)])


@pytest.mark.parametrize(
    ("reply", "status", "code", "words"),
    [
        ({"texts": ["a"], "key": None}, 401, None, "didn't provide an API key"),
        ({"texts": ["a"], "key": "sk-other"}, 401, "invalid_api_key", "Incorrect API key provided"),
        ({"texts": ["a"], "model": "gpt-x"}, 404, "model_not_found", "`gpt-x` does not exist"),
        ({"texts": ["a", ""]}, 400, None, "'$.input' is invalid"),
        ({"texts": ""}, 400, None, "'$.input' is invalid"),
        ({"texts": []}, 400, None, "'$.input' is invalid"),
        ({"texts": ["a"] * 5}, 400, "array_above_max_length", "maximum length 4, but got an array with length 5"),
        ({"texts": ["a", "b" * 11]}, 400, None, "maximum context length is 10 tokens, however you requested 11"),
        ({"texts": ["a" * 9] * 3}, 400, "max_tokens_per_request", "Requested 27 tokens, max 25 tokens"),
        ({"texts": ["a", "POISON"]}, 400, None, "'$.input' is invalid"),
        ({"texts": ["a"], "dimensions": 1537}, 400, None, "Must be at most 1536"),
        ({"texts": ["a"], "dimensions": 0}, 400, None, "'dimensions' = 0"),
        ({"texts": ["a"], "model": "text-embedding-ada-002"}, 400, None, "does not support specifying dimensions"),
        ({"texts": ["a"], "encoding_format": "int8"}, 400, None, "could not parse"),
        ({"texts": ["a" * 2000]}, 413, None, "Maximum content size limit (2000) exceeded"),
    ],
)
def test_what_is_over_a_limit_or_wrong_is_refused(
    url: str, reply: dict[str, object], status: int, code: str | None, words: str
) -> None:
    answer: Reply = embed(url, **reply)  # type: ignore[arg-type]
    assert answer.status == status
    assert answer.error["code"] == code
    assert words in answer.error["message"]
    assert set(answer.error) == {"message", "type", "param", "code"}


def test_what_is_just_at_the_limits_is_answered(url: str) -> None:
    assert embed(url, ["a" * 10, "b" * 10, "c", "d" * 4]).status == 200


def test_the_real_limits_are_the_documented_ones() -> None:
    with EmbeddingsServer() as server:
        assert embed(server.url, ["a"] * 2048, dimensions=1).status == 200
        assert embed(server.url, ["a"] * 2049, dimensions=1).status == 400
        at_most = "a" * 30337  # 8,191 tokens at 0.27 a byte
        assert embed(server.url, at_most).json["usage"]["total_tokens"] == 8191
        assert embed(server.url, at_most + "a").status == 400
        assert embed(server.url, [at_most] * 36).json["usage"]["total_tokens"] == 294_876
        assert embed(server.url, [at_most] * 37).error["code"] == "max_tokens_per_request"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"model": 1, "input": "a"}', b'{"model": "a", "input": [1]}', b"\xff"]
)
def test_what_is_no_request_is_400(url: str, body: bytes) -> None:
    assert send(url, "/v1/embeddings", body).status == 400


def test_a_400_for_poison_names_no_text() -> None:
    with EmbeddingsServer(ServerConfig(poison="venom")) as server:
        answer = embed(server.url, ["good", "POISON", "some venom here"])
        assert answer.status == 400
        assert "venom" not in answer.error["message"]
        assert answer.error["param"] is None
        assert embed(server.url, ["good", "POISON"]).status == 200


def test_without_a_marker_no_text_is_poison() -> None:
    with EmbeddingsServer(ServerConfig(poison="", api_key=None)) as server:
        assert embed(server.url, ["POISON"], key=None).status == 200


def test_the_books_count_what_was_sent_and_what_was_answered() -> None:
    with EmbeddingsServer(SMALL) as server:
        embed(server.url, ["one", "two"])
        embed(server.url, ["two"])
        embed(server.url, ["POISON", "one"])
        embed(server.url, ["one"], key="sk-other")
        send(server.url, "/v1/embeddings", b"{")
        books = server.wait_until(lambda books: books.in_flight == 0)
    assert books.requests == 5
    assert books.by_status == {"200": 2, "400": 2, "401": 1}
    assert books.texts_received == 5
    assert books.texts_answered == 3
    assert books.tokens_answered == books.tokens_charged == 9
    assert books.times_answered == {digest_of("one"): 1, digest_of("two"): 2}
    assert books.paid_again() == {digest_of("two"): 2}
    assert [(accepted.texts, accepted.tokens) for accepted in books.accepted] == [(2, 6), (1, 3)]
    assert books.most_in_flight == 1
    assert books.broken == 0


def test_a_failure_of_the_server_itself_is_not_kept_from_the_test() -> None:
    def fail(request: object) -> None:
        raise ValueError("a mistake in the script")

    def run() -> None:
        with EmbeddingsServer() as server:
            server.script(fail)
            assert embed(server.url, "one").status == 500

    with pytest.raises(RuntimeError, match="the server itself failed") as caught:
        run()
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_port_that_is_taken_is_an_error() -> None:
    with EmbeddingsServer() as server:
        port = int(server.url.rpartition(":")[2])
        with pytest.raises(OSError, match="address already in use"):
            with EmbeddingsServer(port=port):
                raise AssertionError("it never gets here")
