"""Files and batches: stored files, and a state machine that polls or the test move on, never the time.

Files lie on disk, so that a batch of full size costs no memory. Not thread-safe.
The error codes `too_many_tasks` and `too_many_inputs` of a failed validation are this server's own words:
the limits are documented, the codes are not.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from tests.servers.answers import Answer, ApiError
from tests.servers.books import Bookkeeper, Charge
from tests.servers.config import BatchOutcome, ServerConfig
from tests.servers.embeddings import Embedder, EmbeddingsRequest
from tests.servers.vectors import TokenCounter, hash_of

__all__ = ["BatchStore", "FileStore"]

State = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
ENDED: frozenset[State] = frozenset({"failed", "completed", "expired", "cancelled"})
ENQUEUED: frozenset[State] = frozenset({"in_progress", "finalizing", "cancelling"})
WHY_NOT_DONE = {
    "batch_expired": "This request could not be executed before the completion window expired.",
    "batch_cancelled": "The batch was cancelled before this request executed.",
}


class Line(msgspec.Struct):
    """One line of an input file."""

    custom_id: str
    method: Literal["POST"]
    url: Literal["/v1/embeddings"]
    body: EmbeddingsRequest


class CreateBatch(msgspec.Struct):
    """The body of POST /v1/batches."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None


@dataclass(slots=True)
class StoredFile:
    id: str
    path: Path
    filename: str
    purpose: str
    created_at: int

    def describe(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.path.stat().st_size,
            "created_at": self.created_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "expires_at": None,
        }


class FileStore:
    """Uploaded files and the files that batches write."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files: dict[str, StoredFile] = {}
        self._made = 0

    def new_path(self) -> Path:
        """Where to write the next file, before it is added."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="test-server-", ignore_cleanup_errors=True)
        self._made += 1
        return Path(self._folder.name) / f"{self._made:08d}"

    def close(self) -> None:
        """Delete all files."""
        if self._folder is not None:
            self._folder.cleanup()

    def add(self, path: Path, filename: str, purpose: str) -> StoredFile:
        stored = StoredFile(f"file-{path.name}", path, filename, purpose, int(time.time()))
        self._files[stored.id] = stored
        return stored

    def get(self, file_id: str) -> StoredFile:
        if file_id not in self._files:
            raise ApiError(404, f"No such File object: {file_id}", param="id")
        return self._files[file_id]

    def delete(self, file_id: str) -> dict[str, Any]:
        self.get(file_id).path.unlink()
        del self._files[file_id]
        return {"id": file_id, "object": "file", "deleted": True}

    def page(self, query: _Page, purpose: str | None) -> dict[str, Any]:
        """One page of the list, newest first."""
        wanted = [file for file in reversed(self._files.values()) if purpose in (None, file.purpose)]
        return query.cut([file.describe() for file in wanted])


@dataclass(frozen=True, slots=True)
class _Page:
    after: str | None
    limit: int

    def cut(self, described: Sequence[dict[str, Any]]) -> dict[str, Any]:
        start = next((at + 1 for at, item in enumerate(described) if item["id"] == self.after), 0)
        data = described[start : start + self.limit]
        return {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "has_more": len(described) > start + self.limit,
        }


def page(query: Any) -> _Page:
    """The page that a list request's query asks for."""
    return _Page(query.get("after"), int(query.get("limit", "20")))


@dataclass(slots=True)
class Batch:
    id: str
    request: CreateBatch
    outcome: BatchOutcome
    lines: list[Line]
    errors: list[dict[str, Any]]
    """What makes it fail its validation, if anything."""
    state: State = "validating"
    times: dict[State, int] = field(default_factory=dict)
    polls: int = 0
    """How often the present state was shown."""
    tokens: int = 0
    """Of all its lines, while it waits in the queue."""
    submitted: list[bytes] = field(default_factory=list)
    processed: int | None = None
    completed: int = 0
    failed: int = 0
    tokens_answered: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None

    def describe(self) -> dict[str, Any]:
        created = self.times["validating"]
        described: dict[str, Any] = {
            "id": self.id,
            "object": "batch",
            "endpoint": self.request.endpoint,
            "model": self.lines[0].body.model if self.lines else None,
            "errors": {"object": "list", "data": self.errors} if self.state == "failed" else None,
            "input_file_id": self.request.input_file_id,
            "completion_window": self.request.completion_window,
            "status": self.state,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": created,
            "expires_at": created + 86_400,
            "request_counts": {
                "total": 0 if self.state in ("validating", "failed") else len(self.lines),
                "completed": self.completed,
                "failed": self.failed,
            },
            "usage": {
                "input_tokens": self.tokens_answered,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": 0,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": self.tokens_answered,
            },
            "metadata": self.request.metadata,
        }
        for state in ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled"):
            described[f"{state}_at"] = self.times.get(state)
        return described


