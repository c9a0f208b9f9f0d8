"""The one retry layer: exponential, with full jitter, until it has failed for too long."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, TypeVar

from tenacity import AsyncRetrying, RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from ragingest.errors import TerminalError, TransientError

__all__ = ["patient", "patiently", "retrying"]

P = ParamSpec("P")
T = TypeVar("T")

BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 30.0
PATIENCE_SECONDS = 60.0

Clock = Callable[[], float]

_jitter = wait_random_exponential(multiplier=BACKOFF_SECONDS, max=LONGEST_BACKOFF_SECONDS)


def retrying(give_up_after: float, clock: Clock, sleep: Callable[[float], Awaitable[None]]) -> AsyncRetrying:
    """Calls again after a `TransientError`, the last time `give_up_after` seconds after the first.

    Waiting for a turn before that does not count. One object serves one call.
    """
    return AsyncRetrying(sleep=sleep, **_rules(give_up_after, clock, _jitter))


def patiently(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """A blocking call outside of the stream of batches, retried for a minute.

    Raises:
        TerminalError: it failed all that time.
    """
    return patient(PATIENCE_SECONDS, call, *args, **kwargs)


def patient(seconds: float, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As `patiently`, for so many seconds, or for a minute if that is less."""
    try:
        rules = _rules(min(seconds, PATIENCE_SECONDS), time.monotonic, _as_told)
        return Retrying(sleep=time.sleep, **rules)(call, *args, **kwargs)
    except TransientError as error:
        raise TerminalError(str(error), "check the server, and try again") from None


def _rules(give_up_after: float, clock: Clock, wait: Callable[[RetryCallState], float]) -> dict[str, Any]:
    deadline: list[float] = []

    def left() -> float:
        now = clock()
        if not deadline:
            deadline.append(now + give_up_after)
        return deadline[0] - now

    return {
        "retry": retry_if_exception_type(TransientError),
        "stop": lambda _state: left() <= 0,
        "wait": lambda state: max(0.0, min(wait(state), left())),
        "reraise": True,
    }


def _as_told(state: RetryCallState) -> float:
    """Not before the server said."""
    error = state.outcome.exception() if state.outcome is not None else None
    asked = error.retry_after if isinstance(error, TransientError) and error.retry_after is not None else 0.0
    return asked + _jitter(state)
