"""A run in several passes over its source, where vectors come hours after their texts were sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from ragingest.checkpoint.journal import Journal
from ragingest.checkpoint.state import Checkpoint, Status
from ragingest.documents import Chunk
from ragingest.errors import RagingestError, RejectedError, TerminalError
from ragingest.pipeline import Outcome, Pipeline

__all__ = ["Later", "Passes"]

T = TypeVar("T")


class Later(Protocol):
    """An embedder whose vectors come later.

    Everything that it does is on disk step by step, so each of its calls may be cancelled, and repeated.
    """

    async def deferred(self, chunks: Sequence[Chunk]) -> bool:
        """Whether a vector of these is not there yet; it is ordered then, if it was not."""
        ...

    async def passed(self) -> None:
        """A pass over everything that was not done is complete."""
        ...

    async def submit(self) -> None:
        """Send what was ordered."""
        ...

    async def collect(self) -> bool:
        """Fetch what is ready; whether another pass makes sense."""
        ...

    async def more(self) -> bool:
        """Whether there is more to fetch, as far as is known."""
        ...

    async def wait(self) -> None:
        """Return when another pass makes sense."""
        ...

    async def finish(self) -> None:
        """Everything is done: leave nothing behind."""
        ...

    async def news(self) -> str:
        """What is waited for, in words."""
        ...


class Passes:
    """Passes over what is not done, until everything is. Used as a `Pipeline` is.

    Args:
        first: the first pass.
        another: makes the next one, over what is not done by then.
        wait: for vectors that are not there after a pass; else the run ends as `waiting`.
    """

    def __init__(
        self, first: Pipeline, another: Callable[[], Pipeline], later: Later, journal: Journal, *, wait: bool
    ) -> None:
        self._pipeline = first
        self._another = another
        self._later = later
        self._journal = journal
        self._wait = wait
        self._stopped = False
        self._step: asyncio.Task[Any] | None = None

    def stop(self) -> None:
        """End the pass, or the waiting between two."""
        self._stopped = True
        self._pipeline.stop()
        if self._step is not None:
            self._step.cancel()

    def abort(self) -> None:
        """The same; of a pass, what is in flight is left."""
        self.stop()
        self._pipeline.abort()

    async def run(self) -> Outcome:
        """Pass after pass, to the end, or to the first error or stop."""
        try:
            await self._unless_stopped(self._later.collect())
            while True:
                outcome = await self._pipeline.run()
                status = outcome.checkpoint.status
                if status in ("waiting", "completed"):
                    await self._later.passed()
                if status == "completed":
                    await self._later.finish()
                if status != "waiting":
                    return outcome
                await self._unless_stopped(self._later.submit())
                if not self._wait and not await self._later.more():
                    return Outcome(await self._save("waiting", await self._later.news()))
                await self._unless_stopped(self._later.wait())
                self._pipeline = await asyncio.to_thread(self._another)
        except _StoppedError:
            return Outcome(await self._save("interrupted"))
        except RejectedError as error:
            return await self._failed(TerminalError(str(error), "check --base-url and --model, then resume"))
        except RagingestError as error:
            return await self._failed(error)

    async def _failed(self, error: RagingestError) -> Outcome:
        return Outcome(await self._save("failed", error.message), error)

    async def _save(self, status: Status, message: str = "") -> Checkpoint:
        return await asyncio.to_thread(self._journal.save, self._journal.snapshot(status, message), lambda: None)

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T:
        if self._stopped:
            work.close()
            raise _StoppedError
        self._step = step = asyncio.create_task(work)
        try:
            return await step
        except asyncio.CancelledError:
            if not self._stopped:
                raise
            raise _StoppedError from None
        finally:
            self._step = None


class _StoppedError(Exception):
    """By a signal, between two passes."""
