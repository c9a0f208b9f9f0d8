"""SIGKILL a run at random moments, resume each time, and see what is in the collection at the end.

    python -m benchmarks.crash CORPUS [KILLS] [SEED]

The kills fall into the first pass over the corpus. Every text that goes to the embedder is counted in
a file, so that what was embedded twice is known exactly.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import report, scratch
from ragingest.stores.qdrant_edge import QdrantEdgeStore

OUTCOMES = ("stored", "unchanged", "duplicate", "rejected")


def counted(file: Path, arguments: list[str]) -> None:
    """Run the command; append to `file` the number of texts of each call of the embedder, before it is made."""
    from ragingest import cli
    from ragingest.embedders.wordllama import WordLlamaEmbedder

    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    embed = WordLlamaEmbedder.embed

    def counting(self: WordLlamaEmbedder, chunks: Any) -> Any:
        os.write(handle, f"{len(chunks)}\n".encode())
        return embed(self, chunks)

    WordLlamaEmbedder.embed = counting  # type: ignore[method-assign]  # only in this process
    sys.argv = ["ragingest", *arguments]
    cli.main()


def main() -> None:
    corpus = Path(sys.argv[1]).absolute()
    kills = int(sys.argv[2]) if len(sys.argv) > 2 else 10
    dice = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 1)  # noqa: S311  # not for secrets
    with gzip.open(corpus, "rb") if corpus.suffix == ".gz" else corpus.open("rb") as file:
        ids = [json.loads(line)["id"] for line in file]
    balanced, moments = 0, []
    with scratch() as folder:
        checkpoint, log = folder / "checkpoints" / "job.json", folder / "embedded"
        command = [sys.executable, "-m", "benchmarks.crash", "--counted", str(log)]
        turn = 0
        while True:
            what = ["resume", "job"] if checkpoint.exists() else ["run", str(corpus), "--job", "job"]
            process = subprocess.Popen(
                [*command, *what, "--json", "--quiet"],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(Path.cwd())},
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            if turn < kills:
                time.sleep(0.8 + dice.random())
                process.send_signal(signal.SIGKILL)
            output, _ = process.communicate()
            if turn >= kills or process.returncode == 0:
                break
            turn += 1
            if checkpoint.exists():
                counters = json.loads(checkpoint.read_text())["counters"]
                balanced += counters["read"] == sum(counters[name] for name in OUTCOMES)
                moments.append(sum(map(int, log.read_text().split())) if log.exists() else 0)
        counters = json.loads(output)["counters"]
        embedded = sum(map(int, log.read_text().split()))
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
            "kills": turn,
            "texts sent to the embedder by each kill": moments,
            "checkpoints whose counters add up": f"{balanced} of {len(moments)}",
            "ids": len(set(ids)),
            "points": points,
            "ids without their point": missing,
            "read": counters["read"],
            " + ".join(OUTCOMES): sum(counters[name] for name in OUTCOMES),
            "embedded twice": embedded - len(set(ids)),
            "embedded twice, a kill": round((embedded - len(set(ids))) / max(1, turn)),
        },
    )


if __name__ == "__main__":
    if sys.argv[1] == "--counted":
        counted(Path(sys.argv[2]), sys.argv[3:])
    else:
        main()
