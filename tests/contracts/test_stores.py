"""The contract of stores, on every store there is."""

from __future__ import annotations

from pathlib import Path

from ragingest.protocols import Store
from ragingest.settings import StoreSettings
from ragingest.stores import open_store
from ragingest.stores.qdrant_edge import QdrantEdgeStore

from .store_contract import StoreContract


class TestQdrantEdge(StoreContract):
    def build(self, folder: Path, collection: str) -> Store:
        return QdrantEdgeStore(folder, collection)


class TestQdrantEdgeInItsOwnProcess(StoreContract):
    def build(self, folder: Path, collection: str) -> Store:
        return open_store(StoreSettings(store_path=str(folder), collection=collection))
