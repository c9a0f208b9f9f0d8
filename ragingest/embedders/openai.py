"""OpenAI's embeddings API, and every server that speaks it (vLLM, TEI, Infinity, Ollama).

One POST is one `request`; retries, pacing and halving are wrapped around it (embedders/remote.py).
It goes by aiohttp and msgspec instead of the openai package because that spends 117 us of CPU a
document where this spends 12: base64 is decoded straight into the bytes of a float32 row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import msgspec
import numpy as np

from ragingest.documents import Vectors
from ragingest.errors import RejectedError, TerminalError, TransientError, UsageError
from ragingest.pacing import parse_reset, parse_retry_after
from ragingest.protocols import Answer, RateNews

__all__ = ["DEFAULT_BASE_URL", "OpenAIRequests"]

DEFAULT_BASE_URL = "https://api.openai.com/v1"

CONNECTIONS = 256
SHOWN_OF_AN_ANSWER = 300

# A 429 with one of these will not go away by waiting (OpenAI's guide to error codes).
_SPENT = frozenset(
    {
        "insufficient_quota",
        "credit_balance_exhausted",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        "organization_usage_limit_exceeded",
        "billing_hard_limit_reached",
    }
)


class _Row(msgspec.Struct):
    embedding: bytes | list[float]
    index: int


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    total_tokens: int = 0


class _Answer(msgspec.Struct):
    data: list[_Row]
    usage: _Usage | None = None


_decode = msgspec.json.Decoder(_Answer).decode


class OpenAIRequests:
    """Sends one batch of texts at a time to `POST {base_url}/embeddings`. Used on one event loop."""

    name = "openai"

    def __init__(self, model: str, key: str | None, base_url: str, dimensions: int | None, timeout: float) -> None:
        self.model = model
        self._url = _checked(base_url).rstrip("/") + "/embeddings"
        self._headers = {"Content-Type": "application/json"}
        self._key = (key or "").strip()
        if not (self._key.isascii() and (self._key.isprintable() or not self._key)):
            raise UsageError("the key holds characters that no key has", "look at OPENAI_API_KEY")
        if self._key:
            self._headers["Authorization"] = f"Bearer {self._key}"
        self._body: dict[str, Any] = {"model": model, "encoding_format": "base64"}
        if dimensions is not None:
            self._body["dimensions"] = dimensions
        self._timeout = timeout
        self._session: aiohttp.ClientSession | None = None

    async def request(self, texts: Sequence[str]) -> Answer:
        """Embed `texts` by one request on the wire; row i belongs to text i.

        Raises:
            TransientError: trying again may work; `retry_after` if the server said when.
            RejectedError: this batch will never be accepted as it is (400, 413, 422).
            TerminalError: no batch will: key, model or money.
        """
        body = msgspec.json.encode({**self._body, "input": texts})
        try:
            async with self._open().post(self._url, data=body) as response:
                data = await response.read()
                status, headers = response.status, response.headers
        except TimeoutError:
            raise TransientError(f"{self._url} did not answer within {self._timeout:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise TransientError(f"{self._url} cannot be reached: {_plain(error)}") from None
        if status != 200:
            raise self._refused(status, headers, data)
        return self._answer(data, len(texts), _rate_news(headers))

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=self._timeout),
                connector=aiohttp.TCPConnector(limit=CONNECTIONS),
                # Not by `trust_env`, which reads .netrc before each request, and fails where that has a login.
                proxy=_proxy_for(self._url),
            )
        return self._session

    def _answer(self, data: bytes, count: int, news: RateNews) -> Answer:
        try:
            answer = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise TransientError(
                f"{self._url} answered 200 with something else than embeddings: {self._without_key(_shown(data))}"
            ) from None
        rows = answer.data
        if len(rows) != count:
            raise TransientError(f"{self._url} answered {len(rows)} vectors for {count} texts")
        if [row.index for row in rows] != list(range(count)):
            rows = sorted(rows, key=lambda row: row.index)
            if [row.index for row in rows] != list(range(count)):
                raise TransientError(f"{self._url} answered vectors whose indexes are not 0 to {count - 1}")
        usage = answer.usage or _Usage()
        return Answer(self._vectors(rows), usage.total_tokens or usage.prompt_tokens, news)

    def _vectors(self, rows: list[_Row]) -> Vectors:
        embeddings = [row.embedding for row in rows]
        first = embeddings[0]
        if len(set(map(type, embeddings))) > 1 or len(set(map(len, embeddings))) > 1:
            raise TransientError(f"{self._url} answered vectors of different lengths or kinds")
        if not first or (isinstance(first, bytes) and len(first) % 4):
            raise TransientError(f"{self._url} answered something that is no vector")
        if isinstance(first, bytes):
            flat = np.frombuffer(b"".join(some for some in embeddings if isinstance(some, bytes)), "<f4")
            vectors = flat.reshape(len(rows), -1).astype(np.float32, copy=False)
        else:
            with np.errstate(over="ignore"):  # what float32 does not hold becomes infinity
                vectors = np.array(embeddings, dtype=np.float32)
        if not np.isfinite(vectors).all():
            raise TransientError(f"{self._url} answered a vector with NaN or infinity in it")
        return vectors

    def _refused(self, status: int, headers: Mapping[str, str], data: bytes) -> Exception:
        codes, message = _error_of(data)
        message = self._without_key(message)
        said = f"{self._url} answered {status}: {message}"
        if status in (401, 403):
            return TerminalError(said, "check the key in OPENAI_API_KEY, and that it may use this model")
        if status == 404:
            return TerminalError(said, f"check --model {self.model} and --base-url")
        if status == 429 and _SPENT.intersection(codes):
            return TerminalError(said, "there is no money or quota left on this key: add some, then resume")
        if status in (408, 409, 429) or status >= 500:
            return TransientError(
                said,
                parse_retry_after(headers, datetime.now(UTC)),
                throttled=status in (429, 503),
                news=_rate_news(headers),
            )
        if status in (400, 413, 422):
            return RejectedError("refused_by_embedder", message)
        return TerminalError(said, "check --base-url")

    def _without_key(self, text: str) -> str:
        """What a server says, should it repeat the key."""
        return text.replace(self._key, "***") if self._key else text

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


def _checked(base_url: str) -> str:
    """The URL as it is.

    Raises:
        UsageError: it is none.
    """
    try:
        url = urlsplit(base_url)
        usable = url.scheme in ("http", "https") and url.hostname and " " not in url.hostname and url.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise UsageError(f"--base-url {base_url!r} is no URL", "write for example http://localhost:8000/v1")
    return base_url


def _proxy_for(url: str) -> str | None:
    """The proxy that the environment names for that address."""
    parts = urlsplit(url)
    if proxy_bypass(parts.hostname or ""):
        return None
    return getproxies().get(parts.scheme)


def _rate_news(headers: Mapping[str, str]) -> RateNews:
    """What the answer's headers say of both budgets; None for what they do not say."""

    def number(name: str) -> float | None:
        try:
            return float(headers[name])
        except (KeyError, ValueError):
            return None

    def reset(name: str) -> float | None:
        return parse_reset(headers[name]) if name in headers else None

    return RateNews(
        number("x-ratelimit-limit-requests"),
        number("x-ratelimit-remaining-requests"),
        reset("x-ratelimit-reset-requests"),
        number("x-ratelimit-limit-tokens"),
        number("x-ratelimit-remaining-tokens"),
        reset("x-ratelimit-reset-tokens"),
    )


def _error_of(data: bytes) -> tuple[set[str], str]:
    """(code and type, message) of an error's body, whatever its shape."""
    try:
        body = msgspec.json.decode(data)
        error = body.get("error") or body
        if isinstance(error, str):
            return set(), error
        return {str(error.get("code")), str(error.get("type"))}, str(error.get("message") or _shown(data))
    except (msgspec.DecodeError, UnicodeDecodeError, AttributeError):
        return set(), _shown(data)


def _shown(data: bytes) -> str:
    text = " ".join(data[:SHOWN_OF_AN_ANSWER].decode(errors="replace").split())
    return text or "nothing"


def _plain(error: BaseException) -> str:
    return str(error) or type(error).__name__
