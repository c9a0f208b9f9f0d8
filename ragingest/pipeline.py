"""The only concurrency: records in, confirmed points out.

    read -> admit -> chunk -> pack -> embed -> pack -> upsert -> confirm
            |                          |                |          |
            unchanged, duplicate       rejects          rejects    journal

One event loop waits; threads work. Each stage hands on through a bounded queue, so a slow store
slows the reader down. A block of records is done when the store has confirmed its last document,
and only that moves the checkpoint. Two batches in flight never share a document id.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from ragingest.batching import PointPacker
from ragingest.checkpoint.journal import Journal
from ragingest.checkpoint.state import Checkpoint, Status
from ragingest.decoding import Decoder
from ragingest.documents import Block, Chunk, Document, EmbeddedBatch, Fault, Reject, SparseVector
from ragingest.errors import (
    RagingestError,
    RejectedError,
    TerminalError,
    TooManyErrorsError,
    TransientError,
)
from ragingest.events import CheckpointSaved, Emit, Finishing, Noticed, Progressed
from ragingest.outcomes import count_outcome, leftover_points, same_text, sort_out
from ragingest.pacing.retries import patiently
from ragingest.protocols import RecordBlock, Source, Store
from ragingest.resources import ResourceManager
from ragingest.settings import ErrorBudget, OnDuplicate
from ragingest.storing import Storing, Writes, arrivals

__all__ = ["Outcome", "Pipeline", "PipelineParts"]

T = TypeVar("T")

SAVE_SHARE = 30
"""Saving checkpoints takes at most one part in this many of the time, but for a save that is slow by itself."""

DELETE_PAGE = 500
"""Documents that are removed at once."""

CHUNKERS = 2
"""Blocks that are chunked at once: counting tokens is as much work as embedding by the default embedder."""

Split = Callable[[Sequence[Document]], list[list[Chunk]]]
Embed = Callable[[list[Chunk]], Awaitable[EmbeddedBatch]]


class Packer(Protocol):
    """Fills embedding calls."""

    def add(self, item: Chunk, /) -> Sequence[list[Chunk]]:
        """The batches that the item completes or does not fit into."""
        ...

    def flush(self) -> list[Chunk]: ...


@dataclass(frozen=True, slots=True)
class PipelineParts:
    """What a pipeline is put together from; see wiring."""

    source: Source
    decoder: Decoder
    split: Split
    embed: Embed
    embedded: Callable[[Sequence[Chunk]], Awaitable[None]]
    """Is told of chunks that the store has confirmed."""
    deferred: Callable[[Sequence[Chunk]], Awaitable[bool]] | None
    """Whether the vectors of a block of documents come later: then the block is left for another pass."""
    packer: Packer
    dimensions: int
    sync: Callable[[], None]
    """Makes what the embedder keeps survive a loss of power."""
    store: Store
    writes: Writes
    journal: Journal
    resources: ResourceManager
    budget: ErrorBudget
    on_duplicate: OnDuplicate
    may_delete: Callable[[int, int, int], None] | None
    """Raises if so many documents, of how many, may not be removed, so many records being unreadable; None: remove none."""
    upsert_size: int
    upsert_bytes: int | None
    checkpoint_interval: float
    emit: Emit
    linger: float = 1.0
    """Seconds that an open batch waits for more before it is sent as it is."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the run ended: its last checkpoint, and the error that ended it, if any."""

    checkpoint: Checkpoint
    error: RagingestError | None = None


