"""Whether the store holds what a job says that it stored: by id, by digest, and by vector where that is asked for.

    ledger, page by page -> the store's points of those documents -> compare
    the store's points, page by page -> those that the ledger does not know, if the numbers differ

Memory does not grow with the collection.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import msgspec
import numpy as np

from ragingest.checkpoint.ledger import Ledger, LedgerRow
from ragingest.checkpoint.manager import CheckpointManager
from ragingest.checkpoint.state import Checkpoint
from ragingest.documents import (
    METADATA_DIGEST_BYTES,
    TEXT_DIGEST_BYTES,
    Chunk,
    Document,
    Record,
    Vectors,
    document_digest,
)
from ragingest.embedders import APIS, open_embedder
from ragingest.errors import ExitCode, UsageError
from ragingest.pacing.retries import patiently
from ragingest.protocols import Embedder, Store, StoredPoint
from ragingest.stores import open_store

__all__ = ["Difference", "Verification", "Watch", "verify_job"]

PAGE = 256
"""Documents that are compared at once."""
NAMED = 20
"""Differences of each kind that are named; all are counted."""
SAME_DIRECTION = 0.999
"""Cosine of two vectors of one text: float16 storage and another order of sums keep well above it."""

Watch = Callable[[int, int], None]
"""Is told documents done, and of how many."""

Kind = Literal["missing", "altered", "foreign"]


class Difference(msgspec.Struct, frozen=True):
    """A point that is not as the job says: what is wrong with it, in words."""

    id: str
    chunk: int
    what: str


class Verification(msgspec.Struct, kw_only=True):
    """What was compared and found. `missing`, `altered` and `foreign` count points."""

    job: str
    store: str
    collection: str
    documents: int = 0
    """Stored according to the job."""
    compared: int = 0
    """Documents of which every point was fetched."""
    points: int = 0
    """According to the job."""
    points_in_store: int = 0
    missing: int = 0
    altered: int = 0
    foreign: int = 0
    """In the store, but of no document of the job; another job may have put them there."""
    named: dict[str, list[Difference]] = {}
    """The first of each kind."""
    affected: int = 0
    """Documents with a point that is missing or altered."""

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.REJECTS if self.missing or self.altered or self.foreign else ExitCode.OK

    def note(self, kind: Kind, difference: Difference) -> None:
        setattr(self, kind, getattr(self, kind) + 1)
        named = self.named.setdefault(kind, [])
        if len(named) < NAMED:
            named.append(difference)


def verify_job(
    manager: CheckpointManager,
    checkpoint: Checkpoint,
    *,
    sample: int | None = None,
    vectors: bool = False,
    repair: bool = False,
    watch: Watch = lambda _done, _all: None,
) -> Verification:
    """Compare a job's ledger with its store.

    Args:
        sample: so many documents, chosen at random, instead of all.
        vectors: embed the stored texts again and compare; for embedders that compute on this machine.
        repair: doubt what is missing or altered, so that the next run over the source stores it again.

    Raises:
        UsageError: the store keeps nothing, the job is not finished and to be repaired, or the
            embedder is behind an API and `vectors` is asked for.
        JobLockedError: the job is being run.
        TerminalError: the store or the ledger cannot be read.
    """
    settings = checkpoint.settings
    if settings.format == "store":
        raise UsageError(f"the job {checkpoint.job} is a copy", "verify the job that made the collection")
    if repair and not checkpoint.finished:
        raise UsageError(
            f"the job {checkpoint.job} is not finished", f"finish it first: ragingest resume {checkpoint.job}"
        )
    if vectors and settings.embedder in APIS:
        raise UsageError(
            f"to compare vectors, {settings.embedder} would have to be paid again", "leave --vectors out"
        )
    with manager.lock(checkpoint.job):
        store = open_store(settings)
        try:
            if store.forgets:
                raise UsageError(f"the store {store.name} keeps nothing to verify")
            patiently(store.open)
            ledger = Ledger(manager.files(checkpoint.job).ledger)
            try:
                embedder = _embedder(checkpoint) if vectors else None
                return _Comparison(checkpoint, store, ledger, embedder).run(sample, repair, watch)
            finally:
                ledger.close()
        finally:
            store.close()


def _embedder(checkpoint: Checkpoint) -> Embedder:
    settings = checkpoint.settings
    device = checkpoint.options.device
    return open_embedder(
        settings.embedder,
        settings.dimensions,
        model=settings.model,
        device=device,
        sparse=False,
        tell_truncated=(lambda _count: None) if settings.truncate else None,
    )


class _Comparison:
    def __init__(self, checkpoint: Checkpoint, store: Store, ledger: Ledger, embedder: Embedder | None) -> None:
        settings = checkpoint.settings
        self._store = store
        self._ledger = ledger
        self._embedder = embedder
        self._compare_text = store.abilities.exact and not settings.drop_text
        self._found = Verification(job=checkpoint.job, store=store.name, collection=settings.collection)

    def run(self, sample: int | None, repair: bool, watch: Watch) -> Verification:
        found = self._found
        found.documents = self._ledger.count()
        found.points = self._ledger.points()
        found.points_in_store = patiently(self._store.count)
        share = 1.0 if sample is None else min(1.0, sample / max(1, found.documents))
        for rows in self._pages(share):
            affected = self._compare(rows)
            found.compared += len(rows)
            found.affected += len(affected)
            if repair and affected:
                self._ledger.doubt(affected)
            watch(found.compared, round(found.documents * share))
        if found.points_in_store > found.points - found.missing:
            self._find_foreign()
        return found

    def _pages(self, share: float) -> Iterator[list[LedgerRow]]:
        chosen = random.Random(0)  # noqa: S311  # a sample, not a secret
        after: str | None = None
        rows: list[LedgerRow] = []
        while page := self._ledger.page(after, PAGE):
            after = page[-1].id
            rows += page if share == 1.0 else [row for row in page if chosen.random() < share]
            if len(rows) >= PAGE:
                yield rows
                rows = []
        if rows:
            yield rows

    def _compare(self, rows: Sequence[LedgerRow]) -> list[str]:
        """Compare the points of those documents; ids of those that are not as they should be."""
        wanted = [(row.id, chunk) for row in rows for chunk in range(row.chunks)]
        points: dict[tuple[str, int], StoredPoint] = {}
        for start in range(0, len(wanted), PAGE):
            for point in patiently(self._store.fetch, wanted[start : start + PAGE]):
                points[point.id, point.chunk] = point
        crooked = self._crooked(points.values())
        affected = []
        for row in rows:
            whole = True
            for chunk in range(row.chunks):
                there = points.get((row.id, chunk))
                if there is None:
                    whole = False
                    self._found.note("missing", Difference(row.id, chunk, "not in the store"))
                elif what := self._wrong(row, there) or crooked.get((row.id, chunk), ""):
                    whole = False
                    self._found.note("altered", Difference(row.id, chunk, what))
            if not whole:
                affected.append(row.id)
        return affected

    def _wrong(self, row: LedgerRow, point: StoredPoint) -> str:
        if point.digest != row.digest.hex():
            return "its digest is another one"
        if point.chunks != row.chunks:
            return f"it says that its document has {point.chunks} chunks, not {row.chunks}"
        if not np.isfinite(point.dense).all() or not point.dense.any():
            return "its vector is zero or not finite"
        if not self._compare_text:
            return ""
        try:
            digest = document_digest(point.text, dict(point.metadata))
        except (OverflowError, TypeError, ValueError):
            return "its metadata is not what was stored"
        if digest[TEXT_DIGEST_BYTES:] != row.digest[-METADATA_DIGEST_BYTES:]:
            return "its metadata is not what was stored"
        # Of a document in several chunks no single one has the digest of its text.
        if row.chunks == 1 and digest[:TEXT_DIGEST_BYTES] != row.digest[:TEXT_DIGEST_BYTES]:
            return "its text is not what was stored"
        return ""

    def _crooked(self, points: Iterable[StoredPoint]) -> dict[tuple[str, int], str]:
        """Points whose vector is not the one of their text."""
        if self._embedder is None:
            return {}
        wrong: dict[tuple[str, int], str] = {}
        some = [point for point in points if point.text]
        step = self._embedder.limits.max_texts
        for start in range(0, len(some), step):
            batch = some[start : start + step]
            made = self._embedder.embed([_chunk(point) for point in batch]).dense
            for point, cosine in zip(
                batch, _cosines(made, np.stack([point.dense for point in batch])), strict=True
            ):
                if not cosine >= SAME_DIRECTION:
                    wrong[point.id, point.chunk] = f"its vector is not that of its text (cosine {cosine:.3f})"
        return wrong

    def _find_foreign(self) -> None:
        after: str | None = None
        while True:
            page, after = patiently(self._store.scan, after, PAGE)
            known = self._ledger.lookup(list({point.id for point in page}))
            for point in page:
                row = known.get(point.id)
                if row is None or point.chunk >= row.chunks:
                    self._found.note("foreign", Difference(point.id, point.chunk, "of no document of the job"))
            if after is None:
                return


def _chunk(point: StoredPoint) -> Chunk:
    document = Document(point.id, point.text, {}, b"", Record(0, 0, b""))
    return Chunk(document, point.chunk, point.text, len(point.text.encode()))


def _cosines(left: Vectors, right: Vectors) -> Vectors:
    """Of the rows of two arrays of shape (n, d)."""
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines: Vectors = np.einsum("ij,ij->i", left, right) / norms
    return cosines
