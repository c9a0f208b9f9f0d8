"""From settings to a running job: the one place where the parts are put together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
from filelock import FileLock

from ragingest.checkpoint.journal import Journal, boot_identity, done_ranges, next_run, now
from ragingest.checkpoint.ledger import Ledger, LedgerDamagedError
from ragingest.checkpoint.manager import CheckpointManager
from ragingest.checkpoint.ranges import RangeSet
from ragingest.checkpoint.retry import RetryJournal
from ragingest.checkpoint.state import Checkpoint, PartState
from ragingest.decoding import Decoder, FieldMapping
from ragingest.errors import ExitCode, RagingestError, SettingsChangedError, TerminalError, UsageError
from ragingest.events import Counters, Emit, Noticed, RunFinished, RunStarted, Summary
from ragingest.jobs.embedding import Embedding, open_embedding
from ragingest.memory import SystemGauge
from ragingest.pacing.retries import patient, patiently
from ragingest.passes import Passes
from ragingest.pipeline import Pipeline, PipelineParts
from ragingest.protocols import CollectionSpec, Source, Store
from ragingest.resources import ResourceManager
from ragingest.settings import BATCHED, ErrorBudget, JobSettings, RunOptions, default_job_name
from ragingest.sources import open_source
from ragingest.sources.rejects import RejectedRecords, rejected_places
from ragingest.stores import open_store
from ragingest.stores.abilities import check_abilities, shortcomings
from ragingest.stores.calls import StoreCalls
from ragingest.version import __version__

__all__ = ["JobRun", "Retry", "Start", "check_maker", "checkpoint_of", "first_run", "open_job", "summarize"]


@dataclass(slots=True)
class JobRun:
    """A job that is open and locked; `run` it once, then it is closed."""

    job: str
    manager: CheckpointManager
    lock: FileLock
    checkpoint: Checkpoint
    sources: list[Source]
    """The one that is read."""
    embedding: Embedding
    store: Store
    ledger: Ledger
    pipeline: Pipeline | Passes
    resources: ResourceManager
    emit: Emit
    journal: Journal
    stopped_by: ExitCode = ExitCode.SIGINT

    def stop(self, stopped_by: ExitCode = ExitCode.SIGINT) -> None:
        """Read no more, finish what is in flight; `stopped_by` becomes the exit code."""
        self.stopped_by = stopped_by
        self.pipeline.stop()

    def abort(self) -> None:
        """Stop at once; only what the store has confirmed counts."""
        self.pipeline.abort()

    async def run(self) -> Summary:
        """Run to the end, to the first failure or to a stop; what ended it stands in the summary."""
        finished = False
        try:
            outcome = await self.pipeline.run()
            finished = outcome.checkpoint.finished
            if finished:
                self.manager.archive(outcome.checkpoint)
            summary = summarize(
                self.manager,
                outcome.checkpoint,
                outcome.error,
                source=self.sources[0].name,
                store=self.store.name,
                embedder=outcome.checkpoint.settings.embedder,
                model=self.embedding.model,
                stopped_by=self.stopped_by,
                peak_memory_bytes=self.resources.peak_bytes,
            )
        finally:
            await self.embedding.aclose()
            if finished:
                self.manager.forget_vectors(self.job)
            self.close()
        for source in self.sources:
            if isinstance(source, RejectedRecords):
                for why, count in sorted(source.left.items()):
                    self.emit(Noticed(f"{count:,} passed over: {why}"))
        self.emit(RunFinished(summary))
        return summary

    def close(self) -> None:
        for source in self.sources:
            source.close()
        for part in (self.store, self.journal, self.ledger):
            part.close()
        self.lock.release()


def summarize(
    manager: CheckpointManager,
    checkpoint: Checkpoint,
    error: RagingestError | None,
    *,
    source: str,
    store: str,
    embedder: str,
    model: str,
    stopped_by: ExitCode,
    peak_memory_bytes: int = 0,
) -> Summary:
    """What a run did, of its last checkpoint and of what ended it."""
    rejected = checkpoint.counters.rejected
    if error is not None:
        code = error.exit_code
    elif checkpoint.status == "interrupted":
        code = stopped_by
    elif checkpoint.status == "waiting":
        code = ExitCode.WAITING
    else:
        code = ExitCode.REJECTS if rejected else ExitCode.OK
    files = manager.files(checkpoint.job)
    return Summary(
        job=checkpoint.job,
        run=checkpoint.run,
        status=checkpoint.status,
        source=source,
        collection=checkpoint.settings.collection,
        store=store,
        embedder=embedder,
        model=model,
        counters=checkpoint.counters,
        seconds=checkpoint.seconds,
        attempts=checkpoint.attempts,
        started=checkpoint.started,
        updated=checkpoint.updated,
        checkpoint=str(files.checkpoint),
        rejects=str(files.rejects) if rejected else None,
        reject_kinds=checkpoint.reject_kinds,
        peak_memory_bytes=peak_memory_bytes,
        message=error.message if error else checkpoint.message,
        hint=error.hint if error else "",
        exit_code=int(code),
    )


@dataclass(frozen=True, slots=True)
class Start:
    """What a run is begun with, which a resumed one does not need to be told again."""

    fresh: bool = False
    """Forget what the job has done."""
    reembed: bool = False
    """Store every document again, perhaps under other settings."""
    full: bool = False
    """Read the whole source, even if it was only appended to since."""
    yes: bool = False
    """Remove however many documents have disappeared."""
    retry: Retry | None = None
    """Try only what was rejected, instead of reading the source."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Which rejected records are tried again: all, or those that `corrected`, a file, has."""

    corrected: Path | None = None


