from __future__ import annotations

import asyncio
import mmap
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragingest import resources
from ragingest.events import Event, Paused, Resumed
from ragingest.resources import POLL_SECONDS, MemoryReading, ResourceManager, SystemGauge, own_anonymous_bytes
from ragingest.settings import MemoryLimit

MIB = 1 << 20


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


# -- the gauge of the system -------------------------------------------------------------------------


@pytest.fixture
def in_cgroup(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    def put(unified: str, memory: str = "/") -> None:
        monkeypatch.setattr(resources, "_own_cgroups", lambda: (unified, memory))

    return put


def cgroup(folder: Path, limit: str, current: int, stat: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(limit + "\n")
    (folder / "memory.current").write_text(f"{current}\n")
    (folder / "memory.stat").write_text(stat)


def test_a_container_with_a_limit_is_measured_by_it(tmp_path: Path) -> None:
    cgroup(tmp_path, str(100 * MIB), 60 * MIB, f"anon 1\nfile 2\ninactive_file {20 * MIB}\nactive_file 3\n")
    reading = SystemGauge(MemoryLimit(share=0.5), tmp_path).read()
    assert reading == MemoryReading(40 * MIB, 50 * MIB, "the container")


def test_the_innermost_group_that_has_a_limit_counts(tmp_path: Path, in_cgroup: Callable[[str, str], None]) -> None:
    in_cgroup("/outer/inner", "/")
    cgroup(tmp_path / "outer" / "inner", "max", 10 * MIB)
    cgroup(tmp_path / "outer", str(200 * MIB), 30 * MIB)
    cgroup(tmp_path, str(400 * MIB), 90 * MIB)
    assert SystemGauge(MemoryLimit(share=1), tmp_path).read() == MemoryReading(30 * MIB, 200 * MIB, "the container")
    cgroup(tmp_path / "outer" / "inner", str(100 * MIB), 10 * MIB)
    assert SystemGauge(MemoryLimit(share=1), tmp_path).read() == MemoryReading(10 * MIB, 100 * MIB, "the container")


def test_a_mount_that_shows_only_the_containers_own_group_is_found(
    tmp_path: Path, in_cgroup: Callable[[str, str], None]
) -> None:
    in_cgroup("/system.slice/container.scope", "/")
    cgroup(tmp_path, str(100 * MIB), 10 * MIB)
    assert SystemGauge(MemoryLimit(share=1), tmp_path).read().where == "the container"


def test_the_first_version_of_cgroups_is_read_too(tmp_path: Path, in_cgroup: Callable[[str, str], None]) -> None:
    in_cgroup("/", "/box")
    folder = tmp_path / "memory" / "box"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text(f"{100 * MIB}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{50 * MIB}\n")
    (folder / "memory.stat").write_text(f"inactive_file 1\ntotal_inactive_file {10 * MIB}\n")
    assert SystemGauge(MemoryLimit(share=1), tmp_path).read() == MemoryReading(40 * MIB, 100 * MIB, "the container")


def test_usage_is_read_anew_each_time(tmp_path: Path) -> None:
    cgroup(tmp_path, str(100 * MIB), 10 * MIB)
    gauge = SystemGauge(MemoryLimit(share=1), tmp_path)
    assert gauge.read().used == 10 * MIB
    (tmp_path / "memory.current").write_text(str(70 * MIB))
    assert gauge.read().used == 70 * MIB


@pytest.mark.parametrize("stat", ["", "inactive_file\n", "inactive_file many\n", "inactive_file 9999999999999\n"])
def test_a_group_without_a_usable_count_of_cache_never_shows_less_than_nothing(tmp_path: Path, stat: str) -> None:
    cgroup(tmp_path, str(100 * MIB), 10 * MIB, stat)
    assert SystemGauge(MemoryLimit(share=1), tmp_path).read().used in (0, 10 * MIB)


@pytest.mark.parametrize("limit", ["max", str(1 << 62), "", "garbage"])
def test_a_group_without_a_limit_below_the_machines_memory_is_the_machine(tmp_path: Path, limit: str) -> None:
    cgroup(tmp_path, limit, 10 * MIB)
    total = psutil.virtual_memory().total
    reading = SystemGauge(MemoryLimit(share=0.5), tmp_path).read()
    assert reading.where == "the machine"
    assert reading.limit == int(0.5 * total)
    assert 0 < reading.used < total


def test_without_cgroups_it_is_the_machine(tmp_path: Path) -> None:
    assert SystemGauge(MemoryLimit(), tmp_path / "missing").read().where == "the machine"


def test_a_limit_in_bytes_is_of_this_process_whatever_the_container_says(tmp_path: Path) -> None:
    cgroup(tmp_path, str(100 * MIB), 99 * MIB)
    reading = SystemGauge(MemoryLimit(share=None, bytes=7 * MIB), tmp_path).read()
    assert (reading.limit, reading.where) == (7 * MIB, "this process")
    assert 0 < reading.used < psutil.virtual_memory().total


def test_the_processes_that_this_one_started_count_as_its_own(tmp_path: Path) -> None:
    gauge = SystemGauge(MemoryLimit(share=None, bytes=MIB), tmp_path, lambda: 1 << 60)
    assert gauge.own_bytes() > 1 << 60
    assert gauge.read().used > 1 << 60


def test_memory_that_this_process_takes_is_counted() -> None:
    before = own_anonymous_bytes()
    # A mapping of its own: the allocator might hand out what earlier tests have given back. The
    # mapping is private, because a shared one does not count as anonymous.
    with mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        held.write(b"x" * (64 * MIB))
        assert own_anonymous_bytes() - before > 32 * MIB
