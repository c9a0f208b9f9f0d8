"""Storing in a store: everything that stands between a batch and the adapter, written once.

    a slot -> the breaker -> not while the server asked for a pause -> a thread -> the adapter
      ^ backoff with jitter on a transient failure

A batch that is refused is halved by the pipeline.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from ragingest.documents import EmbeddedBatch, Fault
from ragingest.errors import RejectedError, TerminalError, TransientError
from ragingest.events import Counters
from ragingest.pacing.breaker import CircuitBreaker
from ragingest.pacing.concurrency import AdaptiveConcurrency, Slot
from ragingest.pacing.rate_limiter import RateLimiter
from ragingest.pacing.retries import retrying
from ragingest.protocols import Store

__all__ = ["StoreCalls"]

P = ParamSpec("P")
T = TypeVar("T")

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]

START = 2


class StoreCalls:
    """Writes of one run, many at once, on one event loop.

    Args:
        store: does one write, tried once.
        counters: are counted into: every upsert on the wire, and those of them that failed.
        give_up_after: seconds of failure without one success.
        on_change: is told True when the store seems to be gone, False when it is back.
        sleep, clock: injected so that tests do not wait.
    """

    def __init__(
        self,
        store: Store,
        counters: Counters,
        *,
        give_up_after: float = 600.0,
        on_change: Callable[[bool], None] = lambda _opened: None,
        sleep: Sleep = asyncio.sleep,
        clock: Clock = time.monotonic,
    ) -> None:
        most = store.limits.concurrency
        self.concurrency = most
        self._store = store
        self._counters = counters
        self._give_up_after = give_up_after
        self._sleep = sleep
        self._clock = clock
        self._adaptive = store.limits.adaptive
        self._slots = AdaptiveConcurrency(min(START, most) if self._adaptive else most, most, clock=clock)
        self._pauses = RateLimiter(None, clock=clock, sleep=sleep)
        self._breaker = CircuitBreaker(
            give_up_after=give_up_after, name=store.name, on_change=on_change, clock=clock, sleep=sleep
        )
        self._encodes = True
        # One more, so that encoding goes on while all slots are taken.
        self._threads = ThreadPoolExecutor(most + 1, "store")

    async def encode(self, batch: EmbeddedBatch) -> list[tuple[int, Fault]]:
        """Make `batch.wire`, if the store has such a thing; the rows that it can never keep, and why.

        Those rows have no bytes: take them out.
        """
        encoded = await self._in_thread(self._store.encode, batch) if self._encodes else None
        if encoded is None:
            self._encodes = False
            return []
        faults = [(row, point) for row, point in enumerate(encoded) if isinstance(point, Fault)]
        batch.wire = [b"" if isinstance(point, Fault) else point for point in encoded]
        return faults

    async def upsert(self, batch: EmbeddedBatch) -> None:
        """Store a batch; return once it is applied.

        Raises:
            RejectedError: a point of it can never be stored, or it is too large.
            TerminalError: the store refuses everything, or has failed for too long.
        """
        await self._with_retries(self._upsert, batch)

    async def delete(self, points: Sequence[tuple[str, int]]) -> None:
        """Delete points by (document id, chunk number).

        Raises:
            TerminalError: as for `upsert`.
        """
        await self._with_retries(self._delete, points)

    def close(self) -> None:
        """Wait for what is in threads; what has not begun is left."""
        self._threads.shutdown(cancel_futures=True)

    async def _upsert(self, batch: EmbeddedBatch) -> None:
        self._counters.upserts += 1
        try:
            await self._once(len(batch.chunks), self._store.upsert, batch)
        except TransientError:
            self._counters.upserts_failed += 1
            raise

    async def _delete(self, points: Sequence[tuple[str, int]]) -> None:
        await self._once(len(points), self._store.delete, points)

    async def _with_retries(self, call: Callable[[T], Awaitable[None]], argument: T) -> None:
        try:
            await retrying(self._give_up_after, self._clock, self._sleep)(call, argument)
        except TransientError as error:
            raise TerminalError(str(error), "resume when it is over; nothing that is done is lost") from None

    async def _once(self, units: int, call: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        async with self._slots.slot() as slot:
            await self._breaker.before()
            try:
                await self._pauses.acquire(1)
                began = self._clock()
                await self._in_thread(call, *args, **kwargs)
                self._breaker.succeeded()
                if self._adaptive:
                    slot.succeeded(self._clock() - began, units)
            except TransientError as error:
                self._note(error, slot)
                raise
            except RejectedError:
                self._breaker.succeeded()
                raise
            finally:
                self._breaker.abandoned()  # counts only for a probe that ended without an answer

    def _note(self, error: TransientError, slot: Slot) -> None:
        if error.throttled:
            slot.throttled()
            self._breaker.succeeded()
        else:
            slot.failed()
            self._breaker.failed(error)
        if error.retry_after is not None:
            self._pauses.pause(error.retry_after)

    async def _in_thread(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: call(*args, **kwargs))
