"""The books of a retry: records of a finished run that were rejected, and get another outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from ragingest.checkpoint.journal import Journal
from ragingest.checkpoint.ledger import Ledger
from ragingest.checkpoint.manager import CheckpointManager
from ragingest.checkpoint.ranges import RangeSet
from ragingest.checkpoint.rejects import Claim, RejectsEdition, as_line
from ragingest.checkpoint.state import Checkpoint, Status
from ragingest.documents import Block

__all__ = ["RetryJournal"]

Claims = Callable[[int, int], Mapping[int, Claim]]


class RetryJournal(Journal):
    """Moves records from rejected to another outcome; positions and what is read stay as they are.

    The file of rejects and the checkpoint change together: an edition is written, the checkpoint
    tells of it, and it takes the place of the one before. The run stays `completed` throughout.

    Args:
        claims: the lines of the rejects file whose records are in a block: (part, start) to ordinal to line.
    """

    def __init__(self, checkpoint: Checkpoint, manager: CheckpointManager, ledger: Ledger, claims: Claims) -> None:
        super().__init__(checkpoint, manager, ledger)
        path = manager.files(checkpoint.job).rejects
        self._edition = RejectsEdition(path, checkpoint.rejects_bytes, checkpoint.rejects_edition)
        self._claims = claims
        self.retried = 0

    def done(self, part: int) -> RangeSet:
        """Nothing: what is on the list was read before."""
        return RangeSet()

    def block_done(self, block: Block) -> None:
        claims = self._claims(block.part, block.start)
        rejects = {reject.record.ordinal: reject for reject in block.rejects}
        counters = self.counters
        counters.stored += block.stored
        counters.unchanged += block.unchanged
        counters.duplicate += block.duplicate
        counters.rejected += len(rejects) - len(claims)
        counters.chunks += block.chunks
        self.retried += len(claims)
        for ordinal, claim in claims.items():
            counters.nameless -= not claim.named
            self._count(claim.kind, -1)
            reject = rejects.get(ordinal)
            if reject is None:
                self._edition.change(claim.line)
                continue
            counters.nameless += reject.id is None
            self._count(reject.fault.kind, 1)
            self._edition.change(claim.line, as_line(reject, self._base.parts[block.part].name, claim.unit))

    def _count(self, kind: str, more: int) -> None:
        count = self.reject_kinds.get(kind, 0) + more
        if count > 0:
            self.reject_kinds[kind] = count
        else:
            self.reject_kinds.pop(kind, None)

    def snapshot(self, status: Status, message: str = "", hint: str = "") -> tuple[Checkpoint, int]:
        checkpoint, _ = super().snapshot(status, message, hint)
        return checkpoint, self._edition.waiting()

    def save(self, snapshot: tuple[Checkpoint, int], flush: Callable[[], None]) -> Checkpoint:
        checkpoint, changes = snapshot
        flush()
        length = self._edition.write(changes)
        self.ledger.sync()
        checkpoint = msgspec.structs.replace(
            checkpoint, rejects_bytes=length, rejects_edition=self._edition.edition, retrying=False
        )
        self.manager.save(
            msgspec.structs.replace(
                checkpoint, status="completed", message="", hint="", retrying=checkpoint.status == "running"
            )
        )
        self._edition.settle()
        return checkpoint

    def close(self) -> None:
        self._edition.close()
