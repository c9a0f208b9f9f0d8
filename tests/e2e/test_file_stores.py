"""Vectors to files, by the real command."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ragingest.protocols import StoredPoint
from tests.e2e.command import HANDBOOK, Command, opened
from tests.servers.postgres import PostgresServer


def everything(command: Command) -> dict[str, StoredPoint]:
    with opened(command.folder) as store:
        page, _ = store.scan(None, 1000)
    return {point.point_id: point for point in page}


@pytest.mark.parametrize("name", ["jsonl", "parquet"])
def test_run_again_verify_and_no_search(ragingest: Command, name: str) -> None:
    first = ragingest.json("run", HANDBOOK, "--job", "j", "--store", name)
    assert (first.counters["stored"], first.document["store"]) == (237, name)
    path = ragingest.folder / "ragingest_data" / "documents" / f"points.{name}"
    before = path.read_bytes()
    again = ragingest.json("run", HANDBOOK, "--job", "j", "--store", name)
    assert again.counters["unchanged"] == 237
    assert path.read_bytes() == before
    assert ragingest.json("verify", "j").document["missing"] == 0
    said = ragingest("search", "library", "--store", name, code=2).said
    assert "cannot search" in said
    assert "--bulk" in ragingest("run", HANDBOOK, "--store", name, "--bulk", code=2).said
    assert ragingest("plan", HANDBOOK, "--store", name, "--json").document["store"] == name


def test_a_collection_travels_through_every_store_and_stays_as_it_was(
    ragingest: Command, postgres: PostgresServer
) -> None:
    """Qdrant Edge -> Postgres -> Parquet, and Qdrant Edge -> JSON Lines -> Qdrant Edge."""
    ragingest("run", HANDBOOK, "--job", "j", "--quiet")
    points = everything(ragingest)
    table = f"pgvector:{postgres.url()}/travels"
    ragingest("copy", "--from", "qdrant-edge:ragingest_data/documents", "--to", table, "--quiet")
    ragingest("copy", "--from", table, "--to", "parquet:out/documents", "--quiet")
    found: list[dict[str, Any]] = pq.read_table(ragingest.folder / "out/documents/points.parquet").to_pylist()
    assert {row["point_id"] for row in found} == points.keys()
    for row in found:
        point = points[row["point_id"]]
        assert (row["id"], row["chunk"], row["chunks"], row["text"]) == (
            point.id,
            point.chunk,
            point.chunks,
            point.text,
        )
        assert (row["digest"], json.loads(row["metadata"])) == (point.digest, point.metadata)
        assert np.array(row["vector"], dtype=np.float32).tobytes() == point.dense.tobytes()

    ragingest("copy", "--from", "qdrant-edge:ragingest_data/documents", "--to", "jsonl:out/lines", "--quiet")
    ragingest("copy", "--from", "jsonl:out/lines", "--to", "qdrant-edge:back/documents", "--quiet")
    with opened(ragingest.folder, "../back/documents") as store:
        page, _ = store.scan(None, 1000)
    assert {point.point_id: essence(point) for point in page} == {
        id_: essence(point) for id_, point in points.items()
    }
    postgres.execute("DROP TABLE travels")


def essence(point: StoredPoint) -> tuple[Any, ...]:
    sparse = None if point.sparse is None else sorted(point.sparse.items())
    return (*point[:7], [round(float(x), 5) for x in point.dense], sparse)
