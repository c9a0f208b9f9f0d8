"""What stands around every store: retries, pauses, slots, the breaker; and what the pipeline makes of refusals."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from ragingest.documents import EmbeddedBatch
from ragingest.errors import RejectedError, TerminalError, TransientError, UsageError
from ragingest.events import Counters, Event, Finishing, Summary
from ragingest.jobs import wiring
from ragingest.jobs.wiring import open_job
from ragingest.protocols import Abilities, StoreLimits
from ragingest.settings import ErrorBudget, JobSettings, RunOptions
from ragingest.stores.calls import StoreCalls
from tests.contracts.embedding import chunks_of

from .scripted_store import POISON, UNKEEPABLE, ScriptedStore

T = TypeVar("T")

ONE = StoreLimits(max_points=10)
GONE = TransientError("the server is gone")


class Bench:
    """Calls over a scripted store, with a clock that only sleeping moves."""

    def __init__(
        self, script: Iterable[Exception | None] = (), limits: StoreLimits = ONE, give_up_after: float = 600
    ) -> None:
        self.now = 0.0
        self.store = ScriptedStore(limits, script)
        self.counters = Counters()
        self.changes: list[bool] = []
        self._give_up_after = give_up_after

    async def _sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)

    def run(self, scenario: Callable[[StoreCalls], Awaitable[T]]) -> T:
        async def main() -> T:
            calls = StoreCalls(
                self.store,
                self.counters,
                give_up_after=self._give_up_after,
                on_change=self.changes.append,
                sleep=self._sleep,
                clock=lambda: self.now,
            )
            try:
                return await scenario(calls)
            finally:
                calls.close()

        return asyncio.run(main())


def batch(*texts: str) -> EmbeddedBatch:
    return EmbeddedBatch(
        chunks_of(texts), np.ones((len(texts), 2), dtype=np.float32), None, [t.encode() for t in texts]
    )


def test_a_write_is_repeated_until_it_works_and_every_try_is_counted() -> None:
    bench = Bench([GONE, GONE, None])
    bench.run(lambda calls: calls.upsert(batch("a", "b")))
    assert bench.store.count() == 2
    assert (bench.counters.upserts, bench.counters.upserts_failed) == (3, 2)


def test_a_deletion_is_repeated_until_it_works() -> None:
    bench = Bench([None, GONE, None])

    async def scenario(calls: StoreCalls) -> None:
        await calls.upsert(batch("a"))
        await calls.delete([("d0", 0)])

    bench.run(scenario)
    assert bench.store.count() == 0
    assert bench.store.calls == 3


def test_retry_after_pauses_every_write() -> None:
    bench = Bench(
        [TransientError("slow down", 20.0, throttled=True)], StoreLimits(10, concurrency=4, adaptive=True)
    )
    times: list[float] = []
    bench.store.on_call = lambda: times.append(bench.now)

    async def scenario(calls: StoreCalls) -> None:
        await calls.upsert(batch("a"))
        await calls.upsert(batch("b"))

    bench.run(scenario)
    first, *later = times
    assert first == 0
    assert len(later) == 2
    assert min(later) >= 20


def test_a_refusal_is_not_repeated() -> None:
    for refusal in (RejectedError("bad", "no"), TerminalError("the key is wrong", "mend it")):
        bench = Bench([refusal])
        with pytest.raises(type(refusal)):
            bench.run(lambda calls: calls.upsert(batch("a")))
        assert bench.store.calls == 1


def test_a_store_that_fails_for_too_long_ends_the_run() -> None:
    bench = Bench([GONE] * 1000, give_up_after=30)
    with pytest.raises(TerminalError, match="the server is gone") as caught:
        bench.run(lambda calls: calls.upsert(batch("a")))
    assert "resume" in caught.value.hint
    assert bench.now >= 30


def test_a_store_that_fails_everyone_is_tried_by_one_at_a_time_until_it_answers() -> None:
    bench = Bench([GONE] * 15, StoreLimits(10, concurrency=4, adaptive=True))

    async def scenario(calls: StoreCalls) -> None:
        await asyncio.gather(*(calls.upsert(batch(f"text {n}")) for n in range(8)))

    bench.run(scenario)
    assert bench.changes == [True, False]
    assert len(bench.store.upserts) == 8


def test_no_more_writes_are_under_way_than_the_store_takes() -> None:
    bench = Bench(limits=StoreLimits(10, concurrency=3))
    meeting = threading.Barrier(3, timeout=30)
    bench.store.on_call = lambda: (meeting.wait(), None)[1]

    async def scenario(calls: StoreCalls) -> None:
        await asyncio.gather(*(calls.upsert(batch(f"text {n}")) for n in range(9)))

    bench.run(scenario)
    assert bench.store.most == 3


def test_what_can_never_be_kept_is_known_before_anything_is_sent() -> None:
    bench = Bench()
    some = batch("a", UNKEEPABLE, "c")
    some.wire = None
    [(row, fault)] = bench.run(lambda calls: calls.encode(some))
    assert (row, fault.kind) == (1, "unkeepable")
    assert some.wire == [b"a", b"", b"c"]
    assert bench.store.calls == 0


# -- the pipeline over it --------------------------------------------------------------------------


def run(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    store: ScriptedStore,
    texts: list[str],
    options: RunOptions = RunOptions(),  # noqa: B008  # frozen
) -> tuple[Summary, list[Event]]:
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(f'{{"id": "d{n}", "text": "{text}"}}\n' for n, text in enumerate(texts)))
    monkeypatch.setattr(wiring, "open_store", lambda *_: store)
    settings = JobSettings(source=str(corpus), embedder="null", chunk=False)
    events: list[Event] = []
    budget = ErrorBudget(count=len(texts), share=None)
    options = RunOptions(max_errors=budget, bulk=options.bulk)
    opened = open_job(settings, options, folder / "checkpoints", job="j", emit=events.append)
    return asyncio.run(opened.run()), events


def test_a_point_that_the_store_cannot_keep_costs_itself_and_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [UNKEEPABLE if n % 10 == 3 else f"text {n}" for n in range(95)]
    store = ScriptedStore(StoreLimits(50))
    summary, _ = run(tmp_path, monkeypatch, store, texts)
    assert (summary.counters.stored, summary.counters.rejected) == (86 - 1, 10)
    assert summary.reject_kinds == {"unkeepable": 10}
    assert store.calls == 2
    assert all(text not in store.points.values() for text in (UNKEEPABLE,))


def test_a_poisoned_point_costs_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [POISON if n == 37 else f"text {n}" for n in range(64)]
    store = ScriptedStore(StoreLimits(64))
    summary, _ = run(tmp_path, monkeypatch, store, texts)
    assert (summary.counters.stored, summary.counters.rejected) == (63, 1)
    assert summary.reject_kinds == {"poisoned": 1}
    assert store.calls <= 1 + 2 * 6


def test_a_smaller_limit_than_was_thought_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["x" * 100] * 400
    store = ScriptedStore(StoreLimits(1000, max_bytes=8000), takes=5000)
    summary, _ = run(tmp_path, monkeypatch, store, texts)
    assert summary.counters.stored == 400
    assert max(store.upserts) <= 5000
    assert summary.counters.upserts == 1 + 400 * 100 / 4000


def test_a_record_that_alone_is_over_the_limit_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ScriptedStore(StoreLimits(1000, max_bytes=8000), takes=5000)
    summary, _ = run(tmp_path, monkeypatch, store, ["x" * 6000, "y"])
    assert (summary.counters.stored, summary.counters.rejected) == (1, 1)
    assert summary.reject_kinds == {"too_large_for_store": 1}


def test_a_run_ends_by_finishing_the_collection_and_tells_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ScriptedStore(StoreLimits(10))
    summary, events = run(tmp_path, monkeypatch, store, ["a"])
    assert summary.exit_code == 0
    assert store.finished == 1
    assert Finishing(0.5) in events


def test_an_outage_of_the_store_is_waited_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ScriptedStore(StoreLimits(10), [TransientError("busy"), None, TransientError("busy")])
    monkeypatch.setattr("ragingest.pacing.retries.BACKOFF_SECONDS", 0.0)
    monkeypatch.setattr("ragingest.pacing.retries._jitter", lambda _state: 0.0)
    summary, _ = run(tmp_path, monkeypatch, store, [f"text {n}" for n in range(25)])
    assert summary.counters.stored == 25
    assert summary.counters.upserts_failed == 2


def test_what_the_store_cannot_do_is_said_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ScriptedStore(StoreLimits(10))
    with pytest.raises(UsageError, match="--bulk"):
        run(tmp_path, monkeypatch, store, ["a"], RunOptions(bulk=True))
    assert store.calls == 0
    able = ScriptedStore(StoreLimits(10), abilities=Abilities(sparse=False, layout=frozenset({"bulk"})))
    run(tmp_path, monkeypatch, able, ["a"], RunOptions(bulk=True))
    assert able.layout.bulk
    assert not able.spec.sparse