def open_job(
    settings: JobSettings,
    options: RunOptions,
    checkpoint_dir: Path,
    *,
    job: str | None = None,
    start: Start = Start(),
    emit: Emit = lambda _event: None,
) -> JobRun:
    """Lock the job, find out where it stands, and open everything that it needs.

    Raises:
        UsageError: settings that make no sense, or a missing package.
        JobLockedError: another process works on it.
        SettingsChangedError: the checkpoint was made with other settings.
        TerminalError: source, store or checkpoint folder cannot be used.
    """
    settings.check()
    options.check()
    job = job or default_job_name(settings)
    manager = CheckpointManager(checkpoint_dir)
    manager.files(job)
    manager.open_folder()
    undo: list[Callable[[], object]] = []
    try:
        lock = manager.lock(job)
        undo.append(lock.release)
        source: Source
        before: Checkpoint | None
        if start.retry is not None:
            finished, source = _rejected(manager, job, settings, start.retry)
            undo.append(source.close)
            before = finished
            checkpoint = msgspec.structs.replace(finished, settings=settings, boot=boot_identity(), retrying=True)
            options = msgspec.structs.replace(options, delete_missing=False, max_errors=ErrorBudget(share=None))
        else:
            source = open_source(settings)
            undo.append(source.close)
            before, checkpoint = _where_it_stands(manager, job, settings, options, source, start, emit)
        resumed = start.retry is None and before is not None and before.run == checkpoint.run
        ledger = _open_ledger(manager, job, before, start.fresh, emit)
        undo.append(ledger.close)
        if start.reembed:
            ledger.distrust_all()
        elif (
            before is not None
            and before.finished
            and start.retry is None
            and not (start.full or options.delete_missing or ledger.is_empty())
        ):
            checkpoint = _behind_what_is_known(before, checkpoint, source, emit)
        store = open_store(settings, options.timeout)
        undo.append(store.close)
        check_abilities(store, options.layout)
        if before is None:
            for sentence in shortcomings(store):
                emit(Noticed(sentence))
        embedding = open_embedding(
            settings if start.retry is None else _at_once(settings),
            options,
            checkpoint.counters.books,
            manager.files(job).vectors,
            emit,
            batches=manager.files(job).batches,
            counted=manager.files(job).books,
            run=checkpoint.run,
            begun=checkpoint.attempts > 1,
            sparse=store.abilities.sparse,
            fetch=None if store.forgets else store.fetch,
        )
        undo.append(lambda: asyncio.run(embedding.aclose()))
        spec = CollectionSpec(
            embedding.dimensions,
            embedding.sparse,
            embedding.name,
            embedding.model,
            {"base_url": settings.base_url} if settings.base_url else {},
        )
        held = patient(options.give_up_after, store.prepare, spec, options.layout)
        if start.reembed:
            patient(options.give_up_after, store.describe, spec)
        else:
            check_maker(
                store,
                held,
                spec,
                settings.collection,
                "give another --collection, the embedder and model that made this one, or --reembed to store all "
                "documents of this job again in place",
            )
        if before is not None:
            _check_collection(store, ledger, job, settings)
        manager.save(checkpoint)
        if isinstance(source, RejectedRecords):
            journal: Journal = RetryJournal(checkpoint, manager, ledger, source.claimed)
        else:
            journal = Journal(checkpoint, manager, ledger, source.unit)
        undo.append(journal.close)
        resources = ResourceManager(
            embedding.concurrency,
            SystemGauge(options.max_memory, children=lambda: store.memory_bytes),
            emit,
            embedding.room,
        )
        embedding.when_room(resources.wake)
        sources = [source]
        may_delete = partial(_may_delete, options.max_delete, start.yes) if options.delete_missing else None

        def one_pass(source: Source) -> Pipeline:
            for part in range(len(checkpoint.parts)):
                source.seek(part, *journal.position(part), journal.done(part))
            writes = StoreCalls(
                store,
                checkpoint.counters,
                give_up_after=options.give_up_after,
                on_change=lambda opened: emit(
                    Noticed(f"{store.name} {'fails: waiting for it' if opened else 'answers again'}")
                ),
            )
            return Pipeline(
                _parts(settings, options, source, embedding, store, writes, journal, resources, may_delete, emit)
            )

        def another_pass() -> Pipeline:
            sources.pop().close()
            sources.append(open_source(settings))
            if not all(map(sources[0].matches, (part.info() for part in checkpoint.parts))):
                raise TerminalError(
                    f"{sources[0].name} has changed while the run waited for batches",
                    "resume: it is read from its start, and the ledger says what is stored already",
                )
            return one_pass(sources[0])

        first = one_pass(source)
        later = embedding.later
        passes = Passes(first, another_pass, later, journal, wait=options.wait) if later is not None else first
    except BaseException:
        for step in reversed(undo):
            step()
        raise
    emit(
        RunStarted(
            job,
            checkpoint.run,
            source.name,
            settings.collection,
            source.total_bytes,
            resumed,
            checkpoint.counters.read,
            source.rereads,
        )
    )
    return JobRun(
        job, manager, lock, checkpoint, sources, embedding, store, ledger, passes, resources, emit, journal
    )


