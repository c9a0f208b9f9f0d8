"""Answers on their way out, and the errors of OpenAI and Cohere in their own words and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from tests.servers.books import Charge
from tests.servers.faults import Fault
from tests.servers.limits import Refusal

__all__ = ["Answer", "ApiError", "Dialect", "refused_by_fault", "refused_by_limits"]

Dialect = Literal["openai", "cohere"]
HTML = b"<!DOCTYPE html><html><head><title>Just a moment...</title></head><body><h1>Checking</h1></body></html>"


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes on the wire. `charge` is what is paid for it."""

    status: int
    body: bytes | Path
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    charge: Charge | None = None

    @classmethod
    def json(cls, value: Any, status: int = 200) -> Answer:
        return cls(status, msgspec.json.encode(value))


class ApiError(Exception):
    """A request that the service refuses."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",  # noqa: A002 - the field's name on the wire
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error = {"message": message, "type": type, "param": param, "code": code}
        self.headers = dict(headers or {})

    def answer(self, dialect: Dialect) -> Answer:
        if dialect == "cohere":
            value: Any = {"id": "00000000-0000-4000-8000-000000000000", "message": self.error["message"]}
        else:
            value = {"error": self.error}
        return Answer(self.status, msgspec.json.encode(value), self.headers)


def refused_by_limits(refusal: Refusal, model: str, dialect: Dialect, *, tell_wait: bool) -> ApiError:
    """The 429 of the server's own limits; `tell_wait` adds the two Retry-After headers."""
    short = "RPM" if refusal.kind == "requests" else "TPM"
    headers: dict[str, str] = {}
    if refusal.wait is None:
        message = (
            f"Request too large for {model} in organization org-test on {refusal.kind} per min ({short}): "
            f"Limit {refusal.limit}, Requested {refusal.requested}. "
            "The input or output tokens must be reduced in order to run successfully."
        )
    else:
        if tell_wait:
            # Rounded up: a client that waits as long as it is told is let in.
            headers = {
                "retry-after": str(-int(-refusal.wait // 1)),
                "retry-after-ms": str(-int(-refusal.wait * 1000 // 1)),
            }
        message = (
            f"Rate limit reached for {model} in organization org-test on {refusal.kind} per min ({short}): "
            f"Limit {refusal.limit}, Used {refusal.used}, Requested {refusal.requested}. "
            f"Please try again in {refusal.wait:.3f}s."
        )
    if dialect == "cohere":
        message = f"You are using a Trial key, which is limited to {refusal.limit} API calls / minute."
    return ApiError(429, message, type=refusal.kind, code="rate_limit_exceeded", headers=headers)


def refused_by_fault(fault: Fault, dialect: Dialect) -> Answer:
    """The answer to a request that a script wants refused."""
    if fault.kind == "html":
        return Answer(200, HTML, content_type="text/html")
    headers: dict[str, str] = {}
    if fault.retry_after is not None:
        headers["retry-after"] = str(fault.retry_after)
    if fault.retry_after_ms is not None:
        headers["retry-after-ms"] = str(fault.retry_after_ms)
    if fault.kind == "forbidden":
        message = "You are not allowed to generate embeddings from this model"
        error = ApiError(403, message, code=fault.code, headers=headers)
    elif fault.kind == "quota":
        message = "You exceeded your current quota, please check your plan and billing details."
        if dialect == "cohere":
            message = "You are using a Trial key, which is limited to 1000 API calls / month."
        error = ApiError(
            429, message, type="insufficient_quota", code=fault.code or "insufficient_quota", headers=headers
        )
    elif fault.kind == "rate_limited":
        message = "Rate limit reached. Please try again later."
        error = ApiError(429, message, type="requests", code=fault.code or "rate_limit_exceeded", headers=headers)
    else:
        message = "The server had an error while processing your request. Sorry about that!"
        error = ApiError(fault.status, message, type="server_error", code=fault.code, headers=headers)
    return error.answer(dialect)
