"""Some thousand points through faults: requests within the limits and full, nothing lost, nothing twice."""

from __future__ import annotations

import itertools

from ragingest.stores.pgvector import PgvectorStore
from tests.loading import Load, load
from tests.servers.postgres import PostgresServer
from tests.servers.postgres_line import FaultyLine, LineFault

LOAD = Load(points=8000, dimensions=1536, metadata_bytes=2000)
THREE_IN_TEN: list[LineFault | None] = ["lost", None, None, "cut", None, None, "cut", None, None, None]


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
    assert max(request.points for request in done.requests) <= store.limits.max_points
    assert max(request.size for request in done.requests) <= (store.limits.max_bytes or 0)
    assert min(done.fill(store.limits)) >= 0.9
    postgres.execute("DROP SCHEMA load CASCADE")
