from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragingest.errors import ExitCode, TerminalError, TransientError
from ragingest.pacing.breaker import CircuitBreaker
from tests.unit.pacing.fake_time import FakeTime

ERROR = TransientError("503 Service Unavailable")


class Bench:
    """A breaker on virtual time, and a server that is down until `up_at` seconds of the run."""

    def __init__(self, up_at: float = float("inf"), takes: float = 0.0, **options: Any) -> None:
        self.time = FakeTime(0)
        self.changes: list[tuple[float, bool]] = []
        self.breaker = CircuitBreaker(
            clock=self.time.now, sleep=self.time.sleep, on_change=self._changed, **options
        )
        self.up_at = up_at
        self.takes = takes
        self.sent: list[float] = []
        self.under_way = 0
        self.most_under_way = 0

    def _changed(self, opened: bool) -> None:
        self.changes.append((self.time.now(), opened))

    async def call(self) -> bool:
        await self.breaker.before()
        self.sent.append(self.time.now())
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(self.takes)
        except asyncio.CancelledError:
            self.breaker.abandoned()
            raise
        finally:
            self.under_way -= 1
        if self.time.now() < self.up_at:
            self.breaker.failed(ERROR)
            return False
        self.breaker.succeeded()
        return True

    async def call_until_answered(self) -> None:
        while not await self.call():
            pass

    def run(self, scenario: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            await scenario()

        self.time.run(main())


def test_it_opens_after_so_many_failures_in_a_row_and_a_success_between_starts_again() -> None:
    bench = Bench(threshold=3)

    async def scenario() -> None:
        for outcome in "ffsffsfff":
            assert not bench.breaker.is_open
            await bench.breaker.before()
            if outcome == "f":
                bench.breaker.failed(ERROR)
            else:
                bench.breaker.succeeded()

    bench.run(scenario)
    assert bench.changes == [(0, True)]
    assert bench.breaker.failures == 3


def test_probes_are_made_at_growing_intervals_up_to_the_longest() -> None:
    bench = Bench(up_at=200, threshold=2, first_wait=1, factor=2, max_wait=60)
    bench.run(bench.call_until_answered)
    assert bench.sent == [0, 0, 1, 3, 7, 15, 31, 63, 123, 183, 243]
    assert bench.changes == [(0, True), (243, False)]


def test_after_it_has_closed_the_intervals_start_again() -> None:
    bench = Bench(up_at=6, threshold=1)

    async def scenario() -> None:
        await bench.call_until_answered()
        bench.up_at = 14
        await bench.call_until_answered()

    bench.run(scenario)
    assert bench.sent == [0, 1, 3, 7, 7, 8, 10, 14]


def test_only_one_probe_passes_and_its_success_lets_all_pass() -> None:
    bench = Bench(up_at=20, takes=0.5, threshold=10)

    async def scenario() -> None:
        await asyncio.gather(*(bench.call_until_answered() for _ in range(50)))

    bench.run(scenario)
    # The nine that failed before it opened had tried again by then; what follows goes one at a time.
    assert bench.sent[:59] == [0] * 50 + [0.5] * 9
    assert bench.sent[59:64] == [1.5, 4.0, 8.5, 17.0, 33.5]
    assert bench.sent[64:] == [34.0] * 49
    assert bench.changes == [(0.5, True), (33.5 + 0.5, False)]


def test_failures_of_calls_that_were_under_way_are_not_those_of_a_probe() -> None:
    bench = Bench(threshold=2)

    async def scenario() -> None:
        async def late(after: float) -> None:
            await bench.breaker.before()
            await asyncio.sleep(after)
            bench.breaker.failed(ERROR)

        async def probe() -> None:
            await asyncio.sleep(0.5)
            await bench.breaker.before()
            bench.sent.append(bench.time.now())
            await asyncio.sleep(2)
            bench.breaker.failed(ERROR)

        async def waiting() -> None:
            await asyncio.sleep(0.6)
            await bench.breaker.before()
            bench.sent.append(bench.time.now())

        await asyncio.gather(late(0), late(0), late(0.7), late(2.0), probe(), waiting())

    bench.run(scenario)
    assert bench.sent == [1.0, 5.0]


def test_the_success_of_a_call_that_was_under_way_closes_it() -> None:
    bench = Bench(threshold=1)

    async def scenario() -> None:
        async def slow() -> None:
            await bench.breaker.before()
            await asyncio.sleep(0.25)
            bench.breaker.succeeded()

        async def failing() -> None:
            await bench.breaker.before()
            bench.breaker.failed(ERROR)
            await bench.breaker.before()
            bench.sent.append(bench.time.now())

        await asyncio.gather(slow(), failing())

    bench.run(scenario)
    assert bench.sent == [0.25]
    assert bench.changes == [(0, True), (0.25, False)]


@pytest.mark.parametrize("says_so", [True, False])
def test_a_probe_that_is_cancelled_is_followed_by_another_one(says_so: bool) -> None:
    bench = Bench(up_at=10, takes=5, threshold=1)

    async def silent() -> None:
        await bench.breaker.before()
        await asyncio.sleep(5)

    async def scenario() -> None:
        assert not await bench.call()
        probe = asyncio.create_task(bench.call() if says_so else silent())
        await asyncio.sleep(0)
        other = asyncio.create_task(bench.call_until_answered())
        await asyncio.sleep(3)
        probe.cancel()
        with suppress(asyncio.CancelledError):
            await probe
        await other

    bench.run(scenario)
    assert bench.sent[-1] == 8.0
    assert not bench.breaker.is_open


def test_it_gives_up_after_so_many_seconds_and_says_what_failed_last_and_for_how_long() -> None:
    bench = Bench(threshold=3, give_up_after=600, name="the embedder openai")
    errors: list[TerminalError] = []

    async def one() -> None:
        try:
            await bench.call_until_answered()
        except TerminalError as error:
            errors.append(error)

    async def scenario() -> None:
        await asyncio.gather(*(one() for _ in range(20)))
        with pytest.raises(TerminalError):
            await bench.breaker.before()

    bench.run(scenario)
    assert len(errors) == 20
    assert bench.sent[-1] == 600  # the last try is not made before the time is over
    assert errors[0].message == (
        f"the embedder openai failed {len(bench.sent)} times in a row, for 10 min; "
        "the last failure: 503 Service Unavailable"
    )
    assert "resume" in errors[0].hint
    assert errors[0].exit_code == ExitCode.FAILED


def test_the_time_before_it_gives_up_counts_from_the_first_failure_after_a_success() -> None:
    bench = Bench(threshold=1, give_up_after=10)

    async def scenario() -> None:
        with suppress(TerminalError):
            await bench.call_until_answered()
        assert bench.time.now() == 10
        bench.breaker.succeeded()
        assert not bench.breaker.is_open
        await asyncio.sleep(100)
        assert not await bench.call()
        await bench.breaker.before()

    bench.run(scenario)
    assert bench.time.now() == 111


def test_without_give_up_after_it_tries_for_ever() -> None:
    bench = Bench(up_at=7 * 86400)
    bench.run(bench.call_until_answered)
    assert bench.time.now() == pytest.approx(7 * 86400, abs=60)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(30, "for 30 s;"), (90, "for 90 s;"), (200, "for 3 min 20 s;"), (86400, "for 24 h 0 min;")],
)
def test_the_time_is_told_in_words(seconds: float, text: str) -> None:
    bench = Bench(threshold=1, give_up_after=seconds)

    async def scenario() -> None:
        with pytest.raises(TerminalError, match=text):
            await bench.call_until_answered()

    bench.run(scenario)


