"""A store in memory that fails as it is told: for what stands around stores."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

from ragingest.documents import EmbeddedBatch, Fault
from ragingest.errors import TOO_LARGE, RejectedError
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

__all__ = ["POISON", "UNKEEPABLE", "ScriptedStore"]

UNKEEPABLE = "!unkeepable!"
"""In a text: the store says so before it is sent."""
POISON = "!poison!"
"""In a text: the server refuses the batch that holds it."""


class ScriptedStore:
    """Its points are the bytes of their texts; `script` holds what becomes of the next writes (None: done).

    A server's true limit of bytes, `takes`, may lie below the one that it is thought to have.
    """

    name = "scripted"
    forgets = False
    memory_bytes = 0

    def __init__(
        self,
        limits: StoreLimits,
        script: Iterable[Exception | None] = (),
        *,
        abilities: Abilities = Abilities(sparse=False, search=False),  # noqa: B008  # frozen
        takes: int | None = None,
    ) -> None:
        self.limits = limits
        self.abilities = abilities
        self.points: dict[tuple[str, int], str] = {}
        self.upserts: list[int] = []
        """Bytes of each write that was done."""
        self.calls = 0
        self.most = 0
        """Writes under way at once."""
        self.finished = 0
        self.on_call: Callable[[], None] = lambda: None
        self._script = iter(script)
        self._takes = takes
        self._under_way = 0
        self._lock = threading.Lock()

    def prepare(self, spec: CollectionSpec, layout: Layout = DEFAULT_LAYOUT) -> CollectionSpec:
        self.spec, self.layout = spec, layout
        return spec

    def describe(self, spec: CollectionSpec) -> None:
        self.spec = spec

    def open(self) -> CollectionSpec:
        return self.spec

    def encode(self, batch: EmbeddedBatch) -> list[bytes | Fault] | None:
        return [
            Fault("unkeepable", chunk.text) if UNKEEPABLE in chunk.text else chunk.text.encode()
            for chunk in batch.chunks
        ]

    def upsert(self, batch: EmbeddedBatch) -> None:
        assert batch.wire is not None
        with self._lock:
            self.calls += 1
            self._under_way += 1
            self.most = max(self.most, self._under_way)
            step = next(self._script, None)
        try:
            self.on_call()
            if step is not None:
                raise step
            size = sum(map(len, batch.wire))
            if self._takes is not None and size > self._takes:
                raise RejectedError(TOO_LARGE, f"{size} bytes are too many")
            if any(POISON in chunk.text for chunk in batch.chunks):
                raise RejectedError("poisoned", "a point is poisoned")
            with self._lock:
                self.upserts.append(size)
                for chunk in batch.chunks:
                    self.points[chunk.document.id, chunk.number] = chunk.text
        finally:
            with self._lock:
                self._under_way -= 1

    def delete(self, points: Sequence[tuple[str, int]]) -> None:
        self.calls += 1
        step = next(self._script, None)
        if step is not None:
            raise step
        for point in points:
            self.points.pop(point, None)

    def flush(self) -> None:
        pass

    def count(self) -> int:
        return len(self.points)

    def fetch(self, points: Sequence[tuple[str, int]]) -> list[StoredPoint]:
        raise NotImplementedError

    def scan(self, after: str | None, limit: int) -> tuple[list[StoredPoint], str | None]:
        raise NotImplementedError

    def search(
        self, query: Query, limit: int, mode: SearchMode = "dense", filters: Mapping[str, str] | None = None
    ) -> list[Hit]:
        raise NotImplementedError

    def finish(self, report: Callable[[float], None] = lambda _share: None) -> None:
        report(0.5)
        self.finished += 1

    def close(self) -> None:
        pass
