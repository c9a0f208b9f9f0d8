"""Requests and tokens a window of time, as true sliding windows: at no moment does any window hold more."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

__all__ = ["Refusal", "RateLimits", "SlidingWindow", "format_duration"]

Kind = Literal["requests", "tokens"]


class SlidingWindow:
    """At most `limit` units in any `length` seconds; None is no limit. Not thread-safe."""

    def __init__(self, limit: int | None, length: float) -> None:
        self.limit = limit
        self._length = length
        self._entries: deque[tuple[float, int]] = deque()
        self._used = 0

    def used(self, now: float) -> int:
        """Units of the window that ends now; one that is `length` old has just left it."""
        while self._entries and self._entries[0][0] + self._length <= now:
            self._used -= self._entries.popleft()[1]
        return self._used

    def wait(self, amount: int, now: float) -> float | None:
        """Seconds until `amount` fits; 0 if it fits now, None if it never will."""
        if self.limit is None:
            return 0.0
        over = self.used(now) + amount - self.limit
        if over <= 0:
            return 0.0
        if amount > self.limit:
            return None
        for at, size in self._entries:
            over -= size
            if over <= 0:
                return at + self._length - now
        raise AssertionError("an empty window takes what is not over the limit")

    def take(self, amount: int, now: float) -> None:
        # Kept without a limit too: one set later finds what was used before it.
        self._entries.append((now, amount))
        self._used += amount

    def empty_in(self, now: float) -> float:
        """Seconds until nothing that was taken counts any more."""
        self.used(now)
        return self._entries[-1][0] + self._length - now if self._entries else 0.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request was not admitted. `wait` is None for one that is larger than the limit itself."""

    kind: Kind
    limit: int
    used: int
    requested: int
    wait: float | None


class RateLimits:
    """Both windows of one key. Not thread-safe."""

    def __init__(self, rpm: int | None, tpm: int | None, length: float) -> None:
        self.requests = SlidingWindow(rpm, length)
        self.tokens = SlidingWindow(tpm, length)

    def admit(self, tokens: int, now: float) -> Refusal | None:
        """Take one request of `tokens` from both windows, or from neither."""
        refusals = [
            Refusal(kind, window.limit, window.used(now), amount, wait)
            for kind, window, amount in self._windows(tokens)
            if window.limit is not None and (wait := window.wait(amount, now)) != 0.0
        ]
        if refusals:
            return max(refusals, key=lambda refusal: float("inf") if refusal.wait is None else refusal.wait)
        self.requests.take(1, now)
        self.tokens.take(tokens, now)
        return None

    def headers(self, now: float) -> dict[str, str]:
        """The `x-ratelimit-*` headers of the limits that are set."""
        headers: dict[str, str] = {}
        for kind, window, _ in self._windows(0):
            if window.limit is not None:
                headers[f"x-ratelimit-limit-{kind}"] = str(window.limit)
                headers[f"x-ratelimit-remaining-{kind}"] = str(max(0, window.limit - window.used(now)))
                headers[f"x-ratelimit-reset-{kind}"] = format_duration(window.empty_in(now))
        return headers

    def _windows(self, tokens: int) -> tuple[tuple[Kind, SlidingWindow, int], ...]:
        return ("requests", self.requests, 1), ("tokens", self.tokens, tokens)


def format_duration(seconds: float) -> str:
    """A duration as the rate limit headers write it, never less than it is: `120ms`, `1s`, `6m0s`, `1m26.4s`."""
    # The nanosecond taken off keeps 0.12, which is a little more in binary, at 120 ms.
    milliseconds = -int(-(seconds * 1e9 - 1) // 1e6) if seconds > 0 else 0
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    whole, part = divmod(rest, 1000)
    text = f"{whole}.{part:03d}".rstrip("0").rstrip(".") + "s" if part else f"{whole}s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text
