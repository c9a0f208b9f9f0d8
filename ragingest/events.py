"""What the engine tells: progress screen, plain lines, JSON and tests consume the same events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from ragingest.costs.books import Books

__all__ = [
    "CheckpointSaved",
    "Counters",
    "Emit",
    "Event",
    "Finishing",
    "Noticed",
    "Paused",
    "Progressed",
    "Resumed",
    "RunFinished",
    "RunStarted",
    "Summary",
]


class Counters(msgspec.Struct, kw_only=True):
    """The books of a run. At every moment: read = stored + unchanged + duplicate + rejected.

    The first five count records whose outcome is confirmed; a record in flight is in none of them.
    """

    read: int = 0
    stored: int = 0
    unchanged: int = 0
    duplicate: int = 0
    rejected: int = 0
    chunks: int = 0
    """Points confirmed by the store."""
    embedded: int = 0
    """Texts sent to the embedder, those of an interrupted batch included."""
    embed_calls: int = 0
    upserts: int = 0
    """Writes sent to the store, those that failed and were sent again included."""
    upserts_failed: int = 0
    revised: int = 0
    """Points whose metadata alone was new: their vectors were kept."""
    deleted: int = 0
    """Points removed, because their document has become shorter or is gone."""
    removed: int = 0
    """Documents removed, because they have disappeared from the source."""
    nameless: int = 0
    """Rejected records of which not even the id could be read."""

    books: Books = msgspec.field(default_factory=Books)
    """Requests to an embeddings API."""

    def copy(self) -> Counters:
        """A snapshot that does not change any more."""
        books = msgspec.structs.replace(self.books, latencies=dict(self.books.latencies))
        return msgspec.structs.replace(self, books=books)

    @property
    def balanced(self) -> bool:
        return self.read == self.stored + self.unchanged + self.duplicate + self.rejected


class Summary(msgspec.Struct, kw_only=True):
    """What a run did: the same on the screen, as JSON and in the checkpoint."""

    job: str
    run: int
    status: str
    source: str
    collection: str
    store: str
    embedder: str
    model: str
    counters: Counters
    seconds: float
    """Of all attempts at this run."""
    attempts: int
    started: str
    updated: str
    checkpoint: str
    rejects: str | None = None
    """The rejects file, if anything was rejected."""
    reject_kinds: dict[str, int] = {}
    peak_memory_bytes: int = 0
    message: str = ""
    hint: str = ""
    exit_code: int = 0

    @property
    def rate(self) -> float:
        """Records a second."""
        return self.counters.read / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class RunStarted:
    job: str
    run: int
    source: str
    collection: str
    total_bytes: int | None
    resumed: bool
    done_records: int
    rereads: bool
    """The source is read again up to the first record that is not done."""


@dataclass(frozen=True, slots=True)
class Progressed:
    """After every confirmed batch. `counters` is the live object: read it, do not keep it."""

    counters: Counters
    bytes_read: int
    """Of the file, compressed if it is."""
    in_flight: int
    """Documents that are read and not confirmed."""


@dataclass(frozen=True, slots=True)
class Paused:
    """Reading waits. `used` and `limit` in bytes."""

    used: int
    limit: int
    where: str


@dataclass(frozen=True, slots=True)
class Resumed:
    waited: float


@dataclass(frozen=True, slots=True)
class CheckpointSaved:
    seconds: float


@dataclass(frozen=True, slots=True)
class Noticed:
    """Something that a person should know once."""

    message: str


@dataclass(frozen=True, slots=True)
class Finishing:
    """The store builds its indexes: the share that is done."""

    share: float


@dataclass(frozen=True, slots=True)
class RunFinished:
    summary: Summary


Event = RunStarted | Progressed | Paused | Resumed | CheckpointSaved | Noticed | Finishing | RunFinished
Emit = Callable[[Event], None]
