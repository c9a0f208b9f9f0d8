"""Small values that several tests of the core start from."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from ragingest.checkpoint.state import Checkpoint, PartState
from ragingest.documents import Block, Chunk, Document, EmbeddedBatch, Fault, Record, Reject, document_digest
from ragingest.events import Counters
from ragingest.settings import JobSettings, RunOptions


def record(value: Any, ordinal: int = 0) -> Record:
    """A record of a JSON value, or of bytes as they are."""
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Record(ordinal, 0, raw)


def document(id: str = "a", text: str = "text", ordinal: int = 0, **metadata: Any) -> Document:  # noqa: A002
    made = Document(id, text, metadata, document_digest(text, metadata), record({"id": id, "text": text}, ordinal))
    made.block = Block(0, ordinal, ordinal + 1, 0)
    made.chunks = 1
    return made


def chunk(size: int = 4, number: int = 0) -> Chunk:
    return Chunk(document(), number, "text", size)


def embedded(chunks: list[Chunk], first: int = 0, *, sparse: bool = False) -> EmbeddedBatch:
    """Row i holds the number `first` + i, dense and sparse, so that a row tells whose it is."""
    numbers = range(first, first + len(chunks))
    dense = np.array([[number] * 3 for number in numbers], dtype=np.float32).reshape(len(chunks), 3)
    return EmbeddedBatch(chunks, dense, [{number: 1.0} for number in numbers] if sparse else None)


def reject(raw: bytes = b"not json", ordinal: int = 0, kind: str = "invalid_json") -> Reject:
    return Reject("decode", Record(ordinal, 10 * ordinal, raw), Fault(kind, "a reason"))


def checkpoint(job: str = "job", **changes: Any) -> Checkpoint:
    settings = JobSettings(source="/corpus.jsonl", store_path="/data")
    fields: dict[str, Any] = {
        "ragingest": "0",
        "job": job,
        "run": 1,
        "status": "running",
        "started": "2025-01-02T03:04:05+00:00",
        "updated": "2025-01-02T03:04:06+00:00",
        "settings": settings,
        "fingerprint": settings.fingerprint(),
        "options": RunOptions(),
        "parts": [PartState(name="corpus.jsonl", size=100)],
        "counters": Counters(),
    }
    return Checkpoint(**(fields | changes))
