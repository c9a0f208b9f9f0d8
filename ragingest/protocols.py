"""The three things that can be exchanged: where records come from, what embeds them, what keeps them.

Blocking methods are called in worker threads, never on the event loop. An adapter turns its SDK's
errors into `TransientError`, `TerminalError` and `RejectedError`; nothing else may leave it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ragingest.checkpoint.ranges import RangeSet
from ragingest.documents import Chunk, EmbeddedBatch, Fault, Record, Vectors
from ragingest.settings import Layout

__all__ = [
    "Abilities",
    "Answer",
    "BatchAnswer",
    "BatchRequests",
    "BatchStatus",
    "CollectionSpec",
    "Embedder",
    "EmbedderLimits",
    "EmbeddingRequests",
    "Hit",
    "PartInfo",
    "Query",
    "RateNews",
    "RecordBlock",
    "SearchMode",
    "Source",
    "Store",
    "StoreLimits",
    "StoredPoint",
    "Tokenizer",
]

SearchMode = Literal["hybrid", "dense", "sparse"]


class PartInfo(NamedTuple):
    """What identifies one part of a source: name, size in bytes, mtime in ns, digest of samples of it.

    `size` is None for a stream, whose positions cannot be trusted from one run to the next.
    """

    name: str
    size: int | None = None
    mtime_ns: int | None = None
    digest: str = ""


class RecordBlock(NamedTuple):
    """Consecutive records of one part as read: positions [start, end) and the byte behind the last.

    `progress` counts bytes of the file itself, compressed if it is.
    """

    part: int
    start: int
    end: int
    end_offset: int
    progress: int
    records: list[Record]


class Source(Protocol):
    """Records in order. Used by one thread at a time, once from its position to its end."""

    @property
    def name(self) -> str: ...

    @property
    def unit(self) -> str:
        """What a position counts, in words: line, element."""
        ...

    @property
    def total_bytes(self) -> int | None:
        """Size of the file, the end of the progress bar; None if it is not known."""
        ...

    @property
    def rereads(self) -> bool:
        """Whether resuming reads what lies before the position again (compressed input, streams)."""
        ...

    def parts(self) -> list[PartInfo]:
        """Identify the parts; cheap, whatever their size.

        Raises:
            TerminalError: the source is missing or cannot be read.
        """
        ...

    def matches(self, part: PartInfo) -> bool:
        """Whether the positions of an earlier run over `part` still mean the same records."""
        ...

    def seek(self, part: int, ordinal: int, offset: int, done: RangeSet) -> None:
        """Start at record `ordinal`, known to begin at byte `offset`; pass over what is `done`.

        At most once, before reading. `done` does not change afterwards.
        """
        ...

    def read_block(self) -> RecordBlock | None:
        """Read some more records; None at the end. May block.

        A block has at least one position. Those that are done, or hold no record (a blank line),
        count in `start` and `end` but not in `records`.

        Raises:
            TerminalError: the source broke here; all that came before has been returned.
        """
        ...

    def stop(self) -> None:
        """Make a `read_block` that waits for input return None soon. Called from any thread."""
        ...

    def close(self) -> None: ...


class Tokenizer(Protocol):
    """Counts as the embedder does, so that chunks fit it."""

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.intp]]:
        """Token ids of each text, without special tokens. Called in threads, by several at once."""
        ...

    def splitter_backend(self) -> Any:
        """The `tokenizers.Tokenizer` behind it, for the text splitter."""
        ...


@dataclass(frozen=True, slots=True)
class EmbedderLimits:
    """What one call takes: texts, bytes of all texts, tokens of one text (None: no limit)."""

    max_texts: int
    max_bytes: int
    max_tokens_per_text: int | None = None
    concurrency: int = 1


class Embedder(Protocol):
    """Texts to vectors. `embed` is called from several threads at once, up to `limits.concurrency`.

    Deterministic: the same chunks give the same vectors, so repeating a call is safe.
    """

    @property
    def name(self) -> str: ...

    @property
    def model(self) -> str: ...

    @property
    def dimensions(self) -> int: ...

    @property
    def sparse(self) -> bool:
        """Whether batches carry sparse vectors."""
        ...

    @property
    def limits(self) -> EmbedderLimits: ...

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    def embed(self, chunks: Sequence[Chunk]) -> EmbeddedBatch:
        """Embed at most `limits.max_texts` chunks; row i belongs to chunk i. All vectors are finite.

        Raises:
            RejectedError: a chunk of the batch can never be embedded.
            TransientError: trying again may work.
            TerminalError: it will not.
        """
        ...

    def embed_query(self, text: str) -> Query:
        """Embed a search text."""
        ...

    def close(self) -> None: ...


class RateNews(NamedTuple):
    """What an answer says of the server's budgets: a minute's limit, what is left, seconds until all is back."""

    requests: float | None = None
    requests_left: float | None = None
    requests_reset: float | None = None
    tokens: float | None = None
    tokens_left: float | None = None
    tokens_reset: float | None = None


class Answer(NamedTuple):
    """Vectors of one request, shape (n, d), in the order of its texts; tokens that the server counted."""

    vectors: Vectors
    tokens: int
    news: RateNews = RateNews()


class EmbeddingRequests(Protocol):
    """An embeddings API: one call is one request on the wire, tried once. Used on one event loop."""

    @property
    def name(self) -> str: ...

    @property
    def model(self) -> str: ...

    async def request(self, texts: Sequence[str]) -> Answer:
        """Embed `texts`; may be under way many times at once. Safe to repeat, but each answer is paid for.

        Raises:
            TransientError: trying again may work; `retry_after` if the server said when.
            RejectedError: the batch holds a text that will never be accepted, or is too large as a whole.
            TerminalError: no request will be accepted: key, model, money.
        """
        ...

    async def close(self) -> None: ...


class BatchStatus(NamedTuple):
    """What the server says of a batch.

    `ended` is None while it is under way; `succeeded` counts requests, where the server does.
    """

    ended: Literal["completed", "failed", "expired", "cancelled"] | None
    output_file: str | None = None
    error_file: str | None = None
    succeeded: int | None = None
    full: bool = False
    """It failed because the server's queue has no room for it."""
    message: str = ""
    """Why it failed."""


