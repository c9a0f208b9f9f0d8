"""A collection from one store into another: vectors are read, not embedded again.

    scan -> encode -> pack -> upsert -> confirm -> checkpoint

A page of the scan is done when all its points are confirmed; the checkpoint holds the cursor behind
the last page up to which all are. Every write is idempotent, so what is done twice does no harm.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from filelock import FileLock

from ragingest.batching import PointPacker
from ragingest.checkpoint.journal import Journal, boot_identity, next_run, now
from ragingest.checkpoint.ledger import Ledger
from ragingest.checkpoint.manager import CheckpointManager
from ragingest.checkpoint.state import Checkpoint, PartState, Status
from ragingest.documents import Block, Chunk, Document, EmbeddedBatch, Fault, Record, Reject, SparseVector
from ragingest.errors import (
    ExitCode,
    RagingestError,
    RejectedError,
    SettingsChangedError,
    TerminalError,
    UsageError,
)
from ragingest.events import Emit, Finishing, Noticed, Progressed, RunFinished, RunStarted, Summary
from ragingest.jobs.wiring import check_maker, first_run, summarize
from ragingest.memory import own_anonymous_bytes
from ragingest.pacing.retries import patient, patiently
from ragingest.protocols import CollectionSpec, Store, StoredPoint
from ragingest.settings import JobSettings, RunOptions, StoreSettings, default_job_name
from ragingest.stores import open_store
from ragingest.stores.abilities import check_abilities
from ragingest.stores.calls import StoreCalls
from ragingest.storing import Storing
from ragingest.version import __version__

__all__ = ["CopyRun", "open_copy"]

PAGE = 256
"""Points that are read at once."""


@dataclass(slots=True)
class CopyRun:
    """A copy that is open and locked; `run` it once, then it is closed. Records are points here."""

    job: str
    manager: CheckpointManager
    lock: FileLock
    checkpoint: Checkpoint
    source: Store
    spec: CollectionSpec
    target: Store
    ledger: Ledger
    emit: Emit
    stopped_by: ExitCode = ExitCode.SIGINT
    _copier: _Copier | None = None

    def stop(self, stopped_by: ExitCode = ExitCode.SIGINT) -> None:
        """Read no more, finish what is in flight; `stopped_by` becomes the exit code."""
        self.stopped_by = stopped_by
        if self._copier is not None:
            self._copier.stop()

    def abort(self) -> None:
        """Stop at once; only what the store has confirmed counts."""
        if self._copier is not None:
            self._copier.abort()

    async def run(self) -> Summary:
        """Copy to the end, to the first failure or to a stop; what ended it stands in the summary."""
        try:
            self._copier = _Copier(self)
            checkpoint, error = await self._copier.run()
            if checkpoint.finished:
                self.manager.archive(checkpoint)
        finally:
            self.close()
        summary = summarize(
            self.manager,
            checkpoint,
            error,
            source=checkpoint.settings.source,
            store=self.target.name,
            embedder=self.spec.embedder,
            model=self.spec.model,
            stopped_by=self.stopped_by,
            peak_memory_bytes=self._copier.peak_bytes,
        )
        self.emit(RunFinished(summary))
        return summary

    def close(self) -> None:
        for part in (self.source, self.target, self.ledger):
            part.close()
        self.lock.release()


def open_copy(
    settings: JobSettings,
    options: RunOptions,
    checkpoint_dir: Path,
    *,
    job: str | None = None,
    fresh: bool = False,
    emit: Emit = lambda _event: None,
) -> CopyRun:
    """Open both collections, and find out how far an earlier copy came.

    Args:
        settings: `source` names the collection that is read, as `StoreSettings.parse` takes it.

    Raises:
        UsageError: there is no such collection or store, or both are the same.
        JobLockedError: another process works on the copy.
        TerminalError: one of them cannot be used.
    """
    settings.check()
    options.check()
    origin = StoreSettings.parse(settings.source)
    if str(origin) == str(target_of(settings)):
        raise UsageError("--from and --to are the same collection", "name another one")
    job = job or default_job_name(settings)
    manager = CheckpointManager(checkpoint_dir)
    manager.files(job)
    manager.open_folder()
    undo: list[Callable[[], object]] = []
    try:
        lock = manager.lock(job)
        undo.append(lock.release)
        source = open_store(origin, options.timeout)
        undo.append(source.close)
        spec = patient(options.give_up_after, source.open)
        target = open_store(settings, options.timeout)
        undo.append(target.close)
        check_abilities(target, options.layout)
        if spec.sparse and not target.abilities.sparse:
            emit(Noticed(f"the store {target.name} keeps no sparse vectors: they stay behind"))
            spec = replace(spec, sparse=False)
        held = patient(options.give_up_after, target.prepare, spec, options.layout)
        check_maker(target, held, spec, settings.collection, "copy into another collection, or remove that one")
        checkpoint = _where_it_stands(manager, job, settings, options, fresh, emit)
        ledger = Ledger(manager.files(job).ledger)
        undo.append(ledger.close)
        manager.save(checkpoint)
        total = patiently(source.count)
    except BaseException:
        for step in reversed(undo):
            step()
        raise
    done = checkpoint.parts[0].ordinal
    emit(
        RunStarted(job, checkpoint.run, settings.source, settings.collection, total, done > 0, done, rereads=False)
    )
    return CopyRun(job, manager, lock, checkpoint, source, spec, target, ledger, emit)


def target_of(settings: JobSettings) -> StoreSettings:
    """Where a job writes to."""
    return StoreSettings(**{name: getattr(settings, name) for name in StoreSettings.__struct_fields__})


def _where_it_stands(
    manager: CheckpointManager, job: str, settings: JobSettings, options: RunOptions, fresh: bool, emit: Emit
) -> Checkpoint:
    parts = [PartState(name=settings.source)]
    loaded = None if fresh else manager.load(job)
    if loaded is None:
        manager.forget(job, ledger=True)
        return first_run(job, settings, options, parts)
    if loaded.warning:
        emit(Noticed(loaded.warning))
    before = msgspec.structs.replace(loaded.checkpoint, options=options, ragingest=__version__)
    if settings.changes(before.settings):
        raise SettingsChangedError(
            f"the job {job} is not this copy", "start over with --fresh, or give this one another --job"
        )
    if before.finished:
        return next_run(before, parts)
    if before.boot != boot_identity():
        # What the target had not flushed when the machine stopped is not known.
        return next_run(before, parts)
    return msgspec.structs.replace(
        before, status="running", attempts=before.attempts + 1, message="", updated=now()
    )


class _Copier:
    def __init__(self, run: CopyRun) -> None:
        self._run = run
        self._emit = run.emit
        self._options = run.checkpoint.options
        self._journal = Journal(run.checkpoint, run.manager, run.ledger, "point")
        self.peak_bytes = 0
        """Anonymous memory, sampled with each checkpoint."""
        self._pages: deque[Block] = deque()
        """Those that are read and not done, in order."""
        self._cursors: dict[int, str | None] = {run.checkpoint.parts[0].ordinal: run.checkpoint.parts[0].cursor}
        limits = run.target.limits
        self._writes = StoreCalls(
            run.target,
            self._journal.counters,
            give_up_after=self._options.give_up_after,
            on_change=lambda opened: run.emit(
                Noticed(f"{run.target.name} {'fails: waiting for it' if opened else 'answers again'}")
            ),
        )
        self._storing = Storing(
            self._writes,
            PointPacker(min(self._options.upsert_size or limits.max_points, limits.max_points), limits.max_bytes),
            confirm=self._confirm,
            refuse=self._refuse,
            give_up=self._give_up,
            linger=1.0,
            hurry=asyncio.Event(),
        )
        self._reader = ThreadPoolExecutor(1, "scan")
        self._disk = ThreadPoolExecutor(1, "checkpoint")
        self._stopping = False
        self._complete = False
        self._dirty = False
        self._error: RagingestError | None = None
        self._work: asyncio.Task[None] | None = None

    def stop(self) -> None:
        self._stopping = True

    def abort(self) -> None:
        self.stop()
        if self._work is not None:
            self._work.cancel()

    async def run(self) -> tuple[Checkpoint, RagingestError | None]:
        self._work = asyncio.create_task(self._stages())
        saver = asyncio.create_task(self._save_regularly())
        await asyncio.wait({self._work, saver}, return_when=asyncio.FIRST_COMPLETED)
        error = self._error or await _settled(self._work, saver)
        await asyncio.to_thread(self._writes.close)
        status: Status = "failed" if error else "completed" if self._complete else "interrupted"
        try:
            if status == "completed":
                await self._in(self._disk, patiently, self._run.target.finish, self._reporter())
            checkpoint = await self._save(status, error.message if error else "")
        except RagingestError as second:
            error = error or second
            checkpoint = self._snapshot("failed", error.message)[0]
        finally:
            self._reader.shutdown(cancel_futures=True)
            self._disk.shutdown()
        return checkpoint, error

    @staticmethod
    async def _in(pool: ThreadPoolExecutor, work: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool, work, *args)

    def _reporter(self) -> Callable[[float], None]:
        loop = asyncio.get_running_loop()

        def report(share: float) -> None:
            loop.call_soon_threadsafe(self._emit, Finishing(share))

        return report

    async def _stages(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._reading())
            group.create_task(self._storing.run())

    async def _reading(self) -> None:
        start = self._journal.position(0)[0]
        after = self._cursors[start]
        # A first page has no cursor, and nor has a scan that came to its end before the run could say so.
        ended = start > 0 and after is None
        try:
            while not (self._stopping or ended):
                page, after = await self._in(self._reader, patiently, self._run.source.scan, after, PAGE)
                ended = after is None
                end = start + len(page)
                self._cursors[end] = after
                if page:
                    block = Block(0, start, end, end, end, read=len(page), pending=len(page))
                    self._pages.append(block)
                    await self._storing.put(self._batch(page, block))
                start = end
            self._complete = ended
        except TerminalError as error:
            # What was read before is good, and is finished first.
            self._error = self._error or error
        await self._storing.end()

    def _batch(self, page: Sequence[StoredPoint], block: Block) -> EmbeddedBatch:
        chunks = [_chunk(point, block, number) for number, point in enumerate(page)]
        dense = np.stack([point.dense for point in page])
        sparse = None
        if self._run.spec.sparse:
            sparse = [SparseVector(list(terms), list(terms.values())) for terms in (p.sparse or {} for p in page)]
        return EmbeddedBatch(chunks, dense, sparse)

    async def _confirm(self, chunks: Sequence[Chunk]) -> None:
        for chunk in chunks:
            block = chunk.document.block
            block.stored += 1
            block.chunks += 1
            self._landed(block)

    async def _refuse(self, chunk: Chunk, error: RejectedError) -> None:
        document = chunk.document
        document.block.rejects.append(Reject("upsert", document.record, Fault(error.kind, str(error)), document.id))
        self._landed(document.block)

    def _landed(self, block: Block) -> None:
        block.pending -= 1
        # In order: beyond the cursor of a checkpoint nothing may be counted, because it is done again.
        while self._pages and self._pages[0].pending == 0:
            done = self._pages.popleft()
            self._journal.block_done(done)
            self._dirty = True
            self._emit(Progressed(self._journal.counters, done.end, sum(page.pending for page in self._pages)))

    def _give_up(self, error: TerminalError) -> None:
        self._error = self._error or error
        self.stop()

    # -- checkpoint --------------------------------------------------------------------------------

    async def _save_regularly(self) -> None:
        pause = self._options.checkpoint_interval
        while True:
            await asyncio.sleep(pause)
            if self._dirty:
                began = time.monotonic()
                await self._save("running")
                pause = max(self._options.checkpoint_interval, 30 * (time.monotonic() - began))

    def _snapshot(self, status: Status, message: str = "") -> tuple[Checkpoint, int]:
        checkpoint, lines = self._journal.snapshot(status, message)
        part = checkpoint.parts[0]
        cursor = self._cursors[part.ordinal]
        for ordinal in [ordinal for ordinal in self._cursors if ordinal < part.ordinal]:
            del self._cursors[ordinal]
        return msgspec.structs.replace(checkpoint, parts=[msgspec.structs.replace(part, cursor=cursor)]), lines

    async def _save(self, status: Status, message: str = "") -> Checkpoint:
        self._dirty = False
        used = own_anonymous_bytes() + self._run.source.memory_bytes + self._run.target.memory_bytes
        self.peak_bytes = max(self.peak_bytes, used)
        snapshot = self._snapshot(status, message)
        saved: Checkpoint = await self._in(self._disk, self._journal.save, snapshot, self._run.target.flush)
        return saved


async def _settled(*tasks: asyncio.Task[None]) -> RagingestError | None:
    """Cancel what still runs; the first of our own errors. One that is none is a bug, and is raised."""
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        error = result
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, RagingestError):
            return error
        if error is not None and not isinstance(error, asyncio.CancelledError):
            raise error
    return None


def _chunk(point: StoredPoint, block: Block, number: int) -> Chunk:
    record = Record(block.start + number, block.start + number, _as_record(point))
    document = Document(point.id, "", dict(point.metadata), bytes.fromhex(point.digest), record)
    document.block = block
    document.chunks = point.chunks
    return Chunk(document, point.chunk, point.text, len(point.text.encode()))


def _as_record(point: StoredPoint) -> bytes:
    """What a rejects file shows of a point."""
    return msgspec.json.encode(
        {"id": point.id, "chunk": point.chunk, "text": point.text, "metadata": point.metadata}
    )
