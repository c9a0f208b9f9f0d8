"""Documents and chunks made for tests of embedders and stores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ragingest.documents import Chunk, Document, Record, document_digest

__all__ = ["chunk", "chunks_of", "document"]


def document(id_: str, text: str, metadata: dict[str, Any] | None = None, chunks: int = 1) -> Document:
    made = Document(id_, text, metadata or {}, document_digest(text, metadata or {}), Record(0, 0, b""))
    made.chunks = chunks
    return made


def chunk(of: Document, number: int = 0, text: str | None = None) -> Chunk:
    text = of.text if text is None else text
    return Chunk(of, number, text, len(text.encode()))


def chunks_of(texts: Sequence[str]) -> list[Chunk]:
    """One chunk a document."""
    return [chunk(document(f"d{number}", text)) for number, text in enumerate(texts)]
