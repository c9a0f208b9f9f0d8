"""The same runs from Python."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import msgspec
import pytest

import ragingest
from ragingest import JobSettings, RunOptions, SettingsChangedError, Summary
from ragingest.events import Event, Noticed, RunFinished, RunStarted
from tests.e2e.command import HANDBOOK, SAMPLE_DATA, Command, counts


def ingest(folder: Path, source: Path, **settings: str) -> tuple[Summary, list[Event]]:
    events: list[Event] = []
    chosen = JobSettings(source="", store_path=str(folder / "ragingest_data"), **settings)  # type: ignore[arg-type]  # strings only
    summary = asyncio.run(
        ragingest.ingest(
            source, job="j", settings=chosen, checkpoint_dir=folder / "checkpoints", on_event=events.append
        )
    )
    return summary, events


def test_python_and_the_command_work_on_one_job(tmp_path: Path) -> None:
    summary, events = ingest(tmp_path, HANDBOOK)
    assert (summary.status, summary.exit_code, summary.counters.stored) == ("completed", 0, 237)
    assert isinstance(events[0], RunStarted)
    assert events[-1] == RunFinished(summary)
    told = Command(tmp_path)("stats", "j", "--json").document
    assert told["counters"]["stored"] == 237
    again = Command(tmp_path).json("run", HANDBOOK, "--job", "j")
    assert again.counters["unchanged"] == 237

    store = ragingest.StoreSettings(store_path=str(tmp_path / "ragingest_data"))
    hits = ragingest.search("When is the Old Tannery open?", store=store, limit=3)
    assert "hours-old-tannery" in [hit.id for hit in hits]
    dense = ragingest.search("x", store=store, mode="dense", filters={"section": "no"})
    assert dense == []


def test_python_gets_the_same_counters_as_the_command(tmp_path: Path) -> None:
    dirty = SAMPLE_DATA / "dirty.jsonl"
    summary, events = ingest(tmp_path, dirty, embedder="null", store="null")
    command = Command(tmp_path)
    told = command.json("run", dirty, "--job", "k", "--embedder", "null", "--store", "null", code=1)
    assert summary.exit_code == 1
    assert told.counters == counts(msgspec.to_builtins(summary.counters))
    assert told.document["reject_kinds"] == summary.reject_kinds
    assert not [event for event in events if isinstance(event, Noticed)]


def test_what_keeps_a_run_from_beginning_is_raised_and_what_ends_it_is_told(tmp_path: Path) -> None:
    with pytest.raises(ragingest.TerminalError, match="there is no file"):
        ingest(tmp_path, tmp_path / "missing.jsonl")
    ingest(tmp_path, HANDBOOK, embedder="null", store="null")
    with pytest.raises(SettingsChangedError, match="--collection was documents and is now other"):
        ingest(tmp_path, HANDBOOK, embedder="null", store="null", collection="other")

    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps([{"id": 1, "text": "x"}])[:-1])
    summary = asyncio.run(
        ragingest.ingest(
            broken,
            settings=JobSettings(source="", embedder="null", store="null"),
            options=RunOptions(batch_size=1),
            checkpoint_dir=tmp_path / "checkpoints",
        )
    )
    assert (summary.status, summary.exit_code, summary.counters.stored) == ("failed", 4, 1)
    assert "breaks at byte" in summary.message
    assert summary.hint
