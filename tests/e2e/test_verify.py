"""`ragingest verify`: what the job says against what the store holds, and mending just the difference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragingest.checkpoint.ledger import Ledger
from ragingest.documents import Chunk, Document, EmbeddedBatch, Record, Vectors
from ragingest.protocols import StoredPoint

from .command import HANDBOOK, NO_WORK, Command, opened


@pytest.fixture
def loaded(tmp_path: Path) -> Command:
    """A finished job named j: 237 documents, 258 points."""
    command = Command(tmp_path)
    command("run", HANDBOOK, "--job", "j", "--quiet")
    return command


def ids_of(command: Command) -> list[str]:
    ledger = Ledger(command.folder / "checkpoints" / "j.ledger.sqlite")
    rows = ledger.page(None, 1000)
    ledger.close()
    return [row.id for row in rows if row.chunks == 1]


def put(command: Command, points: Sequence[StoredPoint], dense: Vectors | None = None, **changes: Any) -> None:
    """Write points back with something about them changed, as nobody should."""
    chunks = []
    for point in points:
        digest = bytes.fromhex(changes.get("digest", point.digest))
        metadata = changes.get("metadata", dict(point.metadata))
        document = Document(changes.get("id", point.id), "", metadata, digest, Record(0, 0, b""))
        document.chunks = changes.get("chunks", point.chunks)
        chunks.append(Chunk(document, point.chunk, changes.get("text", point.text), 0))
    vectors = np.stack([point.dense for point in points]) if dense is None else dense
    terms = [Terms(list(point.sparse or {}), list((point.sparse or {}).values())) for point in points]
    with opened(command.folder) as store:
        store.upsert(EmbeddedBatch(chunks, vectors, terms))


class Terms:
    def __init__(self, indices: list[int], values: list[float]) -> None:
        self.indices, self.values = indices, values


def fetched(command: Command, ids: Sequence[str]) -> list[StoredPoint]:
    with opened(command.folder) as store:
        return store.fetch([(id_, 0) for id_ in ids])


def test_a_collection_as_it_was_left_is_whole(loaded: Command) -> None:
    found = loaded.json("verify", "j").document
    assert (found["documents"], found["compared"]) == (237, 237)
    assert found["points"] == found["points_in_store"] == 258
    assert (found["missing"], found["altered"], found["foreign"], found["named"]) == (0, 0, 0, {})
    assert "nothing is missing" in loaded("verify", "j", "--vectors").out


def test_points_deleted_and_altered_are_named_and_just_those_are_mended(loaded: Command) -> None:
    ids = ids_of(loaded)
    deleted, altered = ids[5:200:20], ids[7:200:20]
    with opened(loaded.folder) as store:
        store.delete([(id_, 0) for id_ in deleted])
    points = fetched(loaded, altered)
    put(loaded, points[:3], text="something else")
    put(loaded, points[3:6], metadata={"section": "nowhere"})
    put(loaded, points[6:8], digest="ab" * 24)
    put(loaded, points[8:9], chunks=2)
    put(loaded, points[9:], dense=np.zeros((1, 256), dtype=np.float32))
    found = loaded.json("verify", "j", code=1).document
    assert (found["missing"], found["altered"], found["foreign"], found["affected"]) == (10, 10, 0, 20)
    assert {one["id"] for one in found["named"]["missing"]} == set(deleted)
    assert {one["id"] for one in found["named"]["altered"]} == set(altered)
    told = loaded("verify", "j", code=1)
    assert f"{deleted[0]!r}" in told.out
    assert "verify j --repair" in told.said

    mended = loaded.json("verify", "j", "--repair")
    assert mended.counters["embedded"] == 20
    assert (mended.counters["stored"], mended.counters["unchanged"]) == (20, 217)
    assert loaded.json("verify", "j", "--vectors").document["affected"] == 0


def test_vectors_that_are_not_those_of_their_texts_are_found_when_asked_for(loaded: Command) -> None:
    ids = ids_of(loaded)[:4]
    points = fetched(loaded, ids)
    put(loaded, points[:2], dense=np.stack([point.dense for point in points[2:]]))
    loaded("verify", "j")
    found = loaded.json("verify", "j", "--vectors", code=1).document
    assert {one["id"] for one in found["named"]["altered"]} == {point.id for point in points[:2]}
    loaded.json("verify", "j", "--vectors", "--repair")
    loaded("verify", "j", "--vectors")


def test_points_of_no_document_are_foreign_and_left_alone(loaded: Command) -> None:
    point = fetched(loaded, ids_of(loaded)[:1])[0]
    put(loaded, [point], id="a stranger")
    found = loaded.json("verify", "j", code=1).document
    assert (found["missing"], found["altered"], found["foreign"], found["affected"]) == (0, 0, 1, 0)
    assert [one["id"] for one in found["named"]["foreign"]] == ["a stranger"]
    loaded("verify", "j", "--repair", code=1)
    with opened(loaded.folder) as store:
        assert store.count() == 259


def test_a_sample_compares_fewer(loaded: Command) -> None:
    found = loaded.json("verify", "j", "--sample", "50").document
    assert 20 <= found["compared"] <= 90
    loaded("verify", "j", "--sample", "0", code=2)


def test_chunks_of_a_long_document_are_compared_one_by_one(tmp_path: Path) -> None:
    command = Command(tmp_path)
    text = " ".join(f"Sentence number {n} is about something." for n in range(400))
    corpus = command.write("long.jsonl", [{"id": "long", "text": text}, {"id": "short", "text": "words"}])
    command("run", corpus, "--job", "j")
    with opened(tmp_path) as store:
        store.delete([("long", 2)])
    found = command.json("verify", "j", code=1).document
    assert found["named"]["missing"] == [{"id": "long", "chunk": 2, "what": "not in the store"}]
    assert command.json("verify", "j", "--repair").counters["stored"] == 1
    command("verify", "j")


def test_what_cannot_be_verified_says_why(tmp_path: Path) -> None:
    command = Command(tmp_path)
    assert "no job" in command("verify", "j", code=2).said
    command("run", HANDBOOK, "--job", "j", *NO_WORK)
    assert "keeps nothing" in command("verify", "j", code=2).said
