"""SIGKILL at random moments of a run through an API, with the store down half of the time: no vector that had arrived
is bought again, and every request is on the books."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ragingest.stores.qdrant import QdrantStore
from tests.api.running import BATCH, DIMENSIONS, Place, answered, make, texts_of
from tests.e2e.command import SECONDS
from tests.faults.harness import wait_for
from tests.servers import faults
from tests.servers.faults import Fault, RequestInfo
from tests.servers.qdrant_server import QdrantServer
from tests.servers.vectors import vector_of

COUNT = 3000
KILLS = 10
CONCURRENCY = 4
IN_FLIGHT = CONCURRENCY * BATCH
TOKENS_IN_FLIGHT = IN_FLIGHT * 20


@pytest.fixture
def store(qdrant: QdrantServer) -> Iterator[QdrantServer]:
    qdrant.engine.clear()
    yield qdrant
    qdrant.script(None, endpoints=None)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with Place.opened(tmp_path) as place:
        yield place


def down_after(upserts: int) -> Callable[[RequestInfo], Fault | None]:
    """The store answers until so many upserts have come, and then nobody any more."""
    seen = 0

    def fault(request: RequestInfo) -> Fault | None:
        nonlocal seen
        seen += request.endpoint == "upsert"
        return faults.status(503) if seen > upserts else None

    return fault


def holds(store: QdrantServer, texts: list[str]) -> set[str]:
    """Those of the texts that are in the collection, each with its own vector, and nothing else."""
    client = QdrantStore(store.url, "docs", timeout=30)
    client.open()
    found: set[str] = set()
    after = None
    while True:
        page, after = client.scan(after, 1000)
        for point in page:
            assert point.text is not None
            assert abs(float(point.dense @ vector_of(point.text, DIMENSIONS)) - 1) < 1e-5
            assert point.text not in found
            found.add(point.text)
        if after is None:
            break
    client.close()
    assert found <= set(texts)
    return found


def test_killed_ten_times_with_the_store_down_half_of_the_time_nothing_that_had_arrived_is_bought_again(
    place: Place, store: QdrantServer
) -> None:
    records = make(COUNT)
    texts = texts_of(records)
    chance = random.Random(11)  # noqa: S311  # repeatable
    place.server.set_latency(0.02)
    into = ("--store", "qdrant", "--url", store.url, "--collection", "docs", "--upsert-size", "40")
    arguments = place.arguments(records, *into, "--max-concurrency", str(CONCURRENCY))
    kills = 0
    paid: dict[str, int] = {}
    for turn in range(KILLS):
        store.script(down_after(chance.randint(0, 6)) if turn % 2 else None, endpoints=None)
        requests = place.server.books.requests + chance.randint(1, 8)
        upserts = store.books.requests.get("rest upsert", 0) + chance.randint(2, 8)
        process = place.start(*arguments)
        try:
            kills += wait_for(
                process,
                lambda requests=requests, upserts=upserts: (  # type: ignore[misc]  # bound at once
                    place.server.books.requests >= requests or store.books.requests.get("rest upsert", 0) >= upserts
                ),
            )
        finally:
            process.kill()
            process.wait(SECONDS)
        arguments = ["resume", "j"]
        place.server.wait_until(lambda books: books.in_flight == 0)
        safe = place.on_disk(texts) | place.in_ledger(records)
        assert paid.keys() <= safe
        now = answered(place.server.books, safe)
        assert {text: now[text] for text in paid} == paid
        paid = now
    assert kills == KILLS

    store.script(None, endpoints=None)
    result = place.resume()
    assert result.counters["stored"] == COUNT
    assert holds(store, texts) == set(texts)
    server, books = place.server.books, result.document["counters"]["books"]
    assert paid
    assert answered(server, paid) == paid
    assert server.texts_answered - COUNT <= KILLS * IN_FLIGHT
    # A request is on the books before it is sent; of one that the process did not live to see answered, nothing else.
    assert server.requests <= books["requests"] <= server.requests + KILLS * CONCURRENCY
    assert 0 <= server.requests - books["answered"] <= KILLS * CONCURRENCY
    assert server.tokens_answered - KILLS * TOKENS_IN_FLIGHT <= books["tokens"] <= server.tokens_answered
    left = {path.name for path in (place.folder / "checkpoints").iterdir()}
    assert left == {"j.json", "j.json.bak", "j.ledger.sqlite", "j.lock", "completed"}
