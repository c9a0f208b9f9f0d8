"""Embedding through an API: packing apart, everything that stands between a batch and the wire.

    unique texts -> those that are kept on disk -> a slot -> the breaker -> both budgets -> the wire
                                                    ^ backoff with jitter on a transient failure

There is one retry layer, here. A batch that is refused as a whole is halved by the pipeline.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce

import numpy as np

from ragingest.books import Books
from ragingest.breaker import CircuitBreaker
from ragingest.checkpoint.vectors import PaidVectors
from ragingest.concurrency import AdaptiveConcurrency, Slot
from ragingest.documents import TEXT_DIGEST_BYTES, Chunk, EmbeddedBatch, SparseVectors, Vectors
from ragingest.errors import RejectedError, TerminalError, TransientError
from ragingest.pacing import Grant, RateLimiter
from ragingest.protocols import Answer, EmbeddingRequests, RateNews
from ragingest.retries import retrying
from ragingest.tokens import TextSize, TokenEstimator, measure

__all__ = ["RemoteCalls", "RemoteLimits", "ask"]

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class RemoteLimits:
    """What the user allows: requests and tokens a minute, calls at once, dollars, tokens in all, seconds of failure."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    max_concurrency: int = 64
    max_cost: float | None = None
    max_tokens: int | None = None
    give_up_after: float = 600.0