class BatchAnswer(NamedTuple):
    """What came of one text of a batch: its vector, shape (d,), or `error`, or neither if it was not tried.

    `succeeded`: the server counts it as answered, even if there is no vector in it.
    """

    digest: bytes
    vector: npt.NDArray[np.float32] | None = None
    tokens: int = 0
    succeeded: bool = False
    error: Exception | None = None


class BatchRequests(Protocol):
    """An API that takes files of requests and answers within a day. Each call is one request, tried once.

    Raises (every call):
        TransientError: trying again may work; what was sent may have been done all the same.
        RejectedError: the server will never accept this file or batch.
        TerminalError: it will accept none: key, model, money.
    """

    @property
    def name(self) -> str: ...

    def line(self, digest: bytes, text: str) -> bytes:
        """The request for one text, as a line of a request file."""
        ...

    async def upload(self, path: Path, name: str) -> str:
        """Send a request file; its id."""
        ...

    async def find_file(self, name: str, since: float) -> str | None:
        """The id of the file of that name, uploaded after `since` (seconds since 1970); None if there is none."""
        ...

    async def create(self, file_id: str, marker: str) -> str:
        """Order a batch, marked so that it can be found; its id."""
        ...

    async def find_batch(self, marker: str, since: float) -> str | None:
        """The id of the batch so marked, created after `since`; None if there is none."""
        ...

    async def status(self, batch_id: str) -> BatchStatus: ...

    async def cancel(self, batch_id: str) -> None: ...

    async def download(self, file_id: str, path: Path) -> None:
        """Write the results into a file, which may hold a part after an error. Also raises OSError."""
        ...

    async def delete_file(self, file_id: str) -> None: ...

    def answers(self, path: Path) -> Iterator[BatchAnswer]:
        """What stands in a downloaded file, line by line. Called in a thread.

        Raises:
            TransientError: the file is cut, or something else; as it is, it is of no use.
        """
        ...

    async def close(self) -> None: ...


class Query(NamedTuple):
    """A search text embedded: shape (d,), and its sparse form if the embedder has one."""

    dense: npt.NDArray[np.float32]
    sparse: Any | None = None


class Hit(NamedTuple):
    """One chunk found by a search, best score first."""

    score: float
    id: str
    chunk: int
    text: str
    metadata: Mapping[str, Any]


