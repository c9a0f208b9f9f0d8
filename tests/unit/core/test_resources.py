from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragingest.events import Event, Paused, Resumed
from ragingest.memory import MemoryReading
from ragingest.resources import POLL_SECONDS, ResourceManager


class Readings:
    """A gauge that shows one number after the other, and stays at the last."""

    def __init__(self, *used: int, limit: int = 100, own: int = 7) -> None:
        self.left = list(used)
        self.own = own
        self._limit = limit

    def own_bytes(self) -> int:
        return self.own

    def read(self) -> MemoryReading:
        used = self.left.pop(0) if len(self.left) > 1 else self.left[0]
        return MemoryReading(used, self._limit, "the machine")


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        assert self.now < 3600, "waits for ever"

    def clock(self) -> float:
        return self.now


def wait(gauge: Readings, must_go_on: Callable[[], bool] = lambda: False) -> tuple[list[Event], float]:
    events: list[Event] = []
    time = Time()
    manager = ResourceManager(1, gauge, events.append, sleep=time.sleep, clock=time.clock)
    asyncio.run(manager.wait_for_memory(must_go_on))
    assert manager.peak_bytes == gauge.own
    return events, time.now


# -- the memory gate ---------------------------------------------------------------------------------


@pytest.mark.parametrize("used", [0, 99])
def test_reading_goes_on_without_a_word_while_memory_is_under_the_limit(used: int) -> None:
    assert wait(Readings(used)) == ([], 0.0)


def test_reading_pauses_at_the_limit_until_memory_is_under_it_and_says_so() -> None:
    events, waited = wait(Readings(100, 150, 100, 99))
    assert waited == 3 * POLL_SECONDS
    assert events == [Paused(100, 100, "the machine"), Resumed(waited)]


@given(st.lists(st.integers(0, 200), min_size=1, max_size=20))
def test_reading_never_goes_on_over_the_limit(used: list[int]) -> None:
    gauge = Readings(*used, 0)
    events, waited = wait(gauge)
    over = next(index for index, value in enumerate([*used, 0]) if value < 100)
    assert waited == over * POLL_SECONDS
    assert [type(event) for event in events] == ([Paused, Resumed] if over else [])


def test_reading_goes_on_over_the_limit_when_nothing_is_left_that_could_free_memory() -> None:
    answers = iter([False, False, True])
    events, waited = wait(Readings(200), lambda: next(answers))
    assert waited == 2 * POLL_SECONDS
    assert events == [Paused(200, 100, "the machine"), Resumed(waited)]


def test_reading_does_not_wait_at_all_when_it_must_go_on() -> None:
    assert wait(Readings(200), lambda: True)[1] == 0


def test_the_highest_memory_seen_is_kept() -> None:
    gauge = Readings(0)
    manager = ResourceManager(1, gauge)

    async def three_times() -> None:
        for gauge.own in (5, 9, 7):
            await manager.wait_for_memory()

    asyncio.run(three_times())
    assert manager.peak_bytes == 9


# -- slots -------------------------------------------------------------------------------------------


@given(st.integers(1, 5), st.integers(0, 20), st.randoms(use_true_random=False))
def test_never_more_than_the_concurrency_is_under_way_and_never_less_than_possible(
    concurrency: int, calls: int, random: object
) -> None:
    manager = ResourceManager(concurrency, Readings(0))
    under_way = 0
    most = 0

    async def call(turns: int) -> None:
        nonlocal under_way, most
        async with manager.acquire():
            under_way += 1
            most = max(most, under_way)
            for _ in range(turns):
                await asyncio.sleep(0)
            under_way -= 1

    async def all_calls() -> None:
        turns = [random.randint(1, 5) for _ in range(calls)]  # type: ignore[attr-defined]
        await asyncio.gather(*(call(turn) for turn in turns))

    asyncio.run(all_calls())
    assert most == min(concurrency, calls)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=20))
def test_no_call_begins_where_there_is_no_room_for_it(rooms: list[int]) -> None:
    left = iter(rooms)
    room = 1
    under_way = 0

    async def call(manager: ResourceManager) -> None:
        nonlocal room, under_way
        async with manager.acquire():
            under_way += 1
            assert under_way <= min(4, room)
            await asyncio.sleep(0)
            under_way -= 1
            room = next(left, room)

    async def all_calls() -> None:
        manager = ResourceManager(4, Readings(0), room=lambda: room)
        await asyncio.gather(*(call(manager) for _ in range(20)))

    asyncio.run(all_calls())
    assert under_way == 0


def test_when_there_is_more_room_those_who_wait_can_be_woken() -> None:
    room = 1

    async def scenario() -> tuple[int, int]:
        nonlocal room
        manager = ResourceManager(4, Readings(0), room=lambda: room)
        begun = 0
        over = asyncio.Event()

        async def call() -> None:
            nonlocal begun
            async with manager.acquire():
                begun += 1
                await over.wait()

        calls = [asyncio.create_task(call()) for _ in range(5)]
        await asyncio.sleep(0)
        before = begun
        room = 3
        manager.wake()
        await asyncio.sleep(0)
        after = begun
        over.set()
        await asyncio.gather(*calls)
        return before, after

    assert asyncio.run(scenario()) == (1, 3)


def test_a_call_that_fails_gives_its_slot_back() -> None:
    manager = ResourceManager(1, Readings(0))

    async def fail() -> None:
        async with manager.acquire():
            raise KeyError

    async def fail_and_go_on() -> bool:
        with pytest.raises(KeyError):
            await fail()
        async with manager.acquire():
            return True

    assert asyncio.run(fail_and_go_on())


def test_the_gate_awaits_whatever_sleep_it_is_given() -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> Awaitable[None]:
        slept.append(seconds)
        return asyncio.sleep(0)

    asyncio.run(ResourceManager(1, Readings(100, 100, 0), sleep=sleep).wait_for_memory())
    assert slept == [POLL_SECONDS, POLL_SECONDS]
