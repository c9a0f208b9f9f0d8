"""Embedding by batches: texts are sent in files, and their vectors come hours later.

A run makes passes over what is not done of its source. In a pass, each block of documents is asked for
(`deferred`): are the vectors of all its texts on disk? Then it goes on and is stored. Else those texts
that are new are written into a request file, and the block is left as if it had not been read. Between the
passes, files are uploaded, batches are created, looked at and fetched:

    pass -> submit -> wait -> pass -> ...        all state on disk: a pass from cron is a pass like any other

A vector is on disk before its batch counts as fetched, and stays there until a pass over everything has found
nobody who waits for it. So each text of a run is submitted once, however often it occurs.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from msgspec.structs import replace

from ragingest.checkpoint.batches import ANSWERS, Batch, BatchLine, BatchStates, Refusal, State
from ragingest.checkpoint.vectors import PaidVectors
from ragingest.costs.books import Books
from ragingest.costs.tokens import TokenEstimator, measure
from ragingest.documents import Chunk, EmbeddedBatch, SparseVectors, Vectors, text_digest
from ragingest.embedders.remote import Clock, RemoteLimits, Sleep
from ragingest.errors import RejectedError, TerminalError, TransientError
from ragingest.pacing.retries import retrying
from ragingest.protocols import BatchAnswer, BatchRequests, BatchStatus

__all__ = ["BatchCalls"]

T = TypeVar("T")

GROWTH = 1.5
LONGEST_WAIT = 20
"""Pauses between two looks at the batches grow by `GROWTH` to this many times the first."""

MOST_UNSENT = 20
"""Request files that wait to be sent; while there are so many, no more texts are taken from the source."""

MOST_FETCHED = 4
"""Batches fetched before a pass stores them: what waits on disk is known from memory."""

SURE = 3
"""Attempts after which a batch that finds no room in an otherwise unused queue is taken to be too large."""

MOST_TRIES = 5
"""Failures of the server at one text until the run stops."""

LOOKED_AT = 256
"""Texts whose vectors are looked at together."""

KEPT_TOGETHER = 256
"""Vectors of a fetched file that are written together."""

_QUEUE_LIMIT = re.compile(r"[Ll]imit:?\s*([\d,]+)\s*enqueued tokens").search


class BatchCalls:
    """The batches of one job. Used on one event loop; what blocks is done by one thread.

    Args:
        api: sends one request.
        states: which batches there are; closed with this.
        kept: vectors that were paid for; closed with this.
        dimensions: what every vector must have.
        limits: dollars, tokens, and seconds of failure that the user allows.
        books: is kept equal to what the fetched batches say.
        check: raises RejectedError for a text that must not be sent.
        cut: what to send of a text, the second if the first is refused, and so on; None to send all of it.
        sparse: makes the sparse vectors of texts, in a thread; None for none.
        notice: is told what a person should know.
        poll_seconds: the first pause between two looks at the batches.
        sleep, clock: injected so that tests do not wait.
    """

    def __init__(
        self,
        api: BatchRequests,
        states: BatchStates,
        kept: PaidVectors,
        dimensions: int,
        limits: RemoteLimits,
        books: Books,
        estimator: TokenEstimator,
        *,
        check: Callable[[str], None],
        cut: Callable[[str], list[str]] | None = None,
        sparse: Callable[[Sequence[str]], SparseVectors] | None,
        notice: Callable[[str], None],
        poll_seconds: float,
        sleep: Sleep = asyncio.sleep,
        clock: Clock = time.monotonic,
    ) -> None:
        self._api = api
        self._states = states
        self._kept = kept
        self._dimensions = dimensions
        self._limits = limits
        self._books = books
        self._estimator = estimator
        self._check = check
        self._cut = cut
        self._sparse = sparse
        self._notice = notice
        self._poll_seconds = poll_seconds
        self._sleep = sleep
        self._clock = clock
        self._wanted: set[bytes] = set()
        """Vectors on disk that deferred blocks wait to use."""
        self._left_out = False
        """Whether texts were not taken because too many files wait."""
        self._disk = ThreadPoolExecutor(1, "batches")
        for batch in states.in_state("fetched", "done"):
            self._learn(batch, batch.answered, batch.tokens)
        self._count()

    # -- in a pass ---------------------------------------------------------------------------------

    async def deferred(self, chunks: Sequence[Chunk]) -> bool:
        """Whether a text of these has no vector yet; it is ordered then, if it was not."""
        return await self._on_disk(lambda: self._order(dict(map(self._sent, chunks))))

    def _sent(self, chunk: Chunk) -> tuple[bytes, str]:
        """What is sent of a chunk, and its digest, by which the vector is known; the chunk itself stays whole."""
        beginnings = [chunk.text] if self._cut is None else self._cut(chunk.text)
        for number, text in enumerate(beginnings, 1):
            digest = chunk.digest = text_digest(replace(chunk, text=text, digest=None))
            if number == len(beginnings) or digest not in self._states.known([digest])[1]:
                break
        return digest, text

    def _order(self, texts: dict[bytes, str]) -> bool:
        digests = list(texts)
        here: set[bytes] = set()
        for start in range(0, len(digests), LOOKED_AT):
            here.update(self._kept.get(digests[start : start + LOOKED_AT]))
        missing = [digest for digest in digests if digest not in here]
        under_way, refused = self._states.known(missing)
        new = [digest for digest in missing if digest not in under_way and digest not in refused]
        waiting = bool(under_way)
        if new and len(self._states.in_state("filled", "uploading", "uploaded")) >= MOST_UNSENT:
            self._left_out = waiting = True
        elif new:
            waiting = self._add({digest: texts[digest] for digest in new}) or waiting
        if waiting:
            self._wanted.update(here)
        return waiting

    def _add(self, texts: dict[bytes, str]) -> bool:
        """Write these into the open request file; whether there was one that may be sent."""
        lines = []
        refused = {}
        for digest, text in texts.items():
            try:
                self._check(text)
            except RejectedError as error:
                refused[digest] = Refusal(error.kind, str(error))
                continue
            size = measure(text)
            lines.append(BatchLine(digest, self._api.line(digest, text), size.bytes, size.strange, size.wide))
        self._states.refuse(refused)
        most = self._states.batch_tokens
        self._states.add(lines, math.inf if most is None else most / self._estimator.estimate(1_000_000) * 1e6)
        return bool(lines)

    async def embed(self, chunks: Sequence[Chunk]) -> EmbeddedBatch:
        """The vectors of `chunks`, which were asked for by `deferred`.

        Raises:
            RejectedError: the server has refused one of them.
            TerminalError: a vector is no longer on disk.
        """
        dense, refusal = await self._on_disk(self._vectors, [text_digest(chunk) for chunk in chunks])
        if refusal is not None:
            raise RejectedError(*refusal)
        if self._cut is not None:
            self._books.truncated += sum(
                chunk.digest != text_digest(replace(chunk, digest=None)) for chunk in chunks
            )
        batch = EmbeddedBatch(list(chunks), dense)
        if self._sparse is not None:
            batch.sparse = await asyncio.to_thread(self._sparse, [chunk.text for chunk in chunks])
        return batch

    def _vectors(self, digests: list[bytes]) -> tuple[Vectors, Refusal | None]:
        dense = np.empty((len(digests), self._dimensions), dtype=np.float32)
        found = self._kept.get(digests)
        missing = [digest for digest in digests if digest not in found]
        if missing:
            _, refused = self._states.known(missing)
            if not refused:
                raise TerminalError(
                    f"{len(missing)} vectors in {self._kept.path} were damaged while they were used",
                    "check the disk, then resume: they are ordered again",
                )
            return dense, next(iter(refused.values()))
        for row, digest in enumerate(digests):
            dense[row] = found[digest]
        return dense, None

    async def passed(self) -> None:
        """A pass over everything is complete: drop the vectors that nobody waits for."""
        wanted, self._wanted = self._wanted, set()
        await self._on_disk(self._kept.retain, wanted)

    def sync(self) -> None:
        """Make what was fetched survive a loss of power. Called from any other thread than the loop's."""
        self._disk.submit(self._kept.sync).result()

    # -- between the passes ------------------------------------------------------------------------

    async def collect(self) -> bool:
        """Look at every batch that is under way, and fetch what has ended; whether another pass makes sense."""
        come = False
        for batch in await self._list("created"):
            assert batch.batch_id is not None
            come |= await self._looked_at(batch, await self._retried(self._api.status, batch.batch_id))
        for batch in (await self._list("ended"))[:MOST_FETCHED]:
            await self._fetch(batch)
            come = True
        for batch in await self._list("fetched"):
            await self._tidy(batch)
        if self._left_out and len(await self._list("filled", "uploading", "uploaded")) < MOST_UNSENT:
            self._left_out = False
            come = True
        return come

    async def submit(self) -> None:
        """Send what is written, as far as the server's queue and the user's limits have room.

        Raises:
            TerminalError: the user's limits have none, whatever becomes of the batches under way.
        """
        await self._on_disk(self._states.close_open)
        for batch in await self._list("filled", "uploading", "uploaded", "creating"):
            if batch.state != "creating" and not await self._has_room(batch):
                break
            if batch.file_id is None:
                batch = await self._upload(batch)
            await self._create(batch)
        await self._on_disk(self._count)

    async def wait(self) -> None:
        """Return when another pass makes sense."""
        pause = self._poll_seconds
        while not await self.collect():
            await self.submit()
            if not await self._list("created", "ended", "filled", "uploading", "uploaded", "creating"):
                return
            await self._sleep(pause)
            pause = min(pause * GROWTH, self._poll_seconds * LONGEST_WAIT)

    async def more(self) -> bool:
        """Whether there are batches to fetch that have ended, as far as is known."""
        return bool(await self._list("ended"))

    async def finish(self) -> None:
        """Everything is stored: cancel what nobody waits for any more, and leave nothing behind."""
        left = await self._list("created")
        for batch in left:
            assert batch.batch_id is not None
            with suppress(TransientError, RejectedError, TerminalError):
                await self._api.cancel(batch.batch_id)
        if left:
            self._notice(
                f"{_batches(len(left))} at {self._api.name} held only texts that are needed no more: cancelled, "
                "what they cost is not in the books"
            )
        await self._on_disk(self._states.delete)

    async def news(self) -> str:
        """How the batches stand, in words."""
        books = self._books
        waiting = books.batches - books.batches_done
        unsent = len(await self._list("filling", "filled", "uploading", "uploaded", "creating"))
        later = f", {unsent:,} to be sent later" if unsent else ""
        return f"{_batches(waiting)} under way at {self._api.name}, {books.batches_done:,} done{later}"

    async def close(self) -> None:
        self._disk.shutdown()
        self._states.close()
        self._kept.close()
        await self._api.close()

    # -- one step of one batch ---------------------------------------------------------------------

    async def _upload(self, batch: Batch) -> Batch:
        """Send its file, unless the server has it from an attempt whose answer was lost."""
        name, path = self._states.file_name(batch), self._states.requests_of(batch.number)
        doubtful = batch.state == "uploading"
        since = batch.since
        if not doubtful:
            batch = await self._update(batch, state="uploading")
            since = batch.since

        async def upload() -> str:
            nonlocal doubtful
            found = await self._api.find_file(name, since) if doubtful else None
            doubtful = True
            return found or await self._api.upload(path, name)

        return await self._update(batch, state="uploaded", file_id=await self._accepted(batch, upload))

    async def _create(self, batch: Batch) -> Batch:
        """Order it, unless the server has the order from an attempt whose answer was lost."""
        assert batch.file_id is not None
        file_id, marker = batch.file_id, self._states.marker(batch)
        doubtful = batch.state == "creating"
        since = batch.since
        if not doubtful:
            batch = await self._update(batch, state="creating")
            since = batch.since

        async def create() -> str:
            nonlocal doubtful
            found = await self._api.find_batch(marker, since) if doubtful else None
            doubtful = True
            return found or await self._api.create(file_id, marker)

        batch = await self._update(batch, state="created", batch_id=await self._accepted(batch, create))
        self._notice(f"batch {batch.number} is sent to {self._api.name}: {batch.texts:,} texts")
        return batch

    async def _accepted(self, batch: Batch, call: Callable[[], Awaitable[str]]) -> str:
        """What `call` says; a batch that the server refuses for good is given up, so that it can be made anew."""
        try:
            return await self._retried(call)
        except RejectedError as error:
            await self._give_up(batch)
            raise TerminalError(
                f"{self._api.name} refuses batch {batch.number}: {error}",
                "check --model and --base-url, then resume",
            ) from None

    async def _looked_at(self, batch: Batch, status: BatchStatus) -> bool:
        """Write down that a batch has ended; whether its texts have changed by that."""
        if status.ended is None:
            return False
        if status.ended == "failed":
            return await self._failed(batch, status)
        if status.ended != "completed":
            self._notice(f"batch {batch.number} is {status.ended}: what was not done of it is sent again")
        await self._update(
            batch,
            state="ended",
            output_id=status.output_file,
            error_id=status.error_file,
            completed=status.succeeded,
        )
        return False

    async def _failed(self, batch: Batch, status: BatchStatus) -> bool:
        """A batch was refused as a whole: for want of room in the queue, or for good."""
        if not status.full:
            await self._give_up(batch)
            raise TerminalError(
                f"{self._api.name} refused batch {batch.number}: {status.message}",
                "mend what it says and resume: its texts are sent again",
            )
        match = _QUEUE_LIMIT(status.message)
        queue = int(match[1].replace(",", "")) if match else None
        alone = len(await self._list("created")) == 1
        if alone and batch.texts > 1 and self._never_fits(batch, queue):
            smaller = max(1, min(queue or self._likely(batch), self._likely(batch)) // 2)
            await self._on_disk(self._states.learn_queue, queue, smaller)
            for other in (batch, *await self._list("filled", "uploading", "uploaded")):
                if self._likely(other) > smaller:
                    await self._give_up(other)
            self._notice(f"the queue of {self._api.name} has no room for such batches: they are made smaller")
            return True
        await self._on_disk(self._states.learn_queue, queue, None)
        await self._update(batch, state="uploaded", batch_id=None, attempt=batch.attempt + 1, held=1)
        if batch.attempt == 1:
            self._notice(f"the queue of {self._api.name} is full: batch {batch.number} is sent again later")
        return False

    def _never_fits(self, batch: Batch, queue: int | None) -> bool:
        """Whether a batch has no room in the queue of the server however empty that is, as far as can be told."""
        if queue is None:
            return batch.attempt >= SURE
        return self._likely(batch) > queue or (batch.attempt >= SURE and self._most(batch) > queue)

    async def _give_up(self, batch: Batch) -> None:
        """A batch will bring nothing: its texts are ordered again."""
        await self._on_disk(self._states.release, batch.number)
        if batch.file_id is not None:
            with suppress(TransientError, RejectedError, TerminalError):
                await self._api.delete_file(batch.file_id)

    async def _has_room(self, batch: Batch) -> bool:
        """Whether a batch may be created now.

        Raises:
            TerminalError: the user's limits do not allow it, whatever the others will have cost.
        """
        under_way = await self._list("creating", "created", "ended")
        most = self._most(batch)
        if self._limits.exceeded(self._books, sum(map(self._most, under_way)) + most, "batch"):
            error = self._limits.exceeded(self._books, most, "batch")
            if error is not None:
                raise error
            return False
        queued = [other for other in under_way if other.state != "ended"]
        if not queued:
            return True
        limit = await self._on_disk(lambda: self._states.queue_tokens)
        return not batch.held and (limit is None or sum(map(self._likely, (*queued, batch))) <= limit)

    async def _fetch(self, batch: Batch) -> None:
        """Download what came of a batch; keep its vectors, then count it.

        Raises:
            TerminalError: the server cannot give it, has no money left, or fails at a text again and again.
        """
        try:
            results = await self._retried(self._download, batch)
        except RejectedError as error:
            await self._give_up(batch)
            raise TerminalError(
                f"the results of batch {batch.number} are lost: {error}", "resume: its texts are sent again"
            ) from None
        tries = await self._on_disk(self._settle, batch, results)
        again = batch.texts - results.answered - len(results.refused)
        self._notice(
            f"batch {batch.number} is fetched: {results.answered:,} vectors"
            + (f", {len(results.refused):,} refused" if results.refused else "")
            + (f", {again:,} to be sent again" if again > 0 else "")
        )
        if results.fatal is not None:
            raise results.fatal
        if tries >= MOST_TRIES:
            await self._on_disk(self._states.forgive)
            raise TerminalError(
                f"{self._api.name} failed {tries} times at the same text: {next(iter(results.failed.values()))}",
                "resume to try it again",
            )

    async def _download(self, batch: Batch) -> _Results:
        output, errors = (self._states.answers_of(batch.number, which) for which in ANSWERS)
        for file_id, path in ((batch.output_id, output), (batch.error_id, errors)):
            path.unlink(missing_ok=True)
            if file_id is not None:
                try:
                    await self._api.download(file_id, path)
                except OSError as error:
                    raise TerminalError(
                        f"{path} cannot be written: {error.strerror}", "free disk space, then resume"
                    ) from None
        return await self._on_disk(self._read, batch, [path for path in (output, errors) if path.exists()])

    def _read(self, batch: Batch, paths: list[Path]) -> _Results:
        """Put the vectors that stand in the files on disk; what else stands there."""
        results = _Results()
        digests: list[bytes] = []
        vectors: list[Vectors] = []

        def keep() -> None:
            if digests:
                self._kept.put(digests, np.stack(vectors))
            digests.clear()
            vectors.clear()

        for path in paths:
            for answer in self._api.answers(path):
                vector = answer.vector
                if vector is not None and self._is_good(vector):
                    results.take(answer)
                    digests.append(answer.digest)
                    vectors.append(vector)
                    if len(digests) == KEPT_TOGETHER:
                        keep()
                else:
                    results.fail(answer)
        keep()
        if batch.completed is not None and results.lines < batch.completed:
            raise TransientError(
                f"{self._api.name} sent {results.lines:,} of the {batch.completed:,} results of batch {batch.number}"
            )
        self._kept.sync()
        return results

    def _is_good(self, vector: Vectors) -> bool:
        return vector.shape == (self._dimensions,) and bool(np.isfinite(vector).all())

    def _settle(self, batch: Batch, results: _Results) -> int:
        tries = self._states.settle(
            batch.number, results.refused, list(results.failed), answered=results.answered, tokens=results.tokens
        )
        for which in ANSWERS:
            self._states.answers_of(batch.number, which).unlink(missing_ok=True)
        self._learn(batch, results.answered, results.tokens)
        self._count()
        return tries

    async def _tidy(self, batch: Batch) -> None:
        """Delete what the server still has of a batch that is fetched, as far as it lets us."""
        for file_id in filter(None, (batch.file_id, batch.output_id, batch.error_id)):
            with suppress(TransientError, RejectedError, TerminalError):
                await self._api.delete_file(file_id)
        await self._update(batch, state="done")

    def _likely(self, batch: Batch) -> int:
        """Tokens that a batch likely has."""
        return self._estimator.estimate(batch.text_bytes, batch.texts, wide=batch.wide)

    def _most(self, batch: Batch) -> int:
        """Tokens that it may have."""
        return self._estimator.charge(batch.text_bytes, batch.texts, strange=batch.strange)

    def _learn(self, batch: Batch, answered: int, tokens: int) -> None:
        """What texts cost; only from a batch of which all were counted."""
        if answered == batch.texts:
            self._estimator.learn(batch.text_bytes, tokens, batch.texts, strange=batch.strange)

    def _count(self) -> None:
        """The books say what the files say: so no crash comes between the two."""
        totals, books = self._states.totals, self._books
        books.batches, books.batches_done = totals.submitted, totals.fetched
        books.requests, books.answered = totals.requests, totals.answered
        books.texts, books.tokens = totals.answered, totals.tokens

    async def _list(self, *states: State) -> list[Batch]:
        return await self._on_disk(self._states.in_state, *states)

    async def _update(self, batch: Batch, **changes: Any) -> Batch:
        return await self._on_disk(lambda: self._states.update(batch.number, **changes))

    async def _on_disk(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, work, *args)

    async def _retried(self, call: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Call until it succeeds, or has failed for as long as the user allows.

        Raises:
            RejectedError: as `call` does.
            TerminalError: likewise; or it has failed for too long.
        """

        told = False

        async def once() -> T:
            nonlocal told
            try:
                return await call(*args)
            except TransientError as error:
                self._books.throttled += error.throttled
                if not told:
                    self._notice(f"{error}: trying again")
                told = True
                if error.retry_after:
                    await self._sleep(error.retry_after)
                raise

        try:
            return await retrying(self._limits.give_up_after, self._clock, self._sleep)(once)
        except TransientError as error:
            raise TerminalError(str(error), "resume when it is over; nothing that is done is lost") from None


@dataclass(slots=True)
class _Results:
    """What stands in the files of a batch that has ended."""

    answered: int = 0
    tokens: int = 0
    lines: int = 0
    """Answers 200, those whose vector is no good included."""
    refused: dict[bytes, Refusal] = field(default_factory=dict)
    failed: dict[bytes, str] = field(default_factory=dict)
    fatal: TerminalError | None = None

    def take(self, answer: BatchAnswer) -> None:
        self.lines += 1
        self.answered += 1
        self.tokens += answer.tokens

    def fail(self, answer: BatchAnswer) -> None:
        match answer.error:
            case RejectedError() as error:
                self.refused[answer.digest] = Refusal(error.kind, str(error))
            case TerminalError() as error:
                self.fatal = error
            case None if answer.vector is None:
                pass  # it was not tried
            case error:
                self.lines += answer.succeeded
                self.failed[answer.digest] = str(
                    error or "a vector of another length, or with NaN or infinity in it"
                )


def _batches(count: int) -> str:
    return f"{count:,} batch" + ("" if count == 1 else "es")
