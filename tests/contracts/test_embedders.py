"""The contract of embedders, on every embedder there is."""

from __future__ import annotations

from functools import cache

from ragingest.embedders import open_embedder
from ragingest.embedders.wordllama import WordLlamaEmbedder
from ragingest.protocols import Embedder
from tests.models import MINILM

from .embedder_contract import EmbedderContract

wordllama = cache(WordLlamaEmbedder)


@cache
def wordllama_with_bm25() -> Embedder:
    return open_embedder("wordllama")


class TestWordLlamaWithBM25(EmbedderContract):
    def build(self) -> Embedder:
        return wordllama_with_bm25()


class TestWordLlama(EmbedderContract):
    def build(self) -> Embedder:
        return wordllama()


@cache
def minilm() -> Embedder:
    return open_embedder("sentence-transformers", model=str(MINILM), device="cpu")


class TestSentenceTransformers(EmbedderContract):
    tolerance = 1e-5
    turns = 3

    def build(self) -> Embedder:
        return minilm()


class TestNull(EmbedderContract):
    distinguishes = False

    def build(self) -> Embedder:
        return open_embedder("null", 5)
