"""A run of many millions of records that is killed again and again: memory, checkpoint, ledger, time to resume.

    python -m benchmarks.long [RECORDS] [EVERY] [STORE]

By default 10,000,000 records with a SIGKILL each million, constant vectors of 8 dimensions, and the null store, or
qdrant-edge. Each attempt is told, when it is killed, by the peak of its anonymous memory (all processes), the size of
the checkpoint, the bytes of the ledger for a record, and how long it took from its start to the first new record.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.corpora import short_records
from benchmarks.measure import RAGINGEST, anonymous_bytes, report, scratch

RECORDS = 10_000_000
EVERY = 1_000_000
OPTIONS = ("--embedder", "null", "--dimensions", "8", "--no-chunk", "--checkpoint-interval", "0.1")
SAMPLE_SECONDS = 0.02
MEMORY_EACH = 10
"""Looks at the checkpoint for one look at the memory."""


class Attempt(NamedTuple):
    """What one process did until it was killed, or ended."""

    read: int
    first_work: float | None
    peak: int
    checkpoint: int
    ledger: int
    rate: float


class Job:
    def __init__(self, folder: Path, corpus: Path, records: int, store: str) -> None:
        self._folder = folder
        self._records = records
        self._state = folder / "checkpoints"
        where = ("--store", store)
        self._first = ("run", str(corpus), "--job", "long", *OPTIONS, *where)

    def read(self) -> int:
        """How far the checkpoint is."""
        with suppress(FileNotFoundError, json.JSONDecodeError):
            return int(json.loads((self._state / "long.json").read_bytes())["counters"]["read"])
        return 0

    def attempt(self, until: int | None) -> tuple[Attempt, dict[str, Any] | None]:
        """Run or resume; killed as soon as the checkpoint has `until` records, or to the end, with its summary."""
        before = self.read()
        command = ("resume", "long") if before else self._first
        began = time.monotonic()
        process = subprocess.Popen(
            [*RAGINGEST, *command, "--json", "--quiet"],
            cwd=self._folder,
            env={**os.environ, "PYTHONPATH": str(Path.cwd())},
            stdout=subprocess.PIPE,
        )
        first: float | None = None
        peak = looks = 0
        while process.poll() is None:
            read = self.read()
            if first is None and read > before:
                first = time.monotonic() - began
            if looks % MEMORY_EACH == 0:
                peak = max(peak, anonymous_bytes(process.pid))
            looks += 1
            if until is not None and until <= read < self._records:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(SAMPLE_SECONDS)
        out, _ = process.communicate()
        read, seconds = self.read(), time.monotonic() - began
        if process.returncode not in (0, -signal.SIGKILL):
            raise SystemExit(f"it ended with exit code {process.returncode}")
        ledger = sum(path.stat().st_size for path in self._state.glob("long.ledger.sqlite*"))
        checkpoint = (self._state / "long.json").stat().st_size
        told = Attempt(read, first, peak, checkpoint, ledger, (read - before) / seconds)
        return told, json.loads(out) if process.returncode == 0 else None


def main() -> None:
    records = int(sys.argv[1]) if len(sys.argv) > 1 else RECORDS
    every = int(sys.argv[2]) if len(sys.argv) > 2 else EVERY
    store = sys.argv[3] if len(sys.argv) > 3 else "null"
    with scratch() as folder:
        job = Job(folder, short_records(folder / "corpus.jsonl", records), records, store)
        attempts: list[Attempt] = []
        summary = None
        while summary is None:
            until = (job.read() // every + 1) * every
            told, summary = job.attempt(until if until < records else None)
            attempts.append(told)
            print(row(told), flush=True)
    counters = summary["counters"]
    outcomes = ("stored", "unchanged", "duplicate", "rejected")
    resumed = [attempt.first_work for attempt in attempts[1:] if attempt.first_work is not None]
    report(
        f"long_{store}",
        {
            "records": records,
            "kills": len(attempts) - 1,
            "read": counters["read"],
            " + ".join(outcomes): sum(counters[name] for name in outcomes),
            "stored": counters["stored"],
            "embedded": counters["embedded"],
            "peak anonymous MB, attempt by attempt": [round(attempt.peak / 1e6, 1) for attempt in attempts],
            "largest checkpoint, bytes": max(attempt.checkpoint for attempt in attempts),
            "ledger bytes a record": round(attempts[-1].ledger / records, 1),
            "seconds from the start of resume to the first new checkpoint": [round(one, 2) for one in resumed],
            "records a second": [round(attempt.rate) for attempt in attempts],
        },
    )


def row(told: Attempt) -> str:
    first = "-" if told.first_work is None else f"{told.first_work:.2f} s"
    return (
        f"{told.read:>12,} read, {told.peak / 1e6:6.1f} MB, checkpoint {told.checkpoint:,} bytes, "
        f"ledger {told.ledger / max(1, told.read):5.1f} bytes a record, first work after {first}, "
        f"{told.rate:,.0f} records/s"
    )


if __name__ == "__main__":
    main()
