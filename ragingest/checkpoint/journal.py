"""The books of one run: what is done, counted in one place and saved in the order that makes it safe.

    the store confirms -> the ledger commits -> the store flushes -> rejects, ledger, checkpoint are synced

A crash between any two of these repeats work and loses none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import psutil

from ragingest.checkpoint.ledger import Ledger, LedgerRow
from ragingest.checkpoint.manager import CheckpointManager
from ragingest.checkpoint.ranges import RangeSet
from ragingest.checkpoint.rejects import RejectsFile
from ragingest.checkpoint.state import Checkpoint, PartState, Status
from ragingest.documents import Block, Document, Stored
from ragingest.events import Counters

__all__ = ["Journal", "boot_identity", "done_ranges", "next_run", "now"]


class Journal:
    """State of a run, from its first record to its archive.

    `lookup`, `intend`, `commit` and `save` do I/O and are called in one worker thread; everything
    else belongs to the event loop's thread. A `save` sees the state that `snapshot` took.
    """

    def __init__(
        self, checkpoint: Checkpoint, manager: CheckpointManager, ledger: Ledger, unit: str = "record"
    ) -> None:
        self.job = checkpoint.job
        self.run = checkpoint.run
        self.ledger = ledger
        self.manager = manager
        self.counters = checkpoint.counters
        self.reject_kinds = checkpoint.reject_kinds
        self.rejects = RejectsFile(manager.files(checkpoint.job).rejects, checkpoint.rejects_bytes)
        self._unit = unit
        self._base = checkpoint
        self._before = checkpoint.seconds
        self._clock = time.monotonic()
        self._done = [part.ranges() for part in checkpoint.parts]
        self._positions = [(part.ordinal, part.offset) for part in checkpoint.parts]
        self._ends: list[dict[int, int]] = [{} for _ in checkpoint.parts]

    # -- what is done ------------------------------------------------------------------------------

    def done(self, part: int) -> RangeSet:
        """A copy of what is done of `part`."""
        return RangeSet(self._done[part])

    def position(self, part: int) -> tuple[int, int]:
        """(ordinal, offset) at which to begin reading `part`."""
        return self._positions[part]

    def lookup(self, documents: Sequence[Document]) -> dict[str, Stored]:
        return self.ledger.lookup([document.id for document in documents])

    def seen(self, documents: Iterable[Document]) -> None:
        """Note that these, whose content the store has already, were read in this run."""
        self.ledger.commit(
            LedgerRow(d.id, d.digest, d.previous.chunks, d.previous.run, self.run, d.block.part, d.record.ordinal)
            for d in documents
            if d.previous is not None
        )

    def touch(self, places: Iterable[tuple[str, int, int]]) -> None:
        """Note that these (id, part, ordinal) were read, though their content is rejected."""
        self.ledger.touch(places, self.run)

    def intend(self, documents: Iterable[Document]) -> None:
        """Note, before the first point is sent, that up to so many chunks of these may be in the store.

        Should the process die and the document change or shrink, the leftover chunks are known.
        """
        self.ledger.commit(
            LedgerRow(
                d.id,
                b"",
                max(d.chunks, d.previous.chunks if d.previous else 0),
                d.previous.run if d.previous else self.run,
                d.previous.seen if d.previous else 0,
                d.previous.part if d.previous else d.block.part,
                d.previous.ordinal if d.previous else d.record.ordinal,
            )
            for d in documents
        )

    def commit(self, stored: Sequence[Document], refused: Sequence[Document] = ()) -> None:
        """Write down what the store has confirmed, and forget what was refused and removed from it."""
        run = self.run
        self.ledger.commit(
            (LedgerRow(d.id, d.digest, d.chunks, run, run, d.block.part, d.record.ordinal) for d in stored),
            (d.id for d in refused),
        )

    def block_done(self, block: Block) -> None:
        """All records of the block have their outcome: count them, and move over them."""
        counters = self.counters
        counters.read += block.read
        counters.stored += block.stored
        counters.unchanged += block.unchanged
        counters.duplicate += block.duplicate
        counters.rejected += len(block.rejects)
        counters.nameless += sum(reject.id is None for reject in block.rejects)
        counters.chunks += block.chunks
        part_name = self._base.parts[block.part].name
        for reject in block.rejects:
            self.reject_kinds[reject.fault.kind] = self.reject_kinds.get(reject.fault.kind, 0) + 1
            self.rejects.append(reject, part_name, self._unit)
        done = self._done[block.part]
        done.add(block.start, block.end)
        ends = self._ends[block.part]
        ends[block.end] = block.end_offset
        watermark = done.watermark
        passed = [end for end in ends if end <= watermark]
        if passed:
            last = max(passed)
            if last > self._positions[block.part][0]:
                self._positions[block.part] = (last, ends[last])
            for end in passed:
                del ends[end]

    # -- saving ------------------------------------------------------------------------------------

    @property
    def seconds(self) -> float:
        """Time that this run took, all its attempts together."""
        return self._before + time.monotonic() - self._clock

    def snapshot(self, status: Status, message: str = "", hint: str = "") -> tuple[Checkpoint, int]:
        """The state now, as a value, and how many lines of rejects belong to it."""
        parts = [
            msgspec.structs.replace(
                part, done=[(start, end) for start, end in done], ordinal=position[0], offset=position[1]
            )
            for part, done, position in zip(self._base.parts, self._done, self._positions, strict=True)
        ]
        checkpoint = msgspec.structs.replace(
            self._base,
            status=status,
            updated=now(),
            seconds=round(self.seconds, 3),
            boot=boot_identity(),
            parts=parts,
            counters=self.counters.copy(),
            reject_kinds=dict(self.reject_kinds),
            message=message,
            hint=hint,
        )
        return checkpoint, self.rejects.waiting()

    def save(self, snapshot: tuple[Checkpoint, int], flush: Callable[[], None]) -> Checkpoint:
        """Put a snapshot on disk, after everything that it claims; returns it as saved.

        Raises:
            TerminalError: the disk is full or cannot be written; the checkpoint before it is whole.
        """
        checkpoint, lines = snapshot
        flush()
        length = self.rejects.write(lines)
        self.ledger.sync()
        checkpoint = msgspec.structs.replace(checkpoint, rejects_bytes=length)
        self.manager.save(checkpoint)
        return checkpoint

    def close(self) -> None:
        """Nothing is written any more."""


def next_run(before: Checkpoint, parts: list[PartState]) -> Checkpoint:
    """A new pass over the source: nothing is done, the ledger knows what is stored."""
    moment = now()
    return msgspec.structs.replace(
        before,
        run=before.run + 1,
        status="running",
        started=moment,
        updated=moment,
        attempts=1,
        seconds=0.0,
        parts=parts,
        partial=False,
        retrying=False,
        counters=Counters(),
        reject_kinds={},
        rejects_bytes=0,
        message="",
        hint="",
    )


def done_ranges(checkpoint: Checkpoint) -> list[RangeSet]:
    return [part.ranges() for part in checkpoint.parts]


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def boot_identity() -> str:
    """A name for this boot of the machine, other than that of any other boot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"booted {psutil.boot_time():.0f}"
