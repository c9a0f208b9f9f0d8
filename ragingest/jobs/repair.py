"""Rebuilds a job's checkpoint and ledger from what its store holds, where they are lost, damaged or not to be believed."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from ragingest.checkpoint.files import read_state
from ragingest.checkpoint.journal import boot_identity, now
from ragingest.checkpoint.ledger import Ledger, LedgerRow
from ragingest.checkpoint.manager import WAL_ENDS, CheckpointManager
from ragingest.checkpoint.state import Checkpoint, CheckpointError, PartState, decode
from ragingest.costs.models import DEFAULT_MODELS
from ragingest.documents import METADATA_DIGEST_BYTES, TEXT_DIGEST_BYTES
from ragingest.errors import SettingsChangedError, TerminalError, UsageError
from ragingest.events import Counters
from ragingest.pacing.retries import patiently
from ragingest.protocols import CollectionSpec, Store, StoredPoint
from ragingest.settings import JobSettings, RunOptions
from ragingest.sources import open_source
from ragingest.stores import open_store
from ragingest.version import __version__

__all__ = ["Repaired", "repair_job"]

PAGE = 500  # points read at once
DIGEST_BYTES = TEXT_DIGEST_BYTES + METADATA_DIGEST_BYTES

_PIECES = """
CREATE TABLE pieces (
    id TEXT NOT NULL, chunk INTEGER NOT NULL, chunks INTEGER NOT NULL, digest BLOB NOT NULL,
    PRIMARY KEY (id, chunk)
) WITHOUT ROWID
"""
_DOCUMENTS = """
SELECT id, count(*) = max(chunks) AND min(chunks) = max(chunks) AND max(chunk) < max(chunks)
    AND min(digest) = max(digest), min(digest), max(max(chunks), max(chunk) + 1)
FROM pieces GROUP BY id
"""


class Repaired(NamedTuple):
    """`documents` are in the store whole; of `incomplete` ones only a part is, so the next run stores them again."""

    job: str
    points: int
    documents: int
    incomplete: int


def repair_job(
    manager: CheckpointManager,
    job: str,
    given: JobSettings | None = None,
) -> Repaired:
    """Make the job's state anew from its store, so that its next run reads the source from the start and
    embeds nothing that the store has whole. Nothing is written to the store.

    What the collection holds of other jobs is in the ledger too, as documents that the job has never
    read (`run` and `seen` are 0), which it does not delete when its source lacks them.

    Args:
        given: the job's settings, where its checkpoint is lost; else they must agree with it.

    Raises:
        UsageError: nobody knows the settings, or there is no such collection.
        SettingsChangedError: they disagree with the checkpoint, or with the collection.
        JobLockedError: another process works on the job.
        TerminalError: the store or the checkpoint folder fails.
    """
    manager.files(job)
    manager.open_folder()
    with manager.lock(job):
        before = _last_known(manager, job)
        settings = _settings(manager, job, before, given)
        if settings.format == "store":
            raise UsageError(
                f"the job {job} is a copy", "copy again with --fresh: points are overwritten, not doubled"
            )
        store = open_store(settings)
        try:
            if store.forgets:
                raise UsageError(f"the store {store.name} keeps nothing that could be read back")
            _check(settings, patiently(store.open))
            ledger = manager.files(job).ledger
            rebuilt = ledger.with_name(f"{ledger.name}.new")
            done = _rebuild(job, store, rebuilt)
        finally:
            store.close()
        # Without a checkpoint no ledger is trusted: so it goes first, and comes last.
        manager.forget(job, ledger=True)
        rebuilt.rename(ledger)
        manager.save(_checkpoint(job, settings, before, done))
    return done


def _last_known(manager: CheckpointManager, job: str) -> Checkpoint | None:
    """The job's checkpoint, the one before it, or that of its last finished run: whichever can be read."""
    try:
        loaded = manager.load(job)
    except TerminalError:
        loaded = None
    if loaded is not None:
        return loaded.checkpoint
    for path in reversed(manager.archived(job)):
        try:
            return decode(read_state(path))
        except (OSError, CheckpointError):
            continue
    return None


