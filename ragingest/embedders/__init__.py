"""What turns texts into vectors: one file an embedder. The functions here are the name tables."""

from __future__ import annotations

import os

from ragingest.embedders.bm25 import WithBM25
from ragingest.embedders.null import NullEmbedder
from ragingest.errors import UsageError
from ragingest.protocols import Embedder, EmbeddingRequests

__all__ = ["APIS", "EMBEDDERS", "open_api", "open_embedder"]

APIS = ("openai",)
"""Embedders behind an API; the others compute in this process."""

EMBEDDERS = ("wordllama", *APIS, "null")

NULL_DIMENSIONS = 8


def open_embedder(name: str, dimensions: int | None = None, *, sparse: bool = True) -> Embedder:
    """The embedder of that name that computes in this process, loaded; with BM25 unless `sparse` is False.

    Raises:
        UsageError: there is none, a package is missing, or it cannot make that many dimensions.
    """
    if name == "wordllama":
        from ragingest.embedders.wordllama import DIMENSIONS, WordLlamaEmbedder

        if dimensions not in (None, DIMENSIONS):
            raise UsageError(f"wordllama makes {DIMENSIONS} dimensions, not {dimensions}", "leave --dimensions out")
        return WithBM25(WordLlamaEmbedder()) if sparse else WordLlamaEmbedder()
    if name == "null":
        return NullEmbedder(dimensions or NULL_DIMENSIONS)
    raise UsageError(f"there is no embedder {name!r}", f"choose one of: {', '.join(EMBEDDERS)}")


def open_api(
    name: str, model: str, *, base_url: str | None, dimensions: int | None, timeout: float
) -> EmbeddingRequests:
    """The API of that name; sends nothing yet.

    Raises:
        UsageError: there is none, or its key is not in the environment.
    """
    if name == "openai":
        from ragingest.embedders.openai import DEFAULT_BASE_URL, OpenAIRequests

        key = os.environ.get("OPENAI_API_KEY") or None
        if key is None and base_url is None:
            raise UsageError("OPENAI_API_KEY is not set", "export OPENAI_API_KEY=..., or give --base-url")
        return OpenAIRequests(model, key, base_url or DEFAULT_BASE_URL, dimensions, timeout)
    raise UsageError(f"there is no API {name!r}", f"choose one of: {', '.join(APIS)}")
