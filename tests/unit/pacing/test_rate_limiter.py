from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragingest.pacing.rate_limiter import RateLimiter
from tests.unit.pacing.fake_time import FakeTime

Log = list[tuple[float, float]]
Script = Callable[[RateLimiter, FakeTime, Log], Awaitable[None]]


def play(script: Script, per_minute: float | None, window: float = 60.0) -> tuple[Log, RateLimiter]:
    """Run the script; (moment, amount) of what it says was granted."""
    time = FakeTime()
    limiter = RateLimiter(per_minute, window, use=0.99, clock=time.now, sleep=time.sleep)
    log: Log = []

    async def scenario() -> None:
        await script(limiter, time, log)

    time.run(scenario())
    return log, limiter


async def take(limiter: RateLimiter, time: FakeTime, log: Log, amount: float = 1, after: float = 0.0) -> None:
    await asyncio.sleep(after)
    await limiter.acquire(amount)
    log.append((time.now(), amount))


async def take_for_ever(limiter: RateLimiter, time: FakeTime, log: Log, amount: float = 1) -> None:
    while True:
        await take(limiter, time, log, amount)


async def take_for(
    seconds: float, limiter: RateLimiter, time: FakeTime, log: Log, amount: float = 1, callers: int = 3
) -> None:
    """Steady demand: as much as is granted, for so long."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(take_for_ever(limiter, time, log, amount))


def most_in_a_window(log: Log, window: float = 60.0) -> float:
    """The largest sum within [t, t + window), over all t."""
    moments = sorted(log)
    most = held = 0.0
    first = 0
    for moment, amount in moments:
        held += amount
        while moments[first][0] + window <= moment:
            held -= moments[first][1]
            first += 1
        most = max(most, held)
    return most


def granted(log: Log, start: float, end: float) -> float:
    """The sum within [start, end) seconds of the run."""
    return sum(amount for moment, amount in log if start <= moment - 1000.0 < end)


def test_a_hundred_callers_at_60_a_minute_never_exceed_60_in_any_window_and_lose_nothing() -> None:
    async def script(limiter: RateLimiter, time: FakeTime, log: Log) -> None:
        await asyncio.gather(*(take(limiter, time, log) for _ in range(100)))

    log, _ = play(script, 60)
    assert len(log) == 100
    assert most_in_a_window(log) == 60
    assert granted(log, 0, 102) == 100


@settings(max_examples=60, deadline=None)
@given(
    limit=st.integers(1, 200),
    window=st.sampled_from([0.5, 1.0, 60.0]),
    demands=st.lists(
        st.tuples(st.floats(0, 1), st.floats(0, 1.5), st.none() | st.floats(0, 2.5)), min_size=1, max_size=60
    ),
)
def test_no_window_ever_holds_more_than_the_limit_and_nothing_is_lost(
    limit: int, window: float, demands: list[tuple[float, float, float | None]]
) -> None:
    """Random amounts up to the whole limit, arrivals and cancellations."""
    asked = [(max(1, round(limit * part)), after * window, cancel) for part, after, cancel in demands]

    async def script(limiter: RateLimiter, time: FakeTime, log: Log) -> None:
        async def one(amount: float, after: float, cancel: float | None) -> None:
            with suppress(TimeoutError):
                async with asyncio.timeout(None if cancel is None else after + cancel * window):
                    await take(limiter, time, log, amount, after)

        await asyncio.gather(*(one(*each) for each in asked))
        # What the cancelled callers did not get is still there: a whole window later, all of it.
        await asyncio.sleep(window)
        began = time.now()
        await limiter.acquire(limit)
        assert time.now() - began <= window * (1 + max((amount for amount, _, _ in asked)) / limit)
        log.append((time.now(), limit))

    log, _ = play(script, limit, window)
    assert most_in_a_window(log, window) <= limit
    patient = sum(cancel is None for _, _, cancel in asked)
    assert patient + 1 <= len(log) <= len(asked) + 1


@settings(max_examples=40, deadline=None)
@given(
    limits=st.lists(st.tuples(st.floats(0, 90), st.integers(5, 100)), min_size=1, max_size=5),
    pauses=st.lists(st.tuples(st.floats(0, 90), st.floats(0, 20)), max_size=4),
)
def test_with_limits_that_change_a_window_holds_no_more_than_the_highest_limit_it_saw(
    limits: list[tuple[float, int]], pauses: list[tuple[float, float]]
) -> None:
    async def script(limiter: RateLimiter, time: FakeTime, log: Log) -> None:
        async def change(after: float, limit: float) -> None:
            await asyncio.sleep(after)
            limiter.learn(limit=limit)

        async def stop(after: float, seconds: float) -> None:
            await asyncio.sleep(after)
            limiter.pause(seconds)

        await asyncio.gather(
            *(change(*each) for each in limits),
            *(stop(*each) for each in pauses),
            take_for(150, limiter, time, log),
        )

    log, _ = play(script, 60)
    highest = max([60, *(min(60, limit) for _, limit in limits)])
    assert most_in_a_window(log) <= highest
    last = max(limits, key=lambda each: each[0])[1]
    begun = 90 + sum(seconds for _, seconds in pauses)
    after = [each for each in log if each[0] - 1000 > begun + 60]
    assert most_in_a_window(after) <= min(60, last)
    assert not any(
        1000 + at < moment < 1000 + at + seconds for moment, _ in log for at, seconds in pauses if seconds > 0.001
    )


@pytest.mark.parametrize(
    ("limit", "amount", "window"),
    [
        (60, 1, 60),
        (3, 1, 60),
        (1, 1, 60),
        (500, 1, 60),
        (3000, 1, 60),
        (60, 1, 1),
        (1_000_000, 9_000, 60),
        (90, 30, 60),
    ],
)
def test_steady_demand_uses_98_percent_of_the_limit_after_the_first_window(
    limit: float, amount: float, window: float
) -> None:
    async def script(limiter: RateLimiter, time: FakeTime, log: Log) -> None:
        await take_for(11.5 * window, limiter, time, log, amount)

    log, _ = play(script, limit, window)
    assert most_in_a_window(log, window) <= limit
    assert granted(log, window, 11 * window) >= 0.98 * 10 * limit - amount


@pytest.mark.parametrize("part", [0.03, 0.11, 0.3, 0.4, 0.6, 1.0])
def test_large_amounts_lose_at_most_their_own_size_of_each_window(part: float) -> None:
    limit, amount = 100_000, round(100_000 * part)

    async def script(limiter: RateLimiter, time: FakeTime, log: Log) -> None:
        await take_for(1300, limiter, time, log, amount)

    log, _ = play(script, limit)
    assert most_in_a_window(log) <= limit
    assert granted(log, 60, 1260) >= 20 * min(0.98 * limit, limit - amount * (1 - 1e-9)) - amount


def test_grants_are_spread_over_the_window() -> None:
    async def script(limiter: RateLimiter, time: FakeTime, log: Log) -> None:
        await asyncio.sleep(300)
        await take_for(60, limiter, time, log)

    log, _ = play(script, 600)
    for second in range(300, 360, 6):
        assert granted(log, second, second + 6) <= 60 + 6


def test_a_timer_that_is_late_costs_nothing() -> None:
    time = FakeTime()

    async def late(seconds: float) -> None:
        await asyncio.sleep(seconds + 0.004)

    limiter = RateLimiter(60, 1.0, use=0.99, clock=time.now, sleep=late)
    log: Log = []
    time.run(take_for(11, limiter, time, log))
    assert most_in_a_window(log, 1.0) <= 60
    assert granted(log, 1, 11) >= 0.98 * 600


def test_callers_are_served_in_the_order_of_their_calls() -> None:
    order: list[int] = []

    async def script(limiter: RateLimiter, time: FakeTime, log: Log) -> None:
        async def one(number: int) -> None:
            await limiter.acquire(7 if number % 3 == 0 else 1)
            order.append(number)

        await asyncio.gather(*(one(number) for number in range(30)))

    play(script, 10)
    assert order == list(range(30))


def test_a_cancelled_caller_has_spent_nothing_and_lets_the_next_one_pass() -> None:
    async def script(limiter: RateLimiter, time: FakeTime, log: Log) -> None:
        await limiter.acquire(10)
        big = asyncio.create_task(limiter.acquire(10))
        small = asyncio.create_task(take(limiter, time, log, 1))
        await asyncio.sleep(30)
        big.cancel()
        await small

    log, _ = play(script, 10)
    assert [moment for moment, _ in log] == [pytest.approx(1000 + 60.0, abs=1)]


def test_an_amount_over_the_limit_is_an_error_and_so_is_one_that_is_not_positive() -> None:
    async def script(limiter: RateLimiter, time: FakeTime, log: Log) -> None:
        with pytest.raises(ValueError, match="can never be granted: the limit is 60"):
            await limiter.acquire(61)
        for amount in (0, -1, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="positive"):
                await limiter.acquire(amount)
        await limiter.acquire(60)

    play(script, 60)


@pytest.mark.parametrize(("limit", "window"), [(0, 60), (-1, 60), (float("inf"), 60), (5, 0), (5, float("nan"))])
def test_a_limit_and_a_window_are_positive(limit: float, window: float) -> None:
    with pytest.raises(ValueError):
        RateLimiter(limit, window)


def test_a_limit_that_falls_below_what_a_caller_waits_for_is_an_error_for_that_caller_alone() -> None:
    async def script(limiter: RateLimiter, time: FakeTime, log: Log) -> None:
        await limiter.acquire(60)
        big = asyncio.create_task(limiter.acquire(40))
        small = asyncio.create_task(take(limiter, time, log, 5))
        await asyncio.sleep(1)
        limiter.learn(limit=30)
        with pytest.raises(ValueError, match="the limit is 30"):
            await big
        await small

    log, _ = play(script, 60)
    assert len(log) == 1


def test_without_a_limit_nobody_waits_until_one_is_learned() -> None:
    async def script(limiter: RateLimiter, time: FakeTime, log: Log) -> None:
        for _ in range(500):
            await take(limiter, time, log)
        assert limiter.limit is None
        limiter.learn(limit=60)
        await take_for(60, limiter, time, log)

    log, limiter = play(script, None)
    assert granted(log, 0, 0.001) == 500 + 1
    assert most_in_a_window(log[500:]) == 60
    assert limiter.limit == 60


def test_a_limit_that_is_learned_never_raises_the_one_that_was_given() -> None:
    limiter = RateLimiter(60, use=0.99)
    limiter.learn(limit=1000)
    assert limiter.limit == 60
    limiter.learn(limit=20)
    assert limiter.limit == 20
    limiter.learn(limit=40)
    assert limiter.limit == 40
    limiter.learn(limit=1000)
    assert limiter.limit == 60


@pytest.mark.parametrize("nonsense", [0.0, -5.0, float("nan"), float("inf")])
def test_nonsense_in_headers_changes_nothing(nonsense: float) -> None:
    async def script(limiter: RateLimiter, time: FakeTime, log: Log) -> None:
        limiter.learn(limit=nonsense, remaining=nonsense or None, reset=nonsense)
        await limiter.acquire(60)

    _, limiter = play(script, 60)
    assert limiter.limit == 60
    assert limiter.waited == 0


def test_a_raised_limit_lets_a_waiting_caller_pass_at_once() -> None:
    async def script(limiter: RateLimiter, time: FakeTime, log: Log) -> None:
        limiter.learn(limit=2)
        await limiter.acquire(2)
        waiting = asyncio.create_task(take(limiter, time, log))
        await asyncio.sleep(0.5)
        assert not log
        limiter.learn(limit=6000)
        await waiting

    log, _ = play(script, 6000)
    assert log[0][0] == pytest.approx(1000.5, abs=0.1)


def test_a_lowered_limit_counts_what_was_spent_before() -> None:
    async def script(limiter: RateLimiter, time: FakeTime, log: Log) -> None:
        await take_for(59, limiter, time, log)
        limiter.learn(limit=30)
        await take_for(120, limiter, time, log)

    log, _ = play(script, 60)
    # Half of what was spent has to leave the window before anything more is granted.
    assert granted(log, 59.5, 89) == 0
    assert most_in_a_window([each for each in log if each[0] >= 1059.5]) <= 30


def test_what_others_spent_is_taken_from_the_budget_until_the_reset() -> None:
    async def script(limiter: RateLimiter, time: FakeTime, log: Log) -> None:
        await take(limiter, time, log, 10)
        limiter.learn(remaining=5, reset=20)
        await asyncio.gather(take(limiter, time, log, 5), take(limiter, time, log, 5))

    log, _ = play(script, 100)
    assert [moment - 1000 < 20 for moment, _ in log] == [True, True, False]
    assert log[-1][0] - 1000 == pytest.approx(20, abs=0.5)


def test_more_remaining_than_we_think_changes_nothing() -> None:
    async def script(limiter: RateLimiter, time: FakeTime, log: Log) -> None:
        for _ in range(200):
            await take(limiter, time, log)
            limiter.learn(limit=60, remaining=60, reset=0)

    log, _ = play(script, 60)
    assert most_in_a_window(log) == 60


def test_a_budget_that_others_used_up_is_left_alone_until_its_reset_however_long() -> None:
    async def script(limiter: RateLimiter, time: FakeTime, log: Log) -> None:
        limiter.learn(limit=200, remaining=0, reset=432)
        await take(limiter, time, log)

    log, _ = play(script, 200)
    assert log[-1][0] == pytest.approx(1432, abs=0.5)


class Shared:
    """A server with a sliding window, on which another program spends evenly and is served first."""

    def __init__(self, time: FakeTime, limit: int) -> None:
        self.time = time
        self.limit = limit
        self.others = 0.0
        self.ours: deque[float] = deque()
        self.refused = 0
        self.answered = 0

    def remaining(self) -> float:
        now = self.time.now()
        while self.ours and self.ours[0] + 60 <= now:
            self.ours.popleft()
        return self.limit - self.others - len(self.ours)

    async def call(self, limiter: RateLimiter) -> None:
        grant = await limiter.acquire()
        await asyncio.sleep(0.05)
        if self.remaining() < 1:
            self.refused += 1
            limiter.refund(1, grant)
            limiter.learn(self.limit, 0, 60)
            limiter.pause(1)
            return
        self.ours.append(self.time.now())
        self.answered += 1
        limiter.learn(self.limit, max(0.0, self.remaining()), 60)


@pytest.mark.parametrize("seconds", [0, 5, 60])
def test_half_of_the_budget_taken_by_another_program_is_left_to_it(seconds: int) -> None:
    """At once, or bit by bit: the other half is used, and of all requests at most 1 % are refused."""
    time = FakeTime()
    limiter = RateLimiter(1200, use=0.99, clock=time.now, sleep=time.sleep)
    server = Shared(time, 1200)

    async def call_for_ever() -> None:
        while True:
            await server.call(limiter)

    async def scenario() -> tuple[int, int]:
        tasks = [asyncio.create_task(call_for_ever()) for _ in range(8)]
        await asyncio.sleep(180)
        for _ in range(seconds):
            server.others += 600 / seconds
            await asyncio.sleep(1)
        server.others = 600
        await asyncio.sleep(60)
        answered, refused = server.answered, server.refused
        await asyncio.sleep(300)
        for task in tasks:
            task.cancel()
        return server.answered - answered, server.refused - refused

    answered, refused = time.run(scenario())
    assert answered >= 0.95 * 5 * 600
    assert refused <= 0.001 * answered
    assert server.refused <= 0.01 * server.answered


def test_a_pause_holds_everybody_and_the_longest_wins() -> None:
    async def script(limiter: RateLimiter, time: FakeTime, log: Log) -> None:
        limiter.pause(10)
        limiter.pause(3)
        limiter.pause(-1)
        assert limiter.paused
        await asyncio.gather(*(take(limiter, time, log, after=after) for after in range(12)))
        assert not limiter.paused

    log, _ = play(script, 6000)
    assert [moment - 1000 for moment, _ in log] == [
        *([pytest.approx(10, abs=0.2)] * 11),
        pytest.approx(11, abs=0.2),
    ]


def test_a_pause_holds_even_where_there_is_no_limit_and_reaches_those_who_wait() -> None:
    async def script(limiter: RateLimiter, time: FakeTime, log: Log) -> None:
        limiter.pause(5)
        waiting = asyncio.create_task(take(limiter, time, log))
        await asyncio.sleep(4)
        limiter.pause(5)
        await waiting

    log, _ = play(script, None)
    assert log[0][0] == pytest.approx(1009)


@pytest.mark.parametrize("named", [True, False])
def test_a_refund_can_be_spent_again_within_the_window(named: bool) -> None:
    async def script(limiter: RateLimiter, time: FakeTime, log: Log) -> None:
        grant = await limiter.acquire(100)
        limiter.refund(60, grant if named else None)
        await take(limiter, time, log, 60)
        await take(limiter, time, log, 1)

    log, _ = play(script, 100)
    assert log[0][0] < 1060
    assert log[1][0] >= 1060


def test_a_refund_of_a_grant_that_has_left_the_window_frees_nothing() -> None:
    async def script(limiter: RateLimiter, time: FakeTime, log: Log) -> None:
        old = await limiter.acquire(50)
        await asyncio.sleep(61)
        await take(limiter, time, log, 100)
        limiter.refund(50, old)
        await take(limiter, time, log, 50)

    log, _ = play(script, 100)
    assert log[1][0] - log[0][0] >= 60


def test_a_refund_never_gives_more_than_was_granted() -> None:
    async def script(limiter: RateLimiter, time: FakeTime, log: Log) -> None:
        await limiter.acquire(10)
        limiter.refund(1000)
        await take_for(60, limiter, time, log)

    log, _ = play(script, 60)
    assert most_in_a_window(log) == 60


def test_a_charge_goes_into_debt_which_is_paid_before_anything_is_granted() -> None:
    async def script(limiter: RateLimiter, time: FakeTime, log: Log) -> None:
        await limiter.acquire(60)
        limiter.charge(30)
        await take(limiter, time, log)
        await asyncio.sleep(60)
        await take_for(120, limiter, time, log)

    log, _ = play(script, 60)
    # 90 are paid for: they take a minute and a half.
    assert log[0][0] == pytest.approx(1090, abs=2)
    assert most_in_a_window(log) <= 60


@pytest.mark.parametrize("amount", [-1, float("nan")])
def test_refunds_and_charges_are_not_negative(amount: float) -> None:
    limiter = RateLimiter(60, use=0.99)
    with pytest.raises(ValueError, match="not negative"):
        limiter.refund(amount)
    with pytest.raises(ValueError, match="not negative"):
        limiter.charge(amount)


def test_the_seconds_waited_are_the_sum_over_all_callers_those_still_waiting_included() -> None:
    async def script(limiter: RateLimiter, time: FakeTime, log: Log) -> None:
        await limiter.acquire(10)
        assert limiter.waited == 0
        waiting = [asyncio.create_task(limiter.acquire(10)) for _ in range(2)]
        await asyncio.sleep(30)
        assert limiter.waited == pytest.approx(60)
        waiting[1].cancel()
        await waiting[0]
        assert limiter.waited == pytest.approx(30 + 60, abs=1)

    play(script, 10)


def test_the_memory_of_the_log_does_not_grow_with_the_limit() -> None:
    async def script(limiter: RateLimiter, time: FakeTime, log: Log) -> None:
        await take_for(70, limiter, time, log)

    log, limiter = play(script, 20_000)
    assert len(log) > 20_000
    assert len(limiter._log) <= 1001
    assert granted(log, 5, 65) <= 20_000
