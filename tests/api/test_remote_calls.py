"""What stands between a batch and the wire: one purchase a text, retries, budgets, limits, and vectors that are kept."""

from __future__ import annotations

import asyncio
import errno
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragingest.checkpoint.vectors import PaidVectors
from ragingest.costs.books import Books
from ragingest.costs.tokens import TokenEstimator
from ragingest.documents import Chunk, EmbeddedBatch, Vectors
from ragingest.embedders import remote
from ragingest.embedders.remote import FIRST_CONCURRENCY, RemoteCalls, RemoteLimits
from ragingest.errors import RejectedError, TerminalError, TransientError
from ragingest.protocols import Answer, RateNews
from tests.contracts.embedding import chunks_of
from tests.unit.pacing.fake_time import FakeTime

from .fake_api import DIMENSIONS, NO_NEWS, POISON, FakeApi, Step, expected, tokens_of

T = TypeVar("T")


class Bench:
    """`calls` over a fake API, in virtual time."""

    def __init__(
        self,
        steps: Iterable[Step] = (),
        *,
        latency: float = 1.0,
        news: RateNews = NO_NEWS,
        books: Books | None = None,
        texts: int = 1,
        **limits: Any,
    ) -> None:
        self.texts = texts
        self.time = FakeTime(0.0)
        self.api = FakeApi(self.time.now, steps, latency=latency, news=news)
        self.books = books or Books()
        self.changes: list[bool] = []
        self.limits = RemoteLimits(**limits)

    def run(self, scenario: Callable[[RemoteCalls], Awaitable[T]]) -> T:
        async def main() -> T:
            calls = RemoteCalls(
                self.api,
                DIMENSIONS,
                self.limits,
                self.books,
                TokenEstimator(),
                texts=self.texts,
                on_change=self.changes.append,
                sleep=self.time.sleep,
                clock=self.time.now,
            )
            try:
                return await scenario(calls)
            finally:
                await calls.close()
                assert asyncio.all_tasks() == {asyncio.current_task()}
                assert calls.concurrency.in_flight == 0
                assert not +self.api.under_way

        return self.time.run(main())

    def embed(self, *batches: Sequence[str]) -> list[EmbeddedBatch | BaseException]:
        """All at once; what came of each."""

        async def scenario(calls: RemoteCalls) -> list[EmbeddedBatch | BaseException]:
            every = (calls.embed(chunks_of(texts)) for texts in batches)
            return await asyncio.gather(*every, return_exceptions=True)

        return self.run(scenario)

    def embed_one(self, texts: Sequence[str]) -> EmbeddedBatch:
        [outcome] = self.embed(texts)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


def right(outcome: object, texts: Sequence[str]) -> None:
    assert isinstance(outcome, EmbeddedBatch), outcome
    assert [chunk.text for chunk in outcome.chunks] == list(texts)
    np.testing.assert_array_equal(outcome.dense, expected(texts))


async def halving(calls: RemoteCalls, chunks: list[Chunk]) -> list[EmbeddedBatch | Chunk]:
    """As the pipeline does with a batch that is refused: the batches that were embedded, and the guilty chunks."""
    try:
        return [await calls.embed(chunks)]
    except RejectedError:
        if len(chunks) == 1:
            return [chunks[0]]
        middle = len(chunks) // 2
        return await halving(calls, chunks[:middle]) + await halving(calls, chunks[middle:])


def busy(retry_after: float | None = None) -> TransientError:
    return TransientError("slow down", retry_after, throttled=True)


def down() -> TransientError:
    return TransientError("500: oh no")


def batches_of(count: int, size: int = 10, width: int = 40) -> list[list[str]]:
    """Different texts of `width` bytes."""
    return [[f"{batch:>{width - 6}} {text:>5}" for text in range(size)] for batch in range(count)]


# -- one purchase a text ---------------------------------------------------------------------------------


