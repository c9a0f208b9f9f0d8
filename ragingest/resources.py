"""How much is under way at once: a gate for memory, and slots for calls."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from ragingest.events import Emit, Paused, Resumed
from ragingest.memory import MemoryGauge

__all__ = ["ResourceManager"]

POLL_SECONDS = 0.25


class ResourceManager:
    """Bounds what a run holds: reading waits while memory is short, calls wait for a slot.

    Args:
        concurrency: batches that are worked on at once, at most.
        room: how many of them make sense now, asked before each; None: always all.
        gauge: where memory is read.
        emit: is told when reading pauses and goes on.
        sleep, clock: injected so that tests do not wait.
    """

    def __init__(
        self,
        concurrency: int,
        gauge: MemoryGauge,
        emit: Emit = lambda _event: None,
        room: Callable[[], int] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.concurrency = concurrency
        self.peak_bytes = 0
        self._room = room or (lambda: concurrency)
        self._held = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._gauge = gauge
        self._emit = emit
        self._sleep = sleep
        self._clock = clock

    async def wait_for_memory(self, must_go_on: Callable[[], bool] = lambda: False) -> None:
        """Return once memory is under the limit, or at once when `must_go_on()` says so.

        The caller says it when nothing of its own is in flight: waiting would then free nothing.
        """
        self.peak_bytes = max(self.peak_bytes, self._gauge.own_bytes())
        reading = self._gauge.read()
        if reading.used < reading.limit:
            return
        began = self._clock()
        self._emit(Paused(*reading))
        while reading.used >= reading.limit and not must_go_on():
            await self._sleep(POLL_SECONDS)
            reading = self._gauge.read()
        self._emit(Resumed(self._clock() - began))

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[None]:
        """Hold one of the slots."""
        while self._free() <= 0:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                self.wake()  # whoever it was that this one was woken for
                raise
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
            self.wake()

    def _free(self) -> int:
        return min(self.concurrency, self._room()) - self._held

    def wake(self) -> None:
        """Give out what slots there are; called when there are more, though none was given back.

        Wakes no more callers than there is room for: with many waiting, each wake in vain is CPU for nothing.
        """
        free = self._free()
        while free > 0 and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                free -= 1
