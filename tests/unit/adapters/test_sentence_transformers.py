from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragingest.chunking import Chunker
from ragingest.embedders import open_embedder
from ragingest.embedders.sentence_transformers import SentenceTransformersEmbedder, tokens_at_once
from ragingest.errors import RejectedError, TerminalError, UsageError
from ragingest.library import absolute
from ragingest.settings import JobSettings
from tests.contracts.embedding import chunks_of, document
from tests.models import MINILM, MINILM_DIMENSIONS, MINILM_TOKENS
from tests.servers.model_hub import serving_model

TEXTS = [
    "The library opens at nine on weekdays.",
    "A torn page is mended with paste and tissue.",
    "short",
    "Die Bücherei öffnet um neun Uhr. 図書館 \U0001f4da",
    "A much longer text about borrowing, repairs and archives. " * 15,
    "The archive keeps photographs of the harbour.",
]


@cache
def minilm() -> SentenceTransformersEmbedder:
    return SentenceTransformersEmbedder(str(MINILM), device="cpu")


def with_prompts(folder: Path) -> Path:
    """The same model, which wants a prompt before every text."""
    model = folder / "prompted"
    model.mkdir()
    for path in MINILM.iterdir():
        (model / path.name).symlink_to(path)
    (model / "config_sentence_transformers.json").unlink()
    prompts = {"query": "search for: ", "document": "from the library's handbook: "}
    (model / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    return model


def test_it_gives_the_vectors_of_the_library() -> None:
    embedder = minilm()
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(MINILM), device="cpu", local_files_only=True).encode(TEXTS)
    np.testing.assert_allclose(embedder.embed(chunks_of(TEXTS)).dense, theirs, rtol=0, atol=1e-5)
    np.testing.assert_allclose(embedder.embed_query(TEXTS[0]).dense, theirs[0], rtol=0, atol=1e-5)


def test_a_question_lies_nearest_to_its_answer() -> None:
    rows = minilm().embed(chunks_of(TEXTS)).dense
    for question, answer in (("How do I fix a ripped leaf?", 1), ("old pictures of ships", 5)):
        assert int((rows @ minilm().embed_query(question).dense).argmax()) == answer


def test_what_it_says_of_itself_is_what_the_model_says() -> None:
    embedder = minilm()
    assert (embedder.model, embedder.dimensions) == (str(MINILM), MINILM_DIMENSIONS)
    assert embedder.limits.max_tokens_per_text == MINILM_TOKENS
    assert 32 <= embedder.limits.max_texts <= 256
    assert embedder.limits.concurrency == 1


def test_the_number_of_texts_in_a_call_can_be_given() -> None:
    embedder = SentenceTransformersEmbedder(str(MINILM), device="cpu", max_texts=500)
    assert embedder.limits.max_texts == 500


def test_chunks_of_the_default_size_are_cut_to_fit_and_none_is_refused() -> None:
    text = "The archive keeps photographs, maps and letters of the harbour. " * 200
    limit = minilm().limits.max_tokens_per_text
    (chunks,) = Chunker(minilm().tokenizer, 512, 64, limit).split([document("a", text)])
    assert len(chunks) > 5
    lengths = [len(tokens) for tokens in minilm().tokenizer.encode([chunk.text for chunk in chunks])]
    assert MINILM_TOKENS // 2 < max(lengths) <= MINILM_TOKENS
    assert len(minilm().embed(chunks).dense) == len(chunks)


def test_shorter_vectors_are_the_beginning_of_the_whole_ones() -> None:
    shorter = SentenceTransformersEmbedder(str(MINILM), 128, device="cpu")
    assert shorter.dimensions == 128
    whole = minilm().embed(chunks_of(TEXTS)).dense
    np.testing.assert_allclose(shorter.embed(chunks_of(TEXTS)).dense, whole[:, :128], rtol=0, atol=1e-5)
    assert shorter.embed_query("library").dense.shape == (128,)


