"""The hand-over between stages: when an open batch is sent as it is."""

from __future__ import annotations

import asyncio

from ragingest.storing import arrivals

FOREVER = 3600.0
SOON = 30.0
"""Seconds after which a test is taken to hang."""


async def _taken(
    queue: asyncio.Queue[int | None], hurry: asyncio.Event, count: int, linger: float
) -> list[int | None]:
    found: list[int | None] = []
    async with asyncio.timeout(SOON):
        async for item in arrivals(queue, linger, hurry):
            found.append(item)
            if len(found) == count:
                break
    return found


def _queue(*items: int | None) -> asyncio.Queue[int | None]:
    queue: asyncio.Queue[int | None] = asyncio.Queue()
    for item in items:
        queue.put_nowait(item)
    return queue


def test_items_come_in_order_and_the_end_sends_what_is_open() -> None:
    async def run() -> None:
        assert await _taken(_queue(1, 2, None), asyncio.Event(), 99, FOREVER) == [1, 2, None]

    asyncio.run(run())


def test_an_open_batch_is_sent_once_nothing_comes_for_a_while() -> None:
    async def run() -> None:
        assert await _taken(_queue(1), asyncio.Event(), 2, 0.0) == [1, None]

    asyncio.run(run())


def test_an_open_batch_is_sent_at_once_while_reading_waits_for_it() -> None:
    async def run() -> None:
        hurry = asyncio.Event()
        queue = _queue(1, 2)
        asyncio.get_running_loop().call_soon(hurry.set)
        found = await _taken(queue, hurry, 3, FOREVER)
        assert [item for item in found if item is not None] == [1, 2]
        assert found[-1] is None

    asyncio.run(run())


def test_a_batch_is_not_hurried_any_more_once_reading_goes_on() -> None:
    async def run() -> None:
        hurry = asyncio.Event()
        hurry.set()
        queue = _queue(1)
        stream = arrivals(queue, FOREVER, hurry)
        async with asyncio.timeout(SOON):
            assert await anext(stream) == 1
            assert await anext(stream) is None
            hurry.clear()
            queue.put_nowait(2)
            assert await anext(stream) == 2
            waiting = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            queue.put_nowait(3)
            found = await waiting
            assert found == 3 or (found is None and await anext(stream) == 3)
            await stream.aclose()

    asyncio.run(run())
