"""Keeps nothing but a count. An instrument, to measure everything but the store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

from ragingest.documents import EmbeddedBatch, Fault
from ragingest.errors import UsageError
from ragingest.protocols import (
    DEFAULT_LAYOUT,
    Abilities,
    CollectionSpec,
    Hit,
    Query,
    SearchMode,
    StoredPoint,
    StoreLimits,
)
from ragingest.settings import Layout

__all__ = ["NullStore"]


class NullStore:
    name = "null"
    limits = StoreLimits(max_points=512, concurrency=2)
    abilities = Abilities(search=False)
    forgets = True
    memory_bytes = 0

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    def prepare(self, spec: CollectionSpec, layout: Layout = DEFAULT_LAYOUT) -> CollectionSpec:
        return spec

    def describe(self, spec: CollectionSpec) -> None:
        pass

    def open(self) -> CollectionSpec:
        raise UsageError("the null store keeps nothing to read")

    def encode(self, batch: EmbeddedBatch) -> list[bytes | Fault] | None:
        return None

    def upsert(self, batch: EmbeddedBatch) -> None:
        with self._lock:
            self._count += len(batch.chunks)

    def delete(self, points: Sequence[tuple[str, int]]) -> None:
        pass

    def flush(self) -> None:
        pass

    def count(self) -> int:
        return self._count

    def fetch(self, points: Sequence[tuple[str, int]]) -> list[StoredPoint]:
        return []

    def scan(self, after: str | None, limit: int) -> tuple[list[StoredPoint], str | None]:
        return [], None

    def search(
        self, query: Query, limit: int, mode: SearchMode = "dense", filters: Mapping[str, str] | None = None
    ) -> list[Hit]:
        raise UsageError("the null store keeps nothing to search")

    def finish(self, report: Callable[[float], None] = lambda _share: None) -> None:
        pass

    def close(self) -> None:
        pass
