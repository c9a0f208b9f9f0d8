"""OpenAI's Batch API: files of embedding requests, answered within a day at half the price.

One line of a file is one request for one text. Its `custom_id` is the text's digest, so an answer
can be told whatever the order of the lines; and what fails costs one text. More texts in a line
would save 150 bytes each of a file that is seldom near its limit: the limit of 50,000 texts comes first.

Limits: https://platform.openai.com/docs/guides/batch (2026-11).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import aiohttp
import msgspec

from ragingest.embedders.http import Endpoint, as_vectors, shown
from ragingest.errors import RejectedError, TransientError
from ragingest.protocols import BatchAnswer, BatchStatus

__all__ = ["MAX_BYTES", "MAX_TEXTS", "OpenAIBatches", "line_of"]

KEY_NAME = "OPENAI_API_KEY"
MAX_TEXTS = 50_000
MAX_BYTES = 200_000_000

PAGE = 100
CLOCKS_APART = 3600.0
"""Seconds that the server's clock may be behind ours."""
SLOWEST_BYTES_A_SECOND = 50_000

T = TypeVar("T")


class _File(msgspec.Struct):
    id: str
    filename: str = ""
    created_at: float = 0.0


class _Counts(msgspec.Struct):
    completed: int = 0


class _Problem(msgspec.Struct):
    code: str | None = None
    message: str | None = None
    line: int | None = None


class _Problems(msgspec.Struct):
    data: list[_Problem] = []


class _Batch(msgspec.Struct):
    id: str
    status: str = ""
    created_at: float = 0.0
    output_file_id: str | None = None
    error_file_id: str | None = None
    request_counts: _Counts | None = None
    errors: _Problems | None = None
    metadata: dict[str, str] | None = None


class _Files(msgspec.Struct):
    data: list[_File]
    has_more: bool = False


class _Batches(msgspec.Struct):
    data: list[_Batch]
    has_more: bool = False


class _Row(msgspec.Struct):
    embedding: msgspec.Raw


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    total_tokens: int = 0


class _Embeddings(msgspec.Struct):
    data: list[_Row]
    usage: _Usage | None = None


class _Response(msgspec.Struct):
    status_code: int
    body: msgspec.Raw = msgspec.Raw(b"null")


class _Line(msgspec.Struct):
    custom_id: str
    response: _Response | None = None
    """None where the request was not tried."""


_decode_line = msgspec.json.Decoder(_Line).decode
_decode_embeddings = msgspec.json.Decoder(_Embeddings).decode

_ENDED: dict[str, Literal["completed", "failed", "expired", "cancelled"]] = {
    "completed": "completed",
    "failed": "failed",
    "expired": "expired",
    "cancelled": "cancelled",
}
SHOWN_PROBLEMS = 3
MARK = "ragingest"


def line_of(digest: bytes, text: str, model: str, dimensions: int | None) -> bytes:
    """The request for one text, as a line of a request file."""
    body: dict[str, Any] = {"model": model, "encoding_format": "base64", "input": text}
    if dimensions is not None:
        body["dimensions"] = dimensions
    request = {"custom_id": digest.hex(), "method": "POST", "url": "/v1/embeddings", "body": body}
    return msgspec.json.encode(request) + b"\n"