def test_a_batch_gets_its_vectors_by_one_request_and_the_books_say_so() -> None:
    bench = Bench()
    texts = ["one", "two", "three"]
    right(bench.embed_one(texts), texts)
    assert [call.texts for call in bench.api.calls] == [texts]
    books = bench.books
    assert (books.requests, books.answered, books.texts, books.reused, books.throttled) == (1, 1, 3, 0, 0)
    assert books.tokens == tokens_of(texts)
    assert sum(books.latencies.values()) == 1
    assert books.waited == 0


def test_identical_texts_of_a_batch_are_sent_once() -> None:
    bench = Bench()
    texts = ["same", "other", "same", "same", "other", "third"]
    right(bench.embed_one(texts), texts)
    assert [call.texts for call in bench.api.calls] == [["same", "other", "third"]]
    assert (bench.books.texts, bench.books.reused) == (3, 3)


def test_a_text_that_another_batch_has_under_way_is_not_sent_again() -> None:
    bench = Bench()
    first, second, third = ["a", "b"], ["b", "c"], ["a", "b"]
    for outcome, texts in zip(bench.embed(first, second, third), (first, second, third), strict=True):
        right(outcome, texts)
    assert [call.texts for call in bench.api.calls] == [["a", "b"], ["c"]]
    assert (bench.books.texts, bench.books.reused) == (3, 3)


def test_a_text_whose_batch_failed_is_bought_by_the_batch_that_waited_for_it() -> None:
    bench = Bench()
    guilty, innocent = bench.embed(["a", POISON], ["a", "b"])
    assert isinstance(guilty, RejectedError)
    right(innocent, ["a", "b"])
    assert bench.api.answered == {"a": 1, "b": 1}
    assert (bench.books.texts, bench.books.reused) == (2, 0)


def test_all_texts_that_were_waited_for_in_vain_are_bought_together() -> None:
    bench = Bench()
    shared = [f"text {number}" for number in range(50)]
    guilty, innocent = bench.embed([*shared, POISON], shared)
    assert isinstance(guilty, RejectedError)
    right(innocent, shared)
    assert [len(call.texts) for call in bench.api.calls] == [51, 50]


def test_a_refused_batch_and_those_that_waited_for_it_never_have_a_text_under_way_twice() -> None:
    bench = Bench()
    shared = [f"text {number}" for number in range(16)]

    async def scenario(calls: RemoteCalls) -> list[list[EmbeddedBatch | Chunk]]:
        some = [[*shared, POISON], shared, list(reversed(shared)), [*shared[:8], f"{POISON} too"]]
        return await asyncio.gather(*(halving(calls, chunks_of(texts)) for texts in some))

    found = bench.run(scenario)
    guilty = [[part.text for part in parts if isinstance(part, Chunk)] for parts in found]
    assert guilty == [[POISON], [], [], [f"{POISON} too"]]


def test_a_text_whose_batch_was_cancelled_is_bought_by_the_batch_that_waited_for_it() -> None:
    bench = Bench()

    async def scenario(calls: RemoteCalls) -> EmbeddedBatch:
        doomed = asyncio.create_task(calls.embed(chunks_of(["a", "b"])))
        waiting = asyncio.create_task(calls.embed(chunks_of(["b"])))
        await asyncio.sleep(0.5)
        doomed.cancel()
        await asyncio.gather(doomed, return_exceptions=True)
        assert doomed.cancelled()
        return await waiting

    right(bench.run(scenario), ["b"])
    assert [call.texts for call in bench.api.calls] == [["a", "b"], ["b"]]


