from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from pathlib import Path

import pytest

import ragingest
from ragingest import JobSettings, RunOptions
from ragingest.documents import EmbeddedBatch
from ragingest.embedders import remote
from ragingest.stores.null import NullStore
from tests.api.running import BATCH, Place, make

MOST = 12
"""Batches: two requests at once, as many that wait for the store, and what is in its queues."""


def test_while_the_store_is_slow_no_more_vectors_are_bought_than_there_are_slots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = make(100 * BATCH)
    slow, waited, too_many = threading.Lock(), threading.Event(), threading.Event()
    with Place.opened(tmp_path) as place:

        def upsert(_store: NullStore, _batch: EmbeddedBatch) -> None:
            with slow:
                if not waited.is_set():
                    waited.set()
                    with suppress(TimeoutError):
                        place.server.wait_until(lambda books: books.texts_answered > MOST * BATCH, timeout=1)
                        too_many.set()

        monkeypatch.setattr(NullStore, "upsert", upsert)
        monkeypatch.setattr(remote, "ANSWERS_BYTES", 0)  # two requests at once
        monkeypatch.setenv("OPENAI_API_KEY", place.command.environment["OPENAI_API_KEY"])
        source = place.command.write("corpus.jsonl", records)
        settings = JobSettings(source="", embedder="openai", base_url=place.base_url, store="null")
        summary = asyncio.run(
            ragingest.ingest(
                source,
                settings=settings,
                options=RunOptions(batch_size=BATCH, upsert_size=BATCH),
                checkpoint_dir=tmp_path / "checkpoints",
            )
        )
    assert summary.counters.stored == len(records)
    assert waited.is_set()
    assert not too_many.is_set()