def test_longer_vectors_than_the_models_are_refused() -> None:
    with pytest.raises(UsageError, match=f"{MINILM_DIMENSIONS} dimensions, not 385"):
        SentenceTransformersEmbedder(str(MINILM), 385, device="cpu")


def test_prompts_go_before_the_text_and_count_against_the_limit(tmp_path: Path) -> None:
    embedder = SentenceTransformersEmbedder(str(with_prompts(tmp_path)), device="cpu")
    plain = minilm().embed(chunks_of(["from the library's handbook: opening hours", "search for: hours"])).dense
    row = embedder.embed(chunks_of(["opening hours"])).dense[0]
    np.testing.assert_allclose(row, plain[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(embedder.embed_query("hours").dense, plain[1], rtol=0, atol=1e-5)
    assert embedder.dimensions == MINILM_DIMENSIONS

    limit = embedder.limits.max_tokens_per_text
    assert limit is not None
    assert MINILM_TOKENS - 12 < limit < MINILM_TOKENS
    fits, shorter = "archive " * limit, "archive " * (limit - 1)
    rows = embedder.embed(chunks_of([fits, shorter])).dense
    assert np.abs(rows[0] - rows[1]).max() > 1e-4
    with pytest.raises(RejectedError) as caught:
        embedder.embed(chunks_of(["archive " * MINILM_TOKENS]))
    assert caught.value.kind == "too_many_tokens"


def test_a_text_of_nothing_that_the_model_knows_is_rejected() -> None:
    with pytest.raises(RejectedError) as caught:
        minilm().embed(chunks_of(["fine", "\u200b\u200b"]))
    assert caught.value.kind == "no_tokens"


@pytest.mark.parametrize("text", ["", "\u200b", "archive " * (MINILM_TOKENS + 1)])
def test_a_search_text_without_words_or_with_too_many_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="the search text"):
        minilm().embed_query(text)


# -- memory ------------------------------------------------------------------------------------------


class SmallDevice:
    """Lets no more than `tokens` padded tokens through a model at once, as a full GPU would."""

    def __init__(self, embedder: SentenceTransformersEmbedder, tokens: int, error: Exception) -> None:
        self.passes: list[int] = []
        self._tokens = tokens
        self._error = error
        self._hook = embedder._model[0].register_forward_pre_hook(self._before)

    def _before(self, _module: Any, given: tuple[Any, ...]) -> None:
        ids = given[0]["input_ids"]
        self.passes.append(len(ids))
        if ids.numel() > self._tokens:
            raise self._error

    def remove(self) -> None:
        self._hook.remove()


@pytest.fixture
def fresh() -> SentenceTransformersEmbedder:
    """One whose memory a test may make smaller."""
    return SentenceTransformersEmbedder(str(MINILM), device="cpu")


def shortages() -> list[Exception]:
    import torch

    return [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 18.00 GB)"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 65536 bytes."),
        MemoryError(),
    ]


@pytest.mark.parametrize("which", range(4))
def test_a_batch_that_finds_no_memory_is_halved_and_what_fits_is_remembered(
    fresh: SentenceTransformersEmbedder, which: int
) -> None:
    texts = ["The library opens at nine."] * 32
    expected = fresh.embed(chunks_of(texts)).dense
    device = SmallDevice(fresh, 100, shortages()[which])
    np.testing.assert_allclose(fresh.embed(chunks_of(texts)).dense, expected, rtol=0, atol=1e-5)
    assert max(device.passes) == 32
    device.passes.clear()
    fresh.embed(chunks_of(texts))
    assert max(device.passes) < 32
    assert sum(device.passes) == 32
    device.remove()


def test_only_a_text_that_does_not_fit_by_itself_is_rejected(fresh: SentenceTransformersEmbedder) -> None:
    device = SmallDevice(fresh, 100, shortages()[0])
    with pytest.raises(RejectedError) as caught:
        fresh.embed(chunks_of(["short", "archive " * 150]))
    assert caught.value.kind == "out_of_memory"
    assert len(fresh.embed(chunks_of(["short", "archive " * 90])).dense) == 2
    device.remove()