@given(
    batches=st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=10), min_size=1, max_size=8),
    poisoned=st.sets(st.integers(0, 12), max_size=3),
    failures=st.lists(st.sampled_from(["", "down", "busy", "wait", "shape"]), max_size=12),
    latency=st.sampled_from([0.0, 1.0]),
)
def test_whatever_batches_share_and_whatever_fails_each_good_chunk_gets_its_vector(
    batches: list[list[int]], poisoned: set[int], failures: list[str], latency: float
) -> None:
    made: dict[str, Callable[[], Step]] = {
        "": lambda: None,
        "down": down,
        "busy": busy,
        "wait": lambda: busy(3),
        "shape": lambda: Answer(np.zeros((1, DIMENSIONS + 1), np.float32), 1),
    }
    bench = Bench([made[failure]() for failure in failures], latency=latency)
    texts = [[f"{POISON} {n}" if n in poisoned else f"text {n}" for n in batch] for batch in batches]

    async def scenario(calls: RemoteCalls) -> list[list[EmbeddedBatch | Chunk]]:
        return await asyncio.gather(*(halving(calls, chunks_of(some)) for some in texts))

    for some, parts in zip(texts, bench.run(scenario), strict=True):
        embedded: list[str] = []
        guilty: list[str] = []
        for part in parts:
            if isinstance(part, Chunk):
                guilty.append(part.text)
            else:
                right(part, [chunk.text for chunk in part.chunks])
                embedded += [chunk.text for chunk in part.chunks]
        assert embedded == [text for text in some if POISON not in text]
        assert guilty == [text for text in some if POISON in text]
    books = bench.books
    assert books.requests == len(bench.api.calls)
    assert books.texts == bench.api.answered.total()
    assert books.tokens == bench.api.tokens
    assert sum(books.latencies.values()) == books.answered


@pytest.mark.parametrize("size", [2, 7, 64, 100])
@pytest.mark.parametrize("place", [0.0, 0.5, 0.99])
def test_one_bad_text_costs_at_most_two_requests_a_halving_and_no_other_text(size: int, place: float) -> None:
    bench = Bench()
    texts = [f"text {number}" for number in range(size)]
    texts[int(place * size)] = POISON
    parts = bench.run(lambda calls: halving(calls, chunks_of(texts)))
    assert [part.text for part in parts if isinstance(part, Chunk)] == [POISON]
    assert len(bench.api.calls) - 1 <= 2 * math.ceil(math.log2(size))
    assert bench.api.answered == {text: 1 for text in texts if text != POISON}
    assert bench.books.reused == 0


def test_texts_reused_are_counted_once_however_often_their_batch_is_halved() -> None:
    bench = Bench()
    texts = [*["same"] * 31, POISON]
    bench.run(lambda calls: halving(calls, chunks_of(texts)))
    books = bench.books
    assert books.texts + books.reused == 31


# -- retries -------------------------------------------------------------------------------------------------


def test_failures_are_tried_again_after_growing_pauses_and_all_is_counted() -> None:
    bench = Bench([down(), busy(), down(), down(), down()], latency=0.25)
    right(bench.embed_one(["text"]), ["text"])
    books = bench.books
    assert (books.requests, books.answered, books.throttled, books.texts) == (6, 1, 1, 1)
    pauses = [
        after.at - before.at - 0.25 for before, after in zip(bench.api.calls, bench.api.calls[1:], strict=False)
    ]
    assert all(0 <= pause <= 0.5 * 2**number for number, pause in enumerate(pauses))
    assert books.waited == pytest.approx(sum(pauses))
    assert books.waited > 0


@pytest.mark.parametrize(
    "answer",
    [
        Answer(np.zeros((2, DIMENSIONS + 1), np.float32), 2),
        Answer(np.zeros((2, DIMENSIONS - 1), np.float32), 2),
        Answer(np.zeros((1, DIMENSIONS), np.float32), 2),
        Answer(np.zeros((3, DIMENSIONS), np.float32), 2),
    ],
    ids=lambda answer: str(answer.vectors.shape),
)
def test_vectors_of_the_wrong_shape_are_asked_for_again(answer: Answer) -> None:
    bench = Bench([answer])
    right(bench.embed_one(["one", "two"]), ["one", "two"])
    assert (bench.books.requests, bench.books.answered, bench.books.texts) == (2, 1, 2)


