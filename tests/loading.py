"""Many points into one store, the way that runs write them, and whether each is there once afterwards."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ragingest.batching import PointPacker, point_sizes
from ragingest.documents import Chunk, Document, EmbeddedBatch, Record
from ragingest.errors import RejectedError, TerminalError
from ragingest.events import Counters
from ragingest.protocols import CollectionSpec, Store, StoreLimits
from ragingest.stores.calls import StoreCalls
from ragingest.storing import Storing

__all__ = ["Load", "Loaded", "load"]

EMBEDDED = 256
"""Points that arrive at once, as from an embedder."""
PAGE = 1000


class Load(NamedTuple):
    """Documents of one chunk each: `metadata_bytes` as JSON, vectors of noise."""

    points: int
    dimensions: int
    metadata_bytes: int

    @property
    def spec(self) -> CollectionSpec:
        return CollectionSpec(self.dimensions, False, "noise", "none")

    def batches(self) -> Iterator[EmbeddedBatch]:
        for start in range(0, self.points, EMBEDDED):
            numbers = range(start, min(start + EMBEDDED, self.points))
            yield EmbeddedBatch([self._chunk(number) for number in numbers], self._dense(start)[: len(numbers)])

    def _chunk(self, number: int) -> Chunk:
        metadata = {"number": number, "filler": ""}
        metadata["filler"] = "x" * max(0, self.metadata_bytes - len(f'{{"number":{number},"filler":""}}'))
        document = Document(f"document-{number}", "", metadata, number.to_bytes(24, "big"), Record(number, 0, b""))
        document.chunks = 1
        return Chunk(document, 0, "", 0)

    def _dense(self, start: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.random.default_rng(start).standard_normal((EMBEDDED, self.dimensions), dtype=np.float32)

    def check(self, store: Store) -> None:
        """Every point is in the store once, as it was sent, and nothing else is.

        Raises:
            AssertionError: what is not.
        """
        seen = np.zeros(self.points, dtype=np.int64)
        vectors: dict[int, Any] = {}
        after = None
        while True:
            page, after = store.scan(after, PAGE)
            for point in page:
                number = int(point.metadata["number"])
                seen[number] += 1
                assert (point.id, point.digest) == (f"document-{number}", number.to_bytes(24, "big").hex())
                if number < EMBEDDED:
                    vectors[number] = point.dense
            if after is None:
                break
        assert seen.min() == seen.max() == 1
        assert store.count() == self.points
        sent = self._dense(0)
        for number, found in vectors.items():
            unit = sent[number] / np.linalg.norm(sent[number])
            np.testing.assert_allclose(found / np.linalg.norm(found), unit, atol=1e-6)


class Request(NamedTuple):
    """One try of an upsert; `rest`: it holds what was left at the end."""

    points: int
    size: int
    rest: bool


class Loaded(NamedTuple):
    """Every try; `counters.upserts_failed` of them failed."""

    requests: list[Request]
    counters: Counters

    def fill(self, limits: StoreLimits) -> list[float]:
        """How much of the limit that binds each request fills that could be full."""
        return [
            max(points / limits.max_points, 0 if limits.max_bytes is None else size / limits.max_bytes)
            for points, size, rest in self.requests
            if not rest
        ]


class _Watched:
    """A store whose upserts are noted."""

    def __init__(self, store: Store, last: int) -> None:
        self._store = store
        self._last = last
        self._lock = threading.Lock()
        self.requests: list[Request] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def upsert(self, batch: EmbeddedBatch) -> None:
        rest = any(chunk.document.record.ordinal == self._last for chunk in batch.chunks)
        with self._lock:
            self.requests.append(Request(len(batch.chunks), sum(point_sizes(batch)), rest))
        self._store.upsert(batch)


def load(store: Store, what: Load) -> Loaded:
    """Write all of it into a prepared store.

    Raises:
        TerminalError: the store has failed for good.
        RejectedError: it has refused a point.
    """
    return asyncio.run(_load(store, what))


async def _load(store: Store, what: Load) -> Loaded:
    watched: Any = _Watched(store, what.points - 1)
    counters = Counters()
    writes = StoreCalls(watched, counters)
    failures: list[Exception] = []

    async def confirm(chunks: Sequence[Chunk]) -> None:
        pass

    async def refuse(chunk: Chunk, error: RejectedError) -> None:
        failures.append(error)

    def give_up(error: TerminalError) -> None:
        failures.append(error)

    packer = PointPacker(store.limits.max_points, store.limits.max_bytes)
    storing = Storing(
        writes, packer, confirm=confirm, refuse=refuse, give_up=give_up, linger=3600, hurry=asyncio.Event()
    )
    running = asyncio.create_task(storing.run())
    for batch in what.batches():
        await storing.put(batch)
    await storing.end()
    await running
    writes.close()
    if failures:
        raise failures[0]
    return Loaded(watched.requests, counters)
