"""How many calls at once: a concurrency that finds itself by what it brings.

Pure asyncio: no I/O, and the clock is a parameter. One event loop uses an object.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import Enum

__all__ = ["AdaptiveConcurrency", "Slot"]

Clock = Callable[[], float]


class _Phase(Enum):
    DOUBLING = "doubling"  # from the start, while it pays
    HOLDING = "holding"  # at a good level, for some rounds
    PROBING = "probing"  # at a level next to it
    RECOVERING = "recovering"  # at half, once throttled, before going back to what was good


@dataclass(frozen=True, slots=True)
class _Level:
    """What was measured at a concurrency: units a second, and seconds a call."""

    limit: int
    rate: float
    latency: float


class Slot:
    """One call's place. Report how it went, once, before leaving; a slot that reports nothing counts for nothing."""

    __slots__ = ("_began", "_epoch", "_owner", "_reported", "_waited")

    def __init__(self, owner: AdaptiveConcurrency, epoch: int, began: float) -> None:
        self._owner = owner
        self._epoch = epoch
        self._began = began
        self._reported = False
        self._waited = 0.0

    def waited(self, seconds: float) -> None:
        """So long it held the slot without a call under way, for a budget say: more slots would bring nothing."""
        self._waited += seconds

    def succeeded(self, latency_seconds: float, units: float = 1) -> None:
        """The call brought `units` (texts, say); the server took `latency_seconds` for it."""
        if not self._reported:
            self._reported = True
            self._owner._completed(self._epoch, self._began + self._waited, latency_seconds, units, self._waited)

    def throttled(self) -> None:
        """The server said that this is too much: 429 or 503."""
        if not self._reported:
            self._reported = True
            self._owner._throttled(self._epoch)

    def failed(self) -> None:
        """The call failed in a way that says nothing about load: it took its time and brought nothing."""
        if not self._reported:
            self._reported = True
            self._owner._completed(self._epoch, self._began + self._waited, None, 0, self._waited)


