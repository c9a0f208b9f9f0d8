from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.servers.faults import cut_json, empty_data, out_of_order, quota, wrong_count, wrong_dimension
from tests.servers.openai_api import EmbeddingsServer, ServerConfig, digest_of, vector_of
from tests.unit.servers.client import Reply, send

ENGLISH: dict[str, Any] = {"model": "embed-english-v3.0", "output_dimension": None}


@pytest.fixture
def server() -> Iterator[EmbeddingsServer]:
    with EmbeddingsServer() as server:
        yield server


def embed(server: EmbeddingsServer, texts: list[str], key: str = "sk-test", **changes: Any) -> Reply:
    body = {
        "model": "embed-v4.0",
        "texts": texts,
        "input_type": "search_document",
        "embedding_types": ["float"],
        "output_dimension": 256,
        **changes,
    }
    return send(server.url, "/v2/embed", msgspec.json.encode(body), key=key)


def test_the_answer_has_the_documented_shape(server: EmbeddingsServer) -> None:
    answer = embed(server, ["one", "two"]).json
    assert set(answer) == {"id", "embeddings", "texts", "meta", "response_type"}
    assert answer["texts"] == ["one", "two"]
    assert answer["meta"]["billed_units"] == {"input_tokens": 2}
    found = np.array(answer["embeddings"]["float"], dtype=np.float32)
    np.testing.assert_array_equal(found, [vector_of("one", 256), vector_of("two", 256)])
    assert server.books.times_answered == {digest_of("one"): 1, digest_of("two"): 1}
    assert server.books.tokens_answered == 2


def test_a_request_takes_96_texts(server: EmbeddingsServer) -> None:
    assert embed(server, ["one"] * 96).status == 200
    refused = embed(server, ["one"] * 97)
    assert refused.status == 400
    assert "at most 96 - received 97" in refused.json["message"]


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"texts": []}, 400),
        ({"texts": [""]}, 400),
        ({"texts": ["POISON"]}, 400),
        ({"input_type": "nonsense"}, 400),
        ({"embedding_types": ["int8"]}, 400),
        ({"model": "embed-english-v3.0"}, 400),
        ({"output_dimension": 300}, 400),
        ({"model": "embed-v9"}, 404),
        ({"key": "sk-other"}, 401),
        ({"texts": ["a" * 4_000], "truncate": "NONE", **ENGLISH}, 400),
    ],
)
def test_what_is_wrong_is_refused_with_a_message(
    server: EmbeddingsServer, changes: dict[str, Any], status: int
) -> None:
    refused = embed(server, **{"texts": ["one"], **changes})
    assert refused.status == status
    assert set(refused.json) == {"id", "message"}


def test_a_long_text_is_cut_where_the_request_allows_it(server: EmbeddingsServer) -> None:
    assert embed(server, ["a" * 4_000], **ENGLISH).json["meta"]["billed_units"] == {"input_tokens": 512}


def test_a_model_has_its_own_dimensions(server: EmbeddingsServer) -> None:
    answer = embed(server, ["one"], **ENGLISH)
    assert len(answer.json["embeddings"]["float"][0]) == 1024


def test_base64_is_the_bytes_of_the_same_floats(server: EmbeddingsServer) -> None:
    embeddings = embed(server, ["one", "two"], embedding_types=["base64", "float"]).json["embeddings"]
    assert embeddings.keys() == {"base64", "float"}
    found = [np.frombuffer(b64decode(row), "<f4") for row in embeddings["base64"]]
    np.testing.assert_array_equal(found, np.float32(embeddings["float"]))


def test_texts_are_counted_by_what_they_are_said_to_be(server: EmbeddingsServer) -> None:
    embed(server, ["one", "two"])
    embed(server, ["one"], input_type="search_query")
    assert server.books.by_input_type == {"search_document": 2, "search_query": 1}


def test_a_trial_key_is_limited() -> None:
    with EmbeddingsServer(ServerConfig(rpm=1)) as server:
        assert embed(server, ["one"]).status == 200
        refused = embed(server, ["one"])
    assert refused.status == 429
    assert "Trial key, which is limited to 1 API calls / minute" in refused.json["message"]


def test_the_limit_of_a_month_is_another_429(server: EmbeddingsServer) -> None:
    server.script([quota()])
    refused = embed(server, ["one"])
    assert refused.status == 429
    assert "1000 API calls / month" in refused.json["message"]


def test_faults_bend_its_answers_too(server: EmbeddingsServer) -> None:
    server.script([wrong_count(), wrong_dimension(), empty_data(), cut_json()])
    assert len(embed(server, ["one", "two"]).json["embeddings"]["float"]) == 1
    assert len(embed(server, ["one"]).json["embeddings"]["float"][0]) == 257
    assert embed(server, ["one"]).json["embeddings"]["float"] == []
    with pytest.raises(msgspec.DecodeError):
        assert embed(server, ["one"]).json
    assert server.books.texts_spoiled == 4
    assert server.books.texts_lost == 1


def test_vectors_without_an_index_stay_in_order(server: EmbeddingsServer) -> None:
    server.script([out_of_order()])
    found = embed(server, ["one", "two", "three"]).json["embeddings"]["float"]
    np.testing.assert_array_equal(np.float32(found), [vector_of(text, 256) for text in ("one", "two", "three")])
    assert server.books.faults == {}
