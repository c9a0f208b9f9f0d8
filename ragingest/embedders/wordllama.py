"""WordLlama: token embeddings averaged over a text. 256 dimensions, weights inside the package, offline.

The vectors are those of `WordLlamaInference.embed(text)`. Averaging each text by itself instead of
padding a batch to its longest member takes a quarter to a fourteenth of the time.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ragingest.documents import Chunk, EmbeddedBatch
from ragingest.embedders.tokenizing import FastTokenizer
from ragingest.errors import RejectedError, UsageError
from ragingest.protocols import EmbedderLimits, Query

__all__ = ["WordLlamaEmbedder"]

DIMENSIONS = 256


class WordLlamaEmbedder:
    """The default embedder. Its work is on the CPU; tokenising uses all cores and releases the GIL."""

    name = "wordllama"
    model = "l2_supercat"
    sparse = False
    dimensions = DIMENSIONS
    limits = EmbedderLimits(max_texts=256, max_bytes=4 * 1024 * 1024, concurrency=2)

    def __init__(self) -> None:
        """Load the weights (0.15 s).

        Raises:
            UsageError: the package is not installed.
        """
        inference = _load()
        self._embedding: npt.NDArray[np.float32] = inference.embedding
        self.tokenizer: FastTokenizer = FastTokenizer(inference.tokenizer)

    def embed(self, chunks: Sequence[Chunk]) -> EmbeddedBatch:
        unknown = [chunk.text for chunk in chunks if chunk.tokens is None]
        fresh = iter(self.tokenizer.encode(unknown) if unknown else ())
        vectors = np.empty((len(chunks), DIMENSIONS), dtype=np.float32)
        lengths = np.empty((len(chunks), 1), dtype=np.float32)
        take = self._embedding.take
        add = np.add.reduce
        for row, chunk in enumerate(chunks):
            tokens = next(fresh) if chunk.tokens is None else chunk.tokens
            if not len(tokens):
                raise RejectedError("no_tokens", "the text has nothing in it that the embedder knows")
            add(take(tokens, axis=0, mode="clip"), axis=0, out=vectors[row])
            lengths[row] = len(tokens)
        vectors /= lengths
        return EmbeddedBatch(list(chunks), vectors)

    def embed_query(self, text: str) -> Query:
        tokens = self.tokenizer.encode([text])[0]
        if not len(tokens):
            raise UsageError("the search text is empty", "give some words to search for")
        return Query(self._embedding[tokens].mean(0))

    def close(self) -> None:
        pass


def _load() -> Any:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        import wordllama
    except ImportError:
        raise UsageError(
            "the default embedder needs the package wordllama, which is not installed (it has no wheel "
            "for Python 3.14 or Linux on aarch64)",
            "pip install wordllama, or embed through an API with --embedder openai",
        ) from None
    finally:
        # wordllama calls logging.basicConfig(INFO) when it is imported.
        root.handlers[:] = handlers
        root.setLevel(level)
    folder = Path(wordllama.__file__).parent
    inference = wordllama.WordLlama.load(cache_dir=folder, dim=DIMENSIONS, disable_download=True)
    if inference.tokenizer.get_vocab_size() > len(inference.embedding):
        raise UsageError("this version of wordllama has more tokens than embeddings", "install wordllama 0.4")
    return inference
