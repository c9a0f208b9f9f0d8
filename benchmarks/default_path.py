"""Rate of the default path (WordLlama, BM25, Qdrant Edge) against its three necessary steps with nothing around them.

    python -m benchmarks.default_path [CORPUS] [TURNS]

The yardstick has the same two cores: one process tokenises, averages and makes BM25 vectors of texts that are in memory,
256 at a time, while another makes points of the same texts and upserts them. Nothing is read, handed over, checked or
written down. Its rate is that of both together, from their common start to the end of the slower. Rates of ragingest
are its own, from the first record to the last, without the start of the interpreter. The two run in turn.

Without CORPUS: 60,000 passages of 622 characters.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.corpora import passages, write_lines
from benchmarks.measure import Others, Spread, ragingest, report, scratch
from ragingest.documents import Chunk, Document, EmbeddedBatch, Record
from ragingest.embedders.bm25 import BM25
from ragingest.embedders.wordllama import DIMENSIONS, WordLlamaEmbedder
from ragingest.protocols import CollectionSpec
from ragingest.stores.columns import columns_of
from ragingest.stores.qdrant_edge import QdrantEdgeStore

BATCH = 256
PASSAGES = 60_000
DIFFERENT_TERMS = 8 * BATCH


def read_chunks(corpus: Path) -> list[Chunk]:
    with gzip.open(corpus, "rb") if corpus.suffix == ".gz" else corpus.open("rb") as file:
        records = [json.loads(line) for line in file]
    chunks = []
    for number, record in enumerate(records):
        text = record.pop("text")
        metadata = record.pop("metadata", {})
        document = Document(record.pop("id"), text, {**record, **metadata}, b"\0" * 24, Record(number, 0, b""))
        document.chunks = 1
        chunks.append(Chunk(document, 0, text, len(text)))
    return chunks


def embedding(chunks: list[Chunk]) -> float:
    """Tokenise, average, BM25; CPU seconds."""
    dense, sparse = WordLlamaEmbedder(), BM25()
    dense.embed(chunks[:BATCH])
    _wait_for_the_other()
    began = time.process_time()
    for start in range(0, len(chunks), BATCH):
        some = chunks[start : start + BATCH]
        dense.embed(some)
        sparse.encode([chunk.text for chunk in some])
    return time.process_time() - began


def upserting(chunks: list[Chunk]) -> float:
    """Make points and upsert; CPU seconds. Vectors are noise, terms are those of other texts of the corpus."""
    vectors = np.random.default_rng(1).standard_normal((BATCH, DIMENSIONS), dtype=np.float32)
    different = BM25().encode([chunk.text for chunk in chunks[:DIFFERENT_TERMS]])
    terms = [different[row % len(different)] for row in range(len(chunks))]
    with scratch() as folder:
        store = QdrantEdgeStore(folder, "documents")
        store.prepare(CollectionSpec(DIMENSIONS, True, "noise", "none"))
        _wait_for_the_other()
        began = time.process_time()
        for start in range(0, len(chunks), BATCH):
            some = chunks[start : start + BATCH]
            batch = EmbeddedBatch(some, vectors[: len(some)], terms[start : start + len(some)])
            store.upsert_columns(columns_of(batch))
        store.flush()
        seconds = time.process_time() - began
        store.close()
    return seconds


def _wait_for_the_other() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


def three_steps(corpus: Path) -> tuple[float, dict[str, float]]:
    """Seconds until both were done, and the CPU seconds of each."""
    command = [sys.executable, "-m", "benchmarks.default_path"]
    processes = {
        step: subprocess.Popen([*command, step, str(corpus)], stdin=-1, stdout=-1, text=True)
        for step in ("--embedding", "--upserting")
    }
    for process in processes.values():
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    began = time.perf_counter()
    for process in processes.values():
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = {step: float(process.communicate()[0]) for step, process in processes.items()}
    return time.perf_counter() - began, said


def main() -> None:
    given = Path(sys.argv[1]).absolute() if len(sys.argv) > 1 and not sys.argv[1].isdigit() else None
    turns = next((int(argument) for argument in sys.argv[1:] if argument.isdigit()), 3)
    others = Others()
    ours, theirs, peaks, cpu, cpu_needed = [], [], [], [], []
    with scratch() as base:
        corpus = given or write_lines(base / "passages.jsonl", passages(PASSAGES))
        for _ in range(turns):
            with scratch() as folder:
                taken, summary = ragingest(folder, "run", str(corpus))
            count = summary["counters"]["read"]
            seconds, steps = three_steps(corpus)
            ours.append(summary["records_per_second"])
            theirs.append(count / seconds)
            peaks.append(taken.peak / 1e6)
            cpu.append(taken.cpu / count * 1e6)
            cpu_needed.append({step: used / count * 1e6 for step, used in steps.items()})
    report(
        f"default_path_{corpus.name.split('.')[0]}",
        {
            "corpus": corpus.name,
            "records": count,
            "turns": turns,
            "records_per_second": Spread.of(ours)._asdict(),
            "three_steps_per_second": Spread.of(theirs)._asdict(),
            "ratio": Spread.of([one / other for one, other in zip(ours, theirs, strict=True)])._asdict(),
            "cpu_us": Spread.of(cpu)._asdict(),
            "cpu_us_embedding": Spread.of([each["--embedding"] for each in cpu_needed])._asdict(),
            "cpu_us_upserting": Spread.of([each["--upserting"] for each in cpu_needed])._asdict(),
            "peak_mb": Spread.of(peaks)._asdict(),
            "others": others.share(),
        },
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--embedding"]:
        print(embedding(read_chunks(Path(sys.argv[2]))))
    elif sys.argv[1:2] == ["--upserting"]:
        print(upserting(read_chunks(Path(sys.argv[2]))))
    else:
        main()
