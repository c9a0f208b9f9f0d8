"""What a Qdrant server refuses, sorted by who acts. One table for both protocols: gRPC's codes count as HTTP's."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import grpc
import httpx
import msgspec
from pydantic import ValidationError
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from ragingest.errors import TOO_LARGE, RejectedError, TerminalError, TransientError
from ragingest.pacing.rate_limiter import parse_retry_after

__all__ = ["MissingError", "ServerErrors", "message_of"]

SHOWN = 300

# Qdrant's own mapping of its errors, the other way round (src/tonic, src/actix/helpers.rs).
_STATUS_OF_CODE = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.FAILED_PRECONDITION: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.OUT_OF_RANGE: 413,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
_OTHER_CODE = 500

# "JSON payload (N bytes) is larger than allowed", strict mode's `Limit exceeded 9 > 8 for "upsert limit"`,
# "request larger than rate limiter capacity", and what gRPC says of a message that is too long.
_TOO_LARGE = re.compile(
    r'larger than (allowed|rate limiter capacity|max)|for "upsert limit"|message length too large', re.IGNORECASE
).search
# "Max vector storage size limit of 10MB reached!": the collection takes no more, whatever it is.
_FULL = re.compile(r"limit of \S+ reached").search
_OTHER_VECTORS = re.compile(r"dimension error|Not existing vector name", re.IGNORECASE).search
# As OpenSSL and gRPC's core say it; a line that broke during the handshake is none of these.
_TLS = re.compile(
    r"CERTIFICATE_VERIFY_FAILED|WRONG_VERSION_NUMBER|wrong version number|record layer failure|UNSUPPORTED_PROTOCOL"
    r"|ALERT_HANDSHAKE_FAILURE|Hostname Verification Check failed"
).search
_NUMBER = re.compile(r"\d+(\.\d+)?\Z").search


class MissingError(TerminalError):
    """There is no such collection."""


class ServerErrors:
    """Turns what comes from a server at `url` into errors of ours; `key` never stands in a message."""

    def __init__(self, url: str, collection: str, key: str) -> None:
        self._url = url
        self._collection = collection
        self._key = key

    def of(self, error: Exception) -> Exception:
        """Sort whatever httpx, gRPC or the client has raised; a bug stays what it is."""
        if isinstance(error, grpc.RpcError):
            return self._of_grpc(error)
        if isinstance(error, UnexpectedResponse):
            return self.of_status(error.status_code or 0, error.headers or {}, error.content)
        if isinstance(error, ResourceExhaustedResponse):
            return self._of_answer(429, error.message, float(error.retry_after_s))
        if isinstance(error, QdrantException):  # a Retry-After that is no whole number
            number = _NUMBER(str(error))
            return self._of_answer(429, str(error), float(number[0]) if number else None)
        if isinstance(error, ResponseHandlingException):
            return self.of(error.source)
        if isinstance(error, httpx.TimeoutException):
            return TransientError(f"{self._url} did not answer in time: {_named(error)}")
        if isinstance(error, httpx.HTTPError):
            return self._unreached(_named(error))
        if isinstance(error, json.JSONDecodeError | msgspec.DecodeError | ValidationError):
            return self.unreadable()
        return error

    def of_status(self, status: int, headers: Mapping[str, str], content: bytes) -> Exception:
        """Sort an answer with another status than 200."""
        return self._of_answer(status, message_of(content), parse_retry_after(headers, datetime.now(UTC)))

    def unreadable(self) -> TransientError:
        return TransientError(f"{self._url} answered with something else than Qdrant does: is a proxy before it?")

    def not_applied(self, status: str) -> TransientError:
        return TransientError(f"{self._url} has taken a write, but not applied it yet ({status})")

    def _of_grpc(self, error: grpc.RpcError) -> Exception:
        code, details = error.code(), error.details() or ""
        if code is grpc.StatusCode.UNAVAILABLE and _TLS(details):
            return self._unreached(details)
        status = _STATUS_OF_CODE.get(code, _OTHER_CODE)
        metadata: Any = error.trailing_metadata() or ()
        headers = {name: value for name, value in metadata if isinstance(value, str)}
        return self._of_answer(status, f"{code.name}: {details}", parse_retry_after(headers, datetime.now(UTC)))

    def _unreached(self, message: str) -> Exception:
        message = self._without_key(message)
        if _TLS(message):
            return TerminalError(
                f"{self._url} cannot be reached over TLS: {message}",
                "check --url (https or http, grpcs or grpc?), or name the authority that signed its certificate: "
                "SSL_CERT_FILE=..., for gRPC GRPC_DEFAULT_SSL_ROOTS_FILE_PATH=...",
            )
        return TransientError(f"{self._url} cannot be reached: {message}")

    def _of_answer(self, status: int, message: str, retry_after: float | None) -> Exception:
        message = self._without_key(message)
        said = f"{self._url} answered {status}: {message}"
        if status == 413 or (status in (400, 429) and _TOO_LARGE(message)):
            return RejectedError(TOO_LARGE, message)
        if status in (401, 403):
            return TerminalError(said, "check QDRANT_API_KEY, and that this key may write")
        if status == 404:
            return MissingError(said, f"check --url and --collection {self._collection}")
        if status in (400, 422):
            if _FULL(message):
                return TerminalError(said, "the server's limits for this collection are reached: raise them")
            if _OTHER_VECTORS(message):
                return TerminalError(
                    said, f"the collection {self._collection} was changed: give another --collection"
                )
            return RejectedError("refused_by_store", message)
        if status in (408, 425, 429) or (status >= 500 and status != 501):
            return TransientError(said, retry_after, throttled=status in (429, 503))
        return TerminalError(said, "check --url: http:// is for the REST port, grpc:// for the gRPC port")

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def message_of(content: bytes) -> str:
    """What an answer says: `status.error` where it is Qdrant's, else its beginning."""
    try:
        return str(json.loads(content)["status"]["error"])
    except (ValueError, KeyError, TypeError):
        return " ".join(content[:SHOWN].decode(errors="replace").split()) or "nothing"


def _named(error: Exception) -> str:
    return str(error) or type(error).__name__