class AdaptiveConcurrency:
    """Slots for calls, as many as pay.

    Doubles from `start` while throughput follows; then probes a neighbouring level from time to time,
    up and down in turn, and moves there if it pays: if throughput changes by more than the tenth
    part (`PAYS`) of what the concurrency does, both in proportion. A probe that pays is followed by
    a longer step the same way, one that does not by a longer rest (4 to 64 rounds), so a server that
    gets better is noticed. 429 and 503 halve it; a level that was clean before is taken up again
    after one round. A latency half as high again, without more throughput, takes a quarter off.

    At least one round, as many completions as there are slots, lies between two changes, except that
    a 429 or 503 acts at once. Only calls that began after the last change count, and rounds in which
    the slots were not wanted, or were held by callers that waited for something else, change nothing.
    Never below 1, never over `maximum`; callers are served in the order of their calls.

    The law: Little's (throughput = concurrency / time in the slot); additive increase, multiplicative
    decrease (Chiu and Jain 1989) with slow start and the memory of the last good level (TCP).

    Raises:
        ValueError: start or maximum below 1, or start over maximum.
    """

    PAYS = 0.1
    DOUBLING_PAYS = 0.4
    RESTS = (4, 64)
    """Rounds between two probes: at first, and at most."""
    PROBE_ROUNDS = 4
    """Rounds that judge a probe, the first of which is left out."""
    SAMPLE = 16
    """Calls that make a measurement where there are fewer slots."""

    def __init__(self, start: int = 4, maximum: int | None = 64, *, clock: Clock = time.monotonic) -> None:
        if start < 1 or (maximum is not None and maximum < start):
            raise ValueError("concurrency starts at 1 or more, and not over its maximum")
        self._limit = start
        self._maximum = maximum
        self._clock = clock
        self._in_flight = 0
        self._peak = 0
        self._waiters: deque[asyncio.Future[int]] = deque()
        self._phase = _Phase.DOUBLING
        self._base: _Level | None = None
        self._good = 0
        self._ceiling: int | None = None  # where it was last throttled
        self._upwards = True
        self._step = 1
        self._rest = self.RESTS[0]
        self._rounds = 0
        self._epoch = 0
        self._skip = 0
        self._busy_since = clock()
        self._begin_round()

    @property
    def limit(self) -> int:
        """Slots there are now."""
        return self._limit

    @property
    def in_flight(self) -> int:
        """Slots that are held."""
        return self._in_flight

    @property
    def peak(self) -> int:
        """The most slots ever held at once."""
        return self._peak

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[Slot]:
        """Hold a slot; wait for one if all are taken. A caller that is cancelled leaves none behind."""
        epoch = await self._enter()
        try:
            yield Slot(self, epoch, self._clock())
        finally:
            self._account(-1)
            self._let_in()

    async def _enter(self) -> int:
        """Wait for a slot; the epoch (which limit it is, counted) in which it was given."""
        if self._in_flight < self._limit and not self._waiters:
            self._account(+1)
            return self._epoch
        waiter: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                with suppress(ValueError):
                    self._waiters.remove(waiter)
            else:
                self._account(-1)
                self._let_in()
            raise

    def _let_in(self) -> None:
        while self._waiters and self._in_flight < self._limit:
            waiter = self._waiters.popleft()
            if not waiter.cancelled():
                self._account(+1)
                waiter.set_result(self._epoch)

    def _account(self, change: int) -> None:
        """Count slots held, and slot-seconds, by which a round is known to have been busy."""
        now = self._clock()
        self._busy += min(self._in_flight, self._limit) * (now - self._busy_since)
        self._busy_since = now
        self._in_flight += change
        self._peak = max(self._peak, self._in_flight)

    # -- rounds ------------------------------------------------------------------------------------

    def _begin_round(self) -> None:
        self._round_began = self._busy_since = self._clock()
        self._busy = 0.0
        self._idle = 0.0
        self._completions = 0
        self._units = 0.0
        self._held_seconds = 0.0
        self._latencies = 0.0
        self._successes = 0

    def _move(self, limit: int, phase: _Phase) -> None:
        limit = max(1, limit if self._maximum is None else min(limit, self._maximum))
        if limit != self._limit:
            self._account(0)
            self._limit = limit
            self._epoch += 1
        self._phase = phase
        # Of the first calls those that are short end first: they would flatter the new level.
        self._skip = limit if phase is _Phase.PROBING else 0
        self._begin_round()
        self._let_in()

    def _completed(self, epoch: int, began: float, latency: float | None, units: float, waited: float) -> None:
        if epoch != self._epoch:
            return
        if self._skip:
            self._skip -= 1
            if not self._skip:
                self._begin_round()
            return
        self._completions += 1
        self._idle += waited
        self._units += units
        self._held_seconds += self._clock() - began
        if latency is not None:
            self._latencies += latency
            self._successes += 1
        if self._completions >= self._needed():
            self._end_round()

    def _needed(self) -> int:
        """Completions that make a measurement: a round at least, more where noise would decide."""
        if self._phase is _Phase.PROBING:
            return max((self.PROBE_ROUNDS - 1) * self._limit, self.SAMPLE // 2)
        return max(self._limit, self.SAMPLE) if self._phase is _Phase.HOLDING else self._limit

    def _end_round(self) -> None:
        self._account(0)
        wanted = self._busy - self._idle >= 0.9 * self._limit * (self._clock() - self._round_began)
        if not wanted or self._units <= 0 or self._held_seconds <= 0:
            if self._phase is _Phase.PROBING and self._base is not None:
                self._move(self._base.limit, _Phase.HOLDING)
                return
            if self._phase is _Phase.DOUBLING and self._units > 0:
                self._hold(self._limit)  # there are enough
                return
            if self._base is not None and self._successes:
                # Else only the slow spells, in which slots are short, would say what latency is usual.
                usual = _Level(self._base.limit, self._base.rate, self._latencies / self._successes)
                self._base = _blend(self._base, usual)
            if self._phase is _Phase.HOLDING:
                self._rounds += self._completions // self._limit
            self._begin_round()
            return
        rate = self._limit * self._units / self._held_seconds
        level = _Level(self._limit, rate, self._latencies / self._successes if self._successes else 0.0)
        if self._phase is _Phase.DOUBLING:
            self._double(level)
        elif self._phase is _Phase.PROBING:
            self._judge(level)
        elif self._phase is _Phase.RECOVERING:
            self._hold(self._good)
            self._rounds = self.RESTS[0]  # it was good before
        else:
            self._watch(level)

    def _double(self, level: _Level) -> None:
        base = self._base
        if base is not None and _elasticity(base, level) < self.DOUBLING_PAYS:
            if self._completions < self.PROBE_ROUNDS * level.limit:
                return  # a few slow calls may have done it: measure on
            # Little's law: so many were really served at once.
            knee = math.ceil(base.limit * level.rate / base.rate)
            self._hold(max(base.limit, min(knee, level.limit)))
        elif level.limit == self._maximum:
            self._hold(level.limit, level)
        else:
            self._base = level
            self._move(2 * level.limit, _Phase.DOUBLING)

    def _hold(self, limit: int, base: _Level | None = None) -> None:
        self._base = base
        self._rounds = 0
        self._step = max(1, limit // 8)
        self._move(limit, _Phase.HOLDING)

    def _watch(self, level: _Level) -> None:
        base = self._base
        if base is not None and level.latency > 1.5 * base.latency and level.rate < 1.05 * base.rate:
            if self._completions < self.PROBE_ROUNDS * max(level.limit, self.SAMPLE):
                return
            self._rest = self.RESTS[0]
            self._hold(level.limit * 3 // 4)
            return
        self._base = level if base is None else _blend(base, level)
        self._rounds += self._completions // self._limit
        if self._rounds < self._rest:
            self._begin_round()
        else:
            self._probe(self._base)

    def _probe(self, base: _Level) -> None:
        """Try the next level; up and down take turns, except at the ends."""
        if base.limit == self._maximum:
            self._upwards = False
        elif base.limit == 1:
            self._upwards = True
        step = self._step
        if self._upwards and self._ceiling is not None and self._ceiling > base.limit:
            step = min(step, max(1, (self._ceiling - base.limit) // 2))
        target = max(1, base.limit + step if self._upwards else base.limit - step)
        self._base = base
        if self._maximum == 1:
            self._hold(1, base)
        else:
            self._move(target, _Phase.PROBING)

    def _judge(self, level: _Level) -> None:
        """Stay where the probe led, or go back and wait longer before the next one, the other way."""
        base = self._base
        assert base is not None
        upwards = level.limit > base.limit
        pays = (_elasticity(base, level) > self.PAYS) == upwards
        if not pays:
            self._upwards = not upwards
            self._rest = min(2 * self._rest, self.RESTS[1])
            self._hold(base.limit, base)
        elif upwards and level.limit != self._maximum:
            self._rest = self.RESTS[0]
            self._step = min(2 * self._step, max(1, level.limit // 2))
            if self._ceiling is not None and level.limit >= self._ceiling:
                self._ceiling = None
            self._probe(level)
        else:
            self._hold(level.limit, level)

    def _throttled(self, epoch: int) -> None:
        if epoch != self._epoch:
            return
        self._epoch += 1  # what is under way will hear of the same overload
        limit, base = self._limit, self._base
        half = max(1, limit // 2)
        self._ceiling = limit
        if self._phase is _Phase.PROBING and base is not None and base.limit < limit:
            self._good = base.limit
            self._upwards = self._step > 1
            self._rest = min(2 * self._rest, self.RESTS[1])
            self._recover(half)
        elif self._phase is _Phase.RECOVERING:
            self._good -= max(1, self._good // 10)
            self._recover(half)
        elif self._phase is _Phase.HOLDING and self._rounds >= self.RESTS[0]:
            self._good = limit - max(1, limit // 10)
            self._recover(half)
        else:
            self._upwards = True
            self._rest = self.RESTS[0] // 2
            self._hold(half)

    def _recover(self, half: int) -> None:
        self._base = None
        self._good = max(self._good, half)
        self._move(half, _Phase.RECOVERING)


def _elasticity(before: _Level, after: _Level) -> float:
    """By what part throughput follows concurrency: 1 where each slot adds as much, 0 where none does."""
    return math.log(after.rate / before.rate) / math.log(after.limit / before.limit)


def _blend(old: _Level, new: _Level, part: float = 0.3) -> _Level:
    return _Level(
        old.limit, old.rate + part * (new.rate - old.rate), old.latency + part * (new.latency - old.latency)
    )