def _settings(
    manager: CheckpointManager, job: str, before: Checkpoint | None, given: JobSettings | None
) -> JobSettings:
    if given is not None:
        given.check()
        if before is not None and (changes := given.changes(before.settings)):
            flag, old, new = changes[0]
            raise SettingsChangedError(
                f"the job {job} was made with other settings: {flag} was {old} and is now {new}",
                "leave the options out: its checkpoint has them",
            )
        return given
    if before is None:
        raise UsageError(
            f"no checkpoint of the job {job} is left in {manager.folder}",
            "give the source and the options that ragingest run was given",
        )
    return before.settings


def _check(settings: JobSettings, spec: CollectionSpec) -> None:
    """Vectors that another embedder made must not pass for this job's."""
    model = settings.model or DEFAULT_MODELS.get(settings.embedder, "")
    for flag, wanted, found in (
        ("--embedder", settings.vectors_of, spec.embedder),
        ("--model", model, spec.model),
        ("--dimensions", settings.dimensions, spec.dimensions),
    ):
        if wanted and found and wanted != found:
            raise SettingsChangedError(
                f"the collection {settings.collection} was made with {flag} {found}, not {wanted}",
                "give the options that it was made with",
            )


def _rebuild(job: str, store: Store, path: Path) -> Repaired:
    """Write a ledger of what the store holds to `path`."""
    for old in (path, *(path.with_name(path.name + end) for end in WAL_ENDS)):
        old.unlink(missing_ok=True)
    points = documents = incomplete = 0
    ledger = Ledger(path)
    try:
        with (
            tempfile.TemporaryDirectory(prefix=".repair-", dir=path.parent) as folder,
            closing(sqlite3.connect(Path(folder) / "pieces.sqlite", isolation_level=None)) as pieces,
        ):
            pieces.execute("PRAGMA journal_mode = OFF")
            pieces.execute("PRAGMA synchronous = OFF")
            pieces.execute(_PIECES)
            for page in _pages(store):
                pieces.execute("BEGIN")
                pieces.executemany("INSERT OR REPLACE INTO pieces VALUES (?, ?, ?, ?)", map(_piece, page))
                pieces.execute("COMMIT")
                points += len(page)
            found = pieces.execute(_DOCUMENTS)
            while rows := [_row(*row) for row in found.fetchmany(PAGE)]:
                ledger.commit(rows)
                whole = sum(row.digest != b"" for row in rows)
                documents += whole
                incomplete += len(rows) - whole
        ledger.sync()
    except sqlite3.Error as error:
        raise TerminalError(
            f"{path.parent} cannot be written: {error}", "free disk space or mend its permissions"
        ) from None
    finally:
        ledger.close()
    return Repaired(job, points, documents, incomplete)


def _pages(store: Store) -> Iterator[list[StoredPoint]]:
    after: str | None = None
    while True:
        page, after = patiently(store.scan, after, PAGE)
        yield page
        if after is None:
            return


def _piece(point: StoredPoint) -> tuple[str, int, int, bytes]:
    """A digest that is none of ours is as good as an unknown one."""
    try:
        digest = bytes.fromhex(point.digest)
    except (ValueError, TypeError):
        digest = b""
    return point.id, point.chunk, point.chunks, digest if len(digest) == DIGEST_BYTES else b""


def _row(document_id: str, whole: bool, digest: bytes, chunks: int) -> LedgerRow:
    """Of an incomplete document, how many points may be there: its leftovers are removed when it is stored again."""
    return LedgerRow(document_id, digest if whole else b"", chunks, run=0, seen=0, part=0, ordinal=0)


def _parts(settings: JobSettings) -> list[PartState]:
    """The source as it is now; one that is away counts as changed when it is back."""
    try:
        with closing(open_source(settings)) as source:
            return [PartState.of(part) for part in source.parts()]
    except (UsageError, TerminalError):
        return [PartState(name=settings.source)]


def _checkpoint(job: str, settings: JobSettings, before: Checkpoint | None, done: Repaired) -> Checkpoint:
    """Of a run that has read nothing yet."""
    moment = now()
    return Checkpoint(
        ragingest=__version__,
        job=job,
        run=before.run + 1 if before is not None else 1,
        status="interrupted",
        started=moment,
        updated=moment,
        attempts=0,
        boot=boot_identity(),
        settings=settings,
        fingerprint=settings.fingerprint(),
        options=before.options if before is not None else RunOptions(),
        parts=_parts(settings),
        counters=Counters(),
        message=f"rebuilt from the store: {done.documents:,} documents",
    )
