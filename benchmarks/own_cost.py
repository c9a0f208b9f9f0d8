"""CPU and memory of ragingest itself: no embedder, no store, the ledger and the checkpoint on.

python -m benchmarks.own_cost [RECORDS]
"""

from __future__ import annotations

import sys

from benchmarks.corpora import short_records
from benchmarks.measure import ragingest, report, scratch


def main() -> None:
    most = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    rows = {}
    for count in (most // 100, most // 10, most):
        with scratch() as folder:
            corpus = short_records(folder / "corpus.jsonl", count)
            taken, summary = ragingest(folder, "run", str(corpus), "--embedder", "null", "--store", "null")
            assert summary["counters"]["stored"] == count
            ledger = sum(path.stat().st_size for path in (folder / "checkpoints").glob("*.ledger.sqlite*"))
            checkpoint = next((folder / "checkpoints").glob("*.json")).stat().st_size
            rows[f"{count:,} records"] = {
                "CPU us a record": round(taken.cpu / count * 1e6, 1),
                "records a second": round(count / taken.wall),
                "peak anonymous MB": round(taken.peak / 1e6, 1),
                "ledger bytes a record": round(ledger / count, 1),
                "checkpoint bytes": checkpoint,
            }
    report("own_cost", rows)


if __name__ == "__main__":
    main()
