"""The second half of the way, shared by runs and copies: embedded batches in, confirmed points out.

encode -> pack -> upsert -> confirm
   |                |
   rejects          rejects
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from ragingest.batching import PointPacker, pick_rows, point_sizes, slice_batch
from ragingest.documents import Chunk, EmbeddedBatch, Fault
from ragingest.errors import TOO_LARGE, RejectedError, TerminalError

__all__ = ["Storing", "Writes", "arrivals"]

T = TypeVar("T")


class Writes(Protocol):
    """Writes to a store, with everything that is done about failures around them."""

    concurrency: int
    """Upserts at once, at most."""

    async def encode(self, batch: EmbeddedBatch) -> list[tuple[int, Fault]]:
        """Make `batch.wire`; the rows that can never be kept, and why."""
        ...

    async def upsert(self, batch: EmbeddedBatch) -> None: ...

    async def delete(self, points: Sequence[tuple[str, int]]) -> None: ...

    def close(self) -> None: ...


class Storing:
    """Packs batches into upserts, and writes them; a batch that is refused costs only its guilty points.

    Args:
        confirm: is told of chunks that the store has applied.
        refuse: is told of a chunk that it will never take, and why.
        give_up: is told, once, that writing has failed for good; what comes after is dropped.
        linger: seconds that an open upsert waits for more points.
        hurry: set while somebody waits for a point that may be in an open upsert.
    """

    def __init__(
        self,
        writes: Writes,
        packer: PointPacker,
        *,
        confirm: Callable[[Sequence[Chunk]], Awaitable[None]],
        refuse: Callable[[Chunk, RejectedError], Awaitable[None]],
        give_up: Callable[[TerminalError], None],
        linger: float,
        hurry: asyncio.Event,
    ) -> None:
        self._writes = writes
        self._packer = packer
        self._confirm = confirm
        self._refuse = refuse
        self._give_up = give_up
        self._linger = linger
        self._hurry = hurry
        self._failed = False
        self._to_pack: asyncio.Queue[EmbeddedBatch | None] = asyncio.Queue(1)
        self._to_upsert: asyncio.Queue[EmbeddedBatch | None] = asyncio.Queue(1)

    async def put(self, batch: EmbeddedBatch) -> None:
        """Take a batch; waits while the store is behind."""
        await self._to_pack.put(batch)

    async def end(self) -> None:
        """No more batches will come."""
        await self._to_pack.put(None)

    async def run(self) -> None:
        """Return when every batch up to the end is confirmed, refused or dropped."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._packing())
            for _ in range(self._writes.concurrency):
                group.create_task(self._upserting())

    async def _packing(self) -> None:
        async for batch in arrivals(self._to_pack, self._linger, self._hurry):
            kept = None if batch is None else await self._encoded(batch)
            for full in self._packer.flush() if kept is None else self._packer.add(kept):
                await self._to_upsert.put(full)
        for _ in range(self._writes.concurrency):
            await self._to_upsert.put(None)

    async def _encoded(self, batch: EmbeddedBatch) -> EmbeddedBatch:
        """The batch as it will be sent, without the points that the store can never keep."""
        faults = dict(await self._writes.encode(batch))
        if not faults:
            return batch
        for row, fault in faults.items():
            await self._refuse(batch.chunks[row], RejectedError(*fault))
        return pick_rows(batch, [row for row in range(len(batch.chunks)) if row not in faults])

    async def _upserting(self) -> None:
        while (batch := await self._to_upsert.get()) is not None:
            if self._failed:
                continue
            try:
                await self._upsert(batch)
            except TerminalError as error:
                self._failed = True
                self._give_up(error)

    async def _upsert(self, batch: EmbeddedBatch) -> None:
        """Store and confirm; a batch that is refused is halved until the guilty point stands alone."""
        if self._packer.overfull(batch):
            await self._upsert_halves(batch)  # it was packed before the store was known to take less
            return
        try:
            await self._writes.upsert(batch)
        except RejectedError as error:
            if len(batch.chunks) == 1:
                await self._refuse(batch.chunks[0], error)
                return
            if error.kind == TOO_LARGE:
                self._packer.shrink(sum(point_sizes(batch)) // 2)
            await self._upsert_halves(batch)
            return
        await self._confirm(batch.chunks)

    async def _upsert_halves(self, batch: EmbeddedBatch) -> None:
        middle = len(batch.chunks) // 2
        await self._upsert(slice_batch(batch, 0, middle))
        await self._upsert(slice_batch(batch, middle, len(batch.chunks)))


async def arrivals(
    queue: asyncio.Queue[T | None], linger: float, hurry: asyncio.Event
) -> AsyncGenerator[T | None, None]:
    """Items of the queue up to its end mark, and None whenever what is open should be sent as it is.

    That is: when none has come for `linger` seconds, when none is there and `hurry` is set, and at the end.
    """
    getter = asyncio.ensure_future(queue.get())
    hurried = asyncio.ensure_future(hurry.wait())
    open_ = False
    try:
        while True:
            if open_:
                await asyncio.wait({getter, hurried}, timeout=linger, return_when=asyncio.FIRST_COMPLETED)
            else:
                await asyncio.wait({getter})
            open_ = getter.done()
            item = getter.result() if getter.done() else None
            if getter.done():
                getter = asyncio.ensure_future(queue.get())
            if hurried.done() and not hurry.is_set():
                hurried = asyncio.ensure_future(hurry.wait())
            yield item
            if item is None and open_:
                return
    finally:
        getter.cancel()
        hurried.cancel()
