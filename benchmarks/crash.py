"""SIGKILL a run at random moments, resume each time, and see what is in the collection at the end.

python -m benchmarks.crash CORPUS [KILLS] [SEED]
"""

from __future__ import annotations

import gzip
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.measure import RAGINGEST, ragingest, report, scratch
from ragingest.stores.qdrant_edge import QdrantEdgeStore


def main() -> None:
    corpus = Path(sys.argv[1]).absolute()
    kills = int(sys.argv[2]) if len(sys.argv) > 2 else 10
    dice = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 1)  # noqa: S311  # not for secrets
    with gzip.open(corpus, "rb") if corpus.suffix == ".gz" else corpus.open("rb") as file:
        ids = [json.loads(line)["id"] for line in file]
    balanced, embedded, moments = 0, 0, []
    with scratch() as folder:
        checkpoint = folder / "checkpoints" / "job.json"
        for turn in range(kills):
            what = ["resume", "job"] if turn else ["run", str(corpus), "--job", "job"]
            process = subprocess.Popen(
                [*RAGINGEST, *what, "--quiet"], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            time.sleep(1 + dice.random() * 3)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()
            if checkpoint.exists():
                counters = json.loads(checkpoint.read_text())["counters"]
                total = sum(counters[name] for name in ("stored", "unchanged", "duplicate", "rejected"))
                balanced += counters["read"] == total
                moments.append(counters["read"])
        began = time.perf_counter()
        _, summary = ragingest(folder, "resume", "job")
        counters = summary["counters"]
        embedded = counters["embedded"]
        store = QdrantEdgeStore(folder / "ragingest_data", "documents")
        store.open()
        points = store.count()
        missing = 0
        for start in range(0, len(ids), 1000):
            some = ids[start : start + 1000]
            missing += len(set(some) - {point.id for point in store.fetch([(id_, 0) for id_ in some])})
        store.close()
    report(
        "crash",
        {
            "corpus": corpus.name,
            "kills": kills,
            "records read at each kill, by the checkpoint": moments,
            "checkpoints whose counters add up": f"{balanced} of {len(moments)}",
            "ids": len(set(ids)),
            "points": points,
            "ids without their point": missing,
            "read": counters["read"],
            "stored + unchanged + duplicate + rejected": sum(
                counters[name] for name in ("stored", "unchanged", "duplicate", "rejected")
            ),
            "embedded by checkpointed attempts": embedded,
            "seconds of the last resume": round(time.perf_counter() - began, 1),
        },
    )


if __name__ == "__main__":
    main()