class RemoteCalls:
    """Embeds batches through `api`; many at once, on one event loop.

    Args:
        api: sends one request.
        dimensions: what every vector must have.
        books: is counted into.
        estimator: what texts will cost; learns from every answer.
        max_request_tokens: what one request takes, if there is a limit.
        kept: vectors that were paid for and are on disk; None to keep none.
        sparse: makes the sparse vectors of texts, in a thread; None for none.
        sleep, clock: injected so that tests do not wait.
    """

    def __init__(
        self,
        api: EmbeddingRequests,
        dimensions: int,
        limits: RemoteLimits,
        books: Books,
        estimator: TokenEstimator,
        *,
        max_request_tokens: int | None = None,
        kept: PaidVectors | None = None,
        sparse: Callable[[Sequence[str]], SparseVectors] | None = None,
        on_change: Callable[[bool], None] = lambda _opened: None,
        sleep: Sleep = asyncio.sleep,
        clock: Clock = time.monotonic,
    ) -> None:
        self.concurrency = AdaptiveConcurrency(maximum=limits.max_concurrency, clock=clock)
        self._api = api
        self._dimensions = dimensions
        self._limits = limits
        self._books = books
        self._estimator = estimator
        self._max_request_tokens = max_request_tokens
        self._kept = kept
        self._sparse = sparse
        self._sleep = sleep
        self._clock = clock
        self._requests = RateLimiter(limits.requests_per_minute, clock=clock, sleep=sleep)
        self._tokens = RateLimiter(limits.tokens_per_minute, clock=clock, sleep=sleep)
        self._breaker = CircuitBreaker(
            give_up_after=limits.give_up_after, name=api.name, on_change=on_change, clock=clock, sleep=sleep
        )
        self._under_way: dict[bytes, asyncio.Future[Vectors]] = {}
        self._unconfirmed: Counter[bytes] = Counter()
        self._tokens_set_aside = 0
        self._settled = asyncio.Event()
        self._disk = ThreadPoolExecutor(1, "vectors")

    async def embed(self, chunks: Sequence[Chunk]) -> EmbeddedBatch:
        """Vectors of `chunks`, from the wire or from what is there already.

        Raises:
            RejectedError: the server refuses the batch as it is.
            TerminalError: it refuses everything, has failed for too long, or a limit of the user is reached.
        """
        digests = [_digest(chunk) for chunk in chunks]
        self._unconfirmed.update(digests)
        try:
            vectors = await self._vectors({_digest(chunk): chunk.text for chunk in chunks}, len(chunks))
            dense = np.empty((len(chunks), self._dimensions), dtype=np.float32)
            for row, digest in enumerate(digests):
                dense[row] = vectors[digest]
            batch = EmbeddedBatch(list(chunks), dense)
            if self._sparse is not None:
                batch.sparse = await asyncio.to_thread(self._sparse, [chunk.text for chunk in chunks])
        except BaseException:
            self._forget(digests)
            raise
        return batch

    async def confirmed(self, chunks: Sequence[Chunk]) -> None:
        """The store has these: their vectors need not be kept any longer, unless the same text waits elsewhere."""
        done = self._forget([_digest(chunk) for chunk in chunks])
        if self._kept is not None:
            await asyncio.get_running_loop().run_in_executor(self._disk, self._kept.drop, done)

    def _forget(self, digests: Sequence[bytes]) -> list[bytes]:
        """These no longer wait for the store; those that nobody else waits for."""
        done = []
        for digest in digests:
            self._unconfirmed[digest] -= 1
            if self._unconfirmed[digest] <= 0:
                del self._unconfirmed[digest]
                done.append(digest)
        return done

    def sync(self) -> None:
        """Make what was paid for survive a loss of power. Called from any other thread than the loop's."""
        if self._kept is not None:
            self._disk.submit(self._kept.sync).result()

    async def close(self) -> None:
        self._disk.shutdown()
        await self._api.close()

    # -- what is there already -------------------------------------------------------------------

    async def _on_disk(self, digests: list[bytes]) -> dict[bytes, Vectors]:
        if self._kept is None:
            return {}
        return await asyncio.get_running_loop().run_in_executor(self._disk, self._kept.get, digests)

    async def _keep(self, digests: list[bytes], vectors: Vectors) -> None:
        if self._kept is not None:
            await asyncio.get_running_loop().run_in_executor(self._disk, self._kept.put, digests, vectors)

    async def _vectors(self, texts: dict[bytes, str], chunks: int) -> dict[bytes, Vectors]:
        """The vector of each text: from disk, from the batch that has it under way, or bought here.

        What another batch did not get is looked for again: a half of that batch may have it under way by now.
        """
        vectors: dict[bytes, Vectors] = {}
        bought = 0
        while missing := [digest for digest in texts if digest not in vectors]:
            vectors.update(await self._on_disk(missing))
            missing = [digest for digest in missing if digest not in vectors]
            # Nothing is awaited from here until `_buy` has entered its texts: none is under way twice.
            others = {digest: self._under_way[digest] for digest in missing if digest in self._under_way}
            wanted = [digest for digest in missing if digest not in others]
            if wanted:
                vectors.update(await self._buy(wanted, [texts[digest] for digest in wanted]))
                bought += len(wanted)
            for digest, future in others.items():
                vector = await _from_other(future)
                if vector is not None:
                    vectors[digest] = vector
        self._books.reused += chunks - bought
        return vectors

    # -- the wire ----------------------------------------------------------------------------------

    async def _buy(self, digests: list[bytes], texts: list[str]) -> dict[bytes, Vectors]:
        loop = asyncio.get_running_loop()
        futures = {digest: loop.create_future() for digest in digests}
        self._under_way.update(futures)
        try:
            answer = await self._with_retries(texts)
            await self._keep(digests, answer.vectors)
        except BaseException as error:
            for future in futures.values():
                future.cancel() if not isinstance(error, RejectedError) else future.set_exception(error)
                future.exception() if not future.cancelled() else None
            raise
        finally:
            for digest in digests:
                del self._under_way[digest]
        found = dict(zip(digests, answer.vectors, strict=True))
        for digest, future in futures.items():
            future.set_result(found[digest])
        return found

    async def _with_retries(self, texts: list[str]) -> Answer:
        attempts = retrying(self._limits.give_up_after, self._clock, self._backoff)
        try:
            return await attempts(self._once, texts)
        except TransientError as error:
            raise TerminalError(str(error), "resume when it is over; nothing that is done is lost") from None

    async def _backoff(self, seconds: float) -> None:
        self._books.waited += seconds
        await self._sleep(seconds)

    async def _once(self, texts: list[str]) -> Answer:
        """One request on the wire, when the breaker, a slot and both budgets allow it."""
        size = reduce(TextSize.plus, map(measure, texts))
        estimate = self._estimator.estimate(size.bytes, len(texts), wide=size.wide)
        most = self._estimator.charge(size.bytes, len(texts), strange=size.strange)
        await self._breaker.before()
        try:
            async with self.concurrency.slot() as slot:
                await self._set_aside(most)
                try:
                    request, tokens, amount = await self._allowance(estimate)
                    answer = await self._send(texts, slot)
                finally:
                    self._tokens_set_aside -= most
                    self._settled.set()
        except TransientError as error:
            if error.throttled:
                # A refused request has spent nothing; what it was refused for, the headers say.
                self._requests.refund(1, request)
                self._tokens.refund(amount, tokens)
                self._learn(RateNews(*error.news) if error.news else RateNews())
            raise
        except RejectedError:
            if self._max_request_tokens is not None and size.bytes > self._max_request_tokens:
                # What was learned of this corpus may be why; by bytes alone nothing is ever too long.
                self._estimator.forget()
            raise
        finally:
            self._breaker.abandoned()  # counts only for a probe that ended without an answer
        if answer.tokens:
            self._estimator.learn(size.bytes, answer.tokens, len(texts), strange=size.strange)
            if answer.tokens > amount:
                self._tokens.charge(answer.tokens - amount)
            else:
                self._tokens.refund(amount - answer.tokens, tokens)
        self._learn(answer.news)
        return answer

    async def _allowance(self, estimate: int) -> tuple[Grant, Grant, float]:
        """One request, and the tokens it will likely cost (and how many those are), of the budgets."""
        began = self._clock()
        request = await self._requests.acquire(1)
        while True:
            limit = self._tokens.limit
            amount = max(1, estimate) if limit is None else max(1, min(estimate, limit))
            try:
                tokens = await self._tokens.acquire(amount)
            except ValueError:
                continue  # the limit fell while it waited
            self._books.waited += self._clock() - began
            return request, tokens, amount

    def _learn(self, news: RateNews) -> None:
        self._requests.learn(news.requests, news.requests_left, news.requests_reset)
        self._tokens.learn(news.tokens, news.tokens_left, news.tokens_reset)

    async def _send(self, texts: list[str], slot: Slot) -> Answer:
        books = self._books
        books.requests += 1
        began = self._clock()
        try:
            answer = await self._api.request(texts)
            if answer.vectors.shape != (len(texts), self._dimensions):
                raise TransientError(
                    f"{self._api.name} answered vectors of shape {answer.vectors.shape}, "
                    f"not ({len(texts)}, {self._dimensions})"
                )
        except TransientError as error:
            if error.throttled:
                books.throttled += 1
                slot.throttled()
                self._breaker.succeeded()
            else:
                slot.failed()
                self._breaker.failed(error)
            if error.retry_after is not None:
                for budget in (self._requests, self._tokens):
                    budget.pause(error.retry_after)
            raise
        except (RejectedError, TerminalError):
            slot.failed()
            self._breaker.succeeded()
            raise
        seconds = self._clock() - began
        slot.succeeded(seconds, len(texts))
        self._breaker.succeeded()
        books.answered += 1
        books.texts += len(texts)
        books.tokens += answer.tokens
        books.took(seconds)
        return answer

    async def _set_aside(self, most: int) -> None:
        """Reserve what a request may cost, before it is sent.

        Waits where it would exceed what the user allows only if others, under way, cost as much as they may.

        Raises:
            TerminalError: it may exceed that whatever they cost.
        """
        while self._exceeded(self._books.tokens + self._tokens_set_aside + most):
            error = self._exceeded(self._books.tokens + most)
            if error is not None:
                raise error
            self._settled.clear()
            await self._settled.wait()
        self._tokens_set_aside += most

    def _exceeded(self, tokens: int) -> TerminalError | None:
        """The error, if so many tokens are more than the user allows."""
        limits, books = self._limits, self._books
        if limits.max_tokens is not None and tokens > limits.max_tokens:
            return TerminalError(
                f"the next request would exceed --max-tokens {limits.max_tokens:,} ({books.tokens:,} are spent)",
                "resume with a higher --max-tokens",
            )
        price = books.price_per_million
        if limits.max_cost is not None and price is not None and tokens * price / 1e6 > limits.max_cost:
            return TerminalError(
                f"the next request would exceed --max-cost {limits.max_cost:g} (${books.cost or 0:.2f} are spent)",
                "resume with a higher --max-cost",
            )
        return None


