"""What can go wrong with one request, and scripts that say with which one it does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec
import numpy as np

__all__ = [
    "Fault",
    "FaultKind",
    "FaultSource",
    "QUOTA_CODES",
    "RequestInfo",
    "cut_body",
    "cut_json",
    "empty_data",
    "forbidden",
    "html",
    "not_a_number",
    "odds",
    "ordered",
    "out_of_order",
    "quota",
    "rate_limited",
    "reset_after",
    "reset_before",
    "retryable",
    "slow",
    "status",
    "wrong_count",
    "wrong_dimension",
]

FaultKind = Literal[
    # Refused: nothing is computed, nothing is charged, no limit is used up.
    "rate_limited",
    "quota",
    "forbidden",
    "status",
    "html",
    "reset_before",
    # Computed and charged, and lost on the way.
    "cut_body",
    "cut_json",
    "reset_after",
    # Computed and charged, and answered with vectors that cannot be used.
    "wrong_count",
    "wrong_dimension",
    "not_a_number",
    "empty_data",
    # Answered, and every vector is right.
    "slow",
    "out_of_order",
]

REFUSED: frozenset[FaultKind] = frozenset({"rate_limited", "quota", "forbidden", "status", "html", "reset_before"})
LOST: frozenset[FaultKind] = frozenset({"cut_body", "cut_json", "reset_after"})
SPOILED: frozenset[FaultKind] = frozenset({"wrong_count", "wrong_dimension", "not_a_number", "empty_data"})

# What a 429 says when trying again cannot help.
QUOTA_CODES = (
    "insufficient_quota",
    "credit_balance_exhausted",
    "organization_spend_limit_exceeded",
    "project_spend_limit_exceeded",
    "organization_usage_limit_exceeded",
)


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One fault. `delay` seconds pass before it shows, whatever its kind."""

    kind: FaultKind
    delay: float = 0.0
    status: int = 500
    code: str | None = None
    retry_after: int | float | str | None = None
    """The header as written: a whole number, a fraction, a date; None leaves it out."""
    retry_after_ms: int | None = None
    surplus: int = -1
    """For `wrong_count`: how many vectors more than texts."""


class RequestInfo(NamedTuple):
    """What a script may look at. `ordinal` counts the requests that scripts were asked about, from 0."""

    ordinal: int
    endpoint: str
    texts: Sequence[str]


FaultSource = Iterable[Fault | None] | Callable[[RequestInfo], Fault | None]


def rate_limited(
    retry_after: int | float | str | None = None,
    retry_after_ms: int | None = None,
    code: str = "rate_limit_exceeded",
) -> Fault:
    """A 429 worth retrying; `slow_down` is its other code."""
    return Fault(kind="rate_limited", code=code, retry_after=retry_after, retry_after_ms=retry_after_ms)


def quota(code: str = "insufficient_quota") -> Fault:
    """A 429 that no waiting mends."""
    return Fault(kind="quota", code=code)


def forbidden() -> Fault:
    return Fault(kind="forbidden")


def status(code: int, retry_after: int | float | str | None = None) -> Fault:
    """Any other status with an error as JSON: 408, 409, 500, 502, 503, 504."""
    return Fault(kind="status", status=code, retry_after=retry_after)


def html() -> Fault:
    """200 with a page of a proxy in front of the service."""
    return Fault(kind="html")


def cut_body() -> Fault:
    """Half of what Content-Length announces, then the end of the connection."""
    return Fault(kind="cut_body")


def cut_json() -> Fault:
    """Half of the JSON, with the Content-Length of that half."""
    return Fault(kind="cut_json")


def reset_before() -> Fault:
    """The connection is reset and nothing was computed."""
    return Fault(kind="reset_before")


def reset_after() -> Fault:
    """The connection is reset after the work was done: charged, and never answered."""
    return Fault(kind="reset_after")


def slow(seconds: float) -> Fault:
    """A good answer, late."""
    return Fault(kind="slow", delay=seconds)


def out_of_order() -> Fault:
    """All vectors, shuffled, each with its right `index`."""
    return Fault(kind="out_of_order")


def wrong_count(surplus: int = -1) -> Fault:
    """Fewer or more vectors than texts; one more where fewer would leave none."""
    return Fault(kind="wrong_count", surplus=surplus)


def wrong_dimension() -> Fault:
    """Vectors of one dimension too many."""
    return Fault(kind="wrong_dimension")


def not_a_number() -> Fault:
    """A NaN in the first vector (`null` where numbers are written out)."""
    return Fault(kind="not_a_number")


def empty_data() -> Fault:
    return Fault(kind="empty_data")


def retryable(*, delay: float = 0.0, retry_after: int | float = 0.01) -> tuple[Fault, ...]:
    """One of every fault after which the same request deserves another try."""
    return (
        rate_limited(),
        rate_limited(retry_after=retry_after),
        rate_limited(retry_after_ms=round(retry_after * 1000)),
        rate_limited(code="slow_down"),
        status(408),
        status(409),
        status(500),
        status(502),
        status(503),
        status(503, retry_after=retry_after),
        status(504),
        html(),
        cut_body(),
        cut_json(),
        reset_before(),
        reset_after(),
        wrong_count(),
        wrong_count(surplus=1),
        wrong_dimension(),
        not_a_number(),
        empty_data(),
        msgspec.structs.replace(out_of_order(), delay=delay),
    )


def odds(chances: Sequence[tuple[float, Fault]], seed: int) -> Iterator[Fault | None]:
    """Draw for each request: each fault with its probability, none with what is left to 1. The same seed, the same draw."""
    bounds = np.cumsum([chance for chance, _ in chances])
    if len(bounds) == 0 or min(chance for chance, _ in chances) < 0 or bounds[-1] > 1 + 1e-9:
        raise ValueError("probabilities are not negative and add up to at most 1")
    return _draw(bounds.tolist(), [fault for _, fault in chances], np.random.default_rng(seed))


class Order(Protocol):
    """Settings that say what goes wrong."""

    @property
    def script(self) -> list[Fault | None] | None: ...
    @property
    def odds(self) -> list[tuple[float, Fault]] | None: ...
    @property
    def seed(self) -> int: ...


def ordered(order: Order) -> FaultSource | None:
    """By probability, or one by one; None where nothing is said, which leaves things as they are."""
    return odds(order.odds, order.seed) if order.odds is not None else order.script


def _draw(bounds: list[float], faults: list[Fault], generator: np.random.Generator) -> Iterator[Fault | None]:
    while True:
        drawn = generator.random()
        yield next((fault for bound, fault in zip(bounds, faults, strict=True) if drawn < bound), None)


def has_effect(fault: Fault, endpoint: str, dialect: str) -> bool:
    """Whether there is something in the answers of an endpoint that the fault could bend."""
    if fault.kind == "out_of_order":
        return endpoint == "embeddings" and dialect == "openai"
    return fault.kind not in SPOILED or endpoint == "embeddings"


class Script:
    """Faults in the order of the requests. A new one replaces what is left of the one before. Not thread-safe."""

    def __init__(self) -> None:
        self._ask: Callable[[RequestInfo], Fault | None] | None = None
        self._asked = 0

    def replace(self, source: FaultSource | None) -> None:
        if source is None or callable(source):
            self._ask = source
        else:
            faults = iter(source)
            self._ask = lambda _info: next(faults, None)

    def next_fault(self, endpoint: str, texts: Sequence[str]) -> Fault | None:
        info = RequestInfo(self._asked, endpoint, texts)
        self._asked += 1
        return self._ask(info) if self._ask else None