@settings(max_examples=50, deadline=None)
@given(
    up_at=st.floats(0.1, 300),
    takes=st.floats(0, 3),
    callers=st.integers(1, 30),
    threshold=st.integers(1, 12),
    cancels=st.lists(st.floats(0, 100), max_size=10),
)
def test_every_caller_gets_through_once_the_server_is_back_and_few_calls_were_made_before(
    up_at: float, takes: float, callers: int, threshold: int, cancels: list[float]
) -> None:
    bench = Bench(up_at=up_at, takes=takes, threshold=threshold)

    async def scenario() -> None:
        tasks = [asyncio.create_task(bench.call_until_answered()) for _ in range(callers)]
        victims = [asyncio.create_task(bench.call_until_answered()) for _ in cancels]
        for after, victim in sorted(zip(cancels, victims, strict=True), key=lambda pair: pair[0]):
            await asyncio.sleep(max(0.0, after - bench.time.now()))
            victim.cancel()
        await asyncio.gather(*tasks)

    bench.run(scenario)
    assert bench.time.now() <= max(up_at + 64, *cancels, 0) + 4 * takes + 1
    in_vain = sum(moment + takes < up_at for moment in bench.sent)
    assert in_vain <= threshold + callers + len(cancels) + 14 + len(cancels)


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 0},
        {"first_wait": 0},
        {"first_wait": 61},
        {"factor": 0.5},
        {"give_up_after": 0},
        {"max_wait": -1},
    ],
)
def test_options_that_make_no_sense_are_errors(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        CircuitBreaker(**options)
