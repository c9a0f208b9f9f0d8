"""The real command into a Qdrant server, over both protocols."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import models

import ragingest as library
from ragingest import JobSettings, RunOptions
from ragingest.documents import point_id
from tests.servers.qdrant_server import QdrantConfig, QdrantServer

from .command import HANDBOOK, Command
from .test_copy import points_of, same

TEXT = "when is the old tannery open"


@pytest.fixture
def server(qdrant: QdrantServer) -> Iterator[QdrantServer]:
    qdrant.engine.clear()
    yield qdrant
    qdrant.script(None)


@pytest.fixture(params=["rest", "grpc"])
def url(request: pytest.FixtureRequest, server: QdrantServer) -> str:
    return server.url if request.param == "rest" else server.grpc_url


def into(url: str, collection: str = "handbook") -> tuple[str, ...]:
    return ("--store", "qdrant", "--url", url, "--collection", collection)


def count(server: QdrantServer, collection: str = "handbook") -> int:
    return server.engine.info(collection).points_count or 0


def test_run_again_search_verify(ragingest: Command, server: QdrantServer) -> None:
    url = server.grpc_url
    layout = ("--bulk", "--quantization", "scalar", "--on-disk", "--index-metadata", "section")
    first = ragingest.json("run", HANDBOOK, "--job", "j", *into(url), *layout)
    assert (first.counters["stored"], first.document["store"]) == (237, "qdrant")
    assert count(server) == 258
    info = server.engine.info("handbook")
    assert info.config.hnsw_config.m == 16
    assert list(info.payload_schema) == ["metadata.section"]
    again = ragingest.json("run", HANDBOOK, "--job", "j", *into(url))
    assert (again.counters["unchanged"], again.counters["embedded"]) == (237, 0)

    ragingest("run", HANDBOOK, "--job", "embedded", "--quiet")
    for mode in ((), ("--sparse", "--filter", "section=archives")):
        found = ragingest("search", TEXT, *into(url), "--json", *mode).document
        here = ragingest("search", TEXT, "--json", *mode).document
        assert [(hit["id"], hit["chunk"]) for hit in found] == [(hit["id"], hit["chunk"]) for hit in here]
        assert [hit["score"] for hit in found] == pytest.approx([hit["score"] for hit in here], rel=1e-4)

    assert ragingest.json("verify", "j").document["missing"] == 0
    server.engine.delete("handbook", [point_id(hit["id"], hit["chunk"]) for hit in found])
    damaged = ragingest.json("verify", "j", code=1).document
    assert damaged["missing"] == len(found)
    ragingest("verify", "j", "--repair", "--quiet")
    assert count(server) == 258


def test_a_copy_there_and_back_is_the_original(ragingest: Command, server: QdrantServer) -> None:
    url = server.url
    ragingest("run", HANDBOOK, "--job", "j", "--quiet")
    ragingest("copy", "--from", "qdrant-edge:ragingest_data/documents", "--to", f"qdrant:{url}/docs", "--quiet")
    ragingest("copy", "--from", f"qdrant:{url}/docs", "--to", "qdrant-edge:back/documents", "--quiet")
    same(points_of(ragingest.folder / "ragingest_data"), points_of(ragingest.folder / "back"))


def test_an_integer_that_grpc_cannot_carry_is_a_reject_there_and_a_plan_knows_it(
    ragingest: Command, server: QdrantServer
) -> None:
    records = [{"id": "a", "text": "fine"}, {"id": "b", "text": "wide", "metadata": {"n": 2**63}}]
    source = ragingest.write("wide.jsonl", records)
    plan = ragingest("plan", source, *into(server.grpc_url), "--json", code=1).document
    assert plan["reject_kinds"] == {"integer_too_large": 1}
    result = ragingest.json("run", source, "--job", "j", *into(server.grpc_url), code=1)
    assert (result.counters["stored"], result.counters["rejected"]) == (1, 1)
    assert ragingest.rejects("j")[0]["error"] == "integer_too_large"
    assert ragingest.json("run", source, "--job", "k", *into(server.url, "rest")).counters["stored"] == 2


def test_what_ends_a_run_says_what_to_do(ragingest: Command, server: QdrantServer) -> None:
    url = server.url
    cosine = models.VectorParams(size=300, distance=models.Distance.COSINE)
    server.engine.create("handbook", models.CreateCollection(vectors=cosine))
    said = ragingest("run", HANDBOOK, "--job", "j", *into(url), code=4).said
    assert "300-dimensional" in said
    assert "256-dimensional" in said
    assert "--url" in ragingest("run", HANDBOOK, "--store", "qdrant", code=2).said
    assert "birds" in ragingest("search", TEXT, *into(url, "birds"), code=2).said
    with QdrantServer(QdrantConfig(api_key="right")) as locked:
        wrong = {"QDRANT_API_KEY": "wrong-key"}
        said = ragingest("run", HANDBOOK, "--job", "l", *into(locked.url), code=4, environment=wrong).said
        assert "QDRANT_API_KEY" in said
        assert "wrong-key" not in said
    files = [file for file in (ragingest.folder / "checkpoints").rglob("*") if file.is_file()]
    assert not any(b"wrong-key" in file.read_bytes() for file in files)


def test_smaller_limits_than_were_thought_cost_no_record(ragingest: Command, url: str) -> None:
    source = ragingest.write("big.jsonl", [{"id": f"d{n}", "text": "x" * 3000} for n in range(600)])
    with QdrantServer(QdrantConfig(max_body_bytes=100_000, oversize_status=413)) as small:
        where = small.url if url.startswith("http") else small.grpc_url
        summary = load(source, where, ragingest.folder)
        assert (summary.status, summary.counters.stored) == ("completed", 600)
        assert small.engine.info("handbook").points_count == 600
        # 256 points, of which 5 fit, are halved six times: by each of the three batches at the worst.
        assert small.books.refused_for_size <= (0 if url.startswith("grpc") else 3 * 6)


def load(source: Path, url: str, folder: Path) -> Any:
    settings = JobSettings(
        source="", store="qdrant", url=url, collection="handbook", embedder="null", dimensions=1536, chunk=False
    )
    return asyncio.run(
        library.ingest(source, job="load", settings=settings, options=RunOptions(), checkpoint_dir=folder / "state")
    )