@pytest.mark.parametrize("failure", [down, busy])
def test_retry_after_holds_back_every_request(failure: Callable[[], TransientError]) -> None:
    said = failure()
    said.retry_after = 100
    bench = Bench([said], latency=1)

    async def scenario(calls: RemoteCalls) -> None:
        first = asyncio.create_task(calls.embed(chunks_of(["first"])))
        await asyncio.sleep(5)
        await asyncio.gather(*(calls.embed(chunks_of([f"text {number}"])) for number in range(20)))
        await first

    bench.run(scenario)
    assert [call.at for call in bench.api.calls if call.at < 101] == [0]
    assert len(bench.api.calls) == 22
    assert bench.books.waited > 96


def test_tokens_of_an_answer_that_is_of_no_use_are_in_the_books() -> None:
    spoiled = Answer(np.zeros((1, DIMENSIONS + 1), np.float32), 11)
    bench = Bench([spoiled, TransientError("a NaN in it", tokens=7), None])
    right(bench.embed_one(["text"]), ["text"])
    assert bench.books.tokens == 11 + 7 + tokens_of(["text"])
    assert (bench.books.requests, bench.books.answered, bench.books.texts) == (3, 1, 1)


def test_a_terminal_error_is_not_tried_again() -> None:
    bench = Bench([TerminalError("401: no", "look at the key")])
    with pytest.raises(TerminalError, match="401: no") as caught:
        bench.embed_one(["text"])
    assert caught.value.hint == "look at the key"
    assert bench.books.requests == len(bench.api.calls) == 1


def test_when_everything_fails_all_give_up_in_time_and_what_was_sent_is_counted() -> None:
    bench = Bench(iter(down, None), give_up_after=300)
    outcomes = bench.embed(*batches_of(30))
    assert all(isinstance(outcome, TerminalError) for outcome in outcomes)
    assert any("500: oh no" in str(outcome) for outcome in outcomes)
    # From the first failure of each; the last began after a backoff of those before.
    assert 300 <= bench.time.now() <= 300 + 6
    # Those that were under way when the breaker opened, then one at a time at growing intervals.
    assert len(bench.api.calls) <= 2 * FIRST_CONCURRENCY + 12
    assert bench.books.requests == len(bench.api.calls)
    assert bench.changes == [True]


def test_when_it_answers_again_all_go_on() -> None:
    bench = Bench([down() for _ in range(16)], give_up_after=300)
    batches = batches_of(30)
    for outcome, texts in zip(bench.embed(*batches), batches, strict=True):
        right(outcome, texts)
    assert bench.changes == [True, False]
    assert bench.books.requests == len(bench.api.calls) == 46
    assert max(bench.api.answered.values()) == 1


@pytest.mark.parametrize("failure", [down, busy])
def test_a_batch_that_alone_fails_on_and_on_is_given_up(failure: Callable[[], TransientError]) -> None:
    class Cursed(FakeApi):
        async def request(self, texts: Sequence[str]) -> Answer:
            answer = await super().request(texts)
            if "cursed" in texts:
                raise failure()
            return answer

    bench = Bench(give_up_after=200)
    bench.api = Cursed(bench.time.now)

    async def scenario(calls: RemoteCalls) -> None:
        cursed = asyncio.create_task(calls.embed(chunks_of(["cursed"])))
        number = 0
        while not cursed.done():
            number += 1
            right(await calls.embed(chunks_of([f"text {number}"])), [f"text {number}"])
        with pytest.raises(TerminalError):
            await cursed

    bench.run(scenario)
    assert 200 <= bench.time.now() <= 206


def test_what_waits_for_a_budget_when_the_breaker_opens_is_not_sent() -> None:
    bench = Bench([down() for _ in range(16)], latency=3, requests_per_minute=120)
    batches = batches_of(50)
    for outcome, texts in zip(bench.embed(*batches), batches, strict=True):
        right(outcome, texts)
    opened = bench.api.calls[9].at + 3
    # One request every half second was due, and the first probe comes after a second.
    assert [call.at for call in bench.api.calls if opened < call.at < opened + 0.99] == []
    assert any(opened - 1 < call.at <= opened for call in bench.api.calls)


