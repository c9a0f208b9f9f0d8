"""Cutting long texts into chunks that end where sentences, paragraphs or Markdown sections do."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ragingest.costs.tokens import TYPICAL_RATIO, WIDE_RATIO, measure
from ragingest.documents import Chunk, Document
from ragingest.protocols import Tokenizer

if TYPE_CHECKING:
    from semantic_text_splitter import MarkdownSplitter, TextSplitter

__all__ = ["Chunker", "EstimatingChunker", "whole"]

# The splitter's time grows with the square of a text without breaks (60,000 characters: 0.4 s,
# 200,000: 4 s), and the tokenizer's memory with its length (500 bytes a character).
WINDOW_CHARACTERS = 32_768

# Headings, fences, lists, quotations and tables. Prose without them is left to the plain splitter:
# the Markdown one takes every apostrophe for a boundary and cuts long paragraphs in the middle of words.
_MARKDOWN = re.compile(r"^ {0,3}(?:#{1,6} |```|~~~|[-*+] |\d{1,3}[.)] |> |\|)", re.MULTILINE).search

_BREAKS = ("\n\n", "\n", ". ", " ")


def whole(documents: Sequence[Document]) -> list[list[Chunk]]:
    """Every document as the one chunk it is."""
    chunks = []
    for document in documents:
        document.chunks = 1
        chunks.append([Chunk(document, 0, document.text, len(document.record.raw))])
    return chunks


class Chunker:
    """Splits documents of more than `size` tokens of the embedder; may be used by several threads at once.

    Consecutive chunks share up to `overlap` tokens. A document that fits is left exactly as it is.
    Where the embedder takes no more than `most` tokens, fewer than `size`, that is the size, and the
    overlap is reduced in proportion.
    """

    def __init__(self, tokenizer: Tokenizer, size: int, overlap: int, most: int | None = None) -> None:
        self._tokenizer = tokenizer
        self._size = size if most is None else min(size, most)
        self._overlap = overlap * self._size // size
        self._made: dict[bool, MarkdownSplitter | TextSplitter] = {}
        self._making = threading.Lock()

    def split(self, documents: Sequence[Document]) -> list[list[Chunk]]:
        """The chunks of each document, in its order; sets `document.chunks`."""
        result: list[list[Chunk]] = []
        unsure: list[tuple[int, Document]] = []
        for index, document in enumerate(documents):
            # A token stands for at least one byte of the text, or for the space put before it.
            if len(document.text) * 4 < self._size or len(document.text.encode()) < self._size:
                result.append([Chunk(document, 0, document.text, len(document.record.raw))])
            else:
                result.append([])
                unsure.append((index, document))
        countable = [(index, d) for index, d in unsure if len(d.text) <= WINDOW_CHARACTERS]
        encoded = self._tokenizer.encode([d.text for _, d in countable]) if countable else []
        fitting = {}
        for (index, document), tokens in zip(countable, encoded, strict=True):
            if len(tokens) <= self._size:
                fitting[index] = Chunk(document, 0, document.text, len(document.record.raw), tokens)
        for index, document in unsure:
            if index in fitting:
                result[index] = [fitting[index]]
            else:
                result[index] = [
                    Chunk(document, number, piece, len(piece.encode()), tokens)
                    for number, (piece, tokens) in enumerate(self._pieces(document.text))
                ]
        for document, chunks in zip(documents, result, strict=True):
            document.chunks = len(chunks)
        return result

    def _pieces(self, text: str) -> list[tuple[str, npt.NDArray[np.intp]]]:
        """The text in pieces of at most the size, each with its tokens."""
        splitter = self._splitter(bool(_MARKDOWN(text)))
        return self._counted([piece for window in _windows(text) for piece in splitter.chunks(window)] or [text])

    def _counted(self, pieces: list[str]) -> list[tuple[str, npt.NDArray[np.intp]]]:
        """The splitter lets a piece without breaks grow a token or so over the size: that one is halved."""
        counted = []
        for piece, tokens in zip(pieces, self._tokenizer.encode(pieces), strict=True):
            if len(tokens) <= self._size or len(piece) == 1:
                counted.append((piece, tokens))
            else:
                middle = len(piece) // 2
                halves = (piece[:middle], piece[middle:])
                counted += self._counted([half for half in halves if not half.isspace()])
        return counted

    def _splitter(self, markdown: bool) -> MarkdownSplitter | TextSplitter:
        with self._making:  # it takes 0.25 s, for a copy of the tokenizer
            if markdown not in self._made:
                from semantic_text_splitter import MarkdownSplitter, TextSplitter

                kind = MarkdownSplitter if markdown else TextSplitter
                self._made[markdown] = kind.from_huggingface_tokenizer(
                    self._tokenizer.splitter_backend(), self._size, overlap=self._overlap
                )
            return self._made[markdown]


class EstimatingChunker:
    """Splits for a model whose tokenizer is not at hand: by characters, at the typical tokens a character.

    No chunk has more than `most` UTF-8 bytes, and so no more than that many tokens, whatever the text.

    Args:
        size, overlap: tokens, as far as they can be estimated.
        most: tokens that the model takes at most.
    """

    def __init__(self, size: int, overlap: int, most: int) -> None:
        self._size = min(size, most)
        self._overlap = min(overlap, self._size - 1)
        self._most = most
        self._short = min(int(self._size / TYPICAL_RATIO), most)
        self._splitters: dict[tuple[int, bool], MarkdownSplitter | TextSplitter] = {}

    def split(self, documents: Sequence[Document]) -> list[list[Chunk]]:
        """The chunks of each document, in its order; sets `document.chunks`."""
        result = []
        for document in documents:
            text = document.text
            # Most are short; what is in them need not be looked at.
            if text.isascii() and len(text) <= self._short:
                document.chunks = 1
                result.append([Chunk(document, 0, text, len(text))])
                continue
            pieces = self._pieces(text)
            document.chunks = len(pieces)
            result.append([Chunk(document, n, piece, len(piece.encode())) for n, piece in enumerate(pieces)])
        return result

    def _pieces(self, text: str) -> list[str]:
        size = measure(text)
        tokens = (size.bytes - size.wide) * TYPICAL_RATIO + size.wide * WIDE_RATIO
        if tokens <= self._size and size.bytes <= self._most:
            return [text]
        characters = max(8, int(self._size * len(text) / tokens))
        pieces = self._cut(text, characters)
        while any(len(piece.encode()) > self._most for piece in pieces):
            characters = max(1, characters // 2)
            pieces = self._cut(text, characters)
        return pieces or [text]

    def _cut(self, text: str, characters: int) -> list[str]:
        # One splitter serves sizes that differ by less than a sixteenth.
        capacity = max(1, characters - characters % max(1, characters // 16))
        markdown = bool(_MARKDOWN(text))
        if (capacity, markdown) not in self._splitters:
            from semantic_text_splitter import MarkdownSplitter, TextSplitter

            kind = MarkdownSplitter if markdown else TextSplitter
            overlap = min(capacity - 1, capacity * self._overlap // self._size)
            self._splitters[capacity, markdown] = kind(capacity, overlap=overlap)
        splitter = self._splitters[capacity, markdown]
        return [piece for window in _windows(text) for piece in splitter.chunks(window)]


def _windows(text: str) -> Iterator[str]:
    """`text` in parts of at most WINDOW_CHARACTERS that end at the best break in their second half."""
    start = 0
    while len(text) - start > WINDOW_CHARACTERS:
        limit = start + WINDOW_CHARACTERS
        end = limit
        for mark in _BREAKS:
            found = text.rfind(mark, start + WINDOW_CHARACTERS // 2, limit)
            if found >= 0:
                end = found + len(mark)
                break
        yield text[start:end]
        start = end
    yield text[start:]