class OpenAIBatches:
    """`{base_url}/files` and `{base_url}/batches`. Used on one event loop; `answers` in any thread."""

    name = "openai"

    def __init__(self, model: str, key: str | None, base_url: str, dimensions: int | None, timeout: float) -> None:
        self._endpoint = Endpoint(base_url, key, KEY_NAME, model, timeout)
        self._model = model
        self._dimensions = dimensions

    def line(self, digest: bytes, text: str) -> bytes:
        return line_of(digest, text, self._model, self._dimensions)

    async def upload(self, path: Path, name: str) -> str:
        file = await asyncio.to_thread(path.open, "rb")
        with file:
            form = aiohttp.FormData()
            form.add_field("purpose", "batch")
            form.add_field("file", file, filename=name, content_type="application/jsonl")
            seconds = os.fstat(file.fileno()).st_size / SLOWEST_BYTES_A_SECOND
            return (await self._call("POST", "/files", _File, data=form, more_seconds=seconds)).id

    async def find_file(self, name: str, since: float) -> str | None:
        async for page in self._pages("/files", _Files, purpose="batch"):
            for file in page.data:
                if file.filename == name:
                    return file.id
            if page.data and page.data[-1].created_at < since - CLOCKS_APART:
                break
        return None

    async def create(self, file_id: str, marker: str) -> str:
        order = {
            "input_file_id": file_id,
            "endpoint": "/v1/embeddings",
            "completion_window": "24h",
            "metadata": {MARK: marker},
        }
        return (await self._call("POST", "/batches", _Batch, json=order)).id

    async def find_batch(self, marker: str, since: float) -> str | None:
        async for page in self._pages("/batches", _Batches):
            for batch in page.data:
                if (batch.metadata or {}).get(MARK) == marker:
                    return batch.id
            if page.data and page.data[-1].created_at < since - CLOCKS_APART:
                break
        return None

    async def status(self, batch_id: str) -> BatchStatus:
        try:
            batch = await self._call("GET", f"/batches/{batch_id}", _Batch, may_be_gone=True)
        except RejectedError as error:
            return BatchStatus("failed", message=str(error))
        problems = batch.errors.data if batch.errors else []
        return BatchStatus(
            _ENDED.get(batch.status),
            batch.output_file_id,
            batch.error_file_id,
            batch.request_counts.completed if batch.request_counts else None,
            any(problem.code == "token_limit_exceeded" for problem in problems),
            "; ".join(_told(problem) for problem in problems[:SHOWN_PROBLEMS])
            + (f"; and {len(problems) - SHOWN_PROBLEMS:,} more" if len(problems) > SHOWN_PROBLEMS else ""),
        )

    async def cancel(self, batch_id: str) -> None:
        await self._call("POST", f"/batches/{batch_id}/cancel", _Batch)

    async def delete_file(self, file_id: str) -> None:
        await self._call("DELETE", f"/files/{file_id}", _File, may_be_gone=True)

    async def download(self, file_id: str, path: Path) -> None:
        await self._endpoint.download(f"/files/{file_id}/content", path)

    def answers(self, path: Path) -> Iterator[BatchAnswer]:
        with path.open("rb") as file:
            for number, data in enumerate(file, 1):
                try:
                    line = _decode_line(data)
                    digest = bytes.fromhex(line.custom_id)
                except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
                    raise TransientError(
                        f"line {number} of the results of a batch is none: {shown(data)}"
                    ) from None
                yield self._answer(digest, line.response)

    async def close(self) -> None:
        await self._endpoint.close()

    def _answer(self, digest: bytes, response: _Response | None) -> BatchAnswer:
        if response is None:
            return BatchAnswer(digest)
        body = bytes(response.body)
        if response.status_code != 200:
            return BatchAnswer(digest, error=self._endpoint.refused(response.status_code, {}, body))
        try:
            embeddings = _decode_embeddings(body)
            (row,) = embeddings.data
            vector = as_vectors([row.embedding], self._endpoint.url)[0]
        except TransientError as error:
            return BatchAnswer(digest, succeeded=True, error=error)
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
            unlike = TransientError(f"a vector was expected, not {shown(body)}")
            return BatchAnswer(digest, succeeded=True, error=unlike)
        usage = embeddings.usage or _Usage()
        return BatchAnswer(digest, vector, usage.total_tokens or usage.prompt_tokens, succeeded=True)

    async def _pages(self, path: str, kind: type[T], **query: str) -> AsyncIterator[T]:
        """The pages of a list, newest first."""
        after: dict[str, str] = {}
        while True:
            page: Any = await self._call("GET", path, kind, params={"limit": str(PAGE), **query, **after})
            yield page
            if not page.has_more or not page.data:
                return
            after = {"after": page.data[-1].id}

    async def _call(self, method: str, path: str, kind: type[T], **request: Any) -> T:
        data, _ = await self._endpoint.call(method, path, **request)
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError):
            said = self._endpoint.without_key(shown(data))
            raise TransientError(f"{self._endpoint.url}{path} answered 200 with something else: {said}") from None


def _told(problem: _Problem) -> str:
    where = f"line {problem.line}: " if problem.line is not None else ""
    return f"{where}{problem.message or problem.code or 'it says no more'}"
