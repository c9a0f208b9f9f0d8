"""Where chunks begin and end."""

from __future__ import annotations

import re

import pytest

from ragingest.chunking import Chunker, EstimatingChunker
from ragingest.documents import Document, Record
from ragingest.embedders.wordllama import WordLlamaEmbedder

PROSE = " ".join(
    f"The children's book number {number} costs ${number}.50, and nobody's copy isn't read by the reader's friends."
    for number in range(60)
)


def _document(text: str) -> Document:
    return Document("d", text, {}, b"", Record(0, 0, text.encode()))


def _chunkers() -> list[Chunker | EstimatingChunker]:
    return [Chunker(WordLlamaEmbedder().tokenizer, 64, 0), EstimatingChunker(64, 0, 8191)]


@pytest.mark.parametrize("chunker", _chunkers(), ids=["counting", "estimating"])
def test_prose_is_not_cut_inside_a_word(chunker: Chunker | EstimatingChunker) -> None:
    (chunks,) = chunker.split([_document(PROSE)])
    assert len(chunks) > 5
    end = 0
    for chunk in chunks:
        start = PROSE.index(chunk.text, end)
        end = start + len(chunk.text)
        assert start == 0 or PROSE[start - 1].isspace()
        assert end == len(PROSE) or PROSE[end].isspace()


@pytest.mark.parametrize("chunker", _chunkers(), ids=["counting", "estimating"])
def test_markdown_is_cut_at_its_headings(chunker: Chunker | EstimatingChunker) -> None:
    sections = [f"## Part {number}\n\n" + "A sentence of some words here. " * 6 for number in range(6)]
    (chunks,) = chunker.split([_document("\n\n".join(sections))])
    assert len(chunks) == 6
    assert all(re.match(r"## Part \d", chunk.text) for chunk in chunks)
