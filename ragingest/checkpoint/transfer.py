"""A job's state as one file, to be moved to another machine.

A plain tar archive (POSIX.1-2001): `manifest.json` first, with the size and the BLAKE2b digest of each
member, then the members: `checkpoint.json`, `ledger.sqlite`, `rejects.jsonl`, `vectors.<digits>`,
`completed_<time>_<run>.json`. The store is not in it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from ragingest.checkpoint.files import create_state, open_state
from ragingest.checkpoint.journal import now
from ragingest.checkpoint.manager import CheckpointManager
from ragingest.checkpoint.state import Checkpoint, CheckpointError, PartState, decode, encode
from ragingest.errors import RagingestError, TerminalError, UsageError
from ragingest.settings import check_job_name
from ragingest.version import __version__

__all__ = ["Manifest", "Member", "export_job", "import_job"]

FORMAT = 1
MANIFEST = "manifest.json"
MANIFEST_BYTES = 16 << 20  # of an archive of 100,000 finished runs
CHECKPOINT = "checkpoint.json"
PIECE = 1 << 20

_ALLOWED = re.compile(
    r"checkpoint\.json|(ledger|batches)\.sqlite|rejects\.jsonl|vectors\.[0-9a-f]{16}|completed_[0-9T]{1,20}_\d{1,9}\.json"
).fullmatch


class Member(msgspec.Struct, frozen=True):
    """A file in the archive: its size in bytes, and the BLAKE2b digest (32 bytes) of its content."""

    name: str
    size: int
    digest: str


class Manifest(msgspec.Struct, kw_only=True):
    """What an archive holds."""

    format: int = FORMAT
    ragingest: str
    job: str
    exported: str
    files: list[Member]


class _Piece(NamedTuple):
    """What becomes a member: the first `size` bytes of a file, or some bytes."""

    name: str
    path: Path | None
    data: bytes
    size: int

    def open(self) -> BinaryIO:
        return BytesIO(self.data) if self.path is None else open_state(self.path)


# -- export ------------------------------------------------------------------------------------------


def export_job(manager: CheckpointManager, job: str, target: Path) -> Manifest:
    """Write the state of `job` to `target`, which holds all of it or is not there. Nobody works on the job meanwhile.

    Raises:
        UsageError: there is no such job.
        JobLockedError: another process works on it.
        TerminalError: its state is damaged, or the archive cannot be written.
    """
    loaded = manager.load(job)
    if loaded is None:
        raise manager.unknown(job)
    with manager.lock(job):
        loaded = manager.load(job) or loaded
        manager.settle_rejects(loaded.checkpoint)
        try:
            with tempfile.TemporaryDirectory(prefix=".export-", dir=target.absolute().parent) as folder:
                pieces = list(_pieces(manager, loaded.checkpoint, Path(folder)))
                made = Path(folder) / "archive.tar"
                manifest = _write(made, job, pieces)
                made.replace(target)
        except (OSError, sqlite3.OperationalError) as error:
            # SQLite's own distinction: what the world around its files does wrong is an OperationalError.
            raise TerminalError(
                f"{target} cannot be written: {getattr(error, 'strerror', None) or error}",
                "free disk space, or give another file",
            ) from None
        except sqlite3.Error as error:
            raise TerminalError(
                f"the ledger of the job {job} is damaged: {error}", f"mend it with: ragingest jobs repair {job}"
            ) from None
    return manifest


def _pieces(manager: CheckpointManager, checkpoint: Checkpoint, folder: Path) -> Iterator[_Piece]:
    files = manager.files(checkpoint.job)
    data = encode(checkpoint)
    yield _Piece(CHECKPOINT, None, data, len(data))
    for path in manager.state_files(checkpoint.job):
        name = path.name.removeprefix(checkpoint.job)[1:]
        if path.parent != files.checkpoint.parent:
            yield _Piece(f"completed_{name}", path, b"", path.stat().st_size)
        elif path.suffix == ".sqlite":
            copy = folder / name
            _copy_database(path, copy)
            yield _Piece(name, copy, b"", copy.stat().st_size)
        elif path == files.rejects:
            # What lies behind the length that the checkpoint knows is done again.
            yield _Piece(name, path, b"", min(path.stat().st_size, checkpoint.rejects_bytes))
        elif _ALLOWED(name):
            yield _Piece(name, path, b"", path.stat().st_size)


def _copy_database(path: Path, copy: Path) -> None:
    """With what still is in its write-ahead log."""
    with closing(sqlite3.connect(path)) as database, closing(sqlite3.connect(copy)) as target:
        database.backup(target)


def _write(path: Path, job: str, pieces: list[_Piece]) -> Manifest:
    members = []
    for piece in pieces:
        with piece.open() as file:
            members.append(Member(piece.name, piece.size, _digest(file, piece.size)))
    manifest = Manifest(ragingest=__version__, job=job, exported=now(), files=members)
    told = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    with create_state(path) as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for piece in (_Piece(MANIFEST, None, told, len(told)), *pieces):
                entry = tarfile.TarInfo(piece.name)
                entry.size, entry.mode = piece.size, 0o600
                with piece.open() as content:
                    archive.addfile(entry, content)
        file.flush()
        os.fsync(file.fileno())
    return manifest


def _digest(file: BinaryIO, size: int) -> str:
    digest = hashlib.blake2b(digest_size=32)
    while size > 0 and (data := file.read(min(size, PIECE))):
        digest.update(data)
        size -= len(data)
    return digest.hexdigest()


# -- import ------------------------------------------------------------------------------------------


def import_job(
    manager: CheckpointManager,
    archive: Path,
    *,
    source: str | None = None,
    store_path: str | None = None,
    force: bool = False,
) -> Checkpoint:
    """Take over the state in `archive`. Nothing is touched before all of it has been unpacked and checked.

    Args:
        source, store_path: where they are on this machine, if elsewhere than on the other one.
        force: replace the state of a job of that name.

    Raises:
        UsageError: the file is no such archive, is damaged, or there is a job of that name.
        JobLockedError: another process works on the job of that name.
        TerminalError: the state cannot be written.
    """
    with (
        _explained(archive, manager.folder),
        open(archive, "rb") as file,
        tarfile.open(fileobj=file, mode="r:") as tar,
    ):
        manifest = _read_manifest(tar)
        manager.open_folder()
        with manager.lock(manifest.job):
            there = [path for path in manager.state_files(manifest.job) if path.suffix != ".lock"]
            if there and not force:
                raise UsageError(
                    f"there is a job {manifest.job} in {manager.folder} already",
                    "replace it with --force, or give another --checkpoint-dir",
                )
            with tempfile.TemporaryDirectory(prefix=".import-", dir=manager.folder) as folder:
                unpacked = _unpack(tar, manifest, Path(folder))
                checkpoint = _moved(_read_checkpoint(unpacked, manifest.job), source, store_path)
                for path in unpacked:
                    if path.suffix == ".sqlite":
                        _check_database(path)
                _replace(manager, checkpoint, unpacked)
    return checkpoint


@contextmanager
def _explained(archive: Path, folder: Path) -> Iterator[None]:
    try:
        yield
    except RagingestError:
        raise
    except (tarfile.TarError, msgspec.DecodeError, CheckpointError, sqlite3.Error, EOFError) as error:
        raise UsageError(f"{archive} is damaged, or no exported job: {error}", "export the job again") from None
    except OSError as error:
        where = error.filename or (folder if error.errno in (errno.ENOSPC, errno.EDQUOT) else archive)
        raise TerminalError(
            f"{where} cannot be used: {error.strerror or error}", "check path, permissions, disk"
        ) from None


def _read_manifest(tar: tarfile.TarFile) -> Manifest:
    first = tar.next()
    if first is None or first.name != MANIFEST or not _plain(first) or first.size > MANIFEST_BYTES:
        raise tarfile.TarError("it does not begin with a manifest")
    data = _content(tar, first).read()
    version = msgspec.json.decode(data, type=dict[str, msgspec.Raw]).get("format")
    if version is None or bytes(version) != str(FORMAT).encode():
        raise tarfile.TarError(f"its format is not {FORMAT}, which this version reads")
    manifest = msgspec.json.decode(data, type=Manifest)
    check_job_name(manifest.job)
    names = [member.name for member in manifest.files]
    if CHECKPOINT not in names or len(set(names)) < len(names) or not all(map(_ALLOWED, names)):
        raise tarfile.TarError("its manifest names files that are none of a job")
    return manifest


def _unpack(tar: tarfile.TarFile, manifest: Manifest, folder: Path) -> list[Path]:
    """Each member that the manifest names, in its order, and no other: a regular file of that size and digest."""
    paths = []
    for told in manifest.files:
        member = tar.next()
        if member is None or member.name != told.name or not _plain(member) or member.size != told.size:
            raise tarfile.TarError(f"{told.name} is not what the manifest says")
        path = folder / told.name
        digest = hashlib.blake2b(digest_size=32)
        with create_state(path) as file:
            content = _content(tar, member)
            while data := content.read(PIECE):
                digest.update(data)
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != told.digest:
            raise tarfile.TarError(f"the digest of {told.name} is another")
        paths.append(path)
    if tar.next() is not None:
        raise tarfile.TarError("it holds more than its manifest says")
    return paths


def _plain(member: tarfile.TarInfo) -> bool:
    return member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and member.sparse is None


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> BinaryIO:
    content = tar.extractfile(member)
    assert content is not None
    return content  # type: ignore[return-value]  # typeshed: IO[bytes]


def _read_checkpoint(unpacked: list[Path], job: str) -> Checkpoint:
    path = next(path for path in unpacked if path.name == CHECKPOINT)
    checkpoint = decode(path.read_bytes())
    if checkpoint.job != job:
        raise CheckpointError(f"its checkpoint belongs to the job {checkpoint.job}")
    return checkpoint


def _check_database(path: Path) -> None:
    """Whole, and of tables only: what came from elsewhere must not run code of its own."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as database:
        database.execute("PRAGMA trusted_schema = OFF")
        if (told := database.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(f"{path.name}: {told}")
        if database.execute("SELECT 1 FROM sqlite_master WHERE type NOT IN ('table', 'index')").fetchone():
            raise sqlite3.DatabaseError(f"{path.name} holds more than tables")


def _moved(checkpoint: Checkpoint, source: str | None, store_path: str | None) -> Checkpoint:
    """The checkpoint of a job whose source and store are now elsewhere."""
    before = checkpoint.settings
    settings = before
    parts = checkpoint.parts
    if source is not None:
        if settings.format != "store":
            source = str(Path(source).absolute())
        settings = msgspec.structs.replace(settings, source=source)
        parts = [_renamed(part, before.source, settings.source) for part in parts]
    if store_path is not None:
        settings = msgspec.structs.replace(settings, store_path=str(Path(store_path).absolute()))
    settings.check()
    return msgspec.structs.replace(
        checkpoint, settings=settings, fingerprint=settings.fingerprint(), parts=parts, updated=now()
    )


def _renamed(part: PartState, before: str, after: str) -> PartState:
    if part.name == before or part.name.startswith(before.rstrip("/") + "/"):
        return msgspec.structs.replace(part, name=after + part.name[len(before) :])
    return part


def _replace(manager: CheckpointManager, checkpoint: Checkpoint, unpacked: list[Path]) -> None:
    """Put the files in place; the checkpoint goes first and comes last: without one nothing is trusted."""
    for path in manager.state_files(checkpoint.job):
        if path.suffix != ".lock":
            path.unlink()
    for path in unpacked:
        if path.name.startswith("completed_"):
            path.rename(manager.archive_folder() / path.name.replace("completed", checkpoint.job, 1))
        elif path.name != CHECKPOINT:
            path.rename(manager.folder / f"{checkpoint.job}.{path.name}")
    manager.save(checkpoint)
