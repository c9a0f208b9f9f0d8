"""The checkpoint as a value: parsed, moved forward and printed without touching a file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import msgspec

from ragingest.checkpoint.ranges import RangeSet
from ragingest.events import Counters
from ragingest.protocols import PartInfo
from ragingest.settings import JobSettings, RunOptions

__all__ = ["FORMAT", "Checkpoint", "CheckpointError", "PartState", "Status", "decode", "edition_of", "encode"]

FORMAT = 1

Status = Literal["running", "waiting", "interrupted", "completed", "failed"]


class CheckpointError(ValueError):
    """The bytes are not a checkpoint that this version reads; the message says why."""


class PartState(msgspec.Struct, kw_only=True):
    """One part of the source: what identifies it, and which of its records are done.

    `done` are half-open ranges of ordinals. All records before `ordinal` are done, and it starts at
    byte `offset`: that is where resuming begins to read. `cursor` is what a store that is copied
    calls that place.
    """

    name: str
    size: int | None = None
    mtime_ns: int | None = None
    digest: str = ""
    done: list[tuple[int, int]] = []
    ordinal: int = 0
    offset: int = 0
    cursor: str | None = None

    @classmethod
    def of(cls, info: PartInfo) -> PartState:
        return cls(name=info.name, size=info.size, mtime_ns=info.mtime_ns, digest=info.digest)

    def info(self) -> PartInfo:
        return PartInfo(self.name, self.size, self.mtime_ns, self.digest)

    def ranges(self) -> RangeSet:
        return RangeSet(self.done)


class Checkpoint(msgspec.Struct, kw_only=True):
    """A job's state. Holds settings, never a secret."""

    format: int = FORMAT
    ragingest: str
    job: str
    run: int
    status: Status
    started: str
    updated: str
    attempts: int = 1
    seconds: float = 0.0
    boot: str = ""
    """Which boot of the machine wrote it: after another one, only `done` is trusted."""
    settings: JobSettings
    fingerprint: str
    options: RunOptions
    parts: list[PartState]
    partial: bool = False
    """The run began behind what an earlier one had read, of a source that was appended to."""
    counters: Counters
    reject_kinds: dict[str, int] = {}
    rejects_bytes: int = 0
    """Length of the rejects file that belongs to this checkpoint; what lies behind it is redone."""
    rejects_edition: int = 0
    """How often retries have rewritten the rejects file."""
    retrying: bool = False
    """Rejects of this finished run are being tried again, or were when the process died."""
    message: str = ""
    hint: str = ""
    """What ended the run, if it failed, and what to do about it."""
    checksum: str = ""
    """BLAKE2b over all other fields, so that a damaged file is told from a good one."""

    @property
    def finished(self) -> bool:
        return self.status == "completed"


def edition_of(rejects: Path, edition: int) -> Path:
    """A rewritten rejects file, until a checkpoint tells of it and it takes the place of `rejects`."""
    return rejects.with_name(f"{rejects.name}.{edition}")


_decoder = msgspec.json.Decoder(Checkpoint)


class _Versioned(msgspec.Struct):
    format: int


_versioned = msgspec.json.Decoder(_Versioned)


def encode(checkpoint: Checkpoint) -> bytes:
    """As indented JSON, with its checksum."""
    fields = msgspec.json.decode(msgspec.json.encode(checkpoint))
    fields["checksum"] = _checksum(fields)
    return msgspec.json.format(msgspec.json.encode(fields), indent=1) + b"\n"


def _checksum(fields: dict[str, Any]) -> str:
    """Of the fields as they stand in the file, so that one written by an older version keeps its own."""
    bare = {name: value for name, value in fields.items() if name != "checksum"}
    return hashlib.blake2b(msgspec.json.encode(bare, order="sorted"), digest_size=16).hexdigest()


def decode(data: bytes) -> Checkpoint:
    """Parse and check.

    Raises:
        CheckpointError: cut, damaged, of another format, or at odds with itself.
    """
    try:
        # First and by itself: another format may hold anything else.
        version = _versioned.decode(data).format
        if version != FORMAT:
            raise CheckpointError(f"its format is {version}; this version reads {FORMAT}")
        checkpoint = _decoder.decode(data)
        checksum = _checksum(msgspec.json.decode(data))
        for part in checkpoint.parts:
            part.ranges()
    except CheckpointError:
        raise
    except (ValueError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(str(error)) from None
    if checkpoint.checksum != checksum:
        raise CheckpointError("its checksum does not match: it was damaged or edited")
    if not checkpoint.counters.balanced:
        raise CheckpointError("its counters do not add up")
    return checkpoint