def test_a_setting_that_makes_the_server_refuse_everything_ends_the_run_and_costs_no_text() -> None:
    class Wrong(FakeApi):
        async def request(self, texts: Sequence[str]) -> Answer:
            await super().request(texts)
            raise RejectedError("refused_by_embedder", "no such dimensions")

    bench = Bench()
    bench.api = Wrong(bench.time.now)
    texts = [f"text {number}" for number in range(64)]
    with pytest.raises(TerminalError, match="refuses every text: no such dimensions") as caught:
        bench.run(lambda calls: halving(calls, chunks_of(texts)))
    assert "--dimensions" in caught.value.hint
    assert len(bench.api.calls) < 40


def test_texts_that_are_refused_in_the_same_words_are_to_blame_if_any_other_is_taken() -> None:
    bench = Bench()
    texts = [f"{POISON} {number}" for number in range(40)]
    parts = bench.run(lambda calls: halving(calls, chunks_of([*texts, "good"])))
    assert [part.text for part in parts if isinstance(part, Chunk)] == texts
    assert bench.api.answered["good"] == 1
    assert bench.books.requests == len(bench.api.calls)
    assert bench.books.texts == bench.api.answered.total() == 2


def test_a_batch_that_waits_for_its_next_try_leaves_its_room_to_another() -> None:
    bench = Bench([busy(), down()], max_concurrency=1)

    async def scenario(calls: RemoteCalls) -> list[tuple[float, int]]:
        rooms: list[tuple[float, int]] = []
        calls.when_room(lambda: rooms.append((bench.time.now(), calls.room())))
        before = calls.room()
        await asyncio.gather(*(calls.embed(chunks_of(texts)) for texts in batches_of(2)))
        assert calls.room() == before
        return [(at, room - before) for at, room in rooms]

    # One request a second; the second one fails while the first batch may still be waiting.
    rooms = bench.run(scenario)
    assert [at for at, _ in rooms] == [1, 2]
    assert rooms[0][1] == 1
    assert rooms[1][1] in (1, 2)


def test_waiting_for_a_turn_is_no_reason_to_give_up_at_the_first_failure() -> None:
    bench = Bench([None, down()], requests_per_minute=1, give_up_after=30)
    outcomes = bench.embed(["first"], ["second"])
    right(outcomes[0], ["first"])
    right(outcomes[1], ["second"])
    assert bench.books.requests == 3


# -- budgets ----------------------------------------------------------------------------------------------------


def busiest_minute(api: FakeApi) -> int:
    times = [call.at for call in api.calls]
    return max(sum(start <= at < start + 60 for at in times) for start in times)


def test_no_more_requests_a_minute_than_allowed_retries_included() -> None:
    bench = Bench([down() if number % 3 == 0 else None for number in range(60)], requests_per_minute=20)
    batches = batches_of(50)
    for outcome, texts in zip(bench.embed(*batches), batches, strict=True):
        right(outcome, texts)
    assert busiest_minute(bench.api) <= 20
    assert bench.books.requests == len(bench.api.calls) > 50


def test_a_limit_that_the_answers_tell_is_kept_without_being_given() -> None:
    bench = Bench(news=RateNews(30, None, None))
    bench.embed(*batches_of(100))
    told = [call for call in bench.api.calls if call.at >= 1]
    assert max(sum(start.at <= call.at < start.at + 60 for call in told) for start in told) <= 30


def test_a_limit_that_falls_below_what_a_request_waits_for_holds_up_nothing() -> None:
    # The first answer says that there are 50 tokens a minute; the others wait for some hundred each.
    bench = Bench(latency=1, tokens_per_minute=900, news=RateNews(None, None, None, 50, 50, 0))
    batches = batches_of(4, 20, 80)
    for outcome, texts in zip(bench.embed(*batches), batches, strict=True):
        right(outcome, texts)


def test_concurrency_is_bounded_from_above() -> None:
    bench = Bench(max_concurrency=5)
    bench.embed(*batches_of(60))
    assert bench.api.most_at_once == 5