def checkpoint_of(manager: CheckpointManager, job: str, warn: Callable[[str], None]) -> Checkpoint:
    """The checkpoint of a job that must exist; `warn` is told if the newest could not be read.

    Raises:
        UsageError: there is no such job; names those that there are.
    """
    loaded = manager.load(job)
    if loaded is None:
        raise manager.unknown(job)
    if loaded.warning:
        warn(loaded.warning)
    return loaded.checkpoint


def _rejected(
    manager: CheckpointManager, job: str, settings: JobSettings, retry: Retry
) -> tuple[Checkpoint, RejectedRecords]:
    """The checkpoint of a finished run, and its rejects as a source.

    Raises:
        UsageError: there is no such job, or it has no finished run.
    """
    before = checkpoint_of(manager, job, lambda _warning: None)
    if not before.finished:
        raise UsageError(f"the job {job} is not finished", f"finish it first: ragingest resume {job}")
    manager.settle_rejects(before)
    path = manager.files(job).rejects
    if before.rejects_bytes and not path.exists():
        raise UsageError(f"the rejects file {path} is gone", f"run the job again: ragingest resume {job}")
    corrected = None
    if retry.corrected is not None:
        file = str(retry.corrected.absolute())
        corrected = open_source(msgspec.structs.replace(settings, source=file, format="auto", json_path=None))
    return before, RejectedRecords(
        path,
        before.rejects_bytes,
        before.parts,
        lambda: open_source(settings),
        limit_raised=settings.max_record_bytes > before.settings.max_record_bytes,
        corrected=corrected,
        id_field=settings.id_field,
    )


def _at_once(settings: JobSettings) -> JobSettings:
    """A batch API makes the same vectors as the one that answers at once, which a few records can afford."""
    return msgspec.structs.replace(settings, embedder=BATCHED.get(settings.embedder, settings.embedder))


