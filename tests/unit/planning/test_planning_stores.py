"""What a plan says of upserts is what the store's own encoding makes of the records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ragingest.errors import UsageError
from ragingest.jobs import planning
from ragingest.jobs.planning import PlanOptions, make_plan
from ragingest.protocols import Abilities, StoreLimits
from ragingest.settings import JobSettings, RunOptions
from tests.unit.adapters.scripted_store import UNKEEPABLE, ScriptedStore


def test_points_are_encoded_and_those_that_the_store_cannot_keep_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    texts = [UNKEEPABLE if n % 10 == 0 else "x" * 100 for n in range(500)]
    corpus.write_text("".join(json.dumps({"id": f"d{n}", "text": text}) + "\n" for n, text in enumerate(texts)))
    store = ScriptedStore(StoreLimits(200, max_bytes=10_000))
    monkeypatch.setattr(planning, "open_store", lambda _settings: store)
    plan = make_plan(JobSettings(source=str(corpus), embedder="null", store="scripted", chunk=False), PlanOptions())
    assert plan.reject_kinds == {"unkeepable": 50}
    assert (plan.documents, plan.chunks) == (450, 450)
    assert (plan.points_per_upsert, plan.bytes_per_upsert, plan.upserts) == (100, 10_000, 5)
    assert plan.exit_code == 1
    assert store.calls == 0


@pytest.mark.parametrize(
    ("abilities", "says"),
    [
        (Abilities(), []),
        (Abilities(sparse=False), ["the store scripted keeps no sparse vectors: a search goes by meaning only"]),
        (Abilities(search=False), ["the store scripted is for other tools: ragingest cannot search it"]),
    ],
)
def test_what_the_store_lacks_is_the_first_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abilities: Abilities, says: list[str]
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"id": "a", "text": "x"}\n')
    store = ScriptedStore(StoreLimits(200), abilities=abilities)
    monkeypatch.setattr(planning, "open_store", lambda _settings: store)
    settings = JobSettings(source=str(corpus), embedder="null", store="scripted")
    notes = make_plan(settings, PlanOptions()).notes
    assert notes[:-1] == says
    with pytest.raises(UsageError, match="cannot do --bulk, --on-disk"):
        make_plan(settings, PlanOptions(run=RunOptions(bulk=True, on_disk=True)))
