"""`ragingest copy`: the same ids, vectors and metadata in another place; resumable; faults cost nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from ragingest.errors import TerminalError, TransientError
from ragingest.events import Event, Noticed, Summary
from ragingest.jobs import copying
from ragingest.jobs.copying import open_copy
from ragingest.protocols import Store, StoredPoint, StoreLimits
from ragingest.settings import JobSettings, RunOptions, StoreSettings
from ragingest.stores import open_store
from ragingest.stores.qdrant_edge import QdrantEdgeStore
from tests.unit.adapters.scripted_store import POISON, ScriptedStore

from .command import HANDBOOK, Command


def points_of(folder: Path, collection: str = "documents") -> dict[str, StoredPoint]:
    store = QdrantEdgeStore(folder, collection)
    store.open()
    found: dict[str, StoredPoint] = {}
    after = None
    while True:
        page, after = store.scan(after, 100)
        found.update({point.point_id: point for point in page})
        if after is None:
            break
    store.close()
    return found


def same(left: dict[str, StoredPoint], right: dict[str, StoredPoint]) -> None:
    assert left.keys() == right.keys()
    for key, point in left.items():
        other = right[key]
        assert point._replace(dense=other.dense, sparse=None) == other._replace(sparse=None)
        np.testing.assert_allclose(point.dense, other.dense, atol=1e-6)
        assert point.sparse == pytest.approx(other.sparse)


@pytest.fixture
def loaded(tmp_path: Path) -> Command:
    command = Command(tmp_path)
    command("run", HANDBOOK, "--job", "j", "--quiet")
    return command


ORIGIN = "qdrant-edge:ragingest_data/documents"


def test_a_copy_holds_what_the_original_holds(loaded: Command) -> None:
    arguments = ("copy", "--from", ORIGIN, "--to", "qdrant-edge:elsewhere/handbook", "--job", "c")
    done = loaded.json(*arguments)
    assert (done.counters["read"], done.counters["stored"], done.counters["embedded"]) == (258, 258, 0)
    same(points_of(loaded.folder / "ragingest_data"), points_of(loaded.folder / "elsewhere", "handbook"))
    found = loaded("search", "opening hours", "--store-path", "elsewhere", "-c", "handbook", "--json").document
    assert found == loaded("search", "opening hours", "--json").document
    again = loaded.json("resume", "c")
    assert again.counters["stored"] == 258
    assert "c" in loaded("stats").out


def test_what_cannot_be_copied_says_why(loaded: Command) -> None:
    to = ("--to", "qdrant-edge:elsewhere/docs")
    assert "there is no collection docs" in loaded("copy", "--from", "qdrant-edge:nowhere/docs", *to, code=2).said
    assert "names no collection" in loaded("copy", "--from", "documents", *to, code=2).said
    assert "the same collection" in loaded("copy", "--from", ORIGIN, "--to", ORIGIN, code=2).said
    assert (
        "is a copy" in (loaded("copy", "--from", ORIGIN, *to, "--job", "c"), loaded("verify", "c", code=2))[1].said
    )


def copy(
    folder: Path, target: ScriptedStore, monkeypatch: pytest.MonkeyPatch, *, fresh: bool = False
) -> tuple[Summary, list[Event]]:
    def opened(settings: StoreSettings, timeout: float) -> Store:
        return target if settings.store == "scripted" else open_store(settings, timeout)

    monkeypatch.setattr(copying, "open_store", opened)
    origin = StoreSettings(store_path=str(folder / "ragingest_data"))
    settings = JobSettings(source=str(origin), format="store", store="scripted")
    events: list[Event] = []
    options = RunOptions(checkpoint_interval=0.01)
    run = open_copy(settings, options, folder / "state", job="c", fresh=fresh, emit=events.append)
    return asyncio.run(run.run()), events


def test_a_copy_goes_on_where_it_stopped(loaded: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    full = TerminalError("the disk is full", "free some")
    target = ScriptedStore(StoreLimits(20), [None] * 9 + [full] * 9)
    monkeypatch.setattr(copying, "PAGE", 20)
    summary, events = copy(loaded.folder, target, monkeypatch)
    assert (summary.status, summary.exit_code, summary.message) == ("failed", 4, "the disk is full")
    assert any(isinstance(event, Noticed) and "sparse" in event.message for event in events)
    assert 0 < summary.counters.read <= 180
    held = len(target.points)
    rest = ScriptedStore(StoreLimits(20))
    summary, _ = copy(loaded.folder, rest, monkeypatch)
    assert (summary.status, summary.counters.read, summary.counters.stored) == ("completed", 258, 258)
    assert len(target.points | rest.points) == 258
    assert len(rest.points) <= 258 - held + 20
    assert rest.finished == 1


def test_faults_are_waited_out_and_a_refused_point_costs_itself(
    loaded: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragingest.pacing.retries._jitter", lambda _state: 0.0)
    corpus = loaded.write(
        "poisoned.jsonl", [{"id": f"d{n}", "text": POISON if n == 7 else "fine"} for n in range(30)]
    )
    loaded("run", corpus, "--job", "p", "--quiet")
    target = ScriptedStore(StoreLimits(50), [TransientError("busy"), None, TransientError("busy")])
    summary, _ = copy(loaded.folder, target, monkeypatch)
    assert (summary.counters.read, summary.counters.stored, summary.counters.rejected) == (288, 287, 1)
    assert summary.exit_code == 1
    assert summary.reject_kinds == {"poisoned": 1}
    assert summary.counters.upserts_failed == 2