@pytest.mark.parametrize(("texts", "first"), [(1, 8), (100, 8), (256, 4), (2048, 2)])
def test_large_requests_begin_with_few_at_once(texts: int, first: int) -> None:
    async def begin(calls: RemoteCalls) -> int:
        return calls.concurrency.limit

    assert Bench(texts=texts).run(begin) == first


def test_there_are_no_more_at_once_than_memory_for_their_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "ANSWERS_BYTES", 5 * 100 * DIMENSIONS * remote.BYTES_A_NUMBER)
    bench = Bench(texts=100)
    bench.embed(*batches_of(60))
    assert bench.api.most_at_once == 5


# -- what the user allows to spend ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rpm", [None, 30.0])
@pytest.mark.parametrize("most", [1, 99, 400, 401, 1234, 5000])
def test_not_a_token_more_than_allowed_is_spent(most: int, rpm: float | None) -> None:
    bench = Bench(max_tokens=most, requests_per_minute=rpm)
    batches = batches_of(60)
    outcomes = bench.embed(*batches)
    stopped = [outcome for outcome in outcomes if isinstance(outcome, TerminalError)]
    assert stopped
    assert all("--max-tokens" in str(outcome) and "--max-tokens" in outcome.hint for outcome in stopped)
    for outcome, texts in zip(outcomes, batches, strict=True):
        if not isinstance(outcome, TerminalError):
            right(outcome, texts)
    assert bench.books.tokens == bench.api.tokens <= most
    # One request of 10 texts of 40 bytes costs 100 tokens, and cannot cost more than 400.
    assert bench.api.tokens > most - 400 or most < 400
    assert len(bench.api.calls) == len(outcomes) - len(stopped)


def test_money_is_tokens_times_their_price() -> None:
    bench = Bench(max_cost=0.005, books=Books(price_per_million=10.0))
    outcomes = bench.embed(*batches_of(60))
    stopped = [outcome for outcome in outcomes if isinstance(outcome, TerminalError)]
    assert all("--max-cost" in str(outcome) and "--max-cost" in outcome.hint for outcome in stopped)
    assert bench.books.cost == pytest.approx(bench.api.tokens * 1e-5)
    assert 0.001 < bench.api.tokens * 1e-5 <= 0.005


def test_what_was_spent_before_counts() -> None:
    bench = Bench(max_tokens=10_000, books=Books(tokens=9_700))
    [outcome] = bench.embed(batches_of(1)[0])
    assert isinstance(outcome, TerminalError)
    assert "9,700 are spent" in str(outcome)
    assert bench.api.calls == []


def test_a_run_that_stays_within_its_limit_is_not_stopped_by_what_is_under_way() -> None:
    batches = batches_of(40)
    needed = sum(map(tokens_of, batches))
    bench = Bench(max_tokens=needed + 300)
    for outcome, texts in zip(bench.embed(*batches), batches, strict=True):
        right(outcome, texts)
    assert bench.books.tokens == needed
    assert bench.api.most_at_once > 1


def test_failed_requests_do_not_use_up_what_is_allowed() -> None:
    bench = Bench([down(), busy(), down()], max_tokens=400)
    [texts] = batches_of(1)
    right(bench.embed_one(texts), texts)


def test_without_a_price_no_cost_can_be_exceeded() -> None:
    bench = Bench(max_cost=0.000001)
    [texts] = batches_of(1)
    right(bench.embed_one(texts), texts)
    assert bench.books.cost is None


