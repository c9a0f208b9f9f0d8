"""A model of this process that is given no more of a text than it takes."""

from __future__ import annotations

import numpy as np
import pytest

from ragingest.embedders import open_embedder
from ragingest.embedders.truncation import Truncating
from ragingest.errors import RejectedError
from tests.contracts.embedding import chunks_of
from tests.models import MINILM, MINILM_TOKENS


def test_each_text_over_the_limit_is_embedded_by_its_longest_beginning_that_fits_and_counted() -> None:
    told: list[int] = []
    whole = open_embedder("sentence-transformers", model=str(MINILM), device="cpu", sparse=False)
    cutting = Truncating(whole, told.append)
    long, fits = "a " * (MINILM_TOKENS + 50), "a " * MINILM_TOKENS
    chunks = chunks_of(["short", long, fits, "Ünïcödé " * 400])
    with pytest.raises(RejectedError, match="--truncate"):
        whole.embed(chunks)
    batch = cutting.embed(chunks)
    assert batch.chunks == chunks
    assert chunks[1].text == long
    assert told == [2]
    np.testing.assert_allclose(batch.dense[1], batch.dense[2], atol=1e-5)
    cutting.embed(chunks[:1])
    assert told == [2]