class StoredPoint(NamedTuple):
    """A point read back: what the contract suite and `verify` compare."""

    point_id: str
    id: str
    chunk: int
    chunks: int
    text: str
    digest: str
    metadata: Mapping[str, Any]
    dense: Vectors
    sparse: dict[int, float] | None = None


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """What one upsert takes: points, and bytes of them as `Store.encode` makes them (None: no limit).

    `concurrency` bounds the upserts under way; with `adaptive` it is found out how many of them pay.
    """

    max_points: int
    max_bytes: int | None = None
    concurrency: int = 1
    adaptive: bool = False


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a store can do, so that a command can say what it cannot before it begins.

    `sparse`: keeps sparse vectors, and finds by words and by both. `search`: finds at all. `exact`:
    metadata comes back just as it was, numbers and all. `layout`: the fields of `Layout` that it heeds.
    """

    sparse: bool = True
    search: bool = True
    exact: bool = True
    layout: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class CollectionSpec:
    """What a collection must hold, and which embedder made it (so that a search needs no options).

    Of a collection that does not say who made it, `embedder` and `model` are empty.
    """

    dimensions: int
    sparse: bool
    embedder: str
    model: str
    extra: Mapping[str, Any] = field(default_factory=dict)


DEFAULT_LAYOUT = Layout()


class Store(Protocol):
    """Keeps points. `upsert` and `delete` are called in threads, up to `limits.concurrency` at once.

    Two calls that are under way together never share a document id. All writes are idempotent.
    """

    @property
    def name(self) -> str: ...

    @property
    def limits(self) -> StoreLimits: ...

    @property
    def forgets(self) -> bool:
        """Keeps nothing: an instrument for measuring, not a place for data."""
        ...

    @property
    def memory_bytes(self) -> int:
        """Anonymous memory of processes of its own, at the last call; 0 if it has none."""
        ...

    @property
    def abilities(self) -> Abilities: ...

    def prepare(self, spec: CollectionSpec, layout: Layout = DEFAULT_LAYOUT) -> CollectionSpec:
        """Create the collection if it is missing; check it if it is there. Called once, first.

        Returns:
            What it holds and, by its own words, who made that: perhaps another model of as many dimensions.

        Raises:
            TerminalError: it exists with another dimension, metric or kind of vectors (the message
                names both sides), or cannot be opened.
        """
        ...

    def describe(self, spec: CollectionSpec) -> None:
        """Write down who makes the vectors from now on, where the store has a place for that. After `prepare`."""
        ...

    def open(self) -> CollectionSpec:
        """Open a collection that is there, to read it: instead of `prepare`. Says what it holds.

        Raises:
            UsageError: there is no such collection; names those that there are.
            TerminalError: it cannot be opened.
        """
        ...

    def encode(self, batch: EmbeddedBatch) -> list[bytes | Fault] | None:
        """Each point as it will be sent, or why it can never be kept; None where batches are taken as they are.

        Sends nothing. The bytes become `batch.wire`, and their sum is what `limits.max_bytes` bounds.
        """
        ...

    def upsert(self, batch: EmbeddedBatch) -> None:
        """Store all points of the batch, replacing those with the same id; return once they are applied.

        Tried once. A batch that comes without `wire` is encoded here.

        Raises:
            RejectedError: a point of the batch can never be stored. Nothing of the batch counts.
                Its kind is `TOO_LARGE` where the server takes less at once than was thought.
            TransientError, TerminalError: as for embedders.
        """
        ...

    def delete(self, points: Sequence[tuple[str, int]]) -> None:
        """Delete points by (document id, chunk number); those that are missing do not matter."""
        ...

    def flush(self) -> None:
        """Make every upsert that has returned survive a loss of power. Called at the checkpoint's pace."""
        ...

    def count(self) -> int:
        """The exact number of points."""
        ...

    def fetch(self, points: Sequence[tuple[str, int]]) -> list[StoredPoint]:
        """Read points back by (document id, chunk number), in no particular order; missing ones are left out."""
        ...

    def scan(self, after: str | None, limit: int) -> tuple[list[StoredPoint], str | None]:
        """A page of all points, at most `limit`, in an order that stays the same, and where the next begins.

        `after` is None for the first page, and then what the page before returned; None ends it.
        """
        ...

    def search(
        self, query: Query, limit: int, mode: SearchMode = "dense", filters: Mapping[str, str] | None = None
    ) -> list[Hit]:
        """The best chunks; `filters` maps a metadata key to the value it must have, as text.

        Raises:
            UsageError: the store or the collection cannot search in this mode.
        """
        ...

    def finish(self, report: Callable[[float], None] = lambda _share: None) -> None:
        """Called once after a run that read its source to the end: build indexes, compact.

        Repeatable; `report` is told the share that is done.
        """
        ...

    def close(self) -> None: ...
