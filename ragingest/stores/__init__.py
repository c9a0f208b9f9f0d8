"""What keeps the points: one file a store. `open_store` is the name table."""

from __future__ import annotations

import os
from pathlib import Path

from ragingest.errors import UsageError
from ragingest.protocols import Store
from ragingest.settings import StoreSettings
from ragingest.stores.null import NullStore

__all__ = ["STORES", "open_store"]

STORES = ("qdrant-edge", "qdrant", "pinecone", "pgvector", "jsonl", "parquet", "null")


TIMEOUT_SECONDS = 60.0


def open_store(settings: StoreSettings, timeout: float = TIMEOUT_SECONDS) -> Store:
    """The store of those settings, not yet prepared; `timeout` in seconds, for one request to a server.

    Raises:
        UsageError: there is none, a package or a key is missing, or it cannot do what the settings ask for.
    """
    name = settings.store
    if name in ("qdrant-edge", "jsonl", "parquet", "null") and (
        settings.url is not None or settings.namespace is not None
    ):
        flag = "--url" if settings.url is not None else "--namespace"
        raise UsageError(f"the store {name} has no use for {flag}", "leave it out, or give another --store")
    if name == "qdrant-edge":
        try:
            import qdrant_edge  # noqa: F401  # the store's own process would fail without a word

            from ragingest.stores.edge_process import EdgeProcess
        except ImportError:
            raise UsageError(
                "the embedded store needs the package qdrant-edge-py", "pip install qdrant-edge-py"
            ) from None
        return EdgeProcess(Path(settings.store_path), settings.collection, drop_text=settings.drop_text)
    if name == "pgvector":
        return _pgvector(settings, timeout)
    if name == "qdrant":
        return _qdrant(settings, timeout)
    if name == "pinecone":
        return _pinecone(settings, timeout)
    if name in ("jsonl", "parquet"):
        return _files(settings)
    if name == "null":
        return NullStore()
    raise UsageError(f"there is no store {name!r}", f"choose one of: {', '.join(STORES)}")


def _qdrant(settings: StoreSettings, timeout: float) -> Store:
    if settings.namespace is not None:
        raise UsageError(
            "the store qdrant has no use for --namespace", "leave it out, or give another --collection"
        )
    if settings.url is None:
        raise UsageError("the store qdrant needs --url", "write --url http://localhost:6333")
    try:
        from ragingest.stores.qdrant import QdrantStore
    except ImportError:
        raise UsageError(
            "the store qdrant needs the packages qdrant-client and orjson", "pip install 'ragingest[qdrant]'"
        ) from None
    return QdrantStore(settings.url, settings.collection, timeout=timeout, drop_text=settings.drop_text)


def _pgvector(settings: StoreSettings, timeout: float) -> Store:
    if settings.url is None:
        raise UsageError("the store pgvector needs --url", "write --url postgresql://host/database")
    try:
        from ragingest.stores.pgvector import PgvectorStore
    except ImportError:
        raise UsageError(
            "the store pgvector needs the package psycopg", "pip install 'ragingest[pgvector]'"
        ) from None
    return PgvectorStore(
        settings.url, settings.collection, settings.namespace, timeout=timeout, drop_text=settings.drop_text
    )


def _pinecone(settings: StoreSettings, timeout: float) -> Store:
    try:
        from ragingest.stores.pinecone import PineconeStore
    except ImportError:
        raise UsageError(
            "the store pinecone needs the packages pinecone and grpcio", "pip install 'ragingest[pinecone]'"
        ) from None
    return PineconeStore(
        settings.collection,
        settings.namespace,
        host=settings.url,
        key=os.environ.get("PINECONE_API_KEY"),
        timeout=timeout,
        drop_text=settings.drop_text,
    )


def _files(settings: StoreSettings) -> Store:
    from ragingest.stores.files import Export, FileStore

    export: Export
    try:
        if settings.store == "jsonl":
            from ragingest.stores.jsonl import JsonLines

            export = JsonLines()
        else:
            from ragingest.stores.parquet import Parquet

            export = Parquet()
    except ImportError as error:
        raise UsageError(
            f"the store {settings.store} needs the package {error.name}",
            f"pip install 'ragingest[{settings.store}]'",
        ) from None
    return FileStore(Path(settings.store_path), settings.collection, export, drop_text=settings.drop_text)
