"""The tokenizer of an embedder that computes in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["FastTokenizer"]


class FastTokenizer:
    """A `tokenizers.Tokenizer` without padding or truncation, which it takes off the one it is given."""

    def __init__(self, backend: Any) -> None:
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.intp]]:
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.intp) for encoding in encodings]

    def splitter_backend(self) -> Any:
        return self._backend
