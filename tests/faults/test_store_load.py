"""Some thousand points through faults: requests within the limits and full, nothing lost, nothing twice."""

from __future__ import annotations

import itertools

import pytest

from ragingest.protocols import Store
from ragingest.stores.pgvector import PgvectorStore
from ragingest.stores.pinecone import PineconeStore
from ragingest.stores.qdrant import QdrantStore
from tests.loading import Load, Loaded, load
from tests.servers import faults
from tests.servers.pinecone_server import PineconeConfig, PineconeServer
from tests.servers.postgres import PostgresServer
from tests.servers.postgres_line import FaultyLine, LineFault
from tests.servers.qdrant_server import QdrantServer

LOAD = Load(points=8000, dimensions=1536, metadata_bytes=2000)
THREE_IN_TEN: list[LineFault | None] = ["lost", None, None, "cut", None, None, "cut", None, None, None]

ODDS = [
    (0.05, fault)
    for fault in (
        *(faults.rate_limited(0.01), faults.rate_limited(), faults.status(500), faults.status(503)),
        *(faults.reset_before(), faults.reset_after()),
    )
]


def check(store: Store, done: Loaded) -> None:
    """Requests are within the limits, and full."""
    assert max(request.points for request in done.requests) <= store.limits.max_points
    assert max(request.size for request in done.requests) <= (store.limits.max_bytes or 0)
    assert min(done.fill(store.limits)) >= 0.9


def test_postgres(postgres: PostgresServer) -> None:
    with FaultyLine(postgres.folder) as line:
        store = PgvectorStore(postgres.url(host=line.folder), "docs", "load")
        store.prepare(LOAD.spec)
        line.faults = itertools.cycle(THREE_IN_TEN)
        done = load(store, LOAD)
        line.faults = iter(())
        LOAD.check(store)
        store.close()
    assert done.counters.upserts_failed >= line.struck > 0
    check(store, done)
    postgres.execute("DROP SCHEMA load CASCADE")


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_qdrant(qdrant: QdrantServer, protocol: str) -> None:
    what = LOAD._replace(points=3000)
    qdrant.engine.clear()
    store = QdrantStore(qdrant.url if protocol == "rest" else qdrant.grpc_url, "docs", timeout=60)
    store.prepare(what.spec)
    before = qdrant.books
    qdrant.script(faults.odds(ODDS, seed=5))
    done = load(store, what)
    qdrant.script(None)
    what.check(store)
    store.close()
    assert done.counters.upserts_failed > 0
    check(store, done)
    after = qdrant.books
    assert after.refused_for_size == before.refused_for_size
    assert max(size for _, size in after.upserts[len(before.upserts) :]) <= qdrant.config.max_body_bytes


def test_pinecone(monkeypatch: pytest.MonkeyPatch) -> None:
    what = LOAD._replace(points=3000)
    with PineconeServer(PineconeConfig()) as server:
        monkeypatch.setenv("PINECONE_CONTROLLER_HOST", server.url)
        store = PineconeStore("docs", "load", key="pc-test")
        store.prepare(what.spec)
        server.script(faults.odds(ODDS, seed=5))
        done = load(store, what)
        what.check(store)
        store.close()
        books = server.books
    assert done.counters.upserts_failed >= sum(books.faults.values()) > 0
    check(store, done)
    assert books.too_large == 0
    assert max(size for _, size in books.accepted) <= server.config.limits.request_bytes
