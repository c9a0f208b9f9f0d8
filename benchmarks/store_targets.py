"""Stores to measure: each with something real behind it, and with three writes in ten that fail."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

from ragingest.protocols import Store
from ragingest.settings import StoreSettings
from ragingest.stores import open_store
from ragingest.stores.pinecone import PineconeStore
from tests.servers.faults import rate_limited, reset_after, reset_before, status
from tests.servers.pinecone_server import IndexConfig, PineconeConfig, PineconeControl, PineconeProcess
from tests.servers.postgres import PostgresServer
from tests.servers.postgres_line import FaultyLine, LineFault
from tests.servers.qdrant_server import QdrantConfig, QdrantProcess

__all__ = ["TARGETS", "Target"]


class Target(NamedTuple):
    """Opens the store, with faults or without; `faults` says in words what they are."""

    store: Callable[[bool], Store]
    faults: str


ODDS = [
    (0.05, fault)
    for fault in (rate_limited(0.01), rate_limited(), status(500), status(503), reset_before(), reset_after())
]
IN_WORDS = "429 with Retry-After and without, 500, 503, a reset before the write and one after it, 1 in 20 each"


@contextmanager
def _pgvector(_: Path) -> Iterator[Target]:
    faults: list[LineFault | None] = ["lost", None, None, "cut", None, None, "cut", None, None, None]
    with PostgresServer() as server, FaultyLine(server.folder) as line:

        def store(faulty: bool) -> Store:
            line.faults = itertools.cycle(faults) if faulty else iter(())
            return open_store(StoreSettings(store="pgvector", url=server.url(host=line.folder if faulty else None)))

        yield Target(store, "the connection ends before the COMMIT (1 in 10) or after it was applied (2 in 10)")


@contextmanager
def _qdrant(protocol: str, _: Path) -> Iterator[Target]:
    with QdrantProcess() as server:
        url = server.url if protocol == "rest" else server.grpc_url

        def store(faulty: bool) -> Store:
            server.control(odds=ODDS, seed=1) if faulty else server.control(script=[])
            return open_store(StoreSettings(store="qdrant", url=url))

        yield Target(store, IN_WORDS)
        books = server.books
        assert books.refused_for_size == 0
        assert max(size for _, size in books.upserts) <= QdrantConfig().max_body_bytes


@contextmanager
def _pinecone(_: Path) -> Iterator[Target]:
    with PineconeProcess(PineconeConfig(indexes=[IndexConfig(name="documents", dimension=1536)])) as server:

        def store(faulty: bool) -> Store:
            server.control(PineconeControl(odds=ODDS, seed=1) if faulty else PineconeControl(script=[]))
            return PineconeStore("documents", host=server.host("documents"), key="pc-test")

        yield Target(store, IN_WORDS)
        assert server.books.too_large == 0


@contextmanager
def _folder(name: str, folder: Path) -> Iterator[Target]:
    yield Target(lambda _faulty: open_store(StoreSettings(store=name, store_path=str(folder))), "none")


TARGETS: dict[str, Callable[[Path], AbstractContextManager[Target]]] = {
    "pgvector": _pgvector,
    "pinecone": _pinecone,
    "qdrant-rest": lambda folder: _qdrant("rest", folder),
    "qdrant-grpc": lambda folder: _qdrant("grpc", folder),
    "qdrant-edge": lambda folder: _folder("qdrant-edge", folder),
    "jsonl": lambda folder: _folder("jsonl", folder),
    "parquet": lambda folder: _folder("parquet", folder),
}
