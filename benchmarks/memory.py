"""Peak anonymous memory over the number of documents: an API and WordLlama without a store, and with Qdrant Edge.

    python -m benchmarks.memory [DOCUMENTS]

Each path at a hundredth, a tenth and all of so many short documents; sampled twenty times a second over all processes.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from benchmarks.api import ragingest as over_api
from benchmarks.contest import Contestant, stage, take_turn
from benchmarks.corpora import short_records
from benchmarks.measure import Others, ragingest, report, scratch

APIS: dict[str, tuple[str, ...]] = {
    "API, 100 texts a request, no store": ("--batch-size", "100"),
    "API, 2,048 texts a request, no store": (),
}


def main() -> None:
    most = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    sizes = (most // 100, most // 10, most)
    others = Others()
    rows: dict[str, list[dict[str, Any]]] = {}
    with stage() as on:
        cores = os.sched_getaffinity(0) | on.cores.client
        for size in sizes:
            on.corpora[size] = short_records(on.folder / f"short-{size}.jsonl", size)
        on.corpora[100] = short_records(on.folder / "short-100.jsonl", 100)
        for name, options in APIS.items():
            contestant: Contestant = over_api(name, "--store", "null", *options)
            turns = [(size, take_turn(contestant, on, size)) for size in sizes]
            rows[name] = [_row(size, turn.peak, turn.cpu) for size, turn in turns]
        for name, store in (("WordLlama, no store", "null"), ("WordLlama, Qdrant Edge", "qdrant-edge")):
            rows[name] = []
            for size in sizes:
                with scratch() as folder:
                    taken, summary = ragingest(folder, "run", str(on.corpora[size]), "--store", store, cpus=cores)
                assert summary["counters"]["stored"] == size
                rows[name].append(_row(size, taken.peak, taken.cpu))
    report("memory", {"paths": rows, "others": others.share()})


def _row(documents: int, peak: int, cpu: float) -> dict[str, Any]:
    return {"documents": documents, "peak_mb": round(peak / 1e6, 1), "cpu_us": round(cpu / documents * 1e6, 1)}


if __name__ == "__main__":
    main()
