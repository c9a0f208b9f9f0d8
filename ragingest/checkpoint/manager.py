"""Checkpoints as files: written so that at any moment a whole one can be read."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence, Set
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from ragingest.checkpoint.files import create_state, read_state, sync_folder
from ragingest.checkpoint.holders import Holder, holders
from ragingest.checkpoint.state import Checkpoint, CheckpointError, decode, edition_of, encode
from ragingest.errors import JobLockedError, TerminalError, UsageError
from ragingest.settings import check_job_name

__all__ = ["CheckpointManager", "JobFiles", "Loaded", "write_durably"]

_STATE_FILE = re.compile(
    r"(?P<job>.+)\.(?P<end>json(\.bak)?(\.tmp)?"
    r"|(ledger|batches)\.sqlite(\.new)?(-wal|-shm|-journal)?"
    r"|rejects\.jsonl(\.\d+)?(\.tmp)?"
    r"|vectors\.[0-9a-f]{16}(\.damaged\d*|\.known(\.ids)?)?"
    r"|books"
    r"|lock)"
).fullmatch
_OF_A_RUN = re.compile(r"(?P<job>.+)\.(vectors\.[0-9a-f]{16}(\.known(\.ids)?)?|books)").fullmatch
_ARCHIVED = re.compile(r"(?P<job>.+)_(?P<time>[0-9T]+)_(?P<run>\d+)\.json").fullmatch

WAL_ENDS = ("-wal", "-shm")


class JobFiles(NamedTuple):
    """Where a job keeps its state."""

    checkpoint: Path
    backup: Path
    ledger: Path
    rejects: Path
    lock: Path
    vectors: Path
    """Beginning of the names of the files that hold paid vectors."""
    batches: Path
    books: Path
    """What was sent to an embeddings API, as of the last request."""


class Loaded(NamedTuple):
    """A checkpoint, and what was wrong with the newer one if this is the backup."""

    checkpoint: Checkpoint
    warning: str = ""


class CheckpointManager:
    """Loads and saves the checkpoints of all jobs of one folder (mode 0700, files 0600)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open_folder(self) -> None:
        """Create the folder if it is missing, and see that it can be written.

        Raises:
            TerminalError: it cannot.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except (FileExistsError, NotADirectoryError):
            raise TerminalError(
                f"the checkpoint folder {self.folder} is not a folder", "give another --checkpoint-dir"
            ) from None
        except OSError as error:
            raise _unwritable(self.folder, error) from None
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise _unwritable(self.folder, PermissionError(13, "no permission to write"))

    def files(self, job: str) -> JobFiles:
        check_job_name(job)
        files = JobFiles(
            *(
                self.folder / f"{job}.{end}"
                for end in (
                    "json",
                    "json.bak",
                    "ledger.sqlite",
                    "rejects.jsonl",
                    "lock",
                    "vectors",
                    "batches.sqlite",
                    "books",
                )
            )
        )
        beside_ledger = (files.ledger.with_name(files.ledger.name + end) for end in WAL_ENDS)
        for path in (*files, *beside_ledger):
            _refuse_link(path)
        return files

    def state_files(self, job: str) -> list[Path]:
        """Everything that is there of a job, checkpoint first and lock last, then its archive."""
        first = self.files(job)
        found = [path for path in self._entries(self.folder, _STATE_FILE, job) if path not in first]
        ordered = [first.checkpoint, first.backup, *sorted(found), first.ledger, first.rejects, first.lock]
        return [path for path in ordered if path.exists()] + sorted(self.archived(job))

    def archived(self, job: str) -> list[Path]:
        """The checkpoints of the finished runs of a job, oldest first."""
        return sorted(self._entries(self.folder / "completed", _ARCHIVED, job))

    @staticmethod
    def _entries(folder: Path, matcher: Callable[[str], re.Match[str] | None], job: str) -> Iterator[Path]:
        if folder.is_dir() and not folder.is_symlink():
            for path in folder.iterdir():
                match = matcher(path.name)
                if match and match["job"] == job:
                    yield path

    def lock(self, job: str) -> FileLock:
        """Take the job for this process; the kernel releases it when the process ends, however it ends.

        Raises:
            JobLockedError: another process has it.
        """
        files = self.files(job)
        lock = FileLock(files.lock, timeout=0, mode=0o600)
        try:
            lock.acquire()
        except Timeout:
            raise JobLockedError(
                f"the job {job} is being worked on by another process ({_told(holders(files.lock))})",
                "wait for it to end, or give this run another --job",
            ) from None
        except OSError as error:
            raise _unwritable(self.folder, error) from None
        return lock

    def is_locked(self, job: str) -> bool:
        """Whether some process works on the job."""
        if not self.files(job).lock.exists():
            return False
        try:
            self.lock(job).release()
        except JobLockedError:
            return True
        return False

    def load(self, job: str) -> Loaded | None:
        """The job's checkpoint; the one before it where the newest cannot be read; None where there is none.

        Raises:
            TerminalError: there are checkpoints, but none can be read.
        """
        files = self.files(job)
        problems: list[str] = []
        for path in (files.checkpoint, files.backup):
            try:
                checkpoint = decode(read_state(path))
            except FileNotFoundError:
                continue
            except CheckpointError as error:
                problems.append(f"{path} cannot be read: {error}")
                continue
            except OSError as error:
                raise TerminalError(f"{path} cannot be read: {error.strerror}", "check its permissions") from None
            if checkpoint.job != job:
                problems.append(f"{path} belongs to the job {checkpoint.job}")
                continue
            warning = f"{problems[0]}; continuing from the one before" if problems else ""
            return Loaded(checkpoint, warning)
        if problems:
            raise TerminalError(
                "; ".join(problems),
                "start over with --fresh: what the ledger knows as stored is overwritten, not doubled",
            )
        return None

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace the job's checkpoint; keep the one before it as backup.

        Raises:
            TerminalError: the disk is full or cannot be written; the old checkpoint is untouched.
        """
        files = self.files(checkpoint.job)
        try:
            write_durably(files.checkpoint, encode(checkpoint), files.backup)
        except OSError as error:
            raise _unwritable(self.folder, error) from None

    def archive(self, checkpoint: Checkpoint) -> None:
        """Keep the checkpoint of a finished run in `completed/`."""
        folder = self.archive_folder()
        time = re.sub(r"[^0-9T]", "", checkpoint.updated[:19])
        try:
            write_durably(folder / f"{checkpoint.job}_{time}_{checkpoint.run}.json", encode(checkpoint))
        except OSError as error:
            raise _unwritable(folder, error) from None

    def archive_folder(self) -> Path:
        """`completed/`, made if it is missing."""
        folder = self.folder / "completed"
        _refuse_link(folder)
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise _unwritable(folder, error) from None
        return folder

    def jobs(self) -> Iterator[str]:
        """Names of all jobs that have a checkpoint, sorted."""
        yield from self._names({"json"})

    def leftovers(self) -> list[str]:
        """Names of jobs that have state, but no checkpoint."""
        return sorted({*self._names()} - {*self._names({"json"})})

    def _names(self, ends: Set[str] | None = None) -> Iterator[str]:
        if not self.folder.is_dir():
            return
        for path in sorted(self.folder.iterdir()):
            match = _STATE_FILE(path.name)
            if match and path.is_file() and (match["end"] in ends if ends else match["end"] != "lock"):
                try:
                    yield check_job_name(match["job"])
                except UsageError:
                    continue

    def unknown(self, job: str) -> UsageError:
        """The error that there is no such job."""
        known = ", ".join(self.jobs()) or "none"
        return UsageError(
            f"there is no job {job} in {self.folder}",
            f"start it with ragingest run, or give --checkpoint-dir (jobs there: {known})",
        )

    def forget_vectors(self, job: str) -> None:
        """Drop what a run has kept for its next attempt, once it is finished; files set aside as damaged stay."""
        for path in self._entries(self.folder, _OF_A_RUN, job):
            path.unlink(missing_ok=True)

    def forget(self, job: str, *, ledger: bool) -> None:
        """Drop the checkpoint and rejects of a job, and with `ledger` what it knows of documents."""
        files = self.files(job)
        doomed = [files.checkpoint, files.backup, files.rejects, *self._editions(job)]
        if ledger:
            doomed += [files.ledger, *(files.ledger.with_name(files.ledger.name + end) for end in WAL_ENDS)]
        for path in doomed:
            path.unlink(missing_ok=True)

    def rejects_of(self, checkpoint: Checkpoint) -> Path:
        """The rejects file that belongs to a checkpoint: after a crash, the edition beside the usual one."""
        path = self.files(checkpoint.job).rejects
        edition = edition_of(path, checkpoint.rejects_edition)
        return edition if edition.exists() else path

    def settle_rejects(self, checkpoint: Checkpoint) -> None:
        """After a crash: the edition that belongs to the checkpoint takes its place, others go. Under the lock."""
        path = self.files(checkpoint.job).rejects
        try:
            if (current := self.rejects_of(checkpoint)) != path:
                current.replace(path)
            for edition in self._editions(checkpoint.job):
                edition.unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(self.folder, error) from None

    def _editions(self, job: str) -> list[Path]:
        name = f"{job}.rejects.jsonl."
        return [path for path in self._entries(self.folder, _STATE_FILE, job) if path.name.startswith(name)]

    def remove(self, job: str) -> None:
        """Delete everything of a job that the caller has locked; the checkpoint goes first, so that the
        rest is not trusted if this is interrupted.

        Raises:
            TerminalError: a file cannot be deleted.
        """
        try:
            for path in self.state_files(job):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(self.folder, error) from None


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise TerminalError(f"{path} is a symbolic link, which is not followed", "replace it by the file")


def _told(found: Sequence[Holder]) -> str:
    return "; ".join(map(str, found)) or "one that cannot be seen from here"


def write_durably(path: Path, data: bytes, backup: Path | None = None) -> None:
    """Write a temporary file, fsync it, rename it over `path`, fsync the folder.

    A reader, or a crash, finds the old file or the new one. The old one becomes `backup` (a hard
    link, so there is no moment without `path`).
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with create_state(temporary) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if backup is not None and path.exists():
            backup_temporary = backup.with_name(backup.name + ".tmp")
            backup_temporary.unlink(missing_ok=True)
            os.link(path, backup_temporary)
            backup_temporary.replace(backup)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _unwritable(folder: Path, error: OSError) -> TerminalError:
    return TerminalError(
        f"the checkpoint folder {folder} cannot be written: {error.strerror or error}",
        "free disk space or mend its permissions, then resume; or give another --checkpoint-dir",
    )
