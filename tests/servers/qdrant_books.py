"""What the Qdrant server on loopback counted, and what can be changed while it runs."""

from __future__ import annotations

import threading
from collections import Counter

import msgspec

from tests.servers.faults import Fault

__all__ = ["Bookkeeper", "QdrantBooks", "QdrantConfig", "QdrantControl"]


class QdrantConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one server. The defaults are Qdrant's documented limits."""

    api_key: str | None = None
    """The key to be sent; None asks for none."""
    max_body_bytes: int = 32 * 2**20
    oversize_status: int = 400
    """Qdrant's own for a body over the limit; proxies in front of it answer 413."""
    polls: int = 2
    """How often a collection is shown as yellow after its graph was switched on."""
    keeps_metadata: bool = True
    """Whether it is a Qdrant that has metadata of collections (1.16)."""
    script: list[Fault | None] | None = None
    odds: list[tuple[float, Fault]] | None = None
    seed: int = 0


class QdrantControl(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Changes to a running server; what is left out stays as it is. An empty script takes the faults away."""

    script: list[Fault | None] | None = None
    odds: list[tuple[float, Fault]] | None = None
    seed: int = 0
    endpoints: list[str] | None = None
    statuses: list[str] | None = None


class QdrantBooks(msgspec.Struct, frozen=True, kw_only=True):
    """One consistent copy.

    `requests` counts by protocol and endpoint ("grpc upsert"), `answers` likewise with the status or what
    took its place ("rest upsert 200", "rest upsert reset"), `faults` by kind. `upserts` has the (points, bytes) of
    each upsert that was applied; bytes are those of the body or the message.
    """

    grpc_url: str
    requests: dict[str, int]
    answers: dict[str, int]
    faults: dict[str, int]
    upserts: list[tuple[int, int]]
    refused_for_size: int
    most_in_flight: int

    @property
    def points(self) -> int:
        """Points applied, those of repeated requests included."""
        return sum(points for points, _ in self.upserts)


class Bookkeeper:
    """Writes the books; callable from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[str] = Counter()
        self._answers: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._upserts: list[tuple[int, int]] = []
        self._refused_for_size = 0
        self._in_flight = 0
        self._most_in_flight = 0

    def received(self, where: str) -> None:
        with self._lock:
            self._requests[where] += 1
            self._in_flight += 1
            self._most_in_flight = max(self._most_in_flight, self._in_flight)

    def answered(self, where: str, how: str, fault: Fault | None) -> None:
        with self._lock:
            self._answers[f"{where} {how}"] += 1
            self._in_flight -= 1
            if fault is not None:
                self._faults[fault.kind] += 1

    def applied(self, points: int, size: int) -> None:
        with self._lock:
            self._upserts.append((points, size))

    def too_large(self) -> None:
        with self._lock:
            self._refused_for_size += 1

    def copy(self, grpc_url: str) -> QdrantBooks:
        with self._lock:
            return QdrantBooks(
                grpc_url=grpc_url,
                requests=dict(self._requests),
                answers=dict(self._answers),
                faults=dict(self._faults),
                upserts=list(self._upserts),
                refused_for_size=self._refused_for_size,
                most_in_flight=self._most_in_flight,
            )
