from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import openai
import pytest

from tests.servers.openai_api import EmbeddingsServer, vector_of

VERSION = "2024-10-21"


@pytest.fixture
def server() -> Iterator[EmbeddingsServer]:
    with EmbeddingsServer() as server:
        yield server


def azure(server: EmbeddingsServer, *, key: str = "sk-test") -> openai.AzureOpenAI:
    return openai.AzureOpenAI(api_key=key, azure_endpoint=server.url, api_version=VERSION, max_retries=0)


def test_the_sdk_for_azure_reads_the_vectors_of_a_deployment(server: EmbeddingsServer) -> None:
    with azure(server) as client:
        answer = client.embeddings.create(model="my-embeddings", input=["one", "two"], dimensions=8)
    found = np.array([item.embedding for item in answer.data], dtype=np.float32)
    np.testing.assert_array_equal(found, [vector_of("one", 8), vector_of("two", 8)])


def test_the_usual_sdk_reads_them_from_version_1(server: EmbeddingsServer) -> None:
    with openai.OpenAI(api_key="sk-test", base_url=f"{server.url}/openai/v1/", max_retries=0) as client:
        answer = client.embeddings.create(model="my-embeddings", input=["one"], dimensions=8)
    np.testing.assert_array_equal(np.array(answer.data[0].embedding, dtype=np.float32), vector_of("one", 8))


def test_a_wrong_key_and_an_unknown_deployment_are_refused(server: EmbeddingsServer) -> None:
    with azure(server, key="another") as client, pytest.raises(openai.AuthenticationError):
        client.embeddings.create(model="my-embeddings", input=["one"])
    with azure(server) as client, pytest.raises(openai.NotFoundError, match="deployment"):
        client.embeddings.create(model="text-embedding-3-small", input=["one"])


def test_a_deployment_takes_no_bearer_and_wants_a_version(server: EmbeddingsServer) -> None:
    base = f"{server.url}/openai/deployments/my-embeddings"
    with openai.OpenAI(api_key="sk-test", base_url=base, max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            client.embeddings.create(model="x", input=["one"])
    headers = {"api-key": "sk-test"}
    with openai.OpenAI(api_key="x", base_url=base, max_retries=0, default_headers=headers) as client:
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="x", input=["one"])
