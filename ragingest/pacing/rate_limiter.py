"""How fast: budgets a minute, pauses, and what servers say of them.

Pure asyncio: no I/O, and clock and sleep are parameters. One event loop uses an object; none of
them is for several threads.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

__all__ = ["Grant", "RateLimiter", "parse_reset", "parse_retry_after"]

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]

LONGEST_SLEEP = 3600.0
"""Seconds; a longer wait is slept in pieces."""


# -- budgets a minute ------------------------------------------------------------------------------


class Grant:
    """Stands for what was granted, for `refund`; neighbours in time share one.

    `time` is that of the last of them, in seconds of the limiter's clock.
    """

    __slots__ = ("amount", "first", "time")

    def __init__(self, moment: float, amount: float) -> None:
        self.first = moment
        self.time = moment
        self.amount = amount


class RateLimiter:
    """A budget of units (requests, or tokens) in any window of time.

    Guarantee: the amounts granted within [t, t + window) never exceed the limit, for any t, exact for
    whole amounts. Under steady demand `use` of the limit less a hundredth is used if the amounts are at
    most 1 % of it or divide it; larger ones lose up to their own size (three of 30 % fit, a fourth
    does not). Callers are served in the order of their calls. A caller that is cancelled has spent nothing.

    What is not paced is room for others on the same key, who would find the window full for ever: as
    soon as they have more than a hundredth and a half, the pace yields to them.

    The law: a token bucket (GCRA, ITU-T I.371) with a burst of `1 - use` of the limit and a refill of
    `use` of it a window, which together are the limit; a log of the last window keeps the guarantee
    where single amounts are larger than the burst. Even pacing rather than spending at once leaves
    room for what the network adds: requests that arrive closer together than they left.

    Args:
        per_minute: units a window, which is a minute unless `window` says otherwise; None: no limit
            until `learn` hears of one. A limit heard of never raises this one.
        window: seconds.
        use: part of the limit that is paced over a window, in (0.5, 1).

    Raises:
        ValueError: a limit or a window that is not positive.
    """

    def __init__(
        self,
        per_minute: float | None,
        window: float = 60.0,
        *,
        use: float = 0.98,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        if per_minute is not None and not 0 < per_minute < math.inf:
            raise ValueError("a limit is a positive number of units")
        if not 0 < window < math.inf or not 0.5 < use < 1:
            raise ValueError("a window is a positive number of seconds, and `use` a part of the limit")
        self._given = per_minute
        self._heard: float | None = None
        self._window = window
        self._use = use
        self._clock = clock
        self._sleep = sleep
        self._turn = asyncio.Lock()
        self._log: deque[Grant] = deque()
        self._spent: float = 0
        self._full_at = -math.inf
        self._paused_until = -math.inf
        self._others: float = 0
        self._others_heard = -math.inf
        self._others_until = -math.inf
        self._changed: asyncio.Future[None] | None = None
        self._waited = 0.0
        self._waiting: dict[object, float] = {}

    @property
    def limit(self) -> float | None:
        """Units a window: the lower of the one given and the one last heard; None if there is none."""
        if self._given is None or self._heard is None:
            return self._heard if self._given is None else self._given
        return min(self._given, self._heard)

    @property
    def waited(self) -> float:
        """Seconds that callers have waited, summed over all, those still waiting included."""
        now = self._clock()
        return self._waited + sum(now - began for began in self._waiting.values())

    @property
    def paused(self) -> bool:
        """Whether a pause is on."""
        return self._clock() < self._paused_until

    async def acquire(self, amount: float = 1) -> Grant:
        """Return when `amount` units may be spent; they are spent with the return, not before.

        Raises:
            ValueError: the amount is not positive, or over the limit, which may have fallen since the
                call. Nothing is spent then.
        """
        self._check(amount)
        began = self._clock()
        caller = object()
        self._waiting[caller] = began
        try:
            async with self._turn:
                while True:
                    self._check(amount)
                    now = self._clock()
                    due = self._due(amount, now)
                    if due <= now:
                        return self._grant(amount, now, max(due, began))
                    await self._nap(due - now)
        finally:
            self._waited += self._clock() - self._waiting.pop(caller)

    def refund(self, amount: float, grant: Grant | None = None) -> None:
        """Give back `amount` units that were granted and not used.

        With the `grant` that they belong to the window stays exact; without it they are taken from
        the oldest amounts, which is right while the grant is younger than a window.
        """
        if not amount >= 0:
            raise ValueError("an amount to refund is not negative")
        limit, now = self.limit, self._clock()
        if limit is None:
            return
        self._expire(now)
        left = amount
        for entry in [grant] if grant is not None else self._log:
            part = min(left, entry.amount)
            entry.amount -= part
            left -= part
            if entry.time + self._window > now:
                self._spent -= part
            if left <= 0:
                break
        self._full_at -= (amount - left) / self._rate(limit, now)
        self._wake()

    def charge(self, amount: float) -> None:
        """Book `amount` units that were spent beyond what was granted, even into debt.

        They count from now; nothing is granted until the window holds less than the limit again.
        """
        if not amount >= 0:
            raise ValueError("an amount to charge is not negative")
        limit, now = self.limit, self._clock()
        if limit is not None and amount:
            self._book(amount, now)
            self._full_at = max(self._full_at, now) + amount / self._rate(limit, now)

    def pause(self, seconds: float) -> None:
        """Grant nothing for `seconds` from now (Retry-After), and begin without a burst then.

        Of several pauses the longest wins.
        """
        if seconds > 0:
            now, limit = self._clock(), self.limit
            self._paused_until = max(self._paused_until, now + seconds)
            if limit is not None:
                burst = (1 - self._use) * limit / self._rate(limit, now)
                self._full_at = max(self._full_at, self._paused_until + burst)

    def learn(self, limit: float | None = None, remaining: float | None = None, reset: float | None = None) -> None:
        """Correct the budget by the headers of an answer; None and nonsense are passed over.

        What the server has counted beyond our own log was spent by others on the same key (or before
        we knew a limit): it is taken from our budget until `reset`, and the pace yields to it, to come
        back within a window after the others have stopped. A `remaining` above our own idea changes
        nothing: the guarantee stands. Refund the grant of a refused request before its headers are
        learned: if the server counts it nevertheless, `remaining` says so.

        Args:
            limit: units a window, effective at once, up or down, but never over the one given.
            remaining: units that the server has left for us.
            reset: seconds until the server's budget is whole again; a window if it does not say.
        """
        now = self._clock()
        if limit is not None and 0 < limit < math.inf:
            before, self._heard = self.limit, limit
            self._repace(before, now)
        known = self.limit
        if known is not None and remaining is not None and 0 <= remaining < math.inf:
            self._expire(now)
            counted = max(0.0, known - remaining - self._spent)
            self._others = max(counted, self._faded(known, now))
            self._others_heard = now
            wait = reset if reset is not None and 0 <= reset < math.inf else self._window
            if counted:
                self._others_until = now + wait
        self._wake()

    # -- when, and how much ------------------------------------------------------------------------

    def _check(self, amount: float) -> None:
        limit = self.limit
        if not 0 < amount < math.inf:
            raise ValueError(f"an amount is a positive number, not {amount}")
        if limit is not None and amount > limit:
            raise ValueError(f"an amount of {amount:g} can never be granted: the limit is {limit:g}")

    def _due(self, amount: float, now: float) -> float:
        """The moment at which `amount` may be granted, as far as is known now."""
        limit = self.limit
        if limit is None:
            return self._paused_until
        self._expire(now)
        rate = self._rate(limit, now)
        burst = (1 - self._use) * limit
        due = max(self._paused_until, self._full_at - (burst - min(amount, burst)) / rate)
        others = self._others if now < self._others_until else 0.0
        over = self._spent + others + amount - limit
        if over > 0:
            alone = self._frees(over)
            with_others = max(self._others_until, self._frees(over - others)) if others else math.inf
            due = max(due, min(alone, with_others))
        return due

    def _frees(self, amount: float) -> float:
        """When the log will have let go of `amount`."""
        moment = -math.inf
        for entry in self._log:
            if amount <= 0:
                return moment
            amount -= entry.amount
            moment = entry.time + self._window
        # What only rounding keeps from fitting fits with the last of them.
        return moment if amount <= 1e-9 * (1 + self._spent) else math.inf

    def _grant(self, amount: float, now: float, due: float) -> Grant:
        limit = self.limit
        if limit is None:
            return Grant(now, amount)
        # The schedule goes on from when the grant was due: a timer's lateness costs nothing.
        due = max(due, now - (1 - self._use) * self._window)
        self._full_at = max(self._full_at, min(due, now)) + amount / self._rate(limit, now)
        return self._book(amount, now)

    def _book(self, amount: float, now: float) -> Grant:
        """Into the log, which holds some 1,000 entries at most: neighbours count as of the later one."""
        self._spent += amount
        if self._log and now - self._log[-1].first <= self._window / 1000:
            last = self._log[-1]
            last.time = now
            last.amount += amount
            return last
        entry = Grant(now, amount)
        self._log.append(entry)
        return entry

    def _expire(self, now: float) -> None:
        while self._log and self._log[0].time + self._window <= now:
            self._spent -= self._log.popleft().amount
        if not self._log:
            self._spent = 0

    def _rate(self, limit: float, now: float) -> float:
        """Units a second; what others spend is left to them, but for small differences in counting."""
        others = self._faded(limit, now) / limit
        share = 1 - others if others > 0.015 else 1.0
        return max(0.02, share) * self._use * limit / self._window

    def _faded(self, limit: float, now: float) -> float:
        """What others spend, as last heard and less the longer ago that is."""
        return max(0.0, self._others - limit * (now - self._others_heard) / self._window)

    def _repace(self, before: float | None, now: float) -> None:
        """A debt in units takes another time to pay at another limit."""
        after = self.limit
        if before is not None and after is not None and self._full_at > now:
            self._full_at = now + (self._full_at - now) * before / after

    async def _nap(self, seconds: float) -> None:
        """Sleep, at most until something has changed for the better."""
        self._changed = asyncio.get_running_loop().create_future()
        sleeper = asyncio.ensure_future(self._sleep(min(seconds, LONGEST_SLEEP)))
        try:
            await asyncio.wait({sleeper, self._changed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeper.cancel()
            self._changed = None

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)


# -- what servers say about time -------------------------------------------------------------------

_NUMBER = r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+"
_PLAIN = re.compile(_NUMBER)
_DURATION = re.compile(
    "".join(rf"(?:({_NUMBER}){unit})?" for unit in ("d", "h", "m(?!s)", "s", "ms", "[uµ]s", "ns"))
)
_SIZES = (86400.0, 3600.0, 60.0, 1.0, 1e-3, 1e-6, 1e-9)


def parse_reset(text: str) -> float | None:
    """Seconds of `1s`, `6m0s`, `120ms`, `1h2m3s` or a plain number of seconds; None if it is none of these.

    The form is Go's `time.Duration`, which OpenAI's `x-ratelimit-reset-*` headers have, and days.
    """
    text = text.strip()
    if _PLAIN.fullmatch(text):
        return _finite(float(text))
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        return None
    return _finite(sum(float(part) * size for part, size in zip(match.groups(), _SIZES, strict=True) if part))


def parse_retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds to wait, at least 0, by `retry-after-ms`, else by `Retry-After`; None if neither makes sense.

    `Retry-After` is a number of seconds, whole or not, or an HTTP date (RFC 9110, 10.2.3), which is
    compared with `now`; a time without a zone is UTC. Names of headers in any case.
    """
    found = {
        name.lower(): value.strip() for name, value in headers.items() if name.lower().startswith("retry-after")
    }
    milliseconds = found.get("retry-after-ms", "")
    if _PLAIN.fullmatch(milliseconds) and (seconds := _finite(float(milliseconds) / 1000)) is not None:
        return seconds
    text = found.get("retry-after", "")
    if _PLAIN.fullmatch(text):
        return _finite(float(text))
    try:
        date = parsedate_to_datetime(text)
        return max(0.0, (_in_utc(date) - _in_utc(now)).total_seconds())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _in_utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _finite(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) else None
