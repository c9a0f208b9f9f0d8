"""What turns texts into vectors: one file an embedder. `open_embedder` is the name table."""

from __future__ import annotations

from ragingest.embedders.bm25 import WithBM25
from ragingest.embedders.null import NullEmbedder
from ragingest.errors import UsageError
from ragingest.protocols import Embedder

__all__ = ["EMBEDDERS", "open_embedder"]

EMBEDDERS = ("wordllama", "null")

NULL_DIMENSIONS = 8


def open_embedder(name: str, dimensions: int | None = None) -> Embedder:
    """The embedder of that name, loaded.

    Raises:
        UsageError: there is none, a package is missing, or it cannot make that many dimensions.
    """
    if name == "wordllama":
        from ragingest.embedders.wordllama import DIMENSIONS, WordLlamaEmbedder

        if dimensions not in (None, DIMENSIONS):
            raise UsageError(f"wordllama makes {DIMENSIONS} dimensions, not {dimensions}", "leave --dimensions out")
        return WithBM25(WordLlamaEmbedder())
    if name == "null":
        return NullEmbedder(dimensions or NULL_DIMENSIONS)
    raise UsageError(f"there is no embedder {name!r}", f"choose one of: {', '.join(EMBEDDERS)}")
