"""Virtual time: an event loop that never waits. When every task is blocked, it goes to the next timer."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["FakeTime"]

T = TypeVar("T")


class FakeTime:
    """`now` and `sleep` for what is under test; `run` runs a scenario to its end, in no time.

    All of asyncio's own timers (`asyncio.sleep`, `asyncio.timeout`) are virtual inside of `run`. Tasks
    that wait for one another with no timer left are a deadlock, and an error rather than a hang.
    """

    def __init__(self, start: float = 1000.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def run(self, scenario: Coroutine[Any, Any, T]) -> T:
        with asyncio.Runner(loop_factory=lambda: _Loop(self)) as runner:
            return runner.run(scenario)

    def advance(self, seconds: float) -> None:
        self._now += seconds


class _Selector(selectors.SelectSelector):
    """Asked only when no task can go on; the time it would wait passes at once."""

    def __init__(self, time: FakeTime) -> None:
        super().__init__()
        self._time = time

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("every task waits for another one")
        if timeout > 0:
            self._time.advance(timeout)
        return []


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, time: FakeTime) -> None:
        super().__init__(_Selector(time))
        self._virtual = time

    def time(self) -> float:
        return self._virtual.now()
