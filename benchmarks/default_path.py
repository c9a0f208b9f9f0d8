"""Rate of the default path (WordLlama, BM25, Qdrant Edge) against the embedder alone on the same texts.

    python -m benchmarks.default_path CORPUS [TURNS]

The yardstick embeds the same texts in batches of 256 in one process, once dense and once with BM25,
and does nothing else. Rates are inside each process, from the first record to the last, without
the start of the interpreter; the two run in turn.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import median, ragingest, report, scratch


def alone(corpus: Path) -> dict[str, float]:
    """Texts a second of the embedder by itself."""
    from ragingest.documents import Chunk, Document, Record
    from ragingest.embedders.bm25 import WithBM25
    from ragingest.embedders.wordllama import WordLlamaEmbedder

    with gzip.open(corpus, "rb") if corpus.suffix == ".gz" else corpus.open("rb") as file:
        texts = [json.loads(line)["text"] for line in file]
    document = Document("", "", {}, b"", Record(0, 0, b""))
    chunks = [Chunk(document, 0, text, 0) for text in texts]
    dense = WordLlamaEmbedder()
    both = WithBM25(dense)
    dense.embed(chunks[:256])

    def rate(embed: Callable[[list[Chunk]], object]) -> float:
        began = time.perf_counter()
        for start in range(0, len(chunks), 256):
            embed(chunks[start : start + 256])
        return len(chunks) / (time.perf_counter() - began)

    return {"dense": rate(dense.embed), "dense and BM25": rate(both.embed)}


def main() -> None:
    corpus = Path(sys.argv[1]).absolute()
    turns = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    ratios: dict[str, list[float]] = {"dense": [], "dense and BM25": []}
    rates, peaks, cpu = [], [], []
    for _ in range(turns):
        with scratch() as folder:
            taken, summary = ragingest(folder, "run", str(corpus))
        yardstick = json.loads(
            subprocess.run(
                [sys.executable, "-m", "benchmarks.default_path", "--alone", str(corpus)],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        rates.append(summary["records_per_second"])
        peaks.append(taken.peak / 1e6)
        cpu.append(taken.cpu / summary["counters"]["read"] * 1e6)
        for name, alone_rate in yardstick.items():
            ratios[name].append(summary["records_per_second"] / alone_rate)
    name = corpus.name.split(".")[0]
    report(
        f"default_path_{name}",
        {
            "corpus": corpus.name,
            "turns": turns,
            "records a second": median(rates),
            "ratio to the embedder alone (dense)": median(ratios["dense"]),
            "ratio to the embedder alone (dense and BM25)": median(ratios["dense and BM25"]),
            "CPU us a record, all processes": median(cpu),
            "peak anonymous MB, all processes": median(peaks),
        },
    )


if __name__ == "__main__":
    if sys.argv[1] == "--alone":
        print(json.dumps(alone(Path(sys.argv[2]))))
    else:
        main()
