"""Where the CPU of a run over an API into Qdrant Edge goes: by the thread that spends it, and the store's process.

    python -m benchmarks.parts [TURNS] [TEXTS]

The clock of each thread is read ten times a second inside the run, so no part is slowed down by being looked at. Beside
it the same steps of the bare client, by leaving them out: no store, dense points only, the same points. Medians of turns.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress

from benchmarks.api import bare
from benchmarks.contest import WARM_UP, Stage, stage, take_turn
from benchmarks.measure import Others, report, scratch

PARTS = {
    "MainThread": "event loop: requests, answers, decoding, packing",
    "read": "reading, checking, digests",
    "asyncio": "BM25",
    "chunk": "chunking",
    "ledger": "ledger and checkpoint",
    "store": "handing points to the store's process",
}
STORE = "the store's process"
CONCURRENCY = 4
SECONDS = 0.1


class ThreadClocks:
    """CPU seconds of all threads of this process, those that have ended included, by the beginnings of their names."""

    def __init__(self) -> None:
        self._last: dict[tuple[int, str], float] = {}
        self._ended = threading.Event()
        threading.Thread(target=self._watch, name="clocks", daemon=True).start()

    def _watch(self) -> None:
        while not self._ended.wait(SECONDS):
            self.look()

    def look(self) -> None:
        for thread in threading.enumerate():
            if thread.ident is not None:
                with suppress(OSError):  # it has ended
                    seconds = time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
                    self._last[thread.ident, thread.name] = seconds

    def by_part(self) -> dict[str, float]:
        self.look()
        self._ended.set()
        found: dict[str, float] = defaultdict(float)
        for (_, name), seconds in self._last.items():
            found[PARTS.get(name.split("_")[0], "others")] += seconds
        return found


def timed(corpus: str, url: str) -> dict[str, float]:
    """Run the command in this process; CPU seconds by part."""
    from ragingest import cli

    clocks = ThreadClocks()
    job = ["run", corpus, "--embedder", "openai", "--base-url", f"{url}/v1", "--no-spool", "--quiet"]
    sys.argv = ["ragingest", *job]
    with suppress(SystemExit):
        cli.main()
    parts = clocks.by_part()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    parts[STORE] = children.ru_utime + children.ru_stime
    return parts


def of_ragingest(on: Stage, texts: int) -> dict[str, float]:
    """CPU microseconds a text by part, the start not counted."""
    taken = []
    for size in (WARM_UP, texts):
        with scratch() as folder:
            command = [sys.executable, "-m", "benchmarks.parts", "--timed", str(on.corpus(size)), on.url]
            said = subprocess.run(
                command, cwd=folder, check=True, capture_output=True, text=True, preexec_fn=lambda: _pin(on)
            )
            taken.append(defaultdict(float, json.loads(said.stdout.splitlines()[-1])))
    start, whole = taken
    return {part: round((whole[part] - start[part]) / (texts - WARM_UP) * 1e6, 1) for part in whole}


def _pin(on: Stage) -> None:
    os.sched_setaffinity(0, on.cores.client)


def of_bare(on: Stage, texts: int) -> dict[str, float]:
    """CPU microseconds a text of the bare client's steps."""
    ways = {"none": ("none",), "dense": ("edge",), "same": ("edge", "--bm25")}
    cpu = {}
    for name, (store, *options) in ways.items():
        contestant = bare(name, store, CONCURRENCY, *options)
        start, whole = take_turn(contestant, on, WARM_UP), take_turn(contestant, on, texts)
        cpu[name] = (whole.cpu - start.cpu) / (texts - WARM_UP) * 1e6
    return {
        "reading, requests, answers, decoding": round(cpu["none"], 1),
        "dense points into the store": round(cpu["dense"] - cpu["none"], 1),
        "BM25, and its vectors into the store": round(cpu["same"] - cpu["dense"], 1),
    }


def main() -> None:
    turns = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    texts = int(sys.argv[2]) if len(sys.argv) > 2 else 20_000
    others = Others()
    with stage() as on:
        ours, theirs = zip(*((of_ragingest(on, texts), of_bare(on, texts)) for _ in range(turns)), strict=True)
    figures = {"texts": texts, "turns": turns, "ragingest": medians(ours), "bare": medians(theirs)}
    report("parts", {**figures, "others": others.share()})


def medians(turns: Sequence[dict[str, float]]) -> dict[str, float]:
    return {part: round(statistics.median(turn[part] for turn in turns), 1) for part in turns[0]}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--timed"]:
        print(json.dumps(timed(*sys.argv[2:])))
    else:
        main()
