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
from ragingest.errors import RejectedError
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
    "The archive holds maps, letters and photographs of the old town. " * 16,
    "library opens",
    "a\0b",
]


def as_dict(sparse: Any) -> dict[int, float]:
    return dict(zip(sparse.indices, sparse.values, strict=True))


class EmbedderContract:
    distinguishes: ClassVar[bool] = True
    """Whether different texts get different vectors."""
    tolerance: ClassVar[float] = 0.0
    """By how much a number of a vector may differ from one grouping of texts to the next; 0: not by a bit."""
    turns: ClassVar[int] = 20
    """How often each of four threads embeds everything."""

    def build(self) -> Embedder:
        """The embedder, loaded; it may be the same one each time."""
        raise NotImplementedError

    @pytest.fixture
    def embedder(self) -> Embedder:
        return self.build()

    def rows(self, embedder: Embedder, texts: Sequence[str]) -> Vectors:
        return embedder.embed(chunks_of(texts)).dense

    def same(self, rows: Vectors, expected: Vectors) -> bool:
        if rows.shape != expected.shape:
            return False
        if not self.tolerance:
            return rows.tobytes() == expected.tobytes()
        return bool(np.abs(rows - expected).max() <= self.tolerance)

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
    def test_a_row_is_the_same_in_every_grouping(self, embedder: Embedder, seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311  # no secret
        alone = np.stack([self.rows(embedder, [text])[0] for text in TEXTS])
        order = chance.sample(range(len(TEXTS)), len(TEXTS))
        borders = [0, *sorted(chance.sample(range(1, len(TEXTS)), seed % 4)), len(TEXTS)]
        for start, end in pairwise(borders):
            group = order[start:end]
            rows = self.rows(embedder, [TEXTS[n] for n in group])
            assert self.same(rows, alone[group])

    def test_the_largest_batch_is_taken(self, embedder: Embedder) -> None:
        count = embedder.limits.max_texts
        texts = [TEXTS[n % len(TEXTS)] for n in range(count)]
        rows = self.rows(embedder, texts)
        assert rows.shape == (count, embedder.dimensions)
        assert self.same(rows[0], rows[len(TEXTS)])

    def test_tokens_that_are_known_already_give_the_same_row(self, embedder: Embedder) -> None:
        expected = self.rows(embedder, TEXTS)
        chunks = chunks_of(TEXTS)
        if embedder.tokenizer is not None:
            tokens = embedder.tokenizer.encode(TEXTS)
            assert [array.dtype for array in tokens] == [np.intp] * len(TEXTS)
            for number in range(0, len(TEXTS), 2):
                chunks[number].tokens = tokens[number]
        assert self.same(embedder.embed(chunks).dense, expected)

    def test_a_text_over_its_limit_is_refused_and_not_cut(self, embedder: Embedder) -> None:
        limit = embedder.limits.max_tokens_per_text
        if limit is None:
            first = self.rows(embedder, ["archive " * 5_000 + "library"])
            assert self.same(first, self.rows(embedder, ["archive " * 5_000 + "garden"])) != self.distinguishes
            return
        assert embedder.tokenizer is not None
        fits = "archive " * limit
        assert len(embedder.tokenizer.encode([fits])[0]) == limit
        assert not self.same(self.rows(embedder, [fits]), self.rows(embedder, ["archive " * (limit - 1)]))
        with pytest.raises(RejectedError) as caught:
            embedder.embed(chunks_of(["fine", fits + "archive"]))
        assert caught.value.kind == "too_many_tokens"

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
        expected = self.rows(embedder, TEXTS)

        def work(number: int) -> bool:
            same = True
            for _ in range(self.turns):
                order = list(range(number, len(TEXTS))) + list(range(number))
                rows = self.rows(embedder, [TEXTS[n] for n in order])
                same &= self.same(rows[np.argsort(order)], expected)
                embedder.embed_query(TEXTS[number])
            return same

        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(work, range(4))) == [True] * 4

    def test_chunks_of_one_document_are_embedded_by_their_own_text(self, embedder: Embedder) -> None:
        whole = document("a", "first part second part", chunks=2)
        parts = [chunk(whole, 0, "first part"), chunk(whole, 1, "second part")]
        expected = self.rows(embedder, ["first part", "second part"])
        assert self.same(embedder.embed(parts).dense, expected)

    def test_closing_twice_is_closing(self, embedder: Embedder) -> None:
        embedder.close()
        embedder.close()
