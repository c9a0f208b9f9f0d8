"""Time from the start of `resume` to its first new progress, with a thousand records done and with a million.

    python -m benchmarks.resume [RECORDS]

The job is interrupted by SIGINT once that many are done; then the corpus grows by ten records, and
the whole process of `resume` is timed: it has only these to do.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.corpora import short_records
from benchmarks.measure import RAGINGEST, median, ragingest, report, scratch

MORE = 10


def interrupted(folder: Path, corpus: Path, done: int) -> None:
    """Leave an unfinished job behind in which `done` records are done."""
    lines = corpus.read_bytes().splitlines(keepends=True)
    process = subprocess.Popen(
        [*RAGINGEST, "run", str(corpus), "--job", "job", "--embedder", "null", "--store", "null", "--quiet"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    checkpoint = folder / "checkpoints" / "job.json"
    while process.poll() is None:
        if checkpoint.exists() and json.loads(checkpoint.read_text())["counters"]["read"] >= done:
            process.send_signal(signal.SIGINT)
            process.wait()
        time.sleep(0.01)
    read = json.loads(checkpoint.read_text())["counters"]["read"]
    # What was not read yet is cut off, but for a few records.
    corpus.write_bytes(b"".join(lines[: read + MORE]))


def main() -> None:
    most = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    rows = {}
    for done in (1_000, most):
        seconds, stored = [], 0
        for _ in range(3):
            with scratch() as folder:
                corpus = short_records(folder / "corpus.jsonl", done * 2 + 400_000)
                interrupted(folder, corpus, done)
                # The cut changed the file; its identity in the checkpoint is renewed by hand, so
                # that positions are trusted as after a crash.
                renew(folder / "checkpoints", corpus)
                taken, summary = ragingest(folder, "resume", "job")
                assert summary["attempts"] == 2, summary
                seconds.append(taken.wall)
                stored = max(stored, summary["counters"]["read"])
        rows[f"{done:,} done ({stored:,} at most)"] = f"{median(seconds)} s for the whole process"
    report("resume", rows)


def renew(folder: Path, corpus: Path) -> None:
    import msgspec

    from ragingest.checkpoint.manager import CheckpointManager
    from ragingest.checkpoint.state import PartState
    from ragingest.sources.streams import identify

    manager = CheckpointManager(folder)
    loaded = manager.load("job")
    assert loaded is not None
    part = loaded.checkpoint.parts[0]
    fresh = PartState.of(identify(corpus))
    fresh.done, fresh.ordinal, fresh.offset = part.done, part.ordinal, part.offset
    manager.save(msgspec.structs.replace(loaded.checkpoint, parts=[fresh]))


if __name__ == "__main__":
    main()
