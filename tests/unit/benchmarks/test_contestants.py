"""Each contestant does the whole job that it is timed for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import qdrant_edge as edge
from qdrant_client import QdrantClient, models

from benchmarks.corpora import PASSAGE_CHARACTERS, passages, write_lines
from benchmarks.qdrant_sink import read_sink
from tests.servers.openai_api import EmbeddingsServer, vector_of
from tests.servers.process import ServerProcess

TEXTS = 250
ROOT = Path(__file__).parents[3]


def test_passages_are_of_one_length_and_all_different() -> None:
    records = [json.loads(record) for record in passages(500)]
    assert {len(record["text"]) for record in records} == {PASSAGE_CHARACTERS}
    assert len({record["text"] for record in records}) == len({record["id"] for record in records}) == 500


@pytest.mark.parametrize("bm25", [True, False])
def test_the_bare_client_stores_the_vector_of_every_text(tmp_path: Path, bm25: bool) -> None:
    corpus = write_lines(tmp_path / "corpus.jsonl", passages(TEXTS))
    with EmbeddingsServer() as server:
        command = ["benchmarks.bare", str(corpus), server.url, "edge", "4", *(["--bm25"] if bm25 else [])]
        assert _said(command, tmp_path) == {"stored": TEXTS}
        assert (server.books.requests, server.books.texts_answered) == (3, TEXTS)
    _check(tmp_path / "shard", sparse=bm25)


def test_the_naive_pipeline_stores_the_vector_of_every_text_and_lists_all_ids(tmp_path: Path) -> None:
    corpus = write_lines(tmp_path / "corpus.jsonl", passages(TEXTS))
    with EmbeddingsServer() as server:
        said = _said(["benchmarks.naive", str(corpus), server.url, "edge", "--checkpoint"], tmp_path)
        assert said == {"stored": TEXTS}
    _check(tmp_path / "shard", sparse=False)
    listed = json.loads((tmp_path / "processed.json").read_text())["processed"]
    assert sorted(listed) == [json.loads(record)["id"] for record in passages(TEXTS)]


def test_the_sink_is_a_qdrant_server_to_its_client_and_counts_points() -> None:
    with ServerProcess("benchmarks.qdrant_sink") as server:
        client = QdrantClient(url=server.url, check_compatibility=False)
        assert not client.collection_exists("some")
        client.create_collection("some", models.VectorParams(size=2, distance=models.Distance.COSINE))
        assert client.collection_exists("some")
        found = client.get_collection("some").config.params.vectors
        assert isinstance(found, models.VectorParams)
        assert found.size == 2
        points = [models.PointStruct(id=number, vector=[1.0, 0.5], payload={"a": 1}) for number in range(5)]
        for _ in range(2):
            assert client.upsert("some", points, wait=True).status == "completed"
        client.close()
        books = read_sink(server.url)
    assert (books.upserts, books.points, books.ids) == (2, 10, 5)


def _said(command: list[str], folder: Path) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        check=True,
        capture_output=True,
        text=True,
    )
    said: dict[str, int] = json.loads(done.stdout)
    return said


def _check(folder: Path, *, sparse: bool) -> None:
    shard = edge.EdgeShard.load(str(folder))
    records, _ = shard.scroll(edge.ScrollRequest(limit=1000, with_payload=True, with_vector=True))
    assert len(records) == TEXTS
    texts = {json.loads(record)["id"]: json.loads(record)["text"] for record in passages(TEXTS)}
    for record in records:
        payload = dict(record.payload or {})
        vector: Any = record.vector
        if sparse:
            assert vector["bm25"]
            vector = vector[""]
        assert payload["text"] == texts.pop(payload["id"])
        assert vector == pytest.approx(vector_of(payload["text"], 1536).tolist(), abs=1e-6)
    assert texts == {}
    shard.close()