class Pipeline:
    """One run. `run` is called once; `stop` and `abort` on the event loop, as from a signal handler."""

    def __init__(self, parts: PipelineParts) -> None:
        self._p = parts
        self._stopping = asyncio.Event()
        self._in_flight: set[str] = set()
        self._landed = asyncio.Event()
        self._hurry = asyncio.Event()
        """Set while reading waits for a document in flight, which may be in a batch that waits to be full."""
        self._read = parts.journal.counters.read
        self._rejected = parts.journal.counters.rejected
        self._bytes_read = 0
        self._error: RagingestError | None = None
        self._gave_up = False
        self._dirty = False
        self._deferred = False
        self._work: asyncio.Task[None] | None = None
        self._reader = ThreadPoolExecutor(1, "read")
        self._ledger = ThreadPoolExecutor(1, "ledger")
        self._workers = ThreadPoolExecutor(CHUNKERS, "chunk")
        self._storing = Storing(
            parts.writes,
            PointPacker(parts.upsert_size, parts.upsert_bytes),
            confirm=self._stored,
            refuse=lambda chunk, error: self._refuse(chunk, "upsert", error),
            give_up=self._give_up,
            linger=parts.linger,
            hurry=self._hurry,
        )
        self._to_chunk: asyncio.Queue[list[Document] | None] = asyncio.Queue(1)
        self._to_pack: asyncio.Queue[list[Chunk] | None] = asyncio.Queue(1)
        self._to_embed: asyncio.Queue[list[Chunk] | None] = asyncio.Queue(1)

    def stop(self) -> None:
        """Read no more; finish what is in flight."""
        self._stopping.set()
        self._p.source.stop()

    def abort(self) -> None:
        """Leave what is in flight; save what is confirmed."""
        self.stop()
        if self._work is not None:
            self._work.cancel()

    async def run(self) -> Outcome:
        """Read the source to its end, or to the first error or stop; then save the checkpoint."""
        self._work = asyncio.create_task(self._stages())
        saver = asyncio.create_task(self._save_regularly())
        await asyncio.wait({self._work, saver}, return_when=asyncio.FIRST_COMPLETED)
        failures = await _settle(self._work, saver)
        self._p.source.stop()
        # Off the loop: a third signal must get through while a call hangs.
        await asyncio.to_thread(self._workers.shutdown, cancel_futures=True)
        await asyncio.to_thread(self._p.writes.close)
        error = _explain(failures) if failures else self._error
        status: Status = "waiting" if self._deferred else "completed"
        if error or self._stopping.is_set():
            status = "failed" if error else "interrupted"
        try:
            if status == "completed":
                await self._in(self._ledger, self._delete_missing)
                await self._in(self._ledger, patiently, self._p.store.finish, self._reporter())
            checkpoint = await self._save(status, error)
        except RagingestError as second:
            error = error or second
            checkpoint, _ = self._p.journal.snapshot("failed", error.message, error.hint)
        finally:
            self._reader.shutdown(cancel_futures=True)
            self._ledger.shutdown()
        return Outcome(checkpoint, error)

    def _delete_missing(self) -> None:
        """Remove documents that this run has not read, if that is wanted.

        Raises:
            TerminalError: they are more than is allowed, or cannot be told from those that were unreadable.
        """
        p = self._p
        if p.may_delete is None:
            return
        journal = p.journal
        missing, all_ = journal.ledger.unseen(journal.run)
        p.may_delete(missing, all_, journal.counters.nameless)
        after: str | None = None
        while rows := journal.ledger.unseen_page(journal.run, after, DELETE_PAGE):
            points = [(row.id, chunk) for row in rows for chunk in range(row.chunks)]
            for start in range(0, len(points), DELETE_PAGE):
                patiently(p.store.delete, points[start : start + DELETE_PAGE])
            journal.ledger.commit((), (row.id for row in rows))
            journal.counters.deleted += len(points)
            journal.counters.removed += len(rows)
            after = rows[-1].id

    def _reporter(self) -> Callable[[float], None]:
        """Takes the share of the indexing that is done, in any thread."""
        loop = asyncio.get_running_loop()

        def report(share: float) -> None:
            loop.call_soon_threadsafe(self._p.emit, Finishing(share))

        return report

    async def _stages(self) -> None:
        async with asyncio.TaskGroup() as group:
            for stage in (self._reading, self._chunking, self._packing, self._embedding, self._storing.run):
                group.create_task(stage())

    @staticmethod
    async def _in(pool: ThreadPoolExecutor, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, work, *args)

    # -- read --------------------------------------------------------------------------------------

    async def _reading(self) -> None:
        p = self._p
        told_of_ids = False
        try:
            while not self._stopping.is_set():
                await p.resources.wait_for_memory(lambda: self._stopping.is_set() or not self._in_flight)
                read = await self._in(self._reader, self._next_block)
                if read is None:
                    break
                block, documents = read
                self._bytes_read = block.progress
                if p.decoder.made_up_ids and not told_of_ids:
                    told_of_ids = True
                    p.emit(Noticed("some records have no id: theirs is a digest of their content"))
                await self._admit(block, documents)
                self._check_budget(block)
        except (TerminalError, TooManyErrorsError) as error:
            # What was read before is good, and is finished first.
            self._error = self._error or error
        for _ in range(CHUNKERS):
            await self._to_chunk.put(None)

    def _next_block(self) -> tuple[Block, list[Document]] | None:
        """Read and decode some records; runs in the reading thread."""
        records = self._p.source.read_block()
        return None if records is None else self._decode(records)

    def _decode(self, read: RecordBlock) -> tuple[Block, list[Document]]:
        block = Block(read.part, read.start, read.end, read.end_offset, read.progress, read=len(read.records))
        documents = []
        decoder = self._p.decoder
        for record in read.records:
            try:
                document = decoder.decode(record)
            except RejectedError as error:
                fault = Fault(error.kind, str(error))
                block.rejects.append(Reject("decode", record, fault, decoder.id_hint(record)))
            else:
                document.block = block
                documents.append(document)
        return block, documents

    def _check_budget(self, block: Block) -> None:
        self._read += block.read
        self._rejected += sum(reject.stage == "decode" for reject in block.rejects)
        if self._p.budget.exceeded(self._rejected, self._read):
            raise TooManyErrorsError(
                f"{self._rejected:,} of {self._read:,} records were rejected, more than "
                f"--max-errors {self._p.budget} allows",
                "look at the rejects file; mend the source, or resume with a higher --max-errors",
            )

    # -- admit: what is new or changed? ------------------------------------------------------------

    async def _admit(self, block: Block, documents: list[Document]) -> None:
        """Sort out what the store has already; hand on the rest once no earlier version is in flight."""
        p = self._p
        ids = {document.id for document in documents}
        while not self._in_flight.isdisjoint(ids):
            self._landed.clear()
            self._hurry.set()
            await self._landed.wait()
            if self._gave_up:
                return
        self._hurry.clear()
        known = await self._in(self._ledger, p.journal.lookup, documents) if ids else {}
        documents, unchanged = sort_out(block, documents, known, p.journal.run, p.on_duplicate)
        if unchanged:
            await self._in(self._ledger, p.journal.seen, unchanged)
        if places := [(r.id, block.part, r.record.ordinal) for r in block.rejects if r.id is not None]:
            await self._in(self._ledger, p.journal.touch, places)
        block.pending = len(documents)
        if block.pending:
            self._in_flight.update(document.id for document in documents)
            await self._to_chunk.put(documents)
        else:
            self._block_done(block)

    # -- chunk, pack, embed ------------------------------------------------------------------------

    async def _chunking(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(CHUNKERS):
                group.create_task(self._chunker())
        await self._to_pack.put(None)

    async def _chunker(self) -> None:
        p = self._p
        while (documents := await self._to_chunk.get()) is not None:
            chunks = await self._in(self._workers, p.split, documents)
            several = []
            for document in documents:
                document.pending = document.chunks
                if document.chunks > 1:
                    several.append(document)
            kept = await self._in(self._workers, self._revised, chunks)
            unknown = [c for some in chunks for c in some if not c.document.revised]
            if p.deferred is not None and await p.deferred(unknown):
                self._defer(documents)
                continue
            if several:
                await self._in(self._ledger, p.journal.intend, several)
            if kept is not None:
                p.journal.counters.revised += len(kept.chunks)
                await self._storing.put(kept)
            await self._to_pack.put(unknown)

    def _revised(self, chunks: Sequence[Sequence[Chunk]]) -> EmbeddedBatch | None:
        """Documents of which only the metadata is new, with the vectors that the store has of them."""
        p = self._p
        candidates = {chunk.document.id: some for some in chunks for chunk in some[:1] if same_text(chunk.document)}
        if not candidates or p.store.forgets:
            return None
        wanted = [(id_, chunk.number) for id_, some in candidates.items() for chunk in some]
        points = {(point.id, point.chunk): point for point in patiently(p.store.fetch, wanted)}
        kept: list[Chunk] = []
        for id_, some in candidates.items():
            if all((id_, chunk.number) in points for chunk in some):
                some[0].document.revised = True
                kept += some
        if not kept:
            return None
        found = [points[chunk.document.id, chunk.number] for chunk in kept]
        sparse = None
        if all(point.sparse is not None for point in found):
            sparse = [SparseVector(list(terms), list(terms.values())) for terms in (p.sparse or {} for p in found)]
        return EmbeddedBatch(kept, np.stack([point.dense for point in found]), sparse)

    def _defer(self, documents: Sequence[Document]) -> None:
        """Leave a block as if it had not been read. As a whole, so that every record has its outcome once."""
        self._deferred = True
        self._in_flight.difference_update(document.id for document in documents)
        self._landed.set()

    async def _packing(self) -> None:
        p = self._p
        async for chunks in arrivals(self._to_pack, p.linger, self._hurry):
            for chunk in chunks or ():
                for full in p.packer.add(chunk):
                    await self._to_embed.put(full)
            if chunks is None and (rest := p.packer.flush()):
                await self._to_embed.put(rest)
        for _ in range(p.resources.concurrency):
            await self._to_embed.put(None)

    async def _embedding(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(self._p.resources.concurrency):
                group.create_task(self._embedder())
        await self._storing.end()

    async def _embedder(self) -> None:
        while True:
            async with self._p.resources.acquire():
                chunks = await self._to_embed.get()
                if chunks is None:
                    return
                # The slot is held until the store takes them: else each task could hold a batch that waits.
                for batch in await self._embed_or_give_up(chunks):
                    await self._storing.put(batch)

    async def _embed_or_give_up(self, chunks: list[Chunk]) -> list[EmbeddedBatch]:
        """Embed, unless embedding has failed for good: what others have under way is still stored."""
        if self._gave_up:
            return []
        try:
            return await self._embed(chunks)
        except TerminalError as error:
            self._give_up(error)
            return []

    def _give_up(self, error: TerminalError) -> None:
        """Read and embed no more; requests under way come to their end, because they are paid for."""
        self._error = self._error or error
        self._gave_up = True
        self.stop()
        self._landed.set()

    async def _embed(self, chunks: list[Chunk]) -> list[EmbeddedBatch]:
        """Embed; a batch that is refused is halved until the guilty chunk stands alone."""
        p = self._p
        p.journal.counters.embed_calls += 1
        p.journal.counters.embedded += len(chunks)
        try:
            batch = await p.embed(chunks)
            _check_vectors(batch, p.dimensions)
        except RejectedError as error:
            if len(chunks) == 1:
                await self._refuse(chunks[0], "embed", error)
                return []
            middle = len(chunks) // 2
            return await self._embed(chunks[:middle]) + await self._embed(chunks[middle:])
        return [batch]

    # -- confirm ---------------------------------------------------------------------

    async def _stored(self, chunks: Sequence[Chunk]) -> None:
        await self._confirm(chunks)
        await self._p.embedded([chunk for chunk in chunks if not chunk.document.revised])

    async def _refuse(self, chunk: Chunk, stage: str, error: RejectedError) -> None:
        if chunk.document.fault is None:
            chunk.document.fault = (stage, Fault(error.kind, str(error)))
            self._rejected += 1
        await self._confirm([chunk])

    async def _confirm(self, chunks: Iterable[Chunk]) -> None:
        """The store has these (or refused them): finish the documents and blocks that they complete."""
        p = self._p
        stored: list[Document] = []
        refused: list[Document] = []
        for chunk in chunks:
            document = chunk.document
            document.pending -= 1
            if document.pending == 0:
                (stored if document.fault is None else refused).append(document)
        # A refused document of one chunk has left nothing behind, and an older version of it stays.
        removed = [document for document in refused if document.chunks > 1]
        if leftover := leftover_points(stored, removed):
            await p.writes.delete(leftover)
            p.journal.counters.deleted += len(leftover)
        if stored or removed:
            await self._in(self._ledger, p.journal.commit, stored, removed)
        if places := [(d.id, d.block.part, d.record.ordinal) for d in refused if d.chunks == 1]:
            await self._in(self._ledger, p.journal.touch, places)
        for document in (*stored, *refused):
            block = document.block
            count_outcome(block, document)
            self._in_flight.discard(document.id)
            block.pending -= 1
            if block.pending == 0:
                self._block_done(block)
        self._landed.set()

    def _block_done(self, block: Block) -> None:
        self._p.journal.block_done(block)
        self._dirty = True
        self._p.emit(Progressed(self._p.journal.counters, self._bytes_read, len(self._in_flight)))

    # -- checkpoint --------------------------------------------------------------------------------

    def _flush(self) -> None:
        self._p.sync()
        self._p.store.flush()

    async def _save_regularly(self) -> None:
        pause, before = self._p.checkpoint_interval, 0.0
        while True:
            await asyncio.sleep(pause)
            if self._dirty:
                began = time.monotonic()
                await self._save("running")
                taken = time.monotonic() - began
                pause, before = pause_after(taken, before, self._p.checkpoint_interval), taken

    async def _save(self, status: Status, error: RagingestError | None = None) -> Checkpoint:
        began = time.monotonic()
        self._dirty = False
        journal = self._p.journal
        snapshot = journal.snapshot(status, *((error.message, error.hint) if error else ()))
        checkpoint = await self._in(self._ledger, journal.save, snapshot, self._flush)
        self._p.emit(CheckpointSaved(time.monotonic() - began))
        return checkpoint


def pause_after(taken: float, before: float, interval: float) -> float:
    """Seconds until the next checkpoint, after a save of `taken` seconds and one of `before`.

    One that was slow alone, because the store was closing a segment, does not put off the next.
    """
    return max(interval, SAVE_SHARE * min(taken, before))


def _check_vectors(batch: EmbeddedBatch, dimensions: int) -> None:
    """Stores take NaN without a word, and then find nothing: so nothing that is not finite leaves here."""
    if batch.dense.shape != (len(batch.chunks), dimensions):
        raise TerminalError(
            f"the embedder returned vectors of shape {batch.dense.shape}, not ({len(batch.chunks)}, {dimensions})"
        )
    if not np.isfinite(batch.dense).all():
        raise RejectedError("not_finite", "the embedder returned a vector with NaN or infinity in it")


async def _settle(*tasks: asyncio.Task[None]) -> list[BaseException]:
    """Cancel what still runs; what failed."""
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    return [result for result in results if result is not None and not isinstance(result, asyncio.CancelledError)]


def _explain(failures: Sequence[BaseException]) -> RagingestError:
    """The first of our own errors among `failures`; one that is none is a bug, and is raised."""
    todo = list(failures)
    unknown: BaseException | None = None
    while todo:
        failure = todo.pop(0)
        if isinstance(failure, BaseExceptionGroup):
            todo[:0] = failure.exceptions
        elif isinstance(failure, RagingestError):
            return failure
        elif isinstance(failure, TransientError):
            return TerminalError(str(failure), "resume when it is over")
        else:
            unknown = unknown or failure
    assert unknown is not None
    raise unknown
