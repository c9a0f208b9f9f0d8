"""A ledger with flipped bits: the run says that it is damaged, or it ends with the right content all the same."""

from __future__ import annotations

import asyncio
import random
import shutil
from pathlib import Path

import ragingest
from ragingest import JobSettings, RunOptions
from ragingest.stores.qdrant_edge import QdrantEdgeStore
from tests.faults.harness import Corpus, make_corpus

CORPUS = make_corpus(60, seed=61)
FLIPS = 24


def load(folder: Path) -> ragingest.Summary:
    settings = JobSettings(source="", store_path=str(folder / "data"), embedder="null", chunk=False)
    options = RunOptions(checkpoint_interval=3600)
    work = ragingest.ingest(
        folder / "source.jsonl", job="j", settings=settings, options=options, checkpoint_dir=folder / "state"
    )
    return asyncio.run(work)


def content(folder: Path) -> dict[str, bytes]:
    store = QdrantEdgeStore(folder / "data", "documents")
    store.open()
    points, _ = store.scan(None, 10_000)
    store.close()
    return {point.id: bytes.fromhex(point.digest) for point in points}


def test_flipped_bits_end_in_a_message_or_change_nothing_that_is_stored(tmp_path: Path) -> None:
    folder, kept = tmp_path / "job", tmp_path / "kept"
    folder.mkdir()
    CORPUS.write(folder / "source.jsonl")
    assert load(folder).status == "completed"
    shutil.copytree(folder, kept)
    changed = Corpus([line.replace('"n": 3', '"n": 33') for line in CORPUS.lines])
    chance = random.Random(1)  # noqa: S311  # repeatable
    told = 0
    for _ in range(FLIPS):
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
        changed.write(folder / "source.jsonl")
        ledger = folder / "state" / "j.ledger.sqlite"
        data = bytearray(ledger.read_bytes())
        at, bit = chance.randrange(len(data)), chance.randrange(8)
        data[at] ^= 1 << bit
        ledger.write_bytes(data)
        try:
            summary = load(folder)
            message = f"{summary.message} {summary.hint}"
            completed = summary.status == "completed"
        except ragingest.RagingestError as error:
            message, completed = f"{error} {error.hint}", False
        found = content(folder)
        assert found.keys() == CORPUS.accepted.keys(), (at, bit)
        if completed:
            assert found == changed.accepted, (at, bit)
        else:
            told += 1
            assert "j.ledger.sqlite is damaged" in message, (at, bit, message)
            assert "--fresh" in message
    assert told
