"""Between the passes: when batches are looked at, and what is done about what the server says of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from ragingest.checkpoint.batches import BatchStates
from ragingest.checkpoint.vectors import PaidVectors
from ragingest.costs.books import Books
from ragingest.costs.tokens import TokenEstimator
from ragingest.documents import Chunk, text_digest
from ragingest.embedders.batches import BatchCalls
from ragingest.embedders.remote import RemoteLimits
from ragingest.errors import RejectedError, TerminalError, TransientError
from ragingest.protocols import BatchAnswer, BatchStatus
from tests.unit.core.builders import document

T = TypeVar("T")

MODEL = "a-model"
DIMENSIONS = 4
UNDER_WAY = BatchStatus(None)


@dataclass
class ScriptedApi:
    """Does what a server would, as the script says: what it answers when it is asked for the status of each batch."""

    statuses: Callable[[int, int], BatchStatus]
    """Of the batch with that number, asked for the n-th time; both from 1."""
    name: str = "scripted"
    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, tuple[str, str]] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)
    failures: list[Exception] = field(default_factory=list)
    """Raised by the next calls of `status`."""

    def line(self, digest: bytes, text: str) -> bytes:
        return digest.hex().encode() + b"\n"

    async def upload(self, path: Path, name: str) -> str:
        self.files[name] = await asyncio.to_thread(path.read_bytes)
        return name

    async def find_file(self, name: str, since: float) -> str | None:
        return name if name in self.files else None

    async def create(self, file_id: str, marker: str) -> str:
        id_ = str(len(self.batches) + 1)
        self.batches[id_] = file_id, marker
        return id_

    async def find_batch(self, marker: str, since: float) -> str | None:
        return next((id_ for id_, (_, mark) in self.batches.items() if mark == marker), None)

    async def status(self, batch_id: str) -> BatchStatus:
        if self.failures:
            raise self.failures.pop(0)
        self.asked[batch_id] = self.asked.get(batch_id, 0) + 1
        return self.statuses(int(batch_id), self.asked[batch_id])

    async def cancel(self, batch_id: str) -> None:
        self.batches.pop(batch_id)

    async def download(self, file_id: str, path: Path) -> None:
        await asyncio.to_thread(path.write_bytes, self.files[self.batches[file_id][0]])

    async def delete_file(self, file_id: str) -> None:
        pass

    def answers(self, path: Path) -> Iterator[BatchAnswer]:
        for line in path.read_bytes().split():
            digest = bytes.fromhex(line.decode())
            yield BatchAnswer(digest, np.full(DIMENSIONS, digest[0], np.float32), 3, succeeded=True)

    async def close(self) -> None:
        pass


@dataclass
class Bench:
    """The calls over a scripted API, and a clock that only moves by sleeping."""

    calls: BatchCalls
    api: ScriptedApi
    books: Books
    notices: list[str]
    pauses: list[float]

    @classmethod
    def of(
        cls, folder: Path, statuses: Callable[[int, int], BatchStatus], *, texts: int = 10, **limits: float
    ) -> Bench:
        api, books, notices, pauses = ScriptedApi(statuses), Books(), list[str](), list[float]()

        async def sleep(seconds: float) -> None:
            pauses.append(seconds)
            await asyncio.sleep(0)

        def check(text: str) -> None:
            if "TOO LONG" in text:
                raise RejectedError("too_many_tokens", "it is too long")

        calls = BatchCalls(
            api,
            BatchStates(folder / "j.batches.sqlite", MODEL, 1, max_texts=texts, max_bytes=10**6),
            PaidVectors(folder / "j.vectors", MODEL, DIMENSIONS, keep=False),
            DIMENSIONS,
            RemoteLimits(**limits),  # type: ignore[arg-type]
            books,
            TokenEstimator(),
            check=check,
            sparse=None,
            notice=notices.append,
            poll_seconds=30.0,
            sleep=sleep,
            clock=lambda: sum(pauses),
        )
        return cls(calls, api, books, notices, pauses)

    def run(self, work: Callable[[BatchCalls], Awaitable[T]]) -> T:
        async def run() -> T:
            try:
                return await work(self.calls)
            finally:
                await self.calls.close()

        return asyncio.run(run())


def chunks(count: int, text: str = "text number") -> list[Chunk]:
    return [Chunk(document(f"d{n}", f"{text} {n}"), 0, f"{text} {n}", 20) for n in range(count)]


def ended(number: int, _times: int = 0) -> BatchStatus:
    return BatchStatus("completed", output_file=str(number))


def full(message: str = "") -> BatchStatus:
    return BatchStatus("failed", full=True, message=message)


def test_a_block_is_deferred_until_all_its_vectors_are_there(tmp_path: Path) -> None:
    bench, wanted = Bench.of(tmp_path, ended), chunks(3)

    async def work(calls: BatchCalls) -> None:
        assert await calls.deferred(wanted[:2])
        assert await calls.deferred(wanted)
        await calls.submit()
        assert await calls.deferred(wanted)
        assert await calls.collect()
        assert not await calls.deferred(wanted)
        batch = await calls.embed(wanted)
        assert [row[0] for row in batch.dense] == [text_digest(chunk)[0] for chunk in wanted]

    bench.run(work)
    assert len(bench.api.batches) == 1
    assert (bench.books.batches, bench.books.batches_done) == (1, 1)
    assert (bench.books.requests, bench.books.texts, bench.books.tokens) == (3, 3, 9)


def test_vectors_stay_as_long_as_a_deferred_block_wants_them(tmp_path: Path) -> None:
    bench, wanted = Bench.of(tmp_path, ended), chunks(2)

    async def work(calls: BatchCalls) -> None:
        await calls.deferred(wanted[:1])
        await calls.submit()
        await calls.collect()
        assert await calls.deferred(wanted)  # has the first, waits for the second
        await calls.passed()
        await calls.submit()
        await calls.collect()
        assert not await calls.deferred(wanted)
        await calls.passed()
        assert await calls.deferred(wanted)

    bench.run(work)
    assert sum(len(file.split()) for file in bench.api.files.values()) == 2


def test_a_text_that_must_not_be_sent_is_not_waited_for(tmp_path: Path) -> None:
    bench, wanted = Bench.of(tmp_path, ended), chunks(1, "TOO LONG")

    async def work(calls: BatchCalls) -> None:
        assert not await calls.deferred(wanted)
        with pytest.raises(RejectedError, match="it is too long") as caught:
            await calls.embed(wanted)
        assert caught.value.kind == "too_many_tokens"

    bench.run(work)


def test_the_pauses_between_two_looks_grow_to_twenty_times_the_first(tmp_path: Path) -> None:
    bench = Bench.of(tmp_path, lambda number, times: ended(number) if times == 12 else UNDER_WAY)

    async def work(calls: BatchCalls) -> None:
        await calls.deferred(chunks(3))
        await calls.submit()
        await calls.wait()

    bench.run(work)
    assert bench.pauses == pytest.approx([min(30 * 1.5**n, 600) for n in range(11)])


def test_a_server_that_says_when_is_asked_no_sooner(tmp_path: Path) -> None:
    bench = Bench.of(tmp_path, ended)
    bench.api.failures = [TransientError("busy", 77.0, throttled=True)]

    async def work(calls: BatchCalls) -> bool:
        await calls.deferred(chunks(3))
        await calls.submit()
        return await calls.collect()

    assert bench.run(work)
    assert sum(bench.pauses) >= 77
    assert bench.books.throttled == 1
    assert any("busy" in notice for notice in bench.notices)


def test_a_server_that_fails_for_too_long_ends_the_run(tmp_path: Path) -> None:
    bench = Bench.of(tmp_path, ended, give_up_after=100.0)
    bench.api.failures = [TransientError("gone")] * 1000

    async def work(calls: BatchCalls) -> None:
        await calls.deferred(chunks(3))
        await calls.submit()
        with pytest.raises(TerminalError, match="gone") as caught:
            await calls.collect()
        assert "resume" in caught.value.hint

    bench.run(work)
    assert 100 <= sum(bench.pauses) < 200


def test_a_full_queue_lets_the_others_end_first(tmp_path: Path) -> None:
    def statuses(number: int, times: int) -> BatchStatus:
        if number == 2:
            return full()
        return ended(number) if times > 3 else UNDER_WAY

    bench = Bench.of(tmp_path, statuses, texts=5)

    async def work(calls: BatchCalls) -> None:
        await calls.deferred(chunks(10))
        await calls.submit()
        await calls.wait()
        assert len(bench.api.batches) == 2  # the second waits for the first
        await calls.submit()
        await calls.wait()
        assert not await calls.deferred(chunks(10))

    bench.run(work)
    assert len(bench.api.batches) == 3
    assert len(bench.api.files) == 2
    assert len({marker for _, marker in bench.api.batches.values()}) == 3


@pytest.mark.parametrize("message", ["", "Limit: 40 enqueued tokens."])
def test_a_batch_that_alone_is_too_large_for_the_queue_is_made_again_in_parts(tmp_path: Path, message: str) -> None:
    def statuses(number: int, _times: int) -> BatchStatus:
        size = len(bench.api.files[bench.api.batches[str(number)][0]].split())
        return full(message) if size > 8 else ended(number)

    bench = Bench.of(tmp_path, statuses, texts=100)
    wanted = chunks(30)

    async def work(calls: BatchCalls) -> None:
        for _ in range(20):
            if not await calls.deferred(wanted):
                return
            await calls.submit()
            await calls.wait()
        raise AssertionError("it never fitted")

    bench.run(work)
    assert bench.books.texts == 30


def test_what_nobody_waits_for_any_more_is_cancelled(tmp_path: Path) -> None:
    bench = Bench.of(tmp_path, lambda _number, _times: UNDER_WAY)

    async def work(calls: BatchCalls) -> None:
        await calls.deferred(chunks(3))
        await calls.submit()
        await calls.finish()

    bench.run(work)
    assert bench.api.batches == {}
    assert "1 batch at scripted held only texts that are needed no more" in bench.notices[-1]
    assert not list(tmp_path.glob("j.batches*"))