def test_another_failure_of_the_device_ends_the_run(fresh: SentenceTransformersEmbedder) -> None:
    SmallDevice(fresh, 0, RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors"))
    with pytest.raises(TerminalError, match=r"failed on cpu: CUDA error: device-side assert triggered$"):
        fresh.embed(chunks_of(["short"]))


@given(st.integers(0, 1 << 40), st.integers(1, 8192), st.booleans())
def test_a_pass_takes_a_quarter_of_the_free_memory_and_at_least_one_token(
    free: int, hidden: int, cpu: bool
) -> None:
    tokens = tokens_at_once(free, hidden, cpu=cpu)
    assert tokens >= 1
    assert tokens == 1 or tokens * 16 * 4 * hidden <= free / 4
    assert not cpu or tokens <= 2048


def test_passes_grow_with_the_memory_of_a_gpu() -> None:
    assert tokens_at_once(1 << 30, 384, cpu=False) == 10_922
    assert tokens_at_once(1 << 34, 384, cpu=False) == 174_762


# -- what cannot be opened ---------------------------------------------------------------------------


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("torch", "sentence_transformers"):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, package, None)
            with pytest.raises(UsageError) as caught:
                open_embedder("sentence-transformers", model=str(MINILM))
            assert caught.value.hint == "pip install 'ragingest[sentence-transformers]'"


def test_a_model_must_be_named() -> None:
    with pytest.raises(UsageError, match="needs a model"):
        open_embedder("sentence-transformers")


@pytest.mark.parametrize("name", ["/srv/no/such/model", "./minilm", "a/b/c", "not a name"])
def test_a_folder_that_is_not_there_is_not_asked_for_anywhere(name: str) -> None:
    with pytest.raises(UsageError, match="there is no folder"):
        SentenceTransformersEmbedder(name)


def test_a_folder_without_a_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot load") as caught:
        SentenceTransformersEmbedder(str(tmp_path))
    assert "\n" not in caught.value.message


def test_a_name_is_looked_for_here_and_then_at_hugging_face(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with serving_model("example/minilm", MINILM) as url:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        with pytest.raises(UsageError, match="there is no model example/maxilm"):
            SentenceTransformersEmbedder("example/maxilm")
        with pytest.raises(UsageError, match="not on this machine") as caught:
            SentenceTransformersEmbedder("example/minilm", download=False)
        assert caught.value.hint == "get it with: hf download example/minilm"
    with pytest.raises(TerminalError, match="Hugging Face cannot be reached"):
        SentenceTransformersEmbedder("example/minilm")


def test_a_folder_of_a_model_means_the_same_from_every_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "model").symlink_to(MINILM)
    monkeypatch.chdir(tmp_path)
    for embedder, model, meant in (
        ("sentence-transformers", "model", str(tmp_path / "model")),
        ("sentence-transformers", "example/minilm", "example/minilm"),
        ("openai", "model", "model"),
    ):
        assert absolute(JobSettings(source="a.jsonl", embedder=embedder, model=model)).model == meant


def test_a_damaged_model_says_so(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(MINILM, model, ignore=shutil.ignore_patterns("*.safetensors"))
    (model / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(UsageError, match="cannot load"):
        SentenceTransformersEmbedder(str(model), device="cpu")


def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="--device cuda:99"):
        SentenceTransformersEmbedder(str(MINILM), device="cuda:99")


def test_what_does_not_use_it_does_not_import_it() -> None:
    code = """
import sys
import ragingest.cli.app
from ragingest.embedders import open_embedder
open_embedder("wordllama").embed_query("words")
loaded = {"torch", "transformers", "sentence_transformers", "huggingface_hub"} & set(sys.modules)
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True)
