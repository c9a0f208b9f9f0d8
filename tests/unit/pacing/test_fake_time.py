from __future__ import annotations

import asyncio

import pytest

from tests.unit.pacing.fake_time import FakeTime


def test_time_passes_only_when_every_task_sleeps() -> None:
    time = FakeTime(0)
    log: list[tuple[float, str]] = []

    async def one(name: str, *naps: float) -> None:
        for nap in naps:
            await time.sleep(nap)
            for _ in range(10):
                await asyncio.sleep(0)
            log.append((time.now(), name))

    async def scenario() -> None:
        await asyncio.gather(one("a", 3, 3), one("b", 1, 4), one("c", 0))

    time.run(scenario())
    assert log == [(0, "c"), (1, "b"), (3, "a"), (5, "b"), (6, "a")]


def test_tasks_that_wait_for_each_other_are_an_error_and_not_a_hang() -> None:
    time = FakeTime()

    async def scenario() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="waits for another"):
        time.run(scenario())


def test_a_day_passes_at_once() -> None:
    time = FakeTime(0)
    time.run(time.sleep(86400))
    assert time.now() == 86400
