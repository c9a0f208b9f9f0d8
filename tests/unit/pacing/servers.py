"""Simulated servers: how long a call takes, and whether it is refused, by how many are under way."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress

from ragingest.pacing.concurrency import AdaptiveConcurrency
from tests.unit.pacing.fake_time import FakeTime

__all__ = ["Server", "fixed_throughput", "throughput"]


class ThrottledError(Exception):
    pass


class FailedError(Exception):
    pass


class Server:
    """Takes `latency` seconds a call, `capacity` calls at once; the others queue, or are refused.

    Args:
        capacity: None: any number at once. May be changed while it runs.
        refuses: answers 429 at once to a call over its capacity, instead of letting it queue.
        jitter: each call takes `latency` times a number from [1 - jitter, 1 + jitter].
        failing: part of the calls that fail after their time.
    """

    def __init__(
        self,
        latency: float,
        capacity: int | None = None,
        refuses: bool = False,
        jitter: float = 0.0,
        failing: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.latency = latency
        self.capacity = capacity
        self.refuses = refuses
        self.jitter = jitter
        self.failing = failing
        self.calls = 0
        self.throttles = 0
        self._random = random.Random(seed)  # noqa: S311  a simulation
        self._serving = 0
        self._queue: list[asyncio.Future[None]] = []

    def _full(self) -> bool:
        return self.capacity is not None and self._serving >= self.capacity

    def set_capacity(self, capacity: int) -> None:
        self.capacity = capacity
        self._admit()

    def _admit(self) -> None:
        while self._queue and not self._full():
            waiter = self._queue.pop(0)
            if not waiter.done():
                self._serving += 1
                waiter.set_result(None)

    async def call(self) -> None:
        self.calls += 1
        if self._full():
            if self.refuses:
                self.throttles += 1
                raise ThrottledError
            waiter = asyncio.get_running_loop().create_future()
            self._queue.append(waiter)
            await waiter
        else:
            self._serving += 1
        try:
            await asyncio.sleep(self.latency * (1 + self.jitter * self._random.uniform(-1, 1)))
        finally:
            self._serving -= 1
            self._admit()
        if self._random.random() < self.failing:
            raise FailedError


def throughput(
    server: Server,
    make: Callable[[FakeTime], AdaptiveConcurrency],
    settle: float,
    measure: float,
    halfway: Callable[[], None] = lambda: None,
    workers: int = 80,
) -> tuple[float, AdaptiveConcurrency]:
    """Calls answered a second in the `measure` seconds after `settle`; `halfway` happens in the middle of settling."""
    time = FakeTime()
    limiter = make(time)
    answered = 0

    async def work() -> None:
        nonlocal answered
        while True:
            async with limiter.slot() as slot:
                began = time.now()
                try:
                    await server.call()
                except ThrottledError:
                    slot.throttled()
                except FailedError:
                    slot.failed()
                else:
                    answered += 1
                    slot.succeeded(time.now() - began, 1)

    async def scenario() -> float:
        tasks = [asyncio.create_task(work()) for _ in range(workers)]
        await asyncio.sleep(settle / 2)
        halfway()
        await asyncio.sleep(settle / 2)
        before = answered
        await asyncio.sleep(measure)
        after = answered
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
        return (after - before) / measure

    return time.run(scenario()), limiter


def fixed_throughput(server: Server, concurrency: int) -> float:
    """What a fixed concurrency reaches, in calls a second, by the definition of the server."""
    if server.capacity is None:
        return concurrency / server.latency
    return min(concurrency, server.capacity) / server.latency
