"""What the APIs of embedders have in common on the wire: one session, a key, and what an answer that is no 200 means."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import msgspec
import numpy as np
import pybase64

from ragingest.documents import Vectors
from ragingest.errors import RejectedError, TerminalError, TransientError, UsageError
from ragingest.pacing.rate_limiter import parse_reset, parse_retry_after
from ragingest.protocols import RateNews

__all__ = ["Endpoint", "as_vectors", "rate_news", "shown"]

CONNECTIONS = 256
SHOWN_OF_AN_ANSWER = 300
PIECE_BYTES = 1 << 18
ROWS_AT_ONCE = 64
QUOTE = ord('"')
PADDING = ord("=")

_decode_row = msgspec.json.Decoder(bytes | list[float]).decode

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

# Nor one that only says so in words, as a trial key of Cohere does: "limited to 1000 API calls / month".
_A_MONTH = re.compile(r"(?i)(/|per|a) ?month\b|monthly").search


class Endpoint:
    """An API under `base_url`, with the key from the environment variable `key_name`. Used on one event loop.

    A query of `base_url` goes with every request. The key goes into the header `key_header`, if one is
    named, else as a bearer token.
    """

    def __init__(
        self,
        base_url: str,
        key: str | None,
        key_name: str,
        model: str,
        timeout: float,
        *,
        key_header: str | None = None,
    ) -> None:
        parts = _checked(base_url)
        self.url = parts._replace(query="", fragment="").geturl().rstrip("/")
        self._query = f"?{parts.query}" if parts.query else ""
        self._key = (key or "").strip()
        self._key_name = key_name
        self._model = model
        self._timeout = timeout
        if not (self._key.isascii() and (self._key.isprintable() or not self._key)):
            raise UsageError("the key holds characters that no key has", f"look at {key_name}")
        self._headers: dict[str, str] = {}
        if self._key:
            self._headers = {key_header: self._key} if key_header else {"Authorization": f"Bearer {self._key}"}
        self._session: aiohttp.ClientSession | None = None

    def at(self, path: str) -> str:
        """The whole address of `path`."""
        return self.url + path + self._query

    async def call(
        self, method: str, path: str, *, more_seconds: float = 0.0, may_be_gone: bool = False, **request: Any
    ) -> tuple[bytes, Mapping[str, str]]:
        """One request, tried once: body and headers of an answer 200.

        Args:
            more_seconds: that a large body may take, beyond the timeout.
            may_be_gone: a 404 is about what the path names, and nothing else: a RejectedError.
            request: as `aiohttp.ClientSession.request` takes it.

        Raises:
            TransientError, RejectedError, TerminalError: see `refused`.
        """
        url = self.at(path)
        if more_seconds:
            request["timeout"] = aiohttp.ClientTimeout(total=self._timeout + more_seconds)
        try:
            async with self._open().request(method, url, **request) as response:
                data = await response.read()
                status, headers = response.status, response.headers
        except TimeoutError:
            raise TransientError(f"{url} did not answer within {self._timeout + more_seconds:g} s") from None
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
            raise TerminalError(
                f"{url} cannot be reached over TLS: {_plain(error)}",
                "check --base-url (https or http?), or name the authority that signed its certificate: SSL_CERT_FILE=...",
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise TransientError(f"{url} cannot be reached: {_plain(error)}") from None
        if status == 404 and may_be_gone:
            raise self._gone(data, url)
        if status != 200:
            raise self.refused(status, headers, data, url)
        return data, headers

    async def download(self, path: str, to: Path) -> None:
        """Write the body of an answer 200 into a file, piece by piece.

        Raises:
            TransientError, RejectedError, TerminalError: see `refused`. A 404 is a RejectedError here.
                The file may hold a part.
            OSError: it cannot be written.
        """
        url = self.at(path)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._timeout, sock_read=self._timeout)
        with os.fdopen(os.open(to, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
            try:
                async with self._open().get(url, timeout=timeout) as response:
                    if response.status == 404:
                        raise self._gone(await response.read(), url)
                    if response.status != 200:
                        raise self.refused(response.status, response.headers, await response.read(), url)
                    async for piece in response.content.iter_chunked(PIECE_BYTES):
                        file.write(piece)
            except TimeoutError:
                raise TransientError(f"{url} sent nothing for {self._timeout:g} s") from None
            except (aiohttp.ClientError, ConnectionError) as error:
                raise TransientError(f"{url} broke off: {_plain(error)}") from None

    def refused(self, status: int, headers: Mapping[str, str], data: bytes, url: str = "") -> Exception:
        """What an answer that is no 200 means for the request: try again, never as it is, or no request at all."""
        codes, message = _error_of(data)
        message = self.without_key(message)
        said = f"{url or self.url} answered {status}: {message}"
        if status in (401, 403):
            return TerminalError(said, f"check the key in {self._key_name}, and that it may use this model")
        if status == 404:
            return TerminalError(said, f"check --model {self._model} and --base-url")
        if status == 402 or (status == 429 and (_SPENT.intersection(codes) or _A_MONTH(message))):
            return TerminalError(said, "there is no money or quota left on this key: add some, then resume")
        if status in (408, 409, 429, 499) or status >= 500:
            return TransientError(
                said,
                parse_retry_after(headers, datetime.now(UTC)),
                throttled=status in (429, 503),
                news=rate_news(headers),
            )
        if status in (400, 413, 422, 498):
            return RejectedError("refused_by_embedder", message)
        return TerminalError(said, "check --base-url")

    def _gone(self, data: bytes, url: str) -> RejectedError:
        return RejectedError("refused_by_embedder", f"{url} answered 404: {self.without_key(_error_of(data)[1])}")

    def without_key(self, text: str) -> str:
        """What a server says, should it repeat the key."""
        return text.replace(self._key, "***") if self._key else text

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=self._timeout),
                connector=aiohttp.TCPConnector(limit=CONNECTIONS),
                # Not by `trust_env`, which reads .netrc before each request, and fails where that has a login.
                proxy=_proxy_for(self.url),
            )
        return self._session


def _checked(base_url: str) -> SplitResult:
    """The parts of the URL.

    Raises:
        UsageError: it is none.
    """
    try:
        url = urlsplit(base_url)
        if url.scheme in ("http", "https") and url.hostname and " " not in url.hostname and url.port != 0:
            return url
    except ValueError:
        pass
    raise UsageError(f"--base-url {base_url!r} is no URL", "write for example http://localhost:8000/v1")


def _proxy_for(url: str) -> str | None:
    """The proxy that the environment names for that address."""
    parts = urlsplit(url)
    if proxy_bypass(parts.hostname or ""):
        return None
    return getproxies().get(parts.scheme)


def rate_news(headers: Mapping[str, str]) -> RateNews:
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


def as_vectors(embeddings: Sequence[msgspec.Raw], url: str) -> Vectors:
    """Rows of an answer, at least one, as JSON: base64 of little-endian float32, or arrays of numbers.

    Shape (n, d), all finite.

    Raises:
        TransientError: they are no vectors of one length.
    """
    data = _decoded(embeddings)
    if data is not None:
        vectors = np.frombuffer(data, "<f4").reshape(len(embeddings), -1).astype(np.float32, copy=False)
    else:
        vectors = _one_by_one(embeddings, url)
    if not np.isfinite(vectors).all():
        raise TransientError(f"{url} answered a vector with NaN or infinity in it")
    return vectors


def _decoded(embeddings: Sequence[msgspec.Raw]) -> bytearray | None:
    """The bytes of all rows, if each is plain base64 of the same length; a tenth of the CPU of decoding them as JSON."""
    views = [memoryview(embedding) for embedding in embeddings]
    length = len(views[0])
    if length <= 2 or any(len(view) != length or view[0] != QUOTE for view in views):
        return None
    rows = [view[1:-1] for view in views]
    # Whole groups of three bytes: joined, they are base64 still.
    at_once = 1 if rows[0][-1] == PADDING else ROWS_AT_ONCE
    data = bytearray()
    lengths = []
    try:
        for first in range(0, len(rows), at_once):
            piece = pybase64.b64decode(b"".join(rows[first : first + at_once]), validate=True)
            data += piece
            lengths.append(len(piece))
    except ValueError:
        return None
    each, rest = divmod(len(data), 4 * len(rows))
    return None if rest or any(length % (4 * each) for length in lengths) else data


def _one_by_one(embeddings: Sequence[msgspec.Raw], url: str) -> Vectors:
    """What takes its time: numbers, or strings with escapes in them; and what is wrong."""
    try:
        rows = [_decode_row(embedding) for embedding in embeddings]
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise TransientError(f"{url} answered something that is no vector") from None
    first = rows[0]
    if len(set(map(type, rows))) > 1 or len(set(map(len, rows))) > 1:
        raise TransientError(f"{url} answered vectors of different lengths or kinds")
    if not first or (isinstance(first, bytes) and len(first) % 4):
        raise TransientError(f"{url} answered something that is no vector")
    if isinstance(first, bytes):
        flat = np.frombuffer(b"".join(row for row in rows if isinstance(row, bytes)), "<f4")
        return flat.reshape(len(rows), -1).astype(np.float32, copy=False)
    with np.errstate(over="ignore"):  # what float32 does not hold becomes infinity
        return np.array(rows, dtype=np.float32)


def _error_of(data: bytes) -> tuple[set[str], str]:
    """(code and type, message) of an error's body, whatever its shape."""
    try:
        body = msgspec.json.decode(data)
        error = body.get("error") or body
        if isinstance(error, str):
            return set(), error
        return {str(error.get("code")), str(error.get("type"))}, str(error.get("message") or shown(data))
    except (msgspec.DecodeError, UnicodeDecodeError, AttributeError):
        return set(), shown(data)


def shown(data: bytes) -> str:
    """The beginning of an answer, for a message."""
    text = " ".join(data[:SHOWN_OF_AN_ANSWER].decode(errors="replace").split())
    return text or "nothing"


def _plain(error: BaseException) -> str:
    return str(error) or type(error).__name__
