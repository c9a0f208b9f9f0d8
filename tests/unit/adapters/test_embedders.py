from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ragingest.documents import Chunk, Document, Record
from ragingest.embedders import open_embedder
from ragingest.embedders.bm25 import WithBM25
from ragingest.embedders.null import NullEmbedder
from ragingest.embedders.wordllama import DIMENSIONS, WordLlamaEmbedder
from ragingest.errors import RejectedError, UsageError

TEXTS = [
    "The library opens at nine on weekdays.",
    "short",
    "Die Bücherei öffnet um neun Uhr. 図書館 \U0001f4da",
    "a much longer text about borrowing, repairs and archives. " * 30,
]


def chunk(text: str) -> Chunk:
    return Chunk(Document("a", text, {}, b"", Record(0, 0, b"")), 0, text, len(text.encode()))


@pytest.fixture(scope="module")
def wordllama_embedder() -> WordLlamaEmbedder:
    return WordLlamaEmbedder()


def test_wordllama_gives_the_vectors_of_its_own_package(wordllama_embedder: WordLlamaEmbedder) -> None:
    import wordllama

    folder = Path(wordllama.__file__).parent
    theirs = wordllama.WordLlama.load(cache_dir=folder, dim=DIMENSIONS, disable_download=True)
    expected = np.stack([theirs.embed(text)[0] for text in TEXTS])
    rows = wordllama_embedder.embed([chunk(text) for text in TEXTS]).dense
    np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(wordllama_embedder.embed_query(TEXTS[0]).dense, expected[0], rtol=0, atol=1e-6)


def test_a_long_text_is_embedded_to_its_end(wordllama_embedder: WordLlamaEmbedder) -> None:
    text = "word " * 20_000
    rows = wordllama_embedder.embed([chunk(text), chunk(text + "archive " * 20_000)]).dense
    assert np.abs(rows[0] - rows[1]).max() > 0.01


def test_a_text_without_tokens_is_rejected(wordllama_embedder: WordLlamaEmbedder) -> None:
    with pytest.raises(RejectedError) as caught:
        wordllama_embedder.embed([chunk("fine"), chunk("")])
    assert caught.value.kind == "no_tokens"


def test_an_empty_search_asks_for_words(wordllama_embedder: WordLlamaEmbedder) -> None:
    with pytest.raises(UsageError, match="empty") as caught:
        wordllama_embedder.embed_query("")
    assert caught.value.hint


def test_loading_wordllama_leaves_the_root_logger_as_it_was() -> None:
    code = """
import logging
root = logging.getLogger()
handler = logging.NullHandler()
root.addHandler(handler)
root.setLevel(logging.ERROR)
from ragingest.embedders.wordllama import WordLlamaEmbedder
WordLlamaEmbedder().embed_query("words")
assert root.handlers == [handler], root.handlers
assert root.level == logging.ERROR, root.level
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == ""
    assert ended.stderr == ""


def test_without_the_package_the_error_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wordllama", None)
    with pytest.raises(UsageError, match="wordllama") as caught:
        open_embedder("wordllama")
    assert "--embedder" in caught.value.hint
    assert "pip install" in caught.value.hint


def test_wordllama_makes_no_other_dimensions() -> None:
    with pytest.raises(UsageError, match="256 dimensions, not 64"):
        open_embedder("wordllama", 64)


def test_an_unknown_embedder_is_answered_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="'word2vec'") as caught:
        open_embedder("word2vec")
    assert "wordllama" in caught.value.hint


def test_bm25_adds_nothing_but_sparse_vectors() -> None:
    dense = NullEmbedder(4)
    both = WithBM25(dense)
    assert (both.name, both.model, both.dimensions, both.limits, both.tokenizer) == (
        dense.name,
        dense.model,
        dense.dimensions,
        dense.limits,
        dense.tokenizer,
    )
    assert both.sparse
    assert both.embed([chunk("library")]).dense.tobytes() == dense.embed([chunk("library")]).dense.tobytes()


def test_bm25_gives_a_rare_form_of_a_word_the_same_term() -> None:
    batch = WithBM25(NullEmbedder(4)).embed([chunk("libraries"), chunk("library"), chunk("archive")])
    assert batch.sparse is not None
    first, second, third = (set(vector.indices) for vector in batch.sparse)
    assert first == second
    assert first.isdisjoint(third)
