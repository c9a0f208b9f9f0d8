"""When everything fails: stop sending, try one call at growing intervals, go on or give up."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable

from ragingest.errors import TerminalError

__all__ = ["CircuitBreaker"]


class CircuitBreaker:
    """Holds back calls to a server on which every call fails.

    Closed, it lets everything pass. After `threshold` failures in a row, over all callers, it opens:
    calls wait in `before`, and one of them at a time passes as a probe, the first after `first_wait`
    seconds, later ones after `factor` times as long each, up to `max_wait`. The first success, of a
    probe or of a call that was still under way, closes it and lets all waiting calls pass. When a
    probe fails `give_up_after` seconds or more after the first of the failures, all waiting and all
    later calls get a `TerminalError`; the last probe is made no later than that moment.

    Each `before` that returns is followed by `succeeded`, `failed` or `abandoned` in the same task:
    that is how the probe is known. A caller that waits for something else in between asks `holds_back` then. Failures of calls that passed before it opened do not count as
    those of a probe.

    The law: Nygard's circuit breaker ("Release It!") with exponential backoff.

    Args:
        threshold: failures in a row that open it, at least 1.
        first_wait, max_wait: seconds.
        factor: at least 1.
        give_up_after: seconds of failure without one success; None: never.
        name: of the server, for the message.
        on_change: is told True when it opens, False when it closes.

    Raises:
        ValueError: an argument makes no sense.
    """

    def __init__(
        self,
        threshold: int = 10,
        first_wait: float = 1.0,
        factor: float = 2.0,
        max_wait: float = 60.0,
        give_up_after: float | None = None,
        *,
        name: str = "the server",
        on_change: Callable[[bool], None] = lambda _opened: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if threshold < 1 or not 0 < first_wait <= max_wait or factor < 1:
            raise ValueError("a breaker opens after one failure or more, and its waits grow")
        if give_up_after is not None and not give_up_after > 0:
            raise ValueError("give_up_after is a positive number of seconds")
        self._threshold = threshold
        self._first_wait = first_wait
        self._factor = factor
        self._max_wait = max_wait
        self._give_up_after = give_up_after
        self._name = name
        self._on_change = on_change
        self._clock = clock
        self._sleep = sleep
        self._failures = 0
        self._since = 0.0
        self._open = False
        self._given_up: str | None = None
        self._wait = first_wait
        self._next_try = 0.0
        self._probe: asyncio.Task[object] | None = None
        self._waiters: set[asyncio.Future[None]] = set()

    @property
    def is_open(self) -> bool:
        """Whether calls are held back."""
        return self._open

    @property
    def failures(self) -> int:
        """Failures since the last success."""
        return self._failures

    @property
    def holds_back(self) -> bool:
        """Whether a call of this task that has waited since `before` must not be made any more: it opened meanwhile."""
        return self._open and not self._is_probe()

    async def before(self) -> None:
        """Return when a call may be made: at once while closed, as the only probe while open.

        Raises:
            TerminalError: the server has failed for `give_up_after` seconds without one success.
        """
        while self._open:
            if self._given_up is not None:
                raise TerminalError(self._given_up, "resume when it answers again; nothing that is done is lost")
            now = self._clock()
            if self._probe is None and now >= self._next_try:
                self._probe = asyncio.current_task()
                if self._probe is not None:
                    self._probe.add_done_callback(self._lost)
                return
            await self._change(None if self._probe is not None else self._next_try - now)

    def succeeded(self) -> None:
        """A call was answered, be it with a refusal of its content: the server is there."""
        self._failures = 0
        self._given_up = None
        self._end_probe()
        if self._open:
            self._open = False
            self._wake()
            self._on_change(False)

    def failed(self, error: BaseException) -> None:
        """A call failed as all may: timeout, connection, 5xx. The error's text goes into the message."""
        now = self._clock()
        if not self._failures:
            self._since = now
        self._failures += 1
        if not self._open:
            if self._failures >= self._threshold:
                self._open = True
                self._wait = self._first_wait
                self._plan(now)
                self._on_change(True)
        elif self._is_probe():
            self._end_probe()
            self._wait = min(self._wait * self._factor, self._max_wait)
            if now >= self._deadline:
                self._given_up = (
                    f"{self._name} failed {self._failures:,} times in a row, "
                    f"for {_duration(now - self._since)}; the last failure: {_described(error)}"
                )
            self._plan(now)
            self._wake()

    def abandoned(self) -> None:
        """A call ended without an answer and without a failure (it was cancelled): another may be the probe."""
        if self._is_probe():
            self._end_probe()
            self._wake()

    @property
    def _deadline(self) -> float:
        return math.inf if self._give_up_after is None else self._since + self._give_up_after

    def _plan(self, now: float) -> None:
        self._next_try = max(now, min(now + self._wait, self._deadline))

    def _is_probe(self) -> bool:
        return self._probe is not None and self._probe is asyncio.current_task()

    def _end_probe(self) -> None:
        if self._probe is not None:
            self._probe.remove_done_callback(self._lost)
            self._probe = None

    def _lost(self, _task: asyncio.Task[object]) -> None:
        """The probe's task ended and said nothing: the next one may try."""
        self._probe = None
        self._wake()

    async def _change(self, seconds: float | None) -> None:
        """Wait until something has happened, at most `seconds`."""
        changed = asyncio.get_running_loop().create_future()
        self._waiters.add(changed)
        waits: set[asyncio.Future[None]] = {changed}
        sleeper = None
        if seconds is not None:
            sleeper = asyncio.ensure_future(self._sleep(seconds))
            waits.add(sleeper)
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._waiters.discard(changed)
            if sleeper is not None:
                sleeper.cancel()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


def _described(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
