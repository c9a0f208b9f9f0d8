"""The contract of stores, on every store there is."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from ragingest.protocols import Store
from ragingest.settings import StoreSettings
from ragingest.stores import open_store, pinecone_wire
from ragingest.stores.pgvector import PgvectorStore
from ragingest.stores.pinecone import PineconeStore
from ragingest.stores.qdrant import QdrantStore
from ragingest.stores.qdrant_edge import QdrantEdgeStore
from tests.servers.pinecone_server import PineconeServer
from tests.servers.postgres import PostgresServer
from tests.servers.qdrant_server import QdrantServer

from .store_contract import StoreContract


class TestQdrantEdge(StoreContract):
    def build(self, folder: Path, collection: str) -> Store:
        return QdrantEdgeStore(folder, collection)


class TestQdrantEdgeInItsOwnProcess(StoreContract):
    def build(self, folder: Path, collection: str) -> Store:
        return open_store(StoreSettings(store_path=str(folder), collection=collection))


class TestPgvector(StoreContract):
    sparse = False
    nul = False

    @pytest.fixture(autouse=True)
    def server(self, postgres: PostgresServer) -> None:
        self.postgres = postgres

    def build(self, folder: Path, collection: str) -> Store:
        schema = f"Schema of {hashlib.sha1(str(folder).encode(), usedforsecurity=False).hexdigest()}"
        return PgvectorStore(self.postgres.url(), collection, schema)


class TestQdrantOverRest(StoreContract):
    def build(self, folder: Path, collection: str) -> Store:
        return QdrantStore(self.server.url, collection, timeout=30)

    @pytest.fixture(autouse=True)
    def server_without_collections(self, qdrant: QdrantServer) -> None:
        qdrant.engine.clear()
        self.server = qdrant


class TestQdrantOverGrpc(TestQdrantOverRest):
    unsigned = False

    def build(self, folder: Path, collection: str) -> Store:
        return QdrantStore(self.server.grpc_url, collection, timeout=30)


class TestJsonLines(StoreContract):
    searches = False

    def build(self, folder: Path, collection: str) -> Store:
        return open_store(StoreSettings(store="jsonl", store_path=str(folder), collection=collection))


class TestParquet(StoreContract):
    searches = False

    def build(self, folder: Path, collection: str) -> Store:
        return open_store(StoreSettings(store="parquet", store_path=str(folder), collection=collection))


class TestPinecone(StoreContract):
    sparse = False
    nested = False
    longest_text = 30_000

    @pytest.fixture(autouse=True)
    def _server(self, pinecone: PineconeServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PINECONE_CONTROLLER_HOST", pinecone.url)

    def build(self, folder: Path, collection: str) -> Store:
        place = hashlib.sha1(str(folder).encode(), usedforsecurity=False).hexdigest()
        return PineconeStore(f"{collection}-{place[:12]}", "v1", key="pc-test")

    def point_id(self, document_id: str, chunk: int) -> str:
        return pinecone_wire.point_id(document_id, chunk)


class TestPineconeByTheHostOfItsIndex(TestPinecone):
    """Without the control plane; collections are namespaces of one index."""

    tells = False

    @pytest.fixture(autouse=True)
    def _server(self, pinecone: PineconeServer) -> None:
        self.host = pinecone.host("shared")

    def build(self, folder: Path, collection: str) -> Store:
        return PineconeStore(collection, f"{folder} {collection}", host=self.host, key="pc-test")
