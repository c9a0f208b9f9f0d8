from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st

from ragingest import chunking
from ragingest.chunking import Chunker, EstimatingChunker, whole
from ragingest.documents import Chunk
from ragingest.embedders.wordllama import WordLlamaEmbedder
from ragingest.protocols import Tokenizer
from tests.unit.core.builders import document, record


class WordTokenizer:
    """A word, or a run of marks, is a token."""

    def __init__(self) -> None:
        self.encoded: list[str] = []
        self._backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0}, unk_token="?"))  # noqa: S106  # no secret
        self._backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.intp]]:
        self.encoded += texts
        return [np.array(self._backend.encode(text).ids, dtype=np.intp) for text in texts]

    def splitter_backend(self) -> Any:
        return self._backend


words = st.text("abcéß", min_size=1, max_size=6)
marks = st.sampled_from(
    [" ", " ", " ", "\n", "\n\n", ". ", "\n# ", "\n- ", "\n\n```\n", "  ", "\t", "\u2003", "\n> "]
)
texts = st.lists(st.tuples(words, marks), min_size=1, max_size=40).map(
    lambda pairs: "".join(word + mark for word, mark in pairs)
)


def split(text: str, size: int, overlap: int = 0, tokenizer: Tokenizer | None = None) -> list[Chunk]:
    one = document(text=text)
    (chunks,) = Chunker(tokenizer or WordTokenizer(), size, overlap).split([one])
    assert one.chunks == len(chunks)
    assert [chunk.number for chunk in chunks] == list(range(len(chunks)))
    assert all(chunk.document is one for chunk in chunks)
    return chunks


def bare(text: str) -> str:
    return "".join(text.split())


@given(texts, st.integers(2, 20), st.data())
def test_a_chunk_never_has_more_tokens_than_the_size_and_every_word_is_in_one(
    text: str, size: int, data: st.DataObject
) -> None:
    tokenizer = WordTokenizer()
    chunks = split(text, size, data.draw(st.integers(0, size - 1)), tokenizer)
    assert all(len(tokens) <= size for tokens in tokenizer.encode([chunk.text for chunk in chunks]))
    assert all(chunk.text in text for chunk in chunks)
    held = {word for chunk in chunks for word in re.findall(r"\w+", chunk.text)}
    assert held == set(re.findall(r"\w+", text))


@given(texts, st.integers(2, 20))
def test_without_overlap_the_chunks_are_the_text_once_in_order(text: str, size: int) -> None:
    assert bare("".join(chunk.text for chunk in split(text, size))) == bare(text)


@given(texts, st.integers(2, 20), st.integers(2, 30))
def test_a_text_that_is_cut_into_windows_loses_nothing_either(text: str, size: int, window: int) -> None:
    with pytest.MonkeyPatch.context() as context:
        context.setattr(chunking, "WINDOW_CHARACTERS", window)
        chunks = split(text, size)
    assert bare("".join(chunk.text for chunk in chunks)) == bare(text)


@given(texts, st.integers(1, 50))
def test_windows_join_to_the_text_and_are_never_too_long(text: str, window: int) -> None:
    with pytest.MonkeyPatch.context() as context:
        context.setattr(chunking, "WINDOW_CHARACTERS", window)
        windows = list(chunking._windows(text))
    assert "".join(windows) == text
    assert all(0 < len(part) <= window for part in windows)


def test_a_window_ends_at_the_best_break_of_its_second_half(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunking, "WINDOW_CHARACTERS", 10)
    assert list(chunking._windows("abcdef gh\n ijkl mnopqr. st")) == ["abcdef gh\n", " ijkl ", "mnopqr. st"]
    assert list(chunking._windows("x" * 25)) == ["x" * 10, "x" * 10, "x" * 5]


@given(texts)
def test_a_document_that_fits_is_left_exactly_as_it_is(text: str) -> None:
    (chunk,) = split(text, 1000)
    assert chunk.text == text


def test_a_document_of_exactly_the_size_is_one_chunk_and_one_token_more_is_not() -> None:
    assert [chunk.text for chunk in split("a " * 10, 10)] == ["a " * 10]
    assert len(split("a " * 11, 10)) == 2


@pytest.mark.parametrize(("size", "counts"), [(5, [4]), (3, [3, 1])])
def test_tokens_that_were_counted_are_handed_on(size: int, counts: list[int]) -> None:
    chunks = split("a b c d", size)
    assert [len(chunk.tokens) for chunk in chunks if chunk.tokens is not None] == counts


def test_a_text_of_fewer_bytes_than_tokens_allowed_is_not_even_counted() -> None:
    tokenizer = WordTokenizer()
    chunks = split("é" * 49, 99, tokenizer=tokenizer)
    assert [chunk.text for chunk in chunks] == ["é" * 49]
    assert tokenizer.encoded == []
    split("é" * 50, 99, tokenizer=tokenizer)
    assert tokenizer.encoded == ["é" * 50]