# -- an end before the end --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moment", "steps", "limits"),
    [
        ("under way", (), {}),
        ("waiting to try again", [down() for _ in range(8)], {}),
        ("paused", [busy(1000)] * 3, {}),
        ("waiting for a slot", (), {"max_concurrency": 4}),
        ("waiting for requests", (), {"requests_per_minute": 1}),
        ("waiting for tokens", (), {"tokens_per_minute": 60}),
        ("waiting for what others cost", (), {"max_tokens": 420}),
        ("waiting for the breaker", iter(down, None), {}),
    ],
)
def test_cancelled_calls_leave_nothing_behind(moment: str, steps: Iterable[Step], limits: dict[str, Any]) -> None:
    bench = Bench(steps, latency=10, **limits)
    batches = batches_of(12)

    async def scenario(calls: RemoteCalls) -> None:
        doomed = [asyncio.create_task(calls.embed(chunks_of(texts))) for texts in batches]
        waiting = [asyncio.create_task(calls.embed(chunks_of(texts))) for texts in batches]
        await asyncio.sleep(9.5 if moment != "waiting for the breaker" else 100)
        for task in (*doomed, *waiting):
            task.cancel()
        await asyncio.gather(*doomed, *waiting, return_exceptions=True)
        assert all(task.cancelled() for task in (*doomed, *waiting))
        assert calls.concurrency.in_flight == 0
        assert not +bench.api.under_way
        bench.api._steps = iter(())
        right(await calls.embed(chunks_of(batches[0])), batches[0])

    bench.run(scenario)
    assert bench.books.requests == len(bench.api.calls)
    assert bench.books.texts == 10


def test_closing_closes_the_api() -> None:
    bench = Bench()
    bench.embed_one(["text"])
    assert bench.api.closed


# -- what was paid for is kept ------------------------------------------------------------------------------------------


class Kept:
    """Calls over vectors on disk; threads take part, so time is real and nothing waits."""

    def __init__(self, folder: Path, *, keep: bool = False) -> None:
        self.vectors = PaidVectors(folder / "job.vectors", "fake fake-model", DIMENSIONS, keep)
        self.api = FakeApi(lambda: 0.0, latency=0)
        self.books = Books()
        self.calls = RemoteCalls(
            self.api, DIMENSIONS, RemoteLimits(), self.books, TokenEstimator(), kept=self.vectors
        )

    def run(self, scenario: Callable[[RemoteCalls], Awaitable[T]]) -> T:
        async def main() -> T:
            try:
                return await scenario(self.calls)
            finally:
                await self.calls.close()

        try:
            return asyncio.run(main())
        finally:
            self.vectors.close()


def on_disk(folder: Path, keep: bool = False) -> int:
    vectors = PaidVectors(folder / "job.vectors", "fake fake-model", DIMENSIONS, keep)
    try:
        return len(vectors)
    finally:
        vectors.close()


def test_vectors_are_on_disk_before_the_batch_is_handed_on(tmp_path: Path) -> None:
    kept = Kept(tmp_path)

    async def scenario(calls: RemoteCalls) -> int:
        await calls.embed(chunks_of(["one", "two", "one"]))
        return len(kept.vectors)

    assert kept.run(scenario) == 2
    assert on_disk(tmp_path) == 2


def test_after_a_crash_nothing_that_is_on_disk_is_bought_again(tmp_path: Path) -> None:
    Kept(tmp_path).run(lambda calls: calls.embed(chunks_of(["one", "two"])))
    second = Kept(tmp_path)
    texts = ["three", "two", "one", "two"]
    right(second.run(lambda calls: calls.embed(chunks_of(texts))), texts)
    assert [call.texts for call in second.api.calls] == [["three"]]
    assert (second.books.requests, second.books.texts, second.books.reused) == (1, 1, 3)


def test_a_batch_that_is_all_there_makes_no_request(tmp_path: Path) -> None:
    Kept(tmp_path).run(lambda calls: calls.embed(chunks_of(["one", "two"])))
    second = Kept(tmp_path)
    right(second.run(lambda calls: calls.embed(chunks_of(["two", "one"]))), ["two", "one"])
    assert (second.books.requests, second.books.texts, second.books.reused) == (0, 0, 2)