def _where_it_stands(
    manager: CheckpointManager,
    job: str,
    settings: JobSettings,
    options: RunOptions,
    source: Source,
    start: Start,
    emit: Emit,
) -> tuple[Checkpoint | None, Checkpoint]:
    """The last checkpoint, if there is one to go by, and the one to start from: of the same run or of the next."""
    parts = [PartState.of(part) for part in source.parts()]
    if start.fresh:
        manager.forget(job, ledger=False)
        return None, first_run(job, settings, options, parts)
    loaded = manager.load(job)
    if loaded is None:
        manager.forget(job, ledger=False)
        return None, first_run(job, settings, options, parts)
    manager.settle_rejects(loaded.checkpoint)
    if loaded.warning:
        emit(Noticed(loaded.warning))
    before = msgspec.structs.replace(loaded.checkpoint, options=options)
    changes = settings.changes(before.settings)
    if changes and before.status == "failed" and before.run == 1 and not before.counters.read:
        # It failed before it had done anything, perhaps by the very setting that is now mended.
        return None, first_run(job, settings, options, parts)
    if start.reembed and all(name in _IN_PLACE for name, _, _ in changes):
        emit(
            Noticed("every document is stored again: a search finds old and new vectors until the run is finished")
        )
        return before, next_run(
            msgspec.structs.replace(
                before, settings=settings, fingerprint=settings.fingerprint(), ragingest=__version__
            ),
            parts,
        )
    if changes:
        told = "; ".join(f"{flag} was {_shown(old)} and is now {_shown(new)}" for flag, old, new in changes)
        raise SettingsChangedError(
            f"the job {job} was made with other settings: {told}",
            "use the old settings, store everything again in place with --reembed (not for another source or store), "
            "start over with --fresh (another model: into another --collection), or give this one another --job",
        )
    before = msgspec.structs.replace(before, settings=settings, ragingest=__version__)
    if before.finished or (before.partial and options.delete_missing):
        return before, next_run(before, parts)
    if len(before.parts) == len(parts) and all(source.matches(part.info()) for part in before.parts):
        infos = [
            msgspec.structs.replace(old, size=new.size, mtime_ns=new.mtime_ns, digest=new.digest)
            for old, new in zip(before.parts, parts, strict=True)
        ]
        return before, msgspec.structs.replace(
            before, status="running", attempts=before.attempts + 1, parts=infos, message="", hint="", updated=now()
        )
    why = "is a stream" if parts[0].size is None else "has changed since"
    emit(Noticed(f"the source {why}: it is read from its start, and the ledger says what is stored already"))
    return before, next_run(before, parts)


_IN_PLACE = frozenset(
    {
        "--embedder",
        "--model",
        "--dimensions",
        "--base-url",
        "--chunk/--no-chunk",
        "--chunk-size",
        "--chunk-overlap",
        "--text-field",
        "--metadata-field",
        "--metadata-keys",
        "--flatten-metadata",
        "--drop-text",
        "--on-duplicate",
    }
)
"""Settings under which the same ids are stored again in the same place."""


def _behind_what_is_known(before: Checkpoint, checkpoint: Checkpoint, source: Source, emit: Emit) -> Checkpoint:
    """Of a source that was only appended to since its job was finished, read what is new."""
    if len(before.parts) != 1 or source.rereads:
        return checkpoint
    old, new = before.parts[0], checkpoint.parts[0]
    if old.size is None or old.offset != old.size or (new.size or 0) <= old.size or not source.matches(old.info()):
        return checkpoint
    emit(
        Noticed(
            f"the source was appended to: its first {old.ordinal:,} {source.unit}s are as they were (--full reads all)"
        )
    )
    parts = [msgspec.structs.replace(new, done=old.done, ordinal=old.ordinal, offset=old.offset)]
    return msgspec.structs.replace(checkpoint, parts=parts, partial=True)


def _may_delete(most: float, confirmed: bool, missing: int, documents: int, nameless: int) -> None:
    """Refuse to remove what may not be removed.

    Raises:
        TerminalError: says why, and how it is done all the same.
    """
    if confirmed or not missing:
        return
    if nameless:
        raise TerminalError(
            f"{missing:,} documents seem to have disappeared from the source, but {nameless:,} records could not be "
            "read as far as their id: nothing was removed",
            "mend the records, or confirm the removal with --yes",
        )
    if missing > most * documents:
        raise TerminalError(
            f"{missing:,} of {documents:,} documents have disappeared from the source, more than --max-delete "
            f"{most:.0%} allows: nothing was removed",
            "look whether the source is whole; confirm the removal with --yes, or allow more with --max-delete",
        )


