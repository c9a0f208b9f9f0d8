"""Embedding through an API into Qdrant Edge: ragingest with nothing set against the practical limit and the tutorial's way.

    python -m benchmarks.api [TURNS] [TEXTS]

1,536 dimensions, texts of 622 characters, servers on one core and the client on the other (`benchmarks.contest`). At
each latency the bare client gets the concurrency that is best for it, found first. ragingest has everything on:
checkpoint, ledger, books, adaptive concurrency, BM25; without the spool, and at latency 0 also with it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.contest import Contestant, Stage, compare, ratio, stage, take_turn
from benchmarks.measure import RAGINGEST, Others, report

LATENCIES = (0, 50, 500)
CONCURRENCIES = {0: (2, 4, 8), 50: (8, 16, 32), 500: (64, 96, 128)}
OURS = "ragingest"
BARE = "bare, the same points"
BARE_DENSE = "bare, dense only"
SPOOLED = "ragingest, vectors on disk until stored"
NAIVE = "naive, the same points"
NAIVE_DENSE = "naive, dense only"


def bare(name: str, store: str, concurrency: int, *options: str) -> Contestant:
    def command(on: Stage, corpus: Path) -> list[str]:
        return [sys.executable, "-m", "benchmarks.bare", str(corpus), on.url, store, str(concurrency), *options]

    return Contestant(name, command)


def naive(name: str, store: str, *options: str) -> Contestant:
    return Contestant(
        name,
        lambda on, corpus: [sys.executable, "-m", "benchmarks.naive", str(corpus), on.url, store, *options],
    )


def ragingest(name: str, *options: str) -> Contestant:
    def command(on: Stage, corpus: Path) -> list[str]:
        job = [*RAGINGEST, "run", str(corpus), "--embedder", "openai", "--base-url", f"{on.url}/v1"]
        return [*job, *options, "--json", "--quiet"]

    return Contestant(name, command, lambda said: int(json.loads(said)["counters"]["stored"]))


def best_concurrency(on: Stage, texts: int, choices: tuple[int, ...]) -> int:
    """Of the bare client, at the server's present latency."""
    rates = {number: take_turn(bare("bare", "edge", number, "--bm25"), on, texts).rate for number in choices}
    return max(rates, key=lambda number: rates[number])


def at_latency(on: Stage, latency: int, texts: int, turns: int) -> dict[str, Any]:
    on.set_latency(latency)
    best = best_concurrency(on, texts, CONCURRENCIES[latency])
    contestants = [bare(BARE, "edge", best, "--bm25"), ragingest(OURS, "--no-spool")]
    if latency == 0:
        contestants[1:1] = [bare(BARE_DENSE, "edge", best)]
        contestants += [ragingest(SPOOLED), naive(NAIVE_DENSE, "edge")]
    if latency < 500:
        contestants.append(naive(NAIVE, "edge", "--bm25"))
    results = compare(contestants, on, texts, turns)
    ratios = {
        other: {
            figure: ratio(results, OURS, other, figure)._asdict() for figure in ("net_cpu", "cpu", "rate", "peak")
        }
        for other in results
        if other != OURS
    }
    return {"latency_ms": latency, "bare_concurrency": best, "contestants": results, "ratios": ratios}


def main() -> None:
    turns = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    texts = int(sys.argv[2]) if len(sys.argv) > 2 else 30_000
    others = Others()
    with stage() as on:
        rounds = [at_latency(on, latency, texts, turns) for latency in LATENCIES]
    report("api", {"texts": texts, "turns": turns, "rounds": rounds, "others": others.share()})


if __name__ == "__main__":
    main()
