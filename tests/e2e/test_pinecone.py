"""The real command into Pinecone on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ragingest.stores.pinecone_wire import point_id
from tests.e2e.command import HANDBOOK, Command
from tests.e2e.test_copy import points_of, same
from tests.servers.faults import (
    Fault,
    cut_body,
    html,
    odds,
    rate_limited,
    reset_after,
    reset_before,
    status,
)
from tests.servers.pinecone_server import IndexConfig, Limits, PineconeConfig, PineconeServer

KEY = "pc-SECRET-0123456789"
TEXT = "when is the old tannery open"
INTO = ("--store", "pinecone", "--index", "docs", "--namespace", "v1")

# Three of ten requests fail; each way of failing, at its share.
FAULTS = [
    rate_limited(),
    rate_limited(retry_after=0.05),
    status(500),
    status(503),
    Fault(kind="status", status=503, code="http", retry_after=1),
    html(),
    cut_body(),
    reset_before(),
    reset_after(),
]


@pytest.fixture
def server() -> Iterator[PineconeServer]:
    with PineconeServer(PineconeConfig(api_key=KEY)) as server:
        yield server


@pytest.fixture
def ragingest(tmp_path: Path, server: PineconeServer) -> Command:
    return Command(tmp_path, {"PINECONE_API_KEY": KEY, "PINECONE_CONTROLLER_HOST": server.url})


def texts(count: int, padding: int) -> list[dict[str, Any]]:
    return [{"id": f"doc {n}", "text": f"Record {n}.", "pad": f"{n:05}" + "." * padding} for n in range(count)]


def test_run_again_search_verify(ragingest: Command, server: PineconeServer) -> None:
    first = ragingest.json("run", HANDBOOK, "--job", "j", *INTO)
    assert (first.counters["stored"], first.document["store"]) == (237, "pinecone")
    assert server.books.records == {"docs": {"v1": 258}}
    again = ragingest.json("run", HANDBOOK, "--job", "j", *INTO)
    assert (again.counters["unchanged"], again.counters["embedded"]) == (237, 0)

    # The index's tags say what embedded; a hybrid search becomes a dense one.
    found = ragingest("search", TEXT, *INTO, "--json").document
    assert any("Tannery" in hit["text"] for hit in found)
    section = found[0]["metadata"]["section"]
    filtered = ragingest("search", TEXT, *INTO, "--filter", f"section={section}", "--json").document
    assert {hit["metadata"]["section"] for hit in filtered} == {section}
    assert "sparse" in ragingest("search", TEXT, *INTO, "--sparse", code=2).said
    by_host = ("--store", "pinecone", "--index", "docs", "--namespace", "v1", "--url", server.host("docs"))
    assert "--embedder" in ragingest("search", TEXT, *by_host, code=2).said
    assert ragingest("search", TEXT, *by_host, "--embedder", "wordllama", "--json").document == found

    assert ragingest.json("verify", "j").document["missing"] == 0
    lost = [id_ for id_ in server.records("docs", "v1") if id_.startswith("hours-")]
    server.index("docs").forget(lost)
    assert ragingest.json("verify", "j", code=1).document["missing"] == len(lost) > 0
    ragingest("verify", "j", "--repair", "--quiet")
    assert server.books.records == {"docs": {"v1": 258}}


def test_a_plan_needs_no_key_and_sends_nothing(ragingest: Command, server: PineconeServer) -> None:
    records = [
        *texts(300, 2000),
        {"id": "nested", "text": "x", "a": {"b": 1}},
        {"id": "null", "text": "x", "n": None},
    ]
    source = ragingest.write("corpus.jsonl", records)
    plan = ragingest(
        "plan", source, "--store", "pinecone", "--json", code=1, environment={"PINECONE_API_KEY": ""}
    ).document
    assert plan["reject_kinds"] == {"nested_metadata": 2}
    assert server.books.requests == {}
    fitted = ragingest("plan", source, "--store", "pinecone", "--flatten-metadata", "--json").document
    result = ragingest.json("run", source, "--job", "j", *INTO, "--flatten-metadata")
    assert fitted["chunks"] == result.counters["chunks"] == 302


def test_what_pinecone_cannot_keep_is_a_reject_that_names_what_would_fit_it(
    ragingest: Command, server: PineconeServer
) -> None:
    long = "A long sentence about nothing at all. " * 1200
    records = [
        {"id": "good", "text": "fine", "n": 1},
        {"id": "nested", "text": "x", "a": {"b": 1}},
        {"id": "wide", "text": "x", "n": 2**53 + 1},
        {"id": "fat", "text": "x", "note": long},
        {"id": "long", "text": long},
    ]
    source = ragingest.write("corpus.jsonl", records)
    result = ragingest.json("run", source, "--job", "j", *INTO, "--no-chunk", code=1)
    assert (result.counters["stored"], result.counters["rejected"]) == (1, 4)
    told = {reject["id"]: (reject["error"], json.dumps(reject)) for reject in ragingest.rejects("j")}
    assert {id_: kind for id_, (kind, _) in told.items()} == {
        "nested": "nested_metadata",
        "wide": "inexact_integer",
        "fat": "metadata_too_large",
        "long": "metadata_too_large",
    }
    assert "--flatten-metadata" in told["nested"][1]
    assert "--flatten-metadata" in told["wide"][1]
    assert "--metadata-keys" in told["fat"][1]
    assert "--drop-text" in told["long"][1]
    options = ("--no-chunk", "--flatten-metadata", "--drop-text", "--metadata-keys", "n,a.b,a")
    fitted = ragingest.json("run", source, "--job", "fitted", *INTO, *options)
    assert (fitted.counters["stored"], fitted.counters["rejected"]) == (5, 0)


def test_under_faults_all_of_it_arrives_within_the_limits(ragingest: Command, server: PineconeServer) -> None:
    """Points of 1,536 dimensions with 2 KB of metadata."""
    count = 3000
    server.script(odds([(0.3 / len(FAULTS), fault) for fault in FAULTS], seed=4))
    source = ragingest.write("corpus.jsonl", texts(count, 2000))
    result = ragingest.json("run", source, "--job", "j", *INTO, "--embedder", "null", "--dimensions", "1536")
    assert result.counters["stored"] == count
    assert server.records("docs", "v1").keys() == {point_id(f"doc {n}", 0) for n in range(count)}
    books = server.books
    assert books.too_large == 0
    assert max(size for _, size in books.accepted) <= 2_000_000
    assert sum(books.faults.values()) > 0
    failed = sum(books.faults.values())
    assert result.counters["upserts_failed"] == failed
    assert result.counters["upserts"] == books.upserts
    assert ragingest.json("verify", "j").document["missing"] == 0


def test_a_smaller_limit_than_documented_is_found_out(ragingest: Command, tmp_path: Path) -> None:
    with PineconeServer(PineconeConfig(api_key=KEY, limits=Limits(request_bytes=100_000))) as server:
        source = ragingest.write("corpus.jsonl", texts(600, 2000))
        small = Command(tmp_path, {"PINECONE_API_KEY": KEY, "PINECONE_CONTROLLER_HOST": server.url})
        result = small.json("run", source, "--job", "j", *INTO)
        assert (result.counters["stored"], result.counters["rejected"]) == (600, 0)
        assert server.books.records == {"docs": {"v1": 600}}
        assert server.books.too_large <= 16


def test_the_monthly_limit_ends_the_run_at_once_and_is_resumed(ragingest: Command, server: PineconeServer) -> None:
    source = ragingest.write("corpus.jsonl", texts(100, 10))
    server.script(lambda _request: Fault(kind="quota"))
    failed = ragingest("run", source, "--job", "j", *INTO, code=4)
    assert "write unit limit for the current month" in failed.said
    assert KEY not in failed.said
    server.script(None)
    assert ragingest.json("resume", "j").counters["stored"] == 100


def test_without_the_right_key_nothing_begins(ragingest: Command, server: PineconeServer) -> None:
    missing = ragingest("run", HANDBOOK, *INTO, code=2, environment={"PINECONE_API_KEY": ""})
    assert "PINECONE_API_KEY" in missing.said
    wrong = ragingest("run", HANDBOOK, *INTO, code=4, environment={"PINECONE_API_KEY": "pc-other"})
    assert "PINECONE_API_KEY" in wrong.said
    assert "pc-other" not in wrong.said
    assert server.books.records == {}


def test_what_the_store_cannot_do_is_said_before_the_run(ragingest: Command) -> None:
    assert "--bulk" in ragingest("run", HANDBOOK, *INTO, "--bulk", code=2).said
    assert "namespace" in ragingest("run", HANDBOOK, "--store", "pinecone", "--namespace", "ü", code=2).said


def test_copied_there_and_back_points_are_the_same(ragingest: Command, server: PineconeServer) -> None:
    ragingest("run", HANDBOOK, "--job", "j", "--flatten-metadata", "--quiet")
    ragingest("copy", "--from", "qdrant-edge:ragingest_data/documents", "--to", "pinecone:docs#v1", "--quiet")
    assert server.books.records == {"docs": {"v1": 258}}
    ragingest("copy", "--from", "pinecone:docs#v1", "--to", "qdrant-edge:back/documents", "--quiet")
    there, back = (points_of(ragingest.folder / name) for name in ("ragingest_data", "back"))
    same({key: point._replace(sparse=None) for key, point in there.items()}, back)


def test_an_index_at_a_host_of_its_own_needs_no_control_plane(tmp_path: Path) -> None:
    with PineconeServer(PineconeConfig(api_key=KEY, indexes=[IndexConfig(name="local", dimension=256)])) as server:
        command = Command(tmp_path, {"PINECONE_API_KEY": KEY, "PINECONE_CONTROLLER_HOST": "http://127.0.0.1:1"})
        result = command.json(
            "run", HANDBOOK, "--store", "pinecone", "--index", "local", "--url", server.host("local")
        )
        assert result.counters["stored"] == 237
        assert server.books.records == {"local": {"__default__": 258}}