def _open_ledger(
    manager: CheckpointManager, job: str, before: Checkpoint | None, fresh: bool, emit: Emit
) -> Ledger:
    """The ledger, with nothing in it trusted that `before`, the last checkpoint, does not vouch for."""
    path = manager.files(job).ledger
    try:
        ledger = Ledger(path)
        if before is None:
            # Without a checkpoint nobody knows under which settings, and into which collection, it was filled.
            if not fresh and not ledger.is_empty():
                emit(Noticed(f"the job {job} has no checkpoint any more: every document is stored again"))
            ledger.distrust_all()
    except LedgerDamagedError:
        if not fresh:
            raise
        manager.forget(job, ledger=True)
        ledger = Ledger(path)
        emit(Noticed("the ledger was damaged and is begun anew: leftovers of shrunk documents may stay stored"))
    if before is not None and not (before.finished and not before.retrying) and before.boot != boot_identity():
        doubtful = ledger.distrust(before.run, _confirmed(manager, before))
        emit(Noticed(f"the machine was restarted since: {doubtful:,} documents are stored again to be sure"))
    return ledger


def _confirmed(manager: CheckpointManager, before: Checkpoint) -> list[RangeSet]:
    """What was in the store at the last checkpoint, for each part: what is done, but for what was then on
    the list of rejects and may have been tried again since."""
    done = done_ranges(before)
    if not before.retrying:
        return done
    listed = [RangeSet() for _ in done]
    for part, ordinal in rejected_places(manager.rejects_of(before), before.rejects_bytes, before.parts):
        listed[part].add(ordinal, ordinal + 1)
    return [its.without(rejected) for its, rejected in zip(done, listed, strict=True)]


def first_run(job: str, settings: JobSettings, options: RunOptions, parts: list[PartState]) -> Checkpoint:
    """The checkpoint of a job that has done nothing yet."""
    moment = now()
    return Checkpoint(
        ragingest=__version__,
        job=job,
        run=1,
        status="running",
        started=moment,
        updated=moment,
        boot=boot_identity(),
        settings=settings,
        fingerprint=settings.fingerprint(),
        options=options,
        parts=parts,
        counters=Counters(),
    )


def _check_collection(store: Store, ledger: Ledger, job: str, settings: JobSettings) -> None:
    """A collection that somebody emptied must not be taken for one that holds everything."""
    if not store.forgets and not ledger.is_empty() and patiently(store.count) == 0:
        raise SettingsChangedError(
            f"the job {job} has stored documents, but the collection {settings.collection} is empty",
            "load it again with --fresh, or restore the collection",
        )


def check_maker(store: Store, held: CollectionSpec, spec: CollectionSpec, collection: str, way_out: str) -> None:
    """Vectors of two models cannot be compared, so one collection must not hold both.

    A collection that does not say who made it is taken as it is; one that is empty is told who makes it now.

    Raises:
        SettingsChangedError: another embedder, or another model, made what is there.
    """
    made, makes = (f"{of.embedder} {of.model}".strip() for of in (held, spec))
    if not held.embedder or not spec.embedder or made == makes:
        return
    if patiently(store.count) == 0:
        patiently(store.describe, spec)
        return
    raise SettingsChangedError(
        f"the collection {collection} holds vectors of {made}, which cannot be compared with those of {makes}",
        way_out,
    )


def _parts(
    settings: JobSettings,
    options: RunOptions,
    source: Source,
    embedding: Embedding,
    store: Store,
    writes: StoreCalls,
    journal: Journal,
    resources: ResourceManager,
    may_delete: Callable[[int, int, int], None] | None,
    emit: Emit,
) -> PipelineParts:
    return PipelineParts(
        source=source,
        decoder=Decoder(FieldMapping.of(settings)),
        split=embedding.split,
        embed=embedding.embed,
        embedded=embedding.embedded,
        deferred=embedding.later.deferred if embedding.later is not None else None,
        packer=embedding.packer,
        dimensions=embedding.dimensions,
        sync=embedding.sync,
        store=store,
        writes=writes,
        journal=journal,
        resources=resources,
        budget=options.max_errors,
        on_duplicate=settings.on_duplicate,
        may_delete=may_delete,
        upsert_size=min(options.upsert_size or store.limits.max_points, store.limits.max_points),
        upsert_bytes=store.limits.max_bytes,
        checkpoint_interval=options.checkpoint_interval,
        emit=emit,
    )


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return "not given" if value is None else str(value)
