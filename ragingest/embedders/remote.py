"""Embedding through an API: packing apart, everything that stands between a batch and the wire.

    unique texts -> those that are kept on disk, or stored -> a slot -> the breaker -> both budgets -> the wire
                                                    ^ backoff with jitter on a transient failure

There is one retry layer, here. A batch that is refused as a whole is halved by the pipeline.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from ragingest.checkpoint.known import StoredTexts
from ragingest.checkpoint.vectors import PaidVectors
from ragingest.costs.books import Books
from ragingest.costs.tokens import TextSize, TokenEstimator, measure
from ragingest.documents import Chunk, EmbeddedBatch, SparseVectors, Vectors, text_digest
from ragingest.errors import RejectedError, TerminalError, TransientError
from ragingest.pacing.breaker import CircuitBreaker
from ragingest.pacing.concurrency import AdaptiveConcurrency, Slot
from ragingest.pacing.rate_limiter import Grant, RateLimiter
from ragingest.pacing.retries import retrying
from ragingest.protocols import Answer, EmbeddingRequests, RateNews

__all__ = ["Clock", "RemoteCalls", "RemoteLimits", "Sleep", "ask"]

FIRST_CONCURRENCY = 8
"""Each step up takes a round trip; a small server of its own still answers so many well within the timeout."""

FIRST_TEXTS = 1024
"""Texts under way at first: requests of 2,048 start at two, and double from there while it pays."""

LEAST_FIRST = 2

ANSWERS_BYTES = 256_000_000
"""What answers under way may take of memory: eight of 2,048 texts and 1,536 dimensions, which at five seconds
each are 29 million tokens a minute, three times what OpenAI gives its largest customers."""

BYTES_A_NUMBER = 4 + 16 / 3
"""Of an answer: a float32, and the base64 that it comes as."""

REFUSED_ALIKE = 10
"""Different texts, refused one by one before any was answered, after which the settings are doubted."""

HARMLESS = "text"

T = TypeVar("T")

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

    def exceeded(self, books: Books, tokens: int, what: str = "request") -> TerminalError | None:
        """The error, if so many tokens beyond those in the books are more than the user allows."""
        if self.max_tokens is not None and books.tokens + tokens > self.max_tokens:
            return TerminalError(
                f"the next {what} would exceed --max-tokens {self.max_tokens:,} ({books.tokens:,} are spent)",
                "resume with a higher --max-tokens",
            )
        price = books.price_per_million
        if self.max_cost is None or price is None:
            return None
        if (books.tokens + tokens) * price / 1e6 > self.max_cost:
            return TerminalError(
                f"the next {what} would exceed --max-cost {self.max_cost:g} (${books.cost or 0:.2f} are spent)",
                "resume with a higher --max-cost",
            )
        return None


class RemoteCalls:
    """Embeds batches through `api`; many at once, on one event loop.

    Args:
        api: sends one request.
        dimensions: what every vector must have.
        books: is counted into.
        estimator: what texts will cost; learns from every answer.
        max_request_tokens: what one request takes, if there is a limit.
        texts: what one request holds, at most: where that is many, there are fewer requests at once.
        kept: vectors that were paid for and are on disk; None to keep none.
        stored: vectors that the store has confirmed, for texts that come again; None to buy those again.
        sparse: makes the sparse vectors of texts, in a thread; None for none.
        counted: is told before each request and after its answer: the books have changed.
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
        texts: int = 1,
        kept: PaidVectors | None = None,
        stored: StoredTexts | None = None,
        sparse: Callable[[Sequence[str]], SparseVectors] | None = None,
        counted: Callable[[], None] = lambda: None,
        on_change: Callable[[bool], None] = lambda _opened: None,
        sleep: Sleep = asyncio.sleep,
        clock: Clock = time.monotonic,
    ) -> None:
        first, most = _concurrency(limits.max_concurrency, texts, dimensions)
        self.concurrency = AdaptiveConcurrency(first, most, clock=clock)
        self._api = api
        self._dimensions = dimensions
        self._limits = limits
        self._books = books
        self._estimator = estimator
        self._max_request_tokens = max_request_tokens
        self._kept = kept
        self._stored = stored
        self._sparse = sparse
        self._counted = counted
        self._sleep = sleep
        self._clock = clock
        self._requests = RateLimiter(limits.requests_per_minute, clock=clock, sleep=sleep)
        self._tokens = RateLimiter(limits.tokens_per_minute, clock=clock, sleep=sleep)
        self._breaker = CircuitBreaker(
            give_up_after=limits.give_up_after, name=api.name, on_change=on_change, clock=clock, sleep=sleep
        )
        self._under_way: dict[bytes, _Purchase] = {}
        self._unconfirmed: Counter[bytes] = Counter()
        self._bounded = limits.max_cost is not None or limits.max_tokens is not None
        self._answered = False
        self._refused: dict[str, set[str]] = {}
        """Texts that were refused alone, by the words, until one is answered."""
        self._tokens_set_aside = 0
        self._settled = asyncio.Event()
        self._backing_off = 0
        self._more_room: Callable[[], None] = lambda: None
        self._disk = ThreadPoolExecutor(1, "vectors")

    def room(self) -> int:
        """How many batches make sense now: those with a slot, some that wait for one, and those that wait for
        another try, which hold no slot."""
        limit = self.concurrency.limit
        return limit + limit // 2 + 1 + self._backing_off

    def when_room(self, tell: Callable[[], None]) -> None:
        """Call `tell` when there is more room, though no batch has come to its end."""
        self._more_room = tell

    async def embed(self, chunks: Sequence[Chunk]) -> EmbeddedBatch:
        """Vectors of `chunks`, from the wire or from what is there already.

        Raises:
            RejectedError: the server refuses the batch as it is.
            TerminalError: it refuses everything, has failed for too long, or a limit of the user is reached.
        """
        texts = [chunk.text for chunk in chunks]
        digests = [chunk.digest or text_digest(chunk) for chunk in chunks]
        if self._kept is not None:
            self._unconfirmed.update(digests)
        # While the request is under way.
        sparse = None
        if self._sparse is not None:
            sparse = asyncio.get_running_loop().run_in_executor(None, self._sparse, texts)
        try:
            dense = await self._vectors(digests, texts)
            return EmbeddedBatch(list(chunks), dense, None if sparse is None else await sparse)
        except BaseException:
            self._forget(digests)
            if sparse is not None:
                sparse.add_done_callback(_passed_over)
            raise

    async def confirmed(self, chunks: Sequence[Chunk]) -> None:
        """The store has these: their vectors need not be kept any longer, unless the same text waits elsewhere."""
        done = self._forget([chunk.digest or text_digest(chunk) for chunk in chunks])
        if self._stored is not None:
            self._stored.confirmed(chunks)
        if self._kept is not None:
            self._kept.drop(done)

    def _forget(self, digests: Sequence[bytes]) -> list[bytes]:
        """These no longer wait for the store; those that nobody else waits for."""
        if self._kept is None:
            return []
        done = []
        for digest in digests:
            self._unconfirmed[digest] -= 1
            if self._unconfirmed[digest] <= 0:
                del self._unconfirmed[digest]
                done.append(digest)
        return done

    def sync(self) -> None:
        """Make what was paid for survive a loss of power. Called from any other thread than the loop's."""
        self._disk.submit(self._sync).result()

    def _sync(self) -> None:
        if self._stored is not None:
            self._stored.settle()
        if self._kept is not None:
            self._kept.sync()

    async def close(self) -> None:
        self._disk.shutdown()
        await self._api.close()

    # -- what is there already -------------------------------------------------------------------

    async def _on_disk(self, digests: list[bytes]) -> dict[bytes, Vectors]:
        if self._kept is None or not (likely := self._kept.likely(digests)):
            return {}
        return await self._on_the_disks_thread(self._kept.get, likely)

    async def _in_store(self, texts: dict[bytes, str]) -> dict[bytes, Vectors]:
        if self._stored is None or not (likely := self._stored.likely(list(texts))):
            return {}
        asked = {digest: texts[digest] for digest in likely}
        return await asyncio.get_running_loop().run_in_executor(None, self._stored.get, asked)

    def _keep(self, digests: list[bytes], vectors: Vectors) -> None:
        """Survives the death of the process, as does where the store has what is overwritten now."""
        if self._stored is not None:
            self._stored.settle()
        if self._kept is not None:
            self._kept.put(digests, vectors)

    def _on_the_disks_thread(self, work: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._disk, work, *args)

    async def _vectors(self, digests: list[bytes], texts: list[str]) -> Vectors:
        """The vector of each text: from disk, from the store, from the batch that has it under way, or bought here.

        What another batch did not get is looked for again: a half of that batch may have it under way by now.
        """
        text_of = dict(zip(digests, texts, strict=True))
        found: dict[bytes, Vectors] = {}
        bought = 0
        while missing := [digest for digest in text_of if digest not in found]:
            found.update(await self._on_disk(missing))
            found.update(await self._in_store({d: text_of[d] for d in missing if d not in found}))
            missing = [digest for digest in missing if digest not in found]
            # Nothing is awaited from here until `_buy` has entered its texts: none is under way twice.
            others = {self._under_way[digest]: None for digest in missing if digest in self._under_way}
            wanted = [digest for digest in missing if digest not in self._under_way]
            if wanted:
                vectors = await self._buy(wanted, [text_of[digest] for digest in wanted])
                if len(wanted) == len(digests):
                    return vectors
                found.update(zip(wanted, vectors, strict=True))
                bought += len(wanted)
            for other in others:
                found.update(await other.vectors_of(missing))
        self._books.reused += len(digests) - bought
        dense = np.empty((len(digests), self._dimensions), dtype=np.float32)
        for row, digest in enumerate(digests):
            dense[row] = found[digest]
        return dense

    # -- the wire ----------------------------------------------------------------------------------

    async def _buy(self, digests: list[bytes], texts: list[str]) -> Vectors:
        """Vectors from the wire, kept before they are handed on; row i is that of text i."""
        purchase = _Purchase(digests)
        self._under_way.update(dict.fromkeys(digests, purchase))
        vectors = None
        try:
            vectors = (await self._with_retries(texts)).vectors
            if self._kept is not None:
                await self._on_the_disks_thread(self._keep, digests, vectors)
        except RejectedError as error:
            if len(texts) == 1 and not self._answered:
                await self._doubt_the_settings(texts[0], error)
            raise
        except BaseException:
            vectors = None
            raise
        finally:
            for digest in digests:
                del self._under_way[digest]
            purchase.over(vectors)
        return vectors

    async def _with_retries(self, texts: list[str]) -> Answer:
        size = self._size(texts)
        try:
            return await self._once(texts, size)
        except TransientError as error:
            failure: list[TransientError] = [error]

        async def another_try() -> Answer:
            if failure:
                raise failure.pop()
            return await self._once(texts, size)

        try:
            return await retrying(self._limits.give_up_after, self._clock, self._backoff)(another_try)
        except TransientError as error:
            raise TerminalError(str(error), "resume when it is over; nothing that is done is lost") from None

    async def _doubt_the_settings(self, text: str, error: RejectedError) -> None:
        """When text by text is refused in the same words and none was ever answered, it may not be the texts.

        Raises:
            TerminalError: one that nobody can object to is refused too.
        """
        alike = self._refused.setdefault(str(error), set())
        alike.add(text)
        if len(alike) < REFUSED_ALIKE:
            return
        self._refused.clear()
        try:
            await self._once([HARMLESS], self._size([HARMLESS]))
        except RejectedError as again:
            raise TerminalError(
                f"{self._api.name} refuses every text: {again}", "check --model, --dimensions and --base-url"
            ) from None
        except TransientError:
            pass  # the next refusal asks again

    async def _backoff(self, seconds: float) -> None:
        self._books.waited += seconds
        self._backing_off += 1
        self._more_room()
        try:
            await self._sleep(seconds)
        finally:
            self._backing_off -= 1

    def _size(self, texts: list[str]) -> TextSize:
        """Of all; what is strange and wide in them only where the estimator asks for it, since it costs as much
        as everything else here."""
        text = "".join(texts)
        bytes_ = len(text) if text.isascii() else len(text.encode())
        limit = self._max_request_tokens
        if self._bounded or self._estimator.ratio is None or (limit is not None and 2 * bytes_ > limit):
            return measure(text)._replace(texts=len(texts))
        return TextSize(len(texts), bytes_)

    async def _once(self, texts: list[str], size: TextSize) -> Answer:
        """One request on the wire, when the breaker, a slot and both budgets allow it."""
        while True:
            await self._breaker.before()
            try:
                answer = await self._in_turn(texts, size)
            finally:
                self._breaker.abandoned()  # counts only for a probe that ended without an answer
            if answer is not None:
                return answer

    async def _in_turn(self, texts: list[str], size: TextSize) -> Answer | None:
        """One request when a slot and both budgets allow it; None, and none, if the breaker opened meanwhile."""
        estimate = self._estimator.estimate(size.bytes, len(texts), wide=size.wide)
        most = self._estimator.charge(size.bytes, len(texts), strange=size.strange) if self._bounded else 0
        try:
            async with self.concurrency.slot() as slot:
                await self._set_aside(most)
                try:
                    request, tokens, amount = await self._allowance(estimate, slot)
                    if self._breaker.holds_back:
                        self._requests.refund(1, request)
                        self._tokens.refund(amount, tokens)
                        return None
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
            self._tokens.refund(amount, tokens)
            if self._max_request_tokens is not None and size.bytes > self._max_request_tokens:
                # What was learned of this corpus may be why; by bytes alone nothing is ever too long.
                self._estimator.forget()
            raise
        if answer.tokens:
            self._estimator.learn(size.bytes, answer.tokens, len(texts), strange=size.strange)
            if answer.tokens > amount:
                self._tokens.charge(answer.tokens - amount)
            else:
                self._tokens.refund(amount - answer.tokens, tokens)
        self._learn(answer.news)
        return answer

    async def _allowance(self, estimate: int, slot: Slot) -> tuple[Grant, Grant, float]:
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
            waited = self._clock() - began
            self._books.waited += waited
            slot.waited(waited)
            return request, tokens, amount

    def _learn(self, news: RateNews) -> None:
        self._requests.learn(news.requests, news.requests_left, news.requests_reset)
        self._tokens.learn(news.tokens, news.tokens_left, news.tokens_reset)

    async def _send(self, texts: list[str], slot: Slot) -> Answer:
        self._books.requests += 1
        self._counted()
        try:
            return await self._sent(texts, slot)
        finally:
            self._counted()

    async def _sent(self, texts: list[str], slot: Slot) -> Answer:
        books = self._books
        began = self._clock()
        try:
            answer = await self._api.request(texts)
            if answer.vectors.shape != (len(texts), self._dimensions):
                raise TransientError(
                    f"{self._api.name} answered vectors of shape {answer.vectors.shape}, "
                    f"not ({len(texts)}, {self._dimensions})",
                    tokens=answer.tokens,
                )
        except TransientError as error:
            books.tokens += error.tokens
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
        self._answered = True
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
        limits, books = self._limits, self._books
        while limits.exceeded(books, self._tokens_set_aside + most):
            error = limits.exceeded(books, most)
            if error is not None:
                raise error
            self._settled.clear()
            await self._settled.wait()
        self._tokens_set_aside += most


