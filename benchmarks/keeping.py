"""What checkpoint and ledger cost over the number of documents, and what the tutorials' checkpoint costs.

    python -m benchmarks.keeping [DOCUMENTS]

No embedder and no store, so that nothing else hides them: everything of the ledger and every save of the checkpoint is
timed inside the run, as CPU of its thread and as time. Beside it, per document, what a run into Qdrant Edge over an
API takes (`benchmarks.api`), for the share. The tutorials' checkpoint writes the list of all ids that are done as
JSON after each batch of 100.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.corpora import short_records
from benchmarks.measure import RESULTS, Others, report, scratch

TIMED = ("lookup", "seen", "touch", "intend", "commit", "snapshot", "save")
BATCH = 100
NAIVE_SIZES = (1_000, 3_000, 10_000, 30_000)


def timed(corpus: str) -> dict[str, float]:
    """Run the command in this process; seconds and CPU seconds inside the journal, and of all of it."""
    from ragingest import cli
    from ragingest.checkpoint.journal import Journal

    spent = {"seconds": 0.0, "cpu": 0.0}
    lock = threading.Lock()

    def timing(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            began, cpu = time.perf_counter(), time.thread_time()
            try:
                return method(*args)
            finally:
                with lock:
                    spent["seconds"] += time.perf_counter() - began
                    spent["cpu"] += time.thread_time() - cpu

        return call

    for name in TIMED:
        setattr(Journal, name, timing(getattr(Journal, name)))
    sys.argv = ["ragingest", "run", corpus, "--embedder", "null", "--store", "null", "--quiet"]
    began = time.perf_counter()
    with suppress(SystemExit):
        cli.main()
    return {**spent, "run_seconds": time.perf_counter() - began, "run_cpu": time.process_time()}


def of_ragingest(documents: int) -> dict[str, float]:
    with scratch() as folder:
        corpus = short_records(folder / "corpus.jsonl", documents)
        command = [sys.executable, "-m", "benchmarks.keeping", "--timed", str(corpus)]
        said = subprocess.run(command, cwd=folder, env=_environment(), check=True, capture_output=True, text=True)
        spent = json.loads(said.stdout.splitlines()[-1])
        checkpoint = next((folder / "checkpoints").glob("*.json")).read_bytes()
        assert json.loads(checkpoint)["counters"]["stored"] == documents
        ledger = sum(path.stat().st_size for path in (folder / "checkpoints").glob("*.ledger.sqlite*"))
    return {
        "documents": documents,
        "seconds": round(spent["seconds"], 3),
        "cpu_us": round(spent["cpu"] / documents * 1e6, 2),
        "seconds_us": round(spent["seconds"] / documents * 1e6, 2),
        "run_cpu_us": round(spent["run_cpu"] / documents * 1e6, 2),
        "checkpoint_bytes": len(checkpoint),
        "ledger_bytes_a_document": round(ledger / documents, 1),
    }


def of_the_tutorials(documents: int) -> dict[str, float]:
    with scratch() as folder:
        done: list[str] = []
        began = time.perf_counter()
        for start in range(0, documents, BATCH):
            done += [f"doc-{number:08}" for number in range(start, start + BATCH)]
            (folder / "processed.json").write_text(json.dumps({"processed": done}))
        seconds = time.perf_counter() - began
    return {
        "documents": documents,
        "seconds": round(seconds, 3),
        "seconds_us": round(seconds / documents * 1e6, 2),
    }


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}


def main() -> None:
    most = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    others = Others()
    sizes = [size for size in (10_000, 100_000, 1_000_000, 10_000_000) if size <= most]
    ours = [of_ragingest(size) for size in sizes]
    theirs = [of_the_tutorials(size) for size in NAIVE_SIZES]
    figures: dict[str, Any] = {"ragingest": ours, "tutorials": theirs, "others": others.share()}
    api = RESULTS / "api.json"
    if api.exists():
        rounds = json.loads(api.read_text())["rounds"]
        whole = rounds[0]["contestants"]["ragingest"]["net_cpu_us"]["median"]
        figures["cpu_us_of_a_run_over_an_api"] = whole
        figures["share_of_such_a_run"] = [round(row["cpu_us"] / whole, 4) for row in ours]
    report("keeping", figures)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--timed"]:
        print(json.dumps(timed(sys.argv[2])))
    else:
        main()
