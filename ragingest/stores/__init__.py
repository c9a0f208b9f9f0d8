"""What keeps the points: one file a store. `open_store` is the name table."""

from __future__ import annotations

from pathlib import Path

from ragingest.errors import UsageError
from ragingest.protocols import Store
from ragingest.stores.null import NullStore

__all__ = ["STORES", "open_store"]

STORES = ("qdrant-edge", "null")


def open_store(name: str, path: Path, collection: str) -> Store:
    """The store of that name, not yet prepared.

    Raises:
        UsageError: there is none, or a package is missing.
    """
    if name == "qdrant-edge":
        try:
            import qdrant_edge  # noqa: F401  # the store's own process would fail without a word

            from ragingest.stores.edge_process import EdgeProcess
        except ImportError:
            raise UsageError(
                "the embedded store needs the package qdrant-edge-py", "pip install qdrant-edge-py"
            ) from None
        return EdgeProcess(path, collection)
    if name == "null":
        return NullStore()
    raise UsageError(f"there is no store {name!r}", f"choose one of: {', '.join(STORES)}")