def _concurrency(allowed: int, texts: int, dimensions: int) -> tuple[int, int]:
    """Requests of so many texts at once: at first, and at most."""
    most = max(LEAST_FIRST, int(ANSWERS_BYTES / (texts * dimensions * BYTES_A_NUMBER)))
    first = max(LEAST_FIRST, min(FIRST_CONCURRENCY, FIRST_TEXTS // texts))
    most = min(allowed, most)
    return min(first, most), most


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
            books.tokens += error.tokens
            raise
        books.answered += 1
        books.texts += 1
        books.tokens += answer.tokens
        books.took(time.monotonic() - began)
        return answer

    return await retrying(give_up_after, time.monotonic, asyncio.sleep)(once)


class _Purchase:
    """Texts that are under way together: others that need one of them wait for it."""

    def __init__(self, digests: list[bytes]) -> None:
        self._digests = digests
        self._over: asyncio.Future[Vectors | None] = asyncio.get_running_loop().create_future()

    def over(self, vectors: Vectors | None) -> None:
        """Here they are, shape (n, d); None if they will not come."""
        self._over.set_result(vectors)

    async def vectors_of(self, digests: Iterable[bytes]) -> dict[bytes, Vectors]:
        """The vectors of those `digests` that are in it; none if it failed."""
        vectors = await asyncio.shield(self._over)  # one that waits and is cancelled must not end it for others
        if vectors is None:
            return {}
        rows = dict(zip(self._digests, vectors, strict=True))
        return {digest: rows[digest] for digest in digests if digest in rows}


def _passed_over(future: asyncio.Future[Any]) -> None:
    """Its outcome is of no use any more; asyncio would report an error that nobody has looked at."""
    if not future.cancelled():
        future.exception()