def test_a_text_longer_than_a_window_is_not_tokenised_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunking, "WINDOW_CHARACTERS", 40)
    tokenizer = WordTokenizer()
    assert len(split("word " * 20, 8, tokenizer=tokenizer)) > 1
    assert max(map(len, tokenizer.encoded)) <= 40


def test_documents_keep_their_order_and_their_own_chunks() -> None:
    documents = [document(text=text) for text in ("a", "b " * 30, "c", "d " * 12, "")]
    result = Chunker(WordTokenizer(), 10, 0).split(documents)
    assert [len(chunks) for chunks in result] == [document.chunks for document in documents]
    for one, chunks in zip(documents, result, strict=True):
        assert {id(chunk.document) for chunk in chunks} == {id(one)}
        assert bare("".join(chunk.text for chunk in chunks)) == bare(one.text)


@given(st.lists(texts, max_size=5), st.integers(2, 20))
def test_sizes_are_never_less_than_the_bytes_of_the_text(some: list[str], size: int) -> None:
    documents = [document(text=text) for text in some]
    for one in documents:
        one.record = record({"id": "a", "text": one.text})
    for chunks in (*Chunker(WordTokenizer(), size, 0).split(documents), *whole(documents)):
        assert all(chunk.size >= len(chunk.text.encode()) for chunk in chunks)


def test_without_chunking_every_document_is_one_chunk() -> None:
    documents = [document(text="a " * 10_000), document(text="b")]
    result = whole(documents)
    assert [[chunk.text for chunk in chunks] for chunks in result] == [[one.text] for one in documents]
    assert [one.chunks for one in documents] == [1, 1]


@pytest.fixture(scope="module")
def wordllama() -> Tokenizer:
    return WordLlamaEmbedder().tokenizer


@pytest.mark.parametrize("overlap", [0, 16])
def test_the_default_embedders_chunks_fit_it_and_hold_the_whole_text(
    wordllama: Tokenizer, sample_data: Path, overlap: int
) -> None:
    lines = (sample_data / "library_handbook.jsonl").read_bytes().splitlines()
    documents = [document(text=json.loads(line)["text"]) for line in lines]
    result = Chunker(wordllama, 64, overlap).split(documents)
    assert sum(len(chunks) > 1 for chunks in result) >= 10
    for one, chunks in zip(documents, result, strict=True):
        tokens = wordllama.encode([chunk.text for chunk in chunks])
        assert max(map(len, tokens)) <= 64
        assert all(chunk.text in one.text for chunk in chunks)
        assert chunks[0].text == one.text or len(chunks) > 1
        for chunk, counted in zip(chunks, tokens, strict=True):
            assert chunk.tokens is None or np.array_equal(chunk.tokens, counted)
        joined = bare("".join(chunk.text for chunk in chunks))
        assert joined == bare(one.text) if overlap == 0 else len(joined) >= len(bare(one.text))


def test_chunks_are_no_longer_than_the_embedder_takes_and_share_as_large_a_part() -> None:
    text = " ".join(f"w{number}" for number in range(100))
    (reduced,) = Chunker(WordTokenizer(), 20, 6, 10).split([document(text=text)])
    assert [chunk.text for chunk in reduced] == [chunk.text for chunk in split(text, 10, 3)]
    (unbound,) = Chunker(WordTokenizer(), 20, 6, 30).split([document(text=text)])
    assert [chunk.text for chunk in unbound] == [chunk.text for chunk in split(text, 20, 6)]


def test_consecutive_chunks_share_text_up_to_the_overlap() -> None:
    text = " ".join(f"w{number}" for number in range(100))
    chunks = split(text, 10, 3)
    numbers = [[int(word[1:]) for word in chunk.text.split()] for chunk in chunks]
    for some, following in pairwise(numbers):
        assert 1 <= len(set(some) & set(following)) <= 3
        assert following[-1] > some[-1]
    assert sorted({number for some in numbers for number in some}) == list(range(100))


@given(text=st.text(max_size=400), size=st.integers(8, 40))
@example(text="0" * 14, size=8)
@example(text="0" * 100, size=40)
def test_the_default_embedders_chunks_fit_it_whatever_the_text(wordllama: Tokenizer, text: str, size: int) -> None:
    chunks = split(text, size, size // 4, wordllama)
    assert all(len(tokens) <= size for tokens in wordllama.encode([chunk.text for chunk in chunks]))
    assert bare(text) == "" or chunks


@given(st.text(max_size=300) | texts, st.integers(8, 40), st.integers(8, 60))
def test_an_estimated_chunk_never_has_more_bytes_than_tokens_allowed_and_nothing_is_lost(
    text: str, size: int, most: int
) -> None:
    one = document(text=text)
    (chunks,) = EstimatingChunker(size, 0, most).split([one])
    assert one.chunks == len(chunks) >= 1
    assert [chunk.number for chunk in chunks] == list(range(len(chunks)))
    assert all(len(chunk.text.encode()) <= most for chunk in chunks) or not bare(text)
    assert bare("".join(chunk.text for chunk in chunks)) == bare(text)