async def ask(api: EmbeddingRequests, text: str, books: Books, give_up_after: float) -> Answer:
    """Embed one text outside of any run, to learn a model's dimensions or for a search.

    Raises:
        RejectedError, TerminalError: as the API does.
        TransientError: it has failed for `give_up_after` seconds.
    """

    async def once() -> Answer:
        books.requests += 1
        began = time.monotonic()
        try:
            answer = await api.request([text])
        except TransientError as error:
            books.throttled += error.throttled
            raise
        books.answered += 1
        books.texts += 1
        books.tokens += answer.tokens
        books.took(time.monotonic() - began)
        return answer

    return await retrying(give_up_after, time.monotonic, asyncio.sleep)(once)


async def _from_other(future: asyncio.Future[Vectors]) -> Vectors | None:
    """The vector of a text that another batch has sent; None if that batch failed."""
    try:
        return await asyncio.shield(future)
    except (RejectedError, asyncio.CancelledError):
        if asyncio.current_task().cancelling():  # type: ignore[union-attr]  # runs in a task
            raise
        return None


def _digest(chunk: Chunk) -> bytes:
    if chunk.digest is None:
        chunk.digest = hashlib.blake2b(chunk.text.encode(), digest_size=TEXT_DIGEST_BYTES).digest()
    return chunk.digest
