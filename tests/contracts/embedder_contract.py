"""What every embedder promises. An adapter's test supplies `build`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest

from ragingest.documents import Vectors
from ragingest.protocols import Embedder

from .embedding import chunk, chunks_of, document

__all__ = ["EmbedderContract"]

TEXTS = [
    "The library opens at nine on weekdays and at ten on Saturdays.",
    "Die Bücherei öffnet um neun Uhr.",
    "borrowing",
    "図書館は九時に開きます。",
    "def repair(book): return glue(book)",
    "\U0001f4da \U0001f512 3.14 %",
    " white space around it \n\n",
    "The archive holds maps, letters and photographs of the old town. " * 40,
    "library opens",
    "a\0b",
]


def as_dict(sparse: Any) -> dict[int, float]:
    return dict(zip(sparse.indices, sparse.values, strict=True))


class EmbedderContract:
    distinguishes: ClassVar[bool] = True
    """Whether different texts get different vectors."""

    def build(self) -> Embedder:
        """The embedder, loaded; it may be the same one each time."""
        raise NotImplementedError

    @pytest.fixture
    def embedder(self) -> Embedder:
        return self.build()

    def rows(self, embedder: Embedder, texts: Sequence[str]) -> Vectors:
        return embedder.embed(chunks_of(texts)).dense

    def test_it_says_what_it_is(self, embedder: Embedder) -> None:
        assert embedder.name
        assert embedder.model
        assert embedder.dimensions >= 1
        assert embedder.limits.max_texts >= 1
        assert embedder.limits.max_bytes >= 1
        assert embedder.limits.concurrency >= 1

    def test_a_batch_has_one_finite_float32_row_a_chunk(self, embedder: Embedder) -> None:
        chunks = chunks_of(TEXTS)
        batch = embedder.embed(chunks)
        assert batch.chunks == chunks
        assert batch.dense.shape == (len(TEXTS), embedder.dimensions)
        assert batch.dense.dtype == np.float32
        assert np.isfinite(batch.dense).all()
        assert np.any(batch.dense, axis=1).all()

    def test_the_batch_does_not_hang_on_the_list_that_was_given(self, embedder: Embedder) -> None:
        chunks = chunks_of(TEXTS[:2])
        batch = embedder.embed(chunks)
        chunks.clear()
        assert len(batch.chunks) == 2

    def test_different_texts_have_different_vectors(self, embedder: Embedder) -> None:
        assert (len(np.unique(self.rows(embedder, TEXTS), axis=0)) == len(TEXTS)) == self.distinguishes

    @pytest.mark.parametrize("seed", range(10))
    def test_a_row_is_the_same_bits_in_every_grouping(self, embedder: Embedder, seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311  # no secret
        alone = [self.rows(embedder, [text])[0].tobytes() for text in TEXTS]
        order = chance.sample(range(len(TEXTS)), len(TEXTS))
        borders = [0, *sorted(chance.sample(range(1, len(TEXTS)), seed % 4)), len(TEXTS)]
        for start, end in pairwise(borders):
            group = order[start:end]
            rows = self.rows(embedder, [TEXTS[n] for n in group])
            assert [row.tobytes() for row in rows] == [alone[n] for n in group]

    def test_the_largest_batch_is_taken(self, embedder: Embedder) -> None:
        count = embedder.limits.max_texts
        texts = [TEXTS[n % len(TEXTS)] for n in range(count)]
        rows = self.rows(embedder, texts)
        assert rows.shape == (count, embedder.dimensions)
        assert rows[0].tobytes() == rows[len(TEXTS)].tobytes()

    def test_tokens_that_are_known_already_give_the_same_row(self, embedder: Embedder) -> None:
        expected = self.rows(embedder, TEXTS)
        chunks = chunks_of(TEXTS)
        if embedder.tokenizer is not None:
            tokens = embedder.tokenizer.encode(TEXTS)
            assert [array.dtype for array in tokens] == [np.intp] * len(TEXTS)
            for number in range(0, len(TEXTS), 2):
                chunks[number].tokens = tokens[number]
        assert embedder.embed(chunks).dense.tobytes() == expected.tobytes()

    def test_sparse_vectors_come_if_and_only_if_it_says_so(self, embedder: Embedder) -> None:
        batch = embedder.embed(chunks_of(TEXTS))
        query = embedder.embed_query(TEXTS[0])
        assert (batch.sparse is not None) == embedder.sparse
        assert (query.sparse is not None) == embedder.sparse
        if batch.sparse is not None:
            assert len(batch.sparse) == len(TEXTS)
            alone = [embedder.embed(chunks_of([text])).sparse for text in TEXTS]
            for together, single in zip(batch.sparse, alone, strict=True):
                assert single is not None
                assert as_dict(together) == as_dict(single[0])
                assert np.isfinite(together.values).all()

    def test_a_query_shares_words_with_the_text_it_is_made_of(self, embedder: Embedder) -> None:
        if not embedder.sparse:
            assert embedder.embed_query(TEXTS[0]).sparse is None
            return
        batch = embedder.embed(chunks_of(TEXTS[:1]))
        assert batch.sparse is not None
        query = as_dict(embedder.embed_query(TEXTS[0]).sparse)
        assert query.keys() == as_dict(batch.sparse[0]).keys()
        assert query

    @pytest.mark.parametrize("text", TEXTS)
    def test_a_query_lies_where_the_same_text_lies(self, embedder: Embedder, text: str) -> None:
        query: npt.NDArray[np.float32] = embedder.embed_query(text).dense
        row = self.rows(embedder, [text])[0]
        assert query.shape == (embedder.dimensions,)
        assert query.dtype == np.float32
        cosine = float(query @ row / (np.linalg.norm(query) * np.linalg.norm(row)))
        assert cosine > 0.99

    def test_threads_do_not_disturb_each_other(self, embedder: Embedder) -> None:
        expected = self.rows(embedder, TEXTS).tobytes()

        def work(number: int) -> set[bytes]:
            found = set()
            for _ in range(20):
                order = list(range(number, len(TEXTS))) + list(range(number))
                rows = self.rows(embedder, [TEXTS[n] for n in order])
                found.add(rows[np.argsort(order)].tobytes())
                embedder.embed_query(TEXTS[number])
            return found

        with ThreadPoolExecutor(4) as threads:
            results = list(threads.map(work, range(4)))
        assert results == [{expected}] * 4

    def test_chunks_of_one_document_are_embedded_by_their_own_text(self, embedder: Embedder) -> None:
        whole = document("a", "first part second part", chunks=2)
        parts = [chunk(whole, 0, "first part"), chunk(whole, 1, "second part")]
        expected = self.rows(embedder, ["first part", "second part"])
        assert embedder.embed(parts).dense.tobytes() == expected.tobytes()

    def test_closing_twice_is_closing(self, embedder: Embedder) -> None:
        embedder.close()
        embedder.close()
