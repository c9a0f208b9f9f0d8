"""OpenAI's embeddings API, and every server that speaks it (vLLM, TEI, Infinity, Ollama, Azure).

One POST is one `request`; retries, pacing and halving are wrapped around it (embedders/remote.py).
It goes by aiohttp, msgspec and pybase64 instead of the openai package because that spends 117 us of CPU a
document where this spends 8: base64 is decoded straight into the bytes of float32 rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from ragingest.documents import Vectors
from ragingest.embedders.http import Endpoint, as_vectors, rate_news, shown
from ragingest.errors import TransientError, UsageError
from ragingest.protocols import Answer, RateNews

__all__ = ["DEFAULT_BASE_URL", "OpenAIRequests", "is_azure"]

DEFAULT_BASE_URL = "https://api.openai.com/v1"
KEY_NAME = "OPENAI_API_KEY"
PATH = "/embeddings"

# Of Azure OpenAI and of Foundry: https://learn.microsoft.com/azure/ai-foundry/openai/api-version-lifecycle
_AZURE_HOSTS = (
    ".openai.azure.com",
    ".openai.azure.us",
    ".cognitiveservices.azure.com",
    ".services.ai.azure.com",
)
_DEPLOYMENT = "/openai/deployments/"

_JSON = {"Content-Type": "application/json"}


class _Row(msgspec.Struct):
    embedding: msgspec.Raw
    index: int


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    total_tokens: int = 0


class _Answer(msgspec.Struct):
    data: list[_Row]
    usage: _Usage | None = None


class _OnlyUsage(msgspec.Struct):
    usage: _Usage | None = None


_decode = msgspec.json.Decoder(_Answer).decode
_decode_usage = msgspec.json.Decoder(_OnlyUsage).decode


class OpenAIRequests:
    """Sends one batch of texts at a time to `POST {base_url}/embeddings`. Used on one event loop."""

    name = "openai"

    def __init__(
        self,
        model: str,
        key: str | None,
        base_url: str,
        dimensions: int | None,
        timeout: float,
        *,
        key_name: str = KEY_NAME,
    ) -> None:
        self.model = model
        azure = is_azure(base_url)
        if azure:
            base_url = _azure_base(base_url)
        self._endpoint = Endpoint(base_url, key, key_name, model, timeout, key_header="api-key" if azure else None)
        self._url = self._endpoint.at(PATH)
        self._body: dict[str, Any] = {"model": model, "encoding_format": "base64"}
        if dimensions is not None:
            self._body["dimensions"] = dimensions

    async def request(self, texts: Sequence[str]) -> Answer:
        """Embed `texts` by one request on the wire; row i belongs to text i.

        Raises:
            TransientError: trying again may work; `retry_after` if the server said when.
            RejectedError: this batch will never be accepted as it is (400, 413, 422).
            TerminalError: no batch will: key, model or money.
        """
        body = msgspec.json.encode({**self._body, "input": texts})
        data, headers = await self._endpoint.call("POST", PATH, data=body, headers=_JSON)
        return self._answer(data, len(texts), rate_news(headers))

    def _answer(self, data: bytes, count: int, news: RateNews) -> Answer:
        try:
            answer = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise TransientError(
                f"{self._url} answered 200 with something else than embeddings: {self._endpoint.without_key(shown(data))}",
                tokens=_charged(data),
            ) from None
        tokens = _tokens(answer.usage)
        try:
            return Answer(self._vectors(answer.data, count), tokens, news)
        except TransientError as error:
            error.tokens = tokens
            raise

    def _vectors(self, rows: list[_Row], count: int) -> Vectors:
        if len(rows) != count:
            raise TransientError(f"{self._url} answered {len(rows)} vectors for {count} texts")
        if [row.index for row in rows] != list(range(count)):
            rows = sorted(rows, key=lambda row: row.index)
            if [row.index for row in rows] != list(range(count)):
                raise TransientError(f"{self._url} answered vectors whose indexes are not 0 to {count - 1}")
        return as_vectors([row.embedding for row in rows], self._url)

    async def close(self) -> None:
        await self._endpoint.close()


def _tokens(usage: _Usage | None) -> int:
    return 0 if usage is None else usage.total_tokens or usage.prompt_tokens


def _charged(data: bytes) -> int:
    """Tokens of an answer of which nothing else can be used: null for a number in a vector, say."""
    try:
        return _tokens(_decode_usage(data).usage)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return 0


def is_azure(base_url: str) -> bool:
    """Whether Azure answers there, which takes its key in a header of its own: by the host, or a deployment's path."""
    try:
        parts = urlsplit(base_url)
    except ValueError:
        return False
    return (parts.hostname or "").endswith(_AZURE_HOSTS) or _DEPLOYMENT in parts.path


def _azure_base(url: str) -> str:
    """What stands in front of the path of embeddings; the whole address, as the portal shows it, will do.

    Raises:
        UsageError: neither a deployment nor the API of version 1 is named.
    """
    parts = urlsplit(url)
    deployment = _DEPLOYMENT in parts.path and "api-version=" in parts.query
    if not deployment and "/openai/v1" not in parts.path:
        raise UsageError(
            f"--base-url {url} is only a part of an address of Azure",
            "write https://RESOURCE.openai.azure.com/openai/v1, "
            "or https://RESOURCE.openai.azure.com/openai/deployments/NAME?api-version=2024-10-21",
        )
    return parts._replace(path=parts.path.rstrip("/").removesuffix(PATH)).geturl()
