"""What turns texts into vectors: one file an embedder. The functions here are the name tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from ragingest.embedders.bm25 import WithBM25
from ragingest.embedders.null import NullEmbedder
from ragingest.errors import UsageError
from ragingest.protocols import BatchRequests, Embedder, EmbeddingRequests
from ragingest.settings import BATCHED

__all__ = ["APIS", "EMBEDDERS", "open_api", "open_batch_api", "open_embedder"]

APIS = ("openai", "cohere")
"""Embedders behind an API; the others compute in this process."""

EMBEDDERS = ("wordllama", "sentence-transformers", *APIS, *BATCHED, "null")

NULL_DIMENSIONS = 8


def open_embedder(
    name: str,
    dimensions: int | None = None,
    *,
    model: str | None = None,
    device: str = "auto",
    max_texts: int | None = None,
    sparse: bool = True,
    download: bool = True,
    say: Callable[[str], None] = lambda _sentence: None,
    tell_truncated: Callable[[int], None] | None = None,
) -> Embedder:
    """The embedder of that name that computes in this process, loaded; with BM25 unless `sparse` is False.

    With `tell_truncated`, texts over its limit are embedded by their beginning, and it is told how many
    of a call. `model` and what `SentenceTransformersEmbedder` says of the others are for embedders of many models.

    Raises:
        UsageError: there is none, a package is missing, or it cannot make that many dimensions.
        TerminalError: its model could not be downloaded.
    """
    if name == "wordllama":
        from ragingest.embedders.wordllama import DIMENSIONS, WordLlamaEmbedder

        if dimensions not in (None, DIMENSIONS):
            raise UsageError(f"wordllama makes {DIMENSIONS} dimensions, not {dimensions}", "leave --dimensions out")
        return WithBM25(WordLlamaEmbedder()) if sparse else WordLlamaEmbedder()
    if name == "sentence-transformers":
        from ragingest.embedders.sentence_transformers import SentenceTransformersEmbedder

        if not model:
            raise UsageError(
                f"--embedder {name} needs a model", "give --model: a folder, or a name at Hugging Face"
            )
        dense: Embedder = SentenceTransformersEmbedder(
            model, dimensions, device=device, max_texts=max_texts, download=download, say=say
        )
        if tell_truncated is not None:
            from ragingest.embedders.truncation import Truncating

            dense = Truncating(dense, tell_truncated)
        return WithBM25(dense) if sparse else dense
    if name == "null":
        return NullEmbedder(dimensions or NULL_DIMENSIONS)
    raise UsageError(f"there is no embedder {name!r}", f"choose one of: {', '.join(EMBEDDERS)}")


def open_batch_api(
    name: str, model: str, *, base_url: str | None, dimensions: int | None, timeout: float
) -> BatchRequests:
    """The batch API of that name; sends nothing yet.

    Raises:
        UsageError: there is none, or its key is not in the environment.
    """
    if name == "openai-batch":
        from ragingest.embedders import openai
        from ragingest.embedders.openai_batch import OpenAIBatches

        base = base_url or openai.DEFAULT_BASE_URL
        if openai.is_azure(base):
            raise UsageError("Azure's batches are not spoken", "use --embedder openai")
        _, key = _key(("OPENAI_API_KEY",), base_url)
        return OpenAIBatches(model, key, base, dimensions, timeout)
    raise UsageError(f"there is no batch API {name!r}", f"choose one of: {', '.join(BATCHED)}")


def open_api(
    name: str,
    model: str,
    *,
    base_url: str | None,
    dimensions: int | None,
    timeout: float,
    query: bool = False,
) -> EmbeddingRequests:
    """The API of that name; sends nothing yet. With `query` the texts will be searches, not documents.

    Raises:
        UsageError: there is none, or its key is not in the environment.
    """
    if name == "openai":
        from ragingest.embedders import openai

        base = base_url or openai.DEFAULT_BASE_URL
        names = ("AZURE_OPENAI_API_KEY", "OPENAI_API_KEY") if openai.is_azure(base) else ("OPENAI_API_KEY",)
        key_name, key = _key(names, base_url)
        return openai.OpenAIRequests(model, key, base, dimensions, timeout, key_name=key_name)
    if name == "cohere":
        from ragingest.embedders import cohere

        key_name, key = _key(("COHERE_API_KEY", "CO_API_KEY"), base_url)
        return cohere.CohereRequests(
            model,
            key,
            base_url or cohere.DEFAULT_BASE_URL,
            dimensions,
            timeout,
            key_name=key_name,
            query=query,
        )
    raise UsageError(f"there is no API {name!r}", f"choose one of: {', '.join(APIS)}")


def _key(names: Sequence[str], base_url: str | None) -> tuple[str, str | None]:
    """The first of these variables that is set, and what it holds; a server of one's own may need none.

    Raises:
        UsageError: none is set, and the provider's own server is asked.
    """
    for name in names:
        if key := os.environ.get(name):
            return name, key
    if base_url is None:
        raise UsageError(f"{names[0]} is not set", f"export {names[0]}=..., or give --base-url")
    return names[0], None
