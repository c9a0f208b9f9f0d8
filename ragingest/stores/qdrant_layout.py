"""What Qdrant keeps of a chunk, embedded or as a server: one layout, so that points can be copied as they are.

Vectors of a point: the unnamed dense one, and the sparse one `bm25`. Payload: `id`, `chunk`, `chunks` (how
many the document has), `text`, `digest` (of the document's content, hexadecimal), `metadata`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ragingest.errors import TerminalError, UsageError
from ragingest.protocols import CollectionSpec, Hit, Query, SearchMode, StoredPoint

__all__ = [
    "DENSE",
    "PREFETCH_FACTOR",
    "SPARSE",
    "check_dimensions",
    "check_mode",
    "described",
    "hit_of",
    "path_of",
    "stored_point",
    "wanted_values",
]

DENSE = ""
SPARSE = "bm25"
PREFETCH_FACTOR = 4

_INTEGER = re.compile(r"-?\d{1,19}", re.ASCII).fullmatch
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*").fullmatch


def described(spec: CollectionSpec) -> str:
    return f"{spec.dimensions}-dimensional vectors {'with' if spec.sparse else 'without'} BM25"


def check_dimensions(collection: str, spec: CollectionSpec, given: int) -> None:
    """Refuse vectors of `given` dimensions in a collection of others.

    Raises:
        TerminalError: names both.
    """
    if given != spec.dimensions:
        raise TerminalError(
            f"the collection {collection} holds {described(spec)}, not {given}-dimensional ones",
            "give another --collection, or the embedder that made this one",
        )


def check_mode(collection: str, spec: CollectionSpec, query: Query, mode: SearchMode) -> None:
    """Refuse a search by words where there are none.

    Raises:
        UsageError: the collection or the query has no sparse vectors.
    """
    if mode != "dense" and (query.sparse is None or not spec.sparse):
        raise UsageError(f"the collection {collection} has no sparse vectors", "search with --dense")


def stored_point(point_id: object, payload: Mapping[str, Any], vector: Any) -> StoredPoint:
    """A point as it was read: `vector` is a list of floats, or a mapping of names to vectors."""
    sparse = None
    if isinstance(vector, dict):
        found = vector.get(SPARSE)
        if found is not None:
            sparse = dict(zip(found.indices, found.values, strict=True))
        vector = vector[DENSE]
    return StoredPoint(
        str(point_id),
        payload["id"],
        payload["chunk"],
        payload["chunks"],
        payload["text"],
        payload["digest"],
        payload.get("metadata") or {},
        np.asarray(vector, dtype=np.float32),
        sparse,
    )


def hit_of(score: float, payload: Mapping[str, Any]) -> Hit:
    return Hit(score, payload["id"], payload["chunk"], payload["text"], payload.get("metadata") or {})


def wanted_values(filters: Mapping[str, str] | None) -> list[list[tuple[str, str | int | bool]]]:
    """For each filter the (path, value) of which one must match: text may stand for a number or a truth value.

    Raises:
        UsageError: a key that no path can name.
    """
    return [
        [(path, value) for path in _paths(key) for value in _values(text)] for key, text in (filters or {}).items()
    ]


def path_of(key: str) -> str:
    """The engine's path to a metadata key, nested as its dots say.

    Raises:
        UsageError: a key that no path can name.
    """
    return _paths(key)[0]


def _values(text: str) -> list[str | int | bool]:
    values: list[str | int | bool] = [text]
    if _INTEGER(text) and -(1 << 63) <= int(text) < 1 << 63:
        values.append(int(text))
    if text in ("true", "false"):
        values.append(text == "true")
    return values


def _paths(key: str) -> list[str]:
    """The engine's paths to a key: nested as its dots say, or one key that has dots in it."""
    if '"' in key or "\\" in key:
        raise UsageError(
            f"the store cannot filter by the key {key!r}", "keys with quotation marks or backslashes cannot be used"
        )
    paths = [key.split("."), [key]] if "." in key else [[key]]
    return [
        ".".join(["metadata", *(part if _PLAIN_KEY(part) else f'"{part}"' for part in parts)]) for parts in paths
    ]
