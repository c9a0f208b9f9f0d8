"""Throughput is compared with the best fixed concurrency, known from the definition of the server.

Bounds are in latencies of the server: everything scales with them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragingest.pacing.concurrency import AdaptiveConcurrency
from tests.unit.pacing.fake_time import FakeTime
from tests.unit.pacing.servers import Server, fixed_throughput, throughput

LATENCIES = (0.02, 0.05, 0.5)
SERVERS = ((0.05, 1), (0.05, 2), (0.05, 3), (0.02, 10), (0.05, 10), (0.5, 10), (0.05, 27), (0.05, 60))


def starting_at(start: int = 4, maximum: int | None = 64) -> Callable[[FakeTime], AdaptiveConcurrency]:
    return lambda time: AdaptiveConcurrency(start, maximum, clock=time.now)


@pytest.mark.parametrize("latency", LATENCIES)
@pytest.mark.parametrize("jitter", [0.0, 0.3])
def test_without_a_bound_at_the_server_it_reaches_the_maximum_within_20_latencies(
    latency: float, jitter: float
) -> None:
    server = Server(latency, jitter=jitter)
    reached, limiter = throughput(server, starting_at(), 20 * latency, 100 * latency)
    assert reached >= 0.95 * fixed_throughput(server, 64)
    assert limiter.peak == 64


def test_a_server_without_latency_is_no_reason_to_climb_or_to_hang() -> None:
    time = FakeTime()
    limiter = AdaptiveConcurrency(clock=time.now)

    async def work() -> None:
        for _ in range(500):
            async with limiter.slot() as slot:
                await asyncio.sleep(0)
                slot.succeeded(0.0, 1)

    async def scenario() -> None:
        await asyncio.gather(*(work() for _ in range(8)))

    time.run(scenario())
    assert limiter.limit == 4
    assert limiter.in_flight == 0


@pytest.mark.parametrize(("latency", "capacity"), SERVERS)
@pytest.mark.parametrize("jitter", [0.0, 0.3])
def test_a_server_that_queues_is_kept_busy_within_100_latencies(
    latency: float, capacity: int, jitter: float
) -> None:
    server = Server(latency, capacity, jitter=jitter)
    reached, limiter = throughput(server, starting_at(), 100 * latency, 200 * latency)
    assert reached >= 0.95 * fixed_throughput(server, 64)
    assert limiter.limit <= 2 * capacity + 2


@pytest.mark.parametrize(("latency", "capacity"), SERVERS)
@pytest.mark.parametrize("jitter", [0.0, 0.3])
def test_a_server_that_refuses_is_kept_busy_within_200_latencies_with_few_refusals(
    latency: float, capacity: int, jitter: float
) -> None:
    server = Server(latency, capacity, refuses=True, jitter=jitter)
    reached, limiter = throughput(server, starting_at(), 200 * latency, 600 * latency)
    assert reached >= 0.95 * fixed_throughput(server, capacity)
    assert limiter.limit <= capacity + 1
    # Each probe of what the server takes costs one; the first overshoot as many as it was too far.
    assert server.throttles <= 0.02 * server.calls + capacity + 4


@pytest.mark.parametrize("refuses", [False, True])
@pytest.mark.parametrize("capacity", [4, 20, 60])
@pytest.mark.parametrize("jitter", [0.0, 0.3])
def test_a_server_that_loses_half_of_its_capacity_is_kept_busy_200_latencies_later(
    refuses: bool, capacity: int, jitter: float
) -> None:
    server = Server(0.05, capacity, refuses, jitter)
    reached, limiter = throughput(
        server, starting_at(), 400 * 0.05, 600 * 0.05, lambda: server.set_capacity(capacity // 2)
    )
    assert reached >= 0.95 * fixed_throughput(server, capacity // 2)
    assert limiter.limit <= capacity + 2


@pytest.mark.parametrize("refuses", [False, True])
@pytest.mark.parametrize("capacity", [4, 20, 60])
@pytest.mark.parametrize("jitter", [0.0, 0.3])
def test_a_server_that_gets_twice_the_capacity_is_found_out_within_400_latencies(
    refuses: bool, capacity: int, jitter: float
) -> None:
    server = Server(0.05, capacity // 2, refuses, jitter)
    reached, _ = throughput(server, starting_at(), 800 * 0.05, 600 * 0.05, lambda: server.set_capacity(capacity))
    assert reached >= 0.95 * fixed_throughput(server, capacity)


def test_a_server_that_gets_slower_in_the_middle_does_not_choke_it() -> None:
    """The latency alone, with as many calls at once as one likes: fewer slots would only be slower."""
    server = Server(0.05)

    def slower() -> None:
        server.latency = 0.2

    reached, _ = throughput(server, starting_at(), 200 * 0.2, 200 * 0.2, slower)
    assert reached >= 0.95 * 64 / 0.2


def test_failures_that_say_nothing_about_load_do_not_keep_it_down() -> None:
    server = Server(0.05, jitter=0.3, failing=0.3)
    reached, _ = throughput(server, starting_at(), 100 * 0.05, 200 * 0.05)
    assert reached >= 0.9 * 0.7 * fixed_throughput(server, 64)


def test_without_a_maximum_it_climbs_as_far_as_it_pays() -> None:
    server = Server(0.05, 150)
    reached, _ = throughput(server, starting_at(2, None), 100 * 0.05, 100 * 0.05, workers=400)
    assert reached >= 0.95 * fixed_throughput(server, 150)


def test_slots_that_nobody_wants_change_nothing() -> None:
    server = Server(0.05)
    _, limiter = throughput(server, starting_at(8), 100 * 0.05, 1, workers=4)
    assert limiter.limit == 8
    assert limiter.peak == 4


def test_a_round_that_is_throttled_as_a_whole_halves_it_once() -> None:
    time = FakeTime()
    limiter = AdaptiveConcurrency(16, clock=time.now)
    limits: list[int] = []

    async def one() -> None:
        async with limiter.slot() as slot:
            await asyncio.sleep(0.1)
            slot.throttled()

    async def scenario() -> None:
        for _ in range(6):
            await asyncio.gather(*(one() for _ in range(limiter.limit)))
            limits.append(limiter.limit)

    time.run(scenario())
    assert limits == [8, 4, 2, 1, 1, 1]


def test_callers_are_served_in_order_and_never_more_than_the_limit() -> None:
    time = FakeTime()
    limiter = AdaptiveConcurrency(2, 2, clock=time.now)
    order: list[int] = []

    async def one(number: int) -> None:
        async with limiter.slot() as slot:
            order.append(number)
            assert limiter.in_flight <= 2
            await asyncio.sleep(1 + number % 3)
            slot.succeeded(1.0)

    async def scenario() -> None:
        await asyncio.gather(*(one(number) for number in range(20)))

    time.run(scenario())
    assert order == list(range(20))
    assert limiter.peak == 2
    assert limiter.in_flight == 0


@settings(max_examples=60, deadline=None)
@given(
    calls=st.lists(
        st.tuples(
            st.floats(0, 5),  # begins
            st.floats(0, 3),  # takes
            st.none() | st.floats(0, 6),  # cancelled
            st.sampled_from(["succeeded", "throttled", "failed", "nothing", "raises", "twice"]),
        ),
        max_size=80,
    ),
    start=st.integers(1, 5),
    maximum=st.integers(5, 9),
)
def test_no_slot_is_lost_or_given_twice_whatever_happens_to_the_callers(
    calls: list[tuple[float, float, float | None, str]], start: int, maximum: int
) -> None:
    time = FakeTime()
    limiter = AdaptiveConcurrency(start, maximum, clock=time.now)
    held = most = 0

    async def one(begins: float, takes: float, cancelled: float | None, report: str) -> None:
        nonlocal held, most
        with suppress(TimeoutError, ZeroDivisionError):
            async with asyncio.timeout(cancelled):
                await asyncio.sleep(begins)
                async with limiter.slot() as slot:
                    held += 1
                    most = max(most, held)
                    try:
                        await asyncio.sleep(takes)
                        if report in ("succeeded", "twice"):
                            slot.succeeded(takes, 2)
                        if report in ("throttled", "twice"):
                            slot.throttled()
                        if report == "failed":
                            slot.failed()
                        if report == "raises":
                            raise ZeroDivisionError
                    finally:
                        held -= 1

    async def scenario() -> None:
        await asyncio.gather(*(one(*call) for call in calls))
        assert limiter.in_flight == 0
        # All of them can be had at once, and not one more.
        async with AsyncExitStack() as stack:
            for _ in range(limiter.limit):
                await stack.enter_async_context(limiter.slot())
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(10):
                    await stack.enter_async_context(limiter.slot())

    time.run(scenario())
    assert most <= limiter.peak <= maximum
    assert 1 <= limiter.limit <= maximum


def test_a_slot_is_reported_once() -> None:
    time = FakeTime()
    limiter = AdaptiveConcurrency(8, clock=time.now)

    async def scenario() -> None:
        async with limiter.slot() as slot:
            slot.failed()
            slot.throttled()

    time.run(scenario())
    assert limiter.limit == 8


@pytest.mark.parametrize(("start", "maximum"), [(0, 4), (5, 4), (-1, None)])
def test_a_start_below_one_or_over_the_maximum_is_an_error(start: int, maximum: int | None) -> None:
    with pytest.raises(ValueError, match="starts at 1 or more"):
        AdaptiveConcurrency(start, maximum)
