from __future__ import annotations

import asyncio
import bz2
import gzip
import io
import socket
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from ragingest.chunking import EstimatingChunker
from ragingest.costs.tokens import TYPICAL_RATIO
from ragingest.decoding import Decoder
from ragingest.documents import Record
from ragingest.errors import RagingestError, TerminalError, UsageError
from ragingest.events import Summary
from ragingest.jobs.planning import LEDGER_BYTES, Plan, PlanOptions, make_plan
from ragingest.library import ingest
from ragingest.settings import JobSettings, RunOptions
from tests.unit.planning.texts import noise, prose, write_records


def options(sample: int | None = None, throughput: float | None = None, **run: Any) -> PlanOptions:
    return PlanOptions(run=RunOptions(**run), sample=sample, throughput=throughput)


def plan_of(source: Path | str, options: PlanOptions | None = None, **settings: Any) -> Plan:
    chosen = {"embedder": "openai", "store": "null", **settings}
    return make_plan(JobSettings(source=str(source), **chosen), options or PlanOptions())


def run(source: Path, folder: Path, **settings: Any) -> Summary:
    chosen = JobSettings(source="", store="null", **settings)
    return asyncio.run(ingest(source, settings=chosen, checkpoint_dir=folder / "state"))


@pytest.fixture(autouse=True)
def no_network_no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_args: object) -> None:
        raise AssertionError("a plan sends nothing")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for name in ("OPENAI_API_KEY", "CO_API_KEY", "COHERE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "no-vocabulary"))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """1,000 records of about 300 bytes."""
    return write_records(tmp_path / "corpus.jsonl", [prose(48, seed) for seed in range(1_000)])


def test_records_and_rejects_are_those_of_the_run(sample_data: Path, tmp_path: Path) -> None:
    source = sample_data / "dirty.jsonl"
    summary = run(source, tmp_path, embedder="null")
    plan = plan_of(source)
    assert (plan.records, plan.rejected) == (summary.counters.read, summary.counters.rejected)
    assert plan.reject_kinds == dict(sorted(summary.reject_kinds.items()))
    assert plan.documents == plan.records - plan.rejected
    assert plan.exit_code == 1


@pytest.mark.parametrize("size", [64, 512])
def test_chunks_of_the_local_embedder_are_those_of_the_run(sample_data: Path, tmp_path: Path, size: int) -> None:
    source = sample_data / "library_handbook.jsonl"
    settings: dict[str, Any] = {"embedder": "wordllama", "chunk_size": size, "chunk_overlap": 8}
    summary = run(source, tmp_path, **settings)
    plan = plan_of(source, **settings)
    assert plan.chunks == summary.counters.chunks
    assert plan.tokens_exact
    assert (plan.dollars, plan.dimensions, plan.exit_code) == (0.0, 256, 0)


def test_tokens_and_dollars_of_an_api_are_estimated_from_bytes(corpus: Path) -> None:
    plan = plan_of(corpus)
    text_bytes = sum(len(prose(48, seed)) for seed in range(1_000))
    assert plan.text_bytes == plan.tokens_at_most == text_bytes
    assert text_bytes * TYPICAL_RATIO <= plan.tokens <= text_bytes * TYPICAL_RATIO + 1_000
    assert not plan.tokens_exact
    assert plan.dollars == pytest.approx(plan.tokens * 0.02 / 1e6, abs=1e-6)
    assert plan.batch_dollars == pytest.approx(plan.tokens * 0.01 / 1e6, abs=1e-6)
    assert plan.dollars_at_most == pytest.approx(text_bytes * 0.02 / 1e6, abs=1e-6)
    assert plan.price_source is not None
    assert plan.price_source.startswith("https://")


def test_exact_counts_are_used_where_they_can_be_had(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ragingest.jobs.planning.exact_counter", lambda _model: lambda text: text.count(" ") + 2)
    plan = plan_of(corpus)
    assert plan.tokens_exact
    assert plan.tokens == plan.tokens_at_most == 1_000 * 49
    assert plan.requests == plan.requests_at_most == 1


def test_behind_the_counted_text_tokens_are_estimated_at_the_ratio_found(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragingest.jobs.planning.COUNTED_BYTES", 100_000)
    monkeypatch.setattr("ragingest.jobs.planning.exact_counter", lambda _model: lambda text: text.count(" ") + 2)
    plan = plan_of(corpus)
    assert not plan.tokens_exact
    assert plan.tokens == pytest.approx(1_000 * 49, rel=0.02)


def test_requests_are_filled_up_to_texts_or_tokens(tmp_path: Path) -> None:
    short = write_records(tmp_path / "short.jsonl", ["ten bytes."] * 5_000)
    plan = plan_of(short)
    assert (plan.requests, plan.requests_at_most) == (3, 3)
    assert plan_of(short, embedder="cohere").requests == 53
    assert plan_of(short, options(batch_size=100)).requests == 50
    long = write_records(tmp_path / "long.jsonl", [prose(1_000, 1)] * 400)
    plan = plan_of(long)
    assert plan.tokens / 300_000 <= plan.requests <= plan.tokens / 270_000 + 1
    assert plan.requests_at_most == -(-400 // (300_000 // len(prose(1_000, 1))))


def test_a_price_that_is_not_known_is_not_made_up_and_one_that_is_given_is_used(corpus: Path) -> None:
    plan = plan_of(corpus, model="model-of-tomorrow")
    assert (plan.dollars, plan.batch_dollars, plan.dollars_at_most) == (None, None, None)
    plan = plan_of(corpus, options(price_per_million=2.0), model="model-of-tomorrow")
    assert plan.dollars == pytest.approx(plan.tokens * 2 / 1e6, abs=1e-6)
    assert plan.batch_dollars is None
    assert plan.price_source is None


def test_what_depends_on_unknown_dimensions_is_unknown_until_they_are_given(corpus: Path) -> None:
    plan = plan_of(corpus, model="model-of-tomorrow")
    assert (plan.dimensions, plan.upserts, plan.vector_bytes, plan.disk_bytes) == (None, None, None, None)
    plan = plan_of(corpus, model="model-of-tomorrow", dimensions=100)
    assert plan.vector_bytes == 1_000 * 400
    assert plan.upserts == 2


def test_upserts_keep_to_the_points_and_the_bytes_of_the_store(corpus: Path) -> None:
    plan = plan_of(corpus, store="qdrant-edge")
    assert (plan.points_per_upsert, plan.upserts) == (256, 4)
    plan = plan_of(corpus, options(upsert_size=100), store="qdrant-edge")
    assert (plan.points_per_upsert, plan.upserts) == (100, 10)
    plan = plan_of(corpus, store="qdrant-edge", model="of-tomorrow", dimensions=20_000)
    assert plan.points_per_upsert is not None
    assert plan.bytes_per_upsert is not None
    assert 7_800_000 < plan.bytes_per_upsert <= 8_000_000
    assert plan.bytes_per_upsert / plan.points_per_upsert > 80_000


def test_the_disk_holds_vectors_records_and_ledger(corpus: Path) -> None:
    plan = plan_of(corpus, dimensions=10)
    assert plan.vector_bytes == 1_000 * 40
    assert plan.ledger_bytes == 1_000 * LEDGER_BYTES
    assert plan.payload_bytes == corpus.stat().st_size - 1_000  # the newlines
    assert plan.disk_bytes == plan.vector_bytes + plan.payload_bytes + plan.ledger_bytes


def test_the_time_is_that_of_the_scarcest_rate(corpus: Path) -> None:
    assert plan_of(corpus).seconds_at_best is None
    plan = plan_of(corpus, options(rpm=1, tpm=1e9, throughput=1e9))
    assert (plan.seconds_at_best, plan.bounded_by) == (60 * plan.requests, "rpm")
    plan = plan_of(corpus, options(rpm=1e9, tpm=1_000))
    assert plan.bounded_by == "tpm"
    assert plan.seconds_at_best == pytest.approx(plan.tokens * 0.06)
    plan = plan_of(corpus, options(throughput=20))
    assert (plan.seconds_at_best, plan.bounded_by) == (50, "throughput")


def test_chunks_of_an_api_are_those_of_its_chunker(tmp_path: Path) -> None:
    texts = [prose(40, 1), prose(2_000, 2), prose(20_000, 3)]
    source = write_records(tmp_path / "long.jsonl", texts)
    documents = [Decoder().decode(Record(n, 0, line)) for n, line in enumerate(source.read_bytes().splitlines())]
    for size, overlap in ((512, 64), (100, 0)):
        plan = plan_of(source, chunk_size=size, chunk_overlap=overlap)
        chunks = EstimatingChunker(size, overlap, 8_191).split(documents)
        assert plan.chunks == sum(map(len, chunks)) > 20
        assert plan.rejected == 0
    assert plan_of(source, model="text-embedding-3-large").dimensions == 3072


def test_without_chunking_texts_that_may_be_too_long_are_rejects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_records(tmp_path / "long.jsonl", ["x" * 8_191, prose(2_000, 1), prose(20_000, 2)])
    assert plan_of(source).rejected == 0
    plan = plan_of(source, chunk=False)
    assert plan.reject_kinds == {"too_many_tokens": 1}
    assert (plan.records, plan.documents, plan.chunks, plan.exit_code) == (3, 2, 2, 1)
    monkeypatch.setattr("ragingest.jobs.planning.exact_counter", lambda _model: lambda text: len(text) // 100)
    assert plan_of(source, chunk=False).rejected == 0


def test_a_sample_is_scaled_by_the_bytes_of_the_file(corpus: Path) -> None:
    whole = plan_of(corpus)
    plan = plan_of(corpus, options(sample=100))
    assert plan.read == 100
    assert plan.read_share == pytest.approx(0.1, abs=0.02)
    for name in ("records", "documents", "chunks", "text_bytes", "tokens", "tokens_at_most", "payload_bytes"):
        assert getattr(plan, name) == pytest.approx(getattr(whole, name), rel=0.05), name
    assert not plan.tokens_exact
    assert any("sample" in note for note in plan.notes)


def test_a_sample_of_part_of_a_request_is_scaled_as_that_part(tmp_path: Path) -> None:
    source = write_records(tmp_path / "short.jsonl", ["ten bytes."] * 5_000)
    assert plan_of(source, options(sample=500)).requests == 3


@pytest.mark.parametrize("sample", [1_000, 5_000])
def test_a_sample_as_large_as_the_source_is_the_source(corpus: Path, sample: int) -> None:
    plan = plan_of(corpus, options(sample=sample))
    assert (plan.records, plan.read, plan.read_share) == (1_000, 1_000, 1.0)


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_a_sample_of_a_compressed_file_is_scaled_by_its_compressed_bytes(
    tmp_path: Path, suffix: str, compress: Any
) -> None:
    texts = [noise(240, seed) for seed in range(20_000)]
    plain = write_records(tmp_path / "plain.jsonl", texts)
    packed = tmp_path / f"packed.jsonl{suffix}"
    packed.write_bytes(compress(plain.read_bytes()))
    plan = plan_of(packed, options(sample=10))
    assert 10 <= plan.read < 20_000
    assert plan.records == pytest.approx(20_000, rel=0.25)


def test_a_sample_of_a_stream_is_not_scaled(monkeypatch: pytest.MonkeyPatch, corpus: Path) -> None:
    with corpus.open("rb") as file:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(file))
        plan = plan_of("-", options(sample=10))
    assert (plan.read, plan.records, plan.read_share) == (10, 10, None)


def test_rejects_of_a_sample_are_scaled_and_still_decide_the_exit_code(tmp_path: Path) -> None:
    source = tmp_path / "half.jsonl"
    source.write_bytes(b'{"text": "good"}\n{"text": false }\n' * 1_000)
    plan = plan_of(source, options(sample=100))
    assert plan.rejected == plan.reject_kinds["invalid_text"] == pytest.approx(1_000, rel=0.03)
    assert plan.exit_code == 1


def test_an_empty_source_is_a_plan_of_zeros(tmp_path: Path) -> None:
    source = tmp_path / "empty.jsonl"
    source.touch()
    for given in (options(), options(sample=5, rpm=10)):
        plan = plan_of(source, given)
        assert (plan.records, plan.chunks, plan.tokens, plan.requests, plan.upserts) == (0, 0, 0, 0, 0)
        assert (plan.dollars, plan.disk_bytes, plan.exit_code) == (0.0, 0, 0)


@pytest.mark.parametrize("embedder", ["openai", "wordllama"])
def test_a_plan_writes_nothing(
    corpus: Path, tmp_path: Path, embedder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    plan_of(corpus, embedder=embedder, store="qdrant-edge", store_path=str(tmp_path / "store"))
    assert sorted(tmp_path.rglob("*")) == before


def test_memory_does_not_grow_with_the_source(tmp_path: Path) -> None:
    peaks = []
    for count in (3_000, 15_000):
        source = write_records(tmp_path / f"{count}.jsonl", [prose(30, 1)] * count)
        plan_of(source)
        tracemalloc.start()
        plan_of(source)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_the_watcher_is_told_how_far_the_file_is_read(corpus: Path) -> None:
    seen: list[tuple[int, int | None, int]] = []
    make_plan(
        JobSettings(source=str(corpus), embedder="openai", store="null"),
        options(),
        lambda read, total, records: seen.append((read, total, records)),
    )
    assert seen[-1] == (corpus.stat().st_size, corpus.stat().st_size, 1_000)
    assert seen == sorted(seen)


@pytest.mark.parametrize(
    ("given", "settings", "flag"),
    [
        (options(sample=0), {}, "--sample"),
        (options(batch_size=0), {}, "--batch-size"),
        (options(), {"model": "text-embedding-ada-002", "dimensions": 512}, "ada-002"),
        (options(rpm=0), {}, "--rpm"),
        (options(tpm=-1), {}, "--tpm"),
        (options(throughput=float("inf")), {}, "--throughput"),
        (options(price_per_million=-1), {}, "--price-per-million"),
        (options(), {"chunk_overlap": 600}, "--chunk-overlap"),
        (options(), {"embedder": "nobody"}, "nobody"),
        (options(), {"store": "nowhere"}, "nowhere"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    corpus: Path, given: PlanOptions, settings: dict[str, Any], flag: str
) -> None:
    with pytest.raises(UsageError, match=flag):
        plan_of(corpus, given, **settings)


def test_a_source_that_is_missing_or_breaks_off_is_an_error(tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(TerminalError):
        plan_of(tmp_path / "nothing.jsonl")
    broken = tmp_path / "broken.jsonl.gz"
    broken.write_bytes(gzip.compress(corpus.read_bytes())[:-2_000])
    with pytest.raises(RagingestError):
        plan_of(broken)


@pytest.mark.shared
def test_a_sample_of_a_real_corpus_comes_near_to_all_of_it(shared_data: Path) -> None:
    source = shared_data / "squad_dev" / "docs.json"
    whole, plan = plan_of(source), plan_of(source, options(sample=300))
    assert whole.records == 2_067
    assert plan.records == pytest.approx(2_067, rel=0.15)
    assert plan.tokens == pytest.approx(whole.tokens, rel=0.05)
