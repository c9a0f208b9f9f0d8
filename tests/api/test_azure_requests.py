"""OpenAI's API as Azure serves it: under other addresses, with the key in another header."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ragingest.embedders import open_api
from ragingest.embedders.openai import OpenAIRequests, is_azure
from ragingest.errors import UsageError
from ragingest.protocols import EmbeddingRequests
from tests.servers.openai_api import EmbeddingsServer, ServerConfig

from .canned import Canned, Seen, embeddings
from .requests_contract import DIMENSIONS, KEY, EmbeddingRequestsContract
from .running import Place, make

MODEL = "text-embedding-3-small"
VERSION = "?api-version=2024-10-21"
DEPLOYMENT = "/openai/deployments/my-embeddings"
AZURE = "http://my-resource.openai.azure.com"


class TestAzure(EmbeddingRequestsContract):
    def build(
        self,
        url: str,
        *,
        key: str = KEY,
        model: str | None = None,
        dimensions: int | None = DIMENSIONS,
        timeout: float = 60.0,
    ) -> EmbeddingRequests:
        base = f"{url}/openai/deployments/{model or 'my-embeddings'}{VERSION}"
        return OpenAIRequests(model or MODEL, key, base, dimensions, timeout)


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "the-key-of-openai")
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "the-key-of-azure")


def seen_of(base_url: str) -> Seen:
    """The request that goes to a server on loopback under that address."""
    with Canned(embeddings([1.0])) as server:
        return _send(server, base_url.replace("CANNED", server.url))


def seen_through_a_proxy(base_url: str, monkeypatch: pytest.MonkeyPatch) -> Seen:
    """The request that would go to that host."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Canned(embeddings([1.0])) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        return _send(proxy, base_url)


def _send(server: Canned, base_url: str) -> Seen:
    async def run() -> None:
        api = open_api("openai", MODEL, base_url=base_url, dimensions=None, timeout=60.0)
        try:
            await api.request(["text"])
        finally:
            await api.close()

    asyncio.run(run())
    [seen] = server.seen
    return seen


@pytest.mark.parametrize("tail", ["", "/", "/embeddings", "/embeddings/"])
def test_a_deployment_is_known_by_its_path_and_the_query_is_kept(tail: str) -> None:
    seen = seen_of(f"CANNED{DEPLOYMENT}{tail}{VERSION}")
    assert seen.target == f"{DEPLOYMENT}/embeddings{VERSION}"
    assert seen.headers["api-key"] == "the-key-of-azure"
    assert "authorization" not in seen.headers


@pytest.mark.parametrize(
    ("base_url", "target"),
    [
        (f"{AZURE}/openai/v1", f"{AZURE}/openai/v1/embeddings"),
        (f"{AZURE}/openai/v1/embeddings?api-version=preview", f"{AZURE}/openai/v1/embeddings?api-version=preview"),
        (f"{AZURE}{DEPLOYMENT}{VERSION}", f"{AZURE}{DEPLOYMENT}/embeddings{VERSION}"),
        ("http://r.services.ai.azure.com/openai/v1/", "http://r.services.ai.azure.com/openai/v1/embeddings"),
    ],
)
def test_azure_is_known_by_its_hosts(base_url: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = seen_through_a_proxy(base_url, monkeypatch)
    assert seen.target == target
    assert seen.headers["api-key"] == "the-key-of-azure"
    assert "authorization" not in seen.headers


def test_the_key_of_openai_will_do_where_there_is_none_of_azure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_OPENAI_API_KEY")
    assert seen_of(f"CANNED{DEPLOYMENT}{VERSION}").headers["api-key"] == "the-key-of-openai"


@pytest.mark.parametrize(
    "url",
    [
        "https://api.openai.com/v1",
        "https://api.groq.com/openai/v1",  # the same path, and not Azure
        "http://localhost:8000/v1",
        "https://my-endpoint.inference.ml.azure.com/v1",
        "https://openai.azure.com.example/openai/v1",
        "http://[::1",
    ],
)
def test_other_servers_do_not_get_the_key_of_azure(url: str) -> None:
    assert not is_azure(url)


def test_the_query_of_any_other_server_is_kept_too() -> None:
    seen = seen_of("CANNED/v1?tenant=a%20b&x=1")
    assert seen.target == "/v1/embeddings?tenant=a%20b&x=1"
    assert seen.headers["authorization"] == "Bearer the-key-of-openai"


@pytest.mark.parametrize(
    "url", [AZURE, f"{AZURE}/openai", f"{AZURE}{DEPLOYMENT}", f"http://127.0.0.1:9{DEPLOYMENT}?version=1"]
)
def test_half_an_address_of_azure_is_refused_with_a_whole_one(url: str) -> None:
    with pytest.raises(UsageError, match="part of an address") as caught:
        open_api("openai", MODEL, base_url=url, dimensions=None, timeout=60.0)
    assert "/openai/v1" in caught.value.hint
    assert "?api-version=" in caught.value.hint


def test_the_hint_of_a_refused_key_names_the_variable_that_held_it() -> None:
    with EmbeddingsServer(ServerConfig(api_key=KEY)) as server:
        base = f"{server.url}{DEPLOYMENT}{VERSION}"
        api = open_api("openai", MODEL, base_url=base, dimensions=8, timeout=60.0)
        [outcome] = TestAzure().send(api, ["text"])
    assert "AZURE_OPENAI_API_KEY" in getattr(outcome, "hint", "")
    assert "the-key-of-azure" not in str(outcome)


def test_a_corpus_goes_through_a_deployment_and_is_found_again(tmp_path: Path) -> None:
    records = make(120)
    with Place.opened(tmp_path, key="AZURE_OPENAI_API_KEY") as place:
        base = ("--base-url", f"{place.server.url}{DEPLOYMENT}/embeddings{VERSION}")
        result = place.run(records, *base)
        assert result.counters["stored"] == 120
        place.check_stored(records)
        place.check_books(result)
        found = place.command("search", records[7]["text"], "--dense", "--json")
        assert found.document[0]["id"] == records[7]["id"]
        place.check_secret(result, found)
