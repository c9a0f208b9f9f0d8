"""The plain laws of embedding over an API: the rate against latency, against texts a request, against requests at once.

    python -m benchmarks.laws [TEXTS]

ragingest without a store, one thing changed at a time, beside what the law says. And the example that everybody knows:
1,000 documents at 50 ms a request, one at a time by `openai`, and by ragingest with nothing set.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from benchmarks.api import bare, ragingest
from benchmarks.contest import Contestant, Stage, Turn, stage, take_turn
from benchmarks.corpora import passages, write_lines
from benchmarks.measure import Others, report, run, scratch

LATENCIES = (0, 20, 50, 200, 1000)
SIZES = (1, 10, 50, 100, 500, 2048)
SIZES_LATENCY = 20
CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64)
CONCURRENCIES_LATENCY = 200
EXAMPLE = 1000
EXAMPLE_LATENCY = 50
AT_MOST_REQUESTS = 3000

ONE_AT_A_TIME = """
import json, sys
from openai import OpenAI

client = OpenAI(api_key="sk-test", base_url=sys.argv[2] + "/v1")
for line in open(sys.argv[1]):
    client.embeddings.create(model="text-embedding-3-small", input=json.loads(line)["text"])
"""


def row(turn: Turn, **what: Any) -> dict[str, Any]:
    return {**what, "docs_per_second": round(turn.rate), "requests": turn.requests, "seconds": round(turn.wall, 2)}


def no_store(*options: str) -> Contestant:
    return ragingest("ragingest", "--store", "null", *options)


def against_latency(on: Stage, texts: int) -> list[dict[str, Any]]:
    rows = []
    for latency in LATENCIES:
        on.set_latency(latency)
        rows.append(row(take_turn(no_store(), on, texts), latency_ms=latency))
    return rows


def against_size(on: Stage, texts: int) -> list[dict[str, Any]]:
    on.set_latency(SIZES_LATENCY)
    rows = []
    for size in SIZES:
        turn = take_turn(no_store("--batch-size", str(size)), on, min(texts, AT_MOST_REQUESTS * size))
        rows.append(row(turn, texts_a_request=size))
    return rows


def against_concurrency(on: Stage, texts: int) -> list[dict[str, Any]]:
    """Of the bare client, whose concurrency is fixed, and of ragingest held to so many requests at once."""
    on.set_latency(CONCURRENCIES_LATENCY)
    rows = []
    for number in CONCURRENCIES:
        some = min(texts, 2000 * number)
        theirs = take_turn(bare("bare", "none", number), on, some)
        ours = take_turn(no_store("--max-concurrency", str(number), "--batch-size", "100"), on, some)
        rows.append(row(ours, requests_at_once=number, bare_docs_per_second=round(theirs.rate)))
    return rows


def example(on: Stage) -> dict[str, Any]:
    on.set_latency(EXAMPLE_LATENCY)
    corpus = write_lines(on.folder / "example.jsonl", passages(EXAMPLE))
    with scratch() as folder:
        alone = run([sys.executable, "-c", ONE_AT_A_TIME, str(corpus), on.url], folder, cpus=on.cores.client)
    turns = [take_turn(ragingest("ragingest"), on, EXAMPLE) for _ in range(3)]
    ours = sorted(turns, key=lambda turn: turn.wall)[1]
    return {
        "documents": EXAMPLE,
        "latency_ms": EXAMPLE_LATENCY,
        "one_at_a_time_seconds": round(alone.wall, 2),
        "ragingest_seconds": round(ours.wall, 2),
        "of_them_from_the_first_request": round(EXAMPLE / ours.rate, 2),
        "requests": ours.requests,
    }


def main() -> None:
    texts = int(sys.argv[1]) if len(sys.argv) > 1 else 30_000
    others = Others()
    began = time.monotonic()
    with stage() as on:
        figures = {
            "texts": texts,
            "latency": against_latency(on, texts),
            "size": against_size(on, texts),
            "size_latency_ms": SIZES_LATENCY,
            "concurrency": against_concurrency(on, texts),
            "concurrency_latency_ms": CONCURRENCIES_LATENCY,
            "example": example(on),
        }
    report("laws", {**figures, "others": others.share(), "took_seconds": round(time.monotonic() - began)})


if __name__ == "__main__":
    main()