def test_what_the_store_has_confirmed_is_dropped(tmp_path: Path) -> None:
    kept = Kept(tmp_path)

    async def scenario(calls: RemoteCalls) -> None:
        batch = await calls.embed(chunks_of(["one", "two", "three"]))
        await calls.confirmed(batch.chunks[:2])
        assert len(kept.vectors) == 1
        await calls.confirmed(batch.chunks[2:])

    kept.run(scenario)
    assert list(tmp_path.iterdir()) == []


def test_a_vector_is_kept_until_the_last_chunk_with_its_text_is_confirmed(tmp_path: Path) -> None:
    kept = Kept(tmp_path)

    async def scenario(calls: RemoteCalls) -> list[int]:
        first = await calls.embed(chunks_of(["same", "other"]))
        second = await calls.embed(chunks_of(["same", "same"]))
        found = [len(kept.vectors)]
        for chunks in (first.chunks, second.chunks[:1], second.chunks[1:]):
            await calls.confirmed(chunks)
            found.append(len(kept.vectors))
        return found

    assert kept.run(scenario) == [2, 1, 1, 0]
    assert kept.books.texts == 2


def test_a_refused_batch_does_not_keep_the_vectors_of_others_from_being_dropped(tmp_path: Path) -> None:
    kept = Kept(tmp_path)

    async def scenario(calls: RemoteCalls) -> None:
        with pytest.raises(RejectedError):
            await calls.embed(chunks_of(["good", POISON]))
        batch = await calls.embed(chunks_of(["good"]))
        await calls.confirmed(batch.chunks)

    kept.run(scenario)
    assert on_disk(tmp_path) == 0


def test_a_cache_keeps_what_is_confirmed_for_the_next_job(tmp_path: Path) -> None:
    async def scenario(calls: RemoteCalls) -> EmbeddedBatch:
        batch = await calls.embed(chunks_of(["one", "two"]))
        await calls.confirmed(batch.chunks)
        return batch

    Kept(tmp_path, keep=True).run(scenario)
    assert on_disk(tmp_path, keep=True) == 2
    second = Kept(tmp_path, keep=True)
    right(second.run(scenario), ["one", "two"])
    assert second.books.requests == 0


def test_a_vector_that_is_damaged_on_disk_is_bought_again(tmp_path: Path) -> None:
    first = Kept(tmp_path)
    first.run(lambda calls: calls.embed(chunks_of(["one", "two"])))
    data = bytearray(first.vectors.path.read_bytes())
    data[-3] ^= 0xFF
    first.vectors.path.write_bytes(data)
    second = Kept(tmp_path)
    right(second.run(lambda calls: calls.embed(chunks_of(["one", "two"]))), ["one", "two"])
    assert second.books.texts == 1


def test_a_full_disk_stops_the_run_and_the_batches_that_waited_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept(tmp_path)

    def full(digests: Sequence[bytes], vectors: Vectors) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(kept.vectors._kept, "put", full)

    async def scenario(calls: RemoteCalls) -> list[EmbeddedBatch | BaseException]:
        every = (calls.embed(chunks_of(texts)) for texts in (["one"], ["one", "two"]))
        return await asyncio.gather(*every, return_exceptions=True)

    outcomes = kept.run(scenario)
    assert all(isinstance(outcome, TerminalError) and "No space" in str(outcome) for outcome in outcomes)
    assert kept.calls.concurrency.in_flight == 0


def test_a_text_is_bought_once_however_batches_and_confirmations_interleave(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    texts = [f"text {number % 30}" for number in range(300)]
    batches = [texts[start : start + 7] for start in range(0, 300, 7)]

    async def scenario(calls: RemoteCalls) -> None:
        async def load(batch: list[str]) -> EmbeddedBatch:
            return await calls.embed(chunks_of(batch))

        embedded = await asyncio.gather(*map(load, batches))
        await asyncio.gather(*(calls.confirmed(batch.chunks) for batch in embedded))

    kept.run(scenario)
    assert kept.api.answered == Counter(dict.fromkeys(texts, 1))
    assert (kept.books.texts, kept.books.reused) == (30, 270)
    assert on_disk(tmp_path) == 0
