"""Peak anonymous memory of the default path, with the embedded store and without one, once and ten times the corpus.

python -m benchmarks.memory CORPUS
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.corpora import repeated
from benchmarks.measure import ragingest, report, scratch


def main() -> None:
    corpus = Path(sys.argv[1]).absolute()
    rows = {}
    for store in ("null", "qdrant-edge"):
        for times in (1, 10):
            with scratch() as folder:
                longer = repeated(corpus, folder / "corpus.jsonl", times)
                taken, summary = ragingest(folder, "run", str(longer), "--store", store)
                count = summary["counters"]["read"]
                rows[f"{store}, {count:,} records"] = {
                    "peak anonymous MB": round(taken.peak / 1e6, 1),
                    "records a second": round(summary["records_per_second"]),
                }
    report(f"memory_{corpus.name.split('.')[0]}", rows)


if __name__ == "__main__":
    main()
