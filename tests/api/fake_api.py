"""An embeddings API in this process, in virtual time, with failures by script."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ragingest.documents import Vectors
from ragingest.errors import RejectedError
from ragingest.protocols import Answer, RateNews
from tests.servers.vectors import vector_of

__all__ = ["DIMENSIONS", "NO_NEWS", "POISON", "Call", "FakeApi", "expected", "tokens_of"]

DIMENSIONS = 6
POISON = "POISON"
RATIO = 0.25
NO_NEWS = RateNews()

Step = Exception | Answer | None
"""What comes of one request: an error, an answer as it is, or the right answer."""


class Call(NamedTuple):
    at: float
    texts: list[str]


def tokens_of(texts: Iterable[str]) -> int:
    return sum(math.ceil(RATIO * len(text.encode())) for text in texts)


def expected(texts: Sequence[str]) -> Vectors:
    return np.stack([vector_of(text, DIMENSIONS) for text in texts])


class FakeApi:
    """Answers after `latency` seconds as the steps say, rightly when they are used up; refuses what holds POISON.

    A text that is under way twice at once is an error.
    """

    name = "fake"
    model = "fake-model"

    def __init__(
        self,
        clock: Callable[[], float],
        steps: Iterable[Step] = (),
        *,
        latency: float = 1.0,
        news: RateNews = NO_NEWS,
    ) -> None:
        self.calls: list[Call] = []
        self.answered: Counter[str] = Counter()
        self.tokens = 0
        self.under_way: Counter[str] = Counter()
        self.most_at_once = 0
        self.closed = False
        self.latency = latency
        self._steps = iter(steps)
        self._news = news
        self._clock = clock
        self._at_once = 0

    async def request(self, texts: Sequence[str]) -> Answer:
        assert texts
        self.calls.append(Call(self._clock(), list(texts)))
        step = next(self._steps, None)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        self.under_way.update(texts)
        assert max(self.under_way.values()) == 1, "a text is under way twice"
        try:
            await asyncio.sleep(self.latency)
        finally:
            self._at_once -= 1
            self.under_way -= Counter(texts)
        if isinstance(step, Exception):
            raise step
        if isinstance(step, Answer):
            self.tokens += step.tokens
            return step
        if any(POISON in text for text in texts):
            raise RejectedError("refused_by_embedder", "one of these, the server does not say which")
        self.answered.update(texts)
        tokens = tokens_of(texts)
        self.tokens += tokens
        return Answer(expected(texts), tokens, self._news)

    async def close(self) -> None:
        self.closed = True