class BatchStore:
    """All batches, their validation, their queue and their results."""

    def __init__(self, config: ServerConfig, files: FileStore, embedder: Embedder, ledger: Bookkeeper) -> None:
        self._config = config
        self._files = files
        self._embedder = embedder
        self._ledger = ledger
        self._counter = TokenCounter(config.tokens_per_ascii_byte, config.tokens_per_other_byte)
        self._batches: dict[str, Batch] = {}
        self._outcomes: Iterator[BatchOutcome] = iter(config.batch_outcomes)

    def plan(self, outcomes: Sequence[BatchOutcome]) -> None:
        """What becomes of the batches created from now on."""
        self._outcomes = iter(outcomes)

    def create(self, body: bytes) -> Answer:
        try:
            request = msgspec.json.decode(body, type=CreateBatch)
        except msgspec.MsgspecError as error:
            raise ApiError(400, f"We could not parse the body of your request: {error}") from error
        if request.endpoint != "/v1/embeddings":
            raise ApiError(400, "Invalid value for 'endpoint': this server has '/v1/embeddings'.", param="endpoint")
        if request.completion_window != "24h":
            raise ApiError(400, "Invalid value for 'completion_window': '24h'.", param="completion_window")
        file = self._files.get(request.input_file_id)
        if file.purpose != "batch":
            raise ApiError(400, "The file's purpose is not 'batch'.", param="input_file_id")
        lines, errors = self._read(file.path)
        batch = Batch(
            f"batch_{len(self._batches) + 1:08d}", request, next(self._outcomes, BatchOutcome()), lines, errors
        )
        batch.submitted = [hash_of(text) for line in lines for text in line.body.texts]
        batch.tokens = sum(self._counter.count(text) for line in lines for text in line.body.texts)
        self._batches[batch.id] = batch
        self._move(batch, "validating")
        self._ledger.batch_created(batch.submitted)
        return Answer.json(batch.describe())

    def poll(self, batch_id: str) -> Answer:
        return Answer.json(self._shown(self._get(batch_id)))

    def page(self, query: _Page) -> Answer:
        """One page of the list, newest first; a poll of each batch that is on it."""
        listed = query.cut([{"id": batch.id} for batch in reversed(self._batches.values())])
        return Answer.json({**listed, "data": [self._shown(self._batches[item["id"]]) for item in listed["data"]]})

    def cancel(self, batch_id: str) -> Answer:
        batch = self._get(batch_id)
        if batch.state in ENDED:
            raise ApiError(409, f"Cannot cancel a batch with status '{batch.state}'.")
        if batch.state != "cancelling":
            if batch.state == "validating":
                batch.processed = 0
            self._move(batch, "cancelling")
        return Answer.json(batch.describe())

    def advance(self, batch_id: str) -> None:
        """Move a batch one state on; `all` moves all of them. One that has ended stays as it is."""
        for batch in list(self._batches.values()) if batch_id == "all" else [self._get(batch_id)]:
            self._advance(batch)

    def _get(self, batch_id: str) -> Batch:
        if batch_id not in self._batches:
            raise ApiError(404, f"No batch found with id '{batch_id}'.", param="id")
        return self._batches[batch_id]

    def _shown(self, batch: Batch) -> dict[str, Any]:
        polls = self._config.polls_per_state
        if polls == 0:
            while batch.state not in ENDED:
                self._advance(batch)
        described = batch.describe()
        batch.polls += 1
        if polls is not None and batch.polls >= polls:
            self._advance(batch)
        return described

    def _advance(self, batch: Batch) -> None:
        if batch.state == "validating":
            errors = batch.errors or self._refusals(batch)
            if errors:
                batch.errors = errors
                self._ledger.batch_refused(batch.submitted)
                self._move(batch, "failed")
            else:
                self._move(batch, "in_progress")
        elif batch.state == "in_progress":
            if batch.outcome.end == "expired":
                self._write(batch, self._partly(batch), "batch_expired")
                self._move(batch, "expired")
            elif batch.outcome.end == "cancelled":
                self._move(batch, "cancelling")
            else:
                self._move(batch, "finalizing")
        elif batch.state == "finalizing":
            self._write(batch, len(batch.lines), "")
            self._move(batch, "completed")
        elif batch.state == "cancelling":
            self._write(batch, self._partly(batch), "batch_cancelled")
            self._move(batch, "cancelled")

    def _move(self, batch: Batch, state: State) -> None:
        batch.state = state
        batch.polls = 0
        batch.times[state] = int(time.time())

    def _partly(self, batch: Batch) -> int:
        if batch.processed is not None:
            return batch.processed
        done = len(batch.lines) // 2 if batch.outcome.done is None else batch.outcome.done
        return min(done, len(batch.lines))

    def _refusals(self, batch: Batch) -> list[dict[str, Any]]:
        if batch.outcome.end == "failed":
            return [_error("invalid_request", "The batch was refused by the script of this server.")]
        limit = self._config.batch_enqueued_tokens
        queued = sum(other.tokens for other in self._batches.values() if other.state in ENQUEUED)
        if limit is not None and queued + batch.tokens > limit:
            return [
                _error(
                    "token_limit_exceeded",
                    f"Enqueued token limit reached for {batch.lines[0].body.model} in organization org-test. "
                    f"Limit: {limit:,} enqueued tokens. Please try again once some in_progress batches have been "
                    "completed.",
                )
            ]
        return []

    def _read(self, path: Path) -> tuple[list[Line], list[dict[str, Any]]]:
        """The valid lines of an input file, and what is wrong with the others or with all of them."""
        decoder = msgspec.json.Decoder(Line)
        lines: list[Line] = []
        errors: list[dict[str, Any]] = []
        ids: set[str] = set()
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                try:
                    line = decoder.decode(raw)
                except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                    errors.append(
                        _error("invalid_json_line", f"This line is not parseable as valid JSON: {error}", number)
                    )
                    continue
                if line.custom_id in ids:
                    message = f"The custom_id '{line.custom_id}' was used before in this file."
                    errors.append(_error("duplicate_custom_id", message, number, "custom_id"))
                elif line.body.model not in self._config.models:
                    message = f"The provided model '{line.body.model}' is not supported by the Batch API."
                    errors.append(_error("model_not_found", message, number, "body.model"))
                elif lines and line.body.model != lines[0].body.model:
                    message = "The model for this request does not match the rest of the batch."
                    errors.append(_error("mismatched_model", message, number, "body.model"))
                ids.add(line.custom_id)
                lines.append(line)
        if not lines and not errors:
            errors.append(_error("empty_file", "The input file is empty."))
        if len(lines) > self._config.batch_max_requests:
            message = f"The file has {len(lines)} requests, at most {self._config.batch_max_requests} are allowed."
            errors.append(_error("too_many_tasks", message))
        inputs = sum(len(line.body.texts) for line in lines)
        if inputs > self._config.batch_max_inputs:
            message = (
                f"The file has {inputs} embedding inputs, at most {self._config.batch_max_inputs} are allowed."
            )
            errors.append(_error("too_many_inputs", message))
        return lines, errors

    def _write(self, batch: Batch, done: int, why_not: str) -> None:
        """Process the first `done` lines; write the output file and the error file, each if it has a line."""
        output, errors = self._files.new_path(), self._files.new_path()
        failing = frozenset(batch.outcome.failing)
        # The order of the results is not that of the requests.
        order = np.random.default_rng(len(batch.lines)).permutation(len(batch.lines)).tolist()
        with output.open("wb") as good, errors.open("wb") as bad:
            for number in order:
                line = batch.lines[number]
                if number >= done:
                    not_done = {"code": why_not, "message": WHY_NOT_DONE[why_not]}
                    bad.write(_result(batch, number, line, b"null", not_done))
                    continue
                answer = self._answer(line.body, batch.outcome.status if number in failing else 200)
                assert isinstance(answer.body, bytes)
                response = b'{"status_code":%d,"request_id":"req_%d","body":%b}' % (
                    answer.status,
                    number,
                    answer.body,
                )
                if answer.charge is not None:
                    batch.completed += 1
                    batch.tokens_answered += answer.charge.tokens
                    self._ledger.batch_answered(answer.charge)
                    good.write(_result(batch, number, line, response, None))
                else:
                    batch.failed += 1
                    bad.write(_result(batch, number, line, response, None))
        if output.stat().st_size:
            batch.output_file_id = self._files.add(output, f"{batch.id}_output.jsonl", "batch_output").id
        if errors.stat().st_size:
            batch.error_file_id = self._files.add(errors, f"{batch.id}_error.jsonl", "batch_output").id

    def _answer(self, request: EmbeddingsRequest, status: int) -> Answer:
        try:
            if status != 200:
                message = "The server had an error while processing your request. Sorry about that!"
                raise ApiError(status, message, type="server_error")
            charge: Charge = self._embedder.check(request)
            return self._embedder.answer(request, charge)
        except ApiError as error:
            return error.answer("openai")


def _error(code: str, message: str, line: int | None = None, param: str | None = None) -> dict[str, Any]:
    return {"code": code, "message": message, "line": line, "param": param}


def _result(batch: Batch, number: int, line: Line, response: bytes, error: dict[str, str] | None) -> bytes:
    return b'{"id":"batch_req_%b_%d","custom_id":%b,"response":%b,"error":%b}\n' % (
        batch.id.encode(),
        number,
        msgspec.json.encode(line.custom_id),
        response,
        msgspec.json.encode(error),
    )
