"""100,000 texts through an API that fails three requests in ten, in every way it can, and refuses one text in 1,000.

    python -m benchmarks.api_faults [TEXTS]

The command that people use, against the loopback server of the tests. Ends with an error unless every good text is
stored once with its own vector, exactly the poisoned ones are rejected, the books are the server's, and no text was
bought again that was answered once.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import structs

from benchmarks.measure import ragingest, report, scratch
from ragingest.protocols import StoredPoint
from ragingest.stores.qdrant_edge import QdrantEdgeStore
from tests.api.running import check_told, disturbances, halvings
from tests.servers import faults
from tests.servers.books import Books
from tests.servers.faults import Fault
from tests.servers.openai_api import control, digest_of, read_books
from tests.servers.process import ServerProcess
from tests.servers.vectors import vector_of

SERVER = "tests.servers.openai_api"
DIMENSIONS = 64
BATCH = 100
POISONED = 1000
"""One text in so many."""
FAILING = 0.3
TIMEOUT = 4.0
HARMLESS = (faults.out_of_order(), faults.slow(TIMEOUT / 4))
"""Answers that are right and look otherwise; one request in a hundred each."""
TOO_SLOW = structs.replace(faults.status(504), delay=1.5 * TIMEOUT)
FAILURES = (*(fault for fault in faults.retryable(retry_after=0.1) if fault.kind != "out_of_order"), TOO_SLOW)
PAGE = 1000


def record(number: int) -> dict[str, str]:
    word = "POISON" if number % POISONED == POISONED // 3 else "Record"
    return {
        "id": f"doc-{number:06}",
        "text": f"{word} {number} tells a short story of its own, and of nothing else.",
    }


def chances() -> list[tuple[float, Fault]]:
    failing = [(FAILING / len(FAILURES), fault) for fault in FAILURES]
    return [*failing, *((0.01, fault) for fault in HARMLESS)]


def points(folder: Path, records: Sequence[dict[str, str]]) -> Iterator[tuple[dict[str, str], StoredPoint]]:
    """Each record with its point, in a collection that holds nothing else."""
    store = QdrantEdgeStore(folder / "ragingest_data", "documents")
    store.open()
    assert store.count() == len(records)
    for start in range(0, len(records), PAGE):
        some = records[start : start + PAGE]
        found = {point.id: point for point in store.fetch([(record["id"], 0) for record in some])}
        for record in some:
            yield record, found[record["id"]]
    store.close()


def check_stored(folder: Path, good: Sequence[dict[str, str]], poisoned: Sequence[dict[str, str]]) -> None:
    for record, point in points(folder, good):
        assert point.text == record["text"]
        assert np.allclose(point.dense, vector_of(record["text"], DIMENSIONS), atol=1e-5)
    lines = (folder / "checkpoints" / "j.rejects.jsonl").read_text().splitlines()
    rejects = {reject["id"]: reject for reject in map(json.loads, lines)}
    assert len(lines) == len(rejects)
    assert rejects.keys() == {record["id"] for record in poisoned}
    assert {reject["error"] for reject in rejects.values()} == {"refused_by_embedder"}


def check_paid(server: Books, good: Sequence[dict[str, str]], batches: int, poisoned: int) -> None:
    assert server.times_answered == {digest_of(record["text"]): 1 for record in good}
    wanted = {fault.kind for fault in (*FAILURES, *HARMLESS)}
    assert wanted == set(server.faults), wanted ^ set(server.faults)
    # Some are sent before they are full, when reading is slow.
    assert server.requests - disturbances(server) <= 1.02 * batches + halvings(BATCH) * poisoned


def figures(taken: Any, books: dict[str, Any], server: Books, texts: int) -> dict[str, object]:
    failed = disturbances(server)
    return {
        "texts": texts,
        "poisoned": texts // POISONED,
        "requests": books["requests"],
        "of them failed": failed,
        "of them refused for a poisoned text": server.by_status["400"],
        "failures by kind": server.faults,
        "429 and 503": books["throttled"],
        "requests in the books, and at the server": f"{books['requests']}, {server.requests}",
        "tokens in the books, and at the server": f"{books['tokens']}, {server.tokens_answered + server.tokens_spoiled}",
        "tokens of answers that never arrived whole": server.tokens_lost,
        "texts bought again after an answer": len(server.paid_again()),
        "seconds": round(taken.wall, 1),
        "texts a second": round(texts / taken.wall),
        "CPU us a text": round(taken.cpu / texts * 1e6),
        "latency p50, p99 (s)": f"{books['latency']['p50']}, {books['latency']['p99']}",
    }


def main() -> None:
    texts = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    os.environ["OPENAI_API_KEY"] = "sk-test"
    records = [record(number) for number in range(texts)]
    good = [record for record in records if "POISON" not in record["text"]]
    poisoned = [record for record in records if "POISON" in record["text"]]
    with ServerProcess(SERVER) as server, scratch() as folder:
        (folder / "corpus.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        control(server.url, odds=chances(), seed=3)
        taken, summary = ragingest(
            folder,
            *("run", "corpus.jsonl", "--job", "j", "--embedder", "openai", "--base-url", f"{server.url}/v1"),
            *("--dimensions", str(DIMENSIONS), "--batch-size", str(BATCH), "--timeout", str(TIMEOUT)),
        )
        counted = read_books(server.url)
        counters = summary["counters"]
        assert (counters["read"], counters["stored"]) == (texts, len(good))
        check_stored(folder, good, poisoned)
    check_told(counters["books"], counted)
    check_paid(counted, good, math.ceil(texts / BATCH), len(poisoned))
    report("api_faults", figures(taken, counters["books"], counted, texts))


if __name__ == "__main__":
    main()
