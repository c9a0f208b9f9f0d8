"""How much of a server's limits is used, and how rarely it has to refuse: in virtual time, minutes long."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import pytest

from ragingest.costs.books import Books
from ragingest.costs.tokens import TokenEstimator
from ragingest.documents import Chunk, EmbeddedBatch
from ragingest.embedders.remote import RemoteCalls, RemoteLimits
from ragingest.errors import TransientError
from ragingest.protocols import Answer, RateNews
from tests.contracts.embedding import chunks_of
from tests.servers.limits import RateLimits
from tests.unit.pacing.fake_time import FakeTime

from .fake_api import DIMENSIONS, expected, tokens_of

MINUTE = 60.0
LATENCY = 0.4
TEXTS = 10
TASKS = 100


class Admitted(NamedTuple):
    at: float
    tokens: int
    ours: bool


class LimitedApi:
    """Answers within true sliding windows, with the headers of their state; another program may use the same key."""

    name = "limited"
    model = "fake-model"

    def __init__(
        self,
        clock: Callable[[], float],
        rpm: int | None,
        tpm: int | None,
        latency: Callable[[], float] = lambda: LATENCY,
    ) -> None:
        self._latency = latency
        self.limits = RateLimits(rpm, tpm, MINUTE)
        self.admitted: list[Admitted] = []
        self.requests = 0
        self.refused = 0
        self._clock = clock

    def admit(self, tokens: int, *, ours: bool) -> bool:
        now = self._clock()
        if self.limits.admit(tokens, now) is not None:
            return False
        self.admitted.append(Admitted(now, tokens, ours))
        return True

    def news(self) -> RateNews:
        now = self._clock()
        told: list[float | None] = []
        for window in (self.limits.requests, self.limits.tokens):
            if window.limit is None:
                told += [None, None, None]
            else:
                told += [window.limit, max(0, window.limit - window.used(now)), window.empty_in(now)]
        return RateNews(*told)

    async def request(self, texts: Sequence[str]) -> Answer:
        self.requests += 1
        latency = self._latency()
        await asyncio.sleep(latency / 2)
        tokens = tokens_of(texts)
        if not self.admit(tokens, ours=True):
            self.refused += 1
            raise TransientError("429", throttled=True, news=self.news())
        news = self.news()
        await asyncio.sleep(latency / 2)
        return Answer(expected(texts), tokens, news)

    async def close(self) -> None:
        pass

    def used(self, start: float, end: float) -> tuple[int, int]:
        """Requests and tokens admitted in [start, end)."""
        found = [entry.tokens for entry in self.admitted if start <= entry.at < end]
        return len(found), sum(found)


async def other_program(api: LimitedApi, start: float, every: float, tokens: int) -> None:
    """Sends a request every so many seconds from `start` on, whatever comes of it."""
    await asyncio.sleep(start)
    while True:
        api.admit(tokens, ours=False)
        await asyncio.sleep(every)


def loaded(
    minutes: float,
    width: int,
    *,
    rpm: int | None = None,
    tpm: int | None = None,
    given: RemoteLimits | None = None,
    other: tuple[float, float, int] | None = None,
    latency: Callable[[], float] = lambda: LATENCY,
) -> LimitedApi:
    """The server after so many minutes of texts of `width` bytes."""
    time = FakeTime(0.0)
    api = LimitedApi(time.now, rpm, tpm, latency)

    def batches() -> Iterable[list[Chunk]]:
        number = 0
        while True:
            yield chunks_of([f"{number:>{width - 4}} {text:>3}" for text in range(TEXTS)])
            number += 1

    async def scenario() -> None:
        calls = RemoteCalls(
            api,
            DIMENSIONS,
            given or RemoteLimits(),
            Books(),
            TokenEstimator(),
            sleep=time.sleep,
            clock=time.now,
        )
        source = iter(batches())

        async def work() -> EmbeddedBatch:
            while True:
                await calls.embed(next(source))

        tasks = [asyncio.create_task(work()) for _ in range(TASKS)]
        if other is not None:
            tasks.append(asyncio.create_task(other_program(api, *other)))  # type: ignore[arg-type]
        await asyncio.sleep(MINUTE * minutes)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await calls.close()

    time.run(scenario())
    return api


@pytest.mark.parametrize("given", [False, True], ids=["heard", "given"])
@pytest.mark.parametrize("rpm", [60, 1000])
def test_of_a_limit_of_requests_nearly_all_is_used_and_nearly_none_is_refused(rpm: int, given: bool) -> None:
    api = loaded(4, 100, rpm=rpm, given=RemoteLimits(requests_per_minute=rpm) if given else None)
    requests, _ = api.used(MINUTE, 4 * MINUTE)
    assert requests >= 0.95 * 3 * rpm
    assert api.refused <= 0.01 * api.requests


@pytest.mark.parametrize("given", [False, True], ids=["heard", "given"])
@pytest.mark.parametrize("tpm", [40_000, 1_000_000])
def test_of_a_limit_of_tokens_nearly_all_is_used_and_nearly_none_is_refused(tpm: int, given: bool) -> None:
    api = loaded(4, 400, tpm=tpm, given=RemoteLimits(tokens_per_minute=tpm) if given else None)
    _, tokens = api.used(MINUTE, 4 * MINUTE)
    assert tokens >= 0.95 * 3 * tpm
    assert api.refused <= 0.01 * api.requests


@pytest.mark.parametrize(("rpm", "tpm", "every", "tokens"), [(600, None, 0.2, 1), (None, 300_000, 0.2, 500)])
def test_when_another_program_takes_half_from_the_middle_on_the_rest_is_used(
    rpm: int | None, tpm: int | None, every: float, tokens: int
) -> None:
    minutes = 16
    middle = minutes * MINUTE / 2
    api = loaded(minutes, 100 if rpm else 400, rpm=rpm, tpm=tpm, other=(middle, every, tokens))
    for start in (MINUTE, middle, middle + MINUTE):
        passed = (minutes * MINUTE - start) / MINUTE
        used = api.used(start, minutes * MINUTE)[rpm is None]
        assert used >= 0.95 * passed * (rpm or tpm or 0)
    assert api.refused <= 0.01 * api.requests
    settled = minutes * MINUTE - 120
    theirs = sum(not entry.ours and entry.at >= settled for entry in api.admitted)
    assert theirs >= 0.9 * 120 / every


@pytest.mark.parametrize(("typical", "seed"), [(0.1, 1), (1.0, 1), (1.0, 2)])
def test_a_server_that_is_now_slow_and_now_fast_is_no_reason_to_use_less(typical: float, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311  # repeatable
    api = loaded(6, 100, rpm=600, latency=lambda: chance.lognormvariate(math.log(typical), 1))
    requests, _ = api.used(MINUTE, 6 * MINUTE)
    assert requests >= 0.95 * 5 * 600
    assert api.refused <= 0.01 * api.requests
