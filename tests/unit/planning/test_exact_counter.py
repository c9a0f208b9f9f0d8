"""tiktoken itself is not needed: a module of its shape stands in, which fails if it is asked to load anything."""

from __future__ import annotations

import base64
import hashlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ragingest.costs.tokens import VOCABULARIES, Vocabulary, exact_counter

URL = "https://vocabularies.example/three.tiktoken"
FILE = b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate([b"a", b"b", b"ab"]))
VOCABULARY = Vocabulary("three", URL, hashlib.sha256(FILE).hexdigest(), "(?s:.)+")
TABLE = {"three-model": VOCABULARY}


class FakeEncoding:
    def __init__(
        self, name: str, *, pat_str: str, mergeable_ranks: dict[bytes, int], special_tokens: dict[str, int]
    ) -> None:
        self.arguments = (name, pat_str, special_tokens)
        assert mergeable_ranks == {b"a": 0, b"b": 1, b"ab": 2}

    def encode_ordinary(self, text: str) -> list[int]:
        return [2] * text.count("ab")


@pytest.fixture
def tiktoken(monkeypatch: pytest.MonkeyPatch) -> None:
    def would_download(*_args: Any) -> None:
        raise AssertionError("this may download")

    module: Any = ModuleType("tiktoken")
    module.Encoding = FakeEncoding
    module.get_encoding = module.encoding_for_model = would_download
    monkeypatch.setitem(sys.modules, "tiktoken", module)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("DATA_GYM_CACHE_DIR", raising=False)
    return tmp_path


def file_in(folder: Path) -> Path:
    return folder / hashlib.sha1(URL.encode(), usedforsecurity=False).hexdigest()


@pytest.mark.usefixtures("tiktoken")
def test_a_vocabulary_on_disk_counts_exactly(cache: Path) -> None:
    file_in(cache).write_bytes(FILE)
    count = exact_counter("three-model", TABLE)
    assert count is not None
    assert count("ab ab ab") == 3


@pytest.mark.usefixtures("tiktoken", "cache")
def test_a_vocabulary_that_is_not_on_disk_is_not_fetched() -> None:
    assert exact_counter("three-model", TABLE) is None


@pytest.mark.usefixtures("tiktoken")
def test_a_damaged_vocabulary_is_not_used_and_not_removed(cache: Path) -> None:
    file_in(cache).write_bytes(FILE[:-3])
    assert exact_counter("three-model", TABLE) is None
    assert file_in(cache).read_bytes() == FILE[:-3]


@pytest.mark.usefixtures("tiktoken")
def test_an_empty_cache_folder_in_the_environment_means_no_cache(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_in(cache).write_bytes(FILE)
    monkeypatch.chdir(cache)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    assert exact_counter("three-model", TABLE) is None


@pytest.mark.usefixtures("tiktoken")
def test_the_other_places_where_tiktoken_keeps_its_files_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    monkeypatch.delenv("DATA_GYM_CACHE_DIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    default = tmp_path / "data-gym-cache"
    default.mkdir()
    assert exact_counter("three-model", TABLE) is None
    file_in(default).write_bytes(FILE)
    assert exact_counter("three-model", TABLE) is not None
    monkeypatch.setenv("DATA_GYM_CACHE_DIR", str(tmp_path))
    assert exact_counter("three-model", TABLE) is None
    file_in(tmp_path).write_bytes(FILE)
    assert exact_counter("three-model", TABLE) is not None


def test_without_tiktoken_there_is_no_exact_count(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file_in(cache).write_bytes(FILE)
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    assert exact_counter("three-model", TABLE) is None


@pytest.mark.usefixtures("tiktoken", "cache")
def test_a_model_without_a_known_vocabulary_has_no_exact_count() -> None:
    assert exact_counter("model-of-tomorrow") is None


def test_the_openai_models_share_the_vocabulary_whose_cache_file_is_well_known() -> None:
    assert {vocabulary.name for vocabulary in VOCABULARIES.values()} == {"cl100k_base"}
    url = VOCABULARIES["text-embedding-3-small"].url
    known = "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"
    assert hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest() == known
