"""Real input in every form that a source can have."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from ragingest.embedders import open_embedder
from tests.e2e.command import HANDBOOK, NO_WORK, SAMPLE_DATA, Command, opened, read_lines, stored

HANDBOOK_JSON = SAMPLE_DATA / "library_handbook.json"
DIRTY = SAMPLE_DATA / "dirty.jsonl"

HITS_OF_60 = 48
"""Of the questions, hybrid search finds 50 among the first five."""

KINDS_OF_DIRTY_LINES = {
    4: "not_an_object",
    7: "not_an_object",
    10: "missing_text",
    13: "missing_text",
    17: "invalid_text",
    19: "empty_text",
    21: "empty_text",
    24: "invalid_id",
    26: "invalid_id",
    28: "invalid_json",
    30: "invalid_id",
    32: "invalid_id",
    34: "invalid_id",
    36: "invalid_utf8",
    39: "lone_surrogate",
    41: "not_finite",
    43: "not_finite",
    45: "number_out_of_range",
    47: "lone_surrogate",
    49: "invalid_metadata",
    57: "invalid_json",
}

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor().compress,
}


def handbook() -> dict[str, dict[str, Any]]:
    return {record["id"]: record for record in read_lines(HANDBOOK)}


def test_both_forms_of_the_handbook_give_the_same_documents(ragingest: Command) -> None:
    records = handbook()
    lines = ragingest.json("run", HANDBOOK, "--collection", "lines").document
    document = ragingest.json("run", HANDBOOK_JSON, "--collection", "document").document
    assert lines["counters"] == document["counters"]
    assert lines["counters"]["stored"] == lines["counters"]["read"] == len(records) == 237
    assert lines["counters"]["chunks"] > len(records)

    one = stored(ragingest.folder, records, "lines")
    other = stored(ragingest.folder, records, "document")
    assert one.keys() == other.keys() == records.keys()
    for id_, record in records.items():
        assert [(p.text, p.digest) for p in one[id_]] == [(p.text, p.digest) for p in other[id_]]
        assert one[id_][0].metadata == other[id_][0].metadata == record["metadata"]
        if len(one[id_]) == 1:
            assert one[id_][0].text == record["text"]


def test_hybrid_search_finds_what_answers_the_question(ragingest: Command) -> None:
    ragingest.json("run", HANDBOOK)
    questions = read_lines(SAMPLE_DATA / "questions.jsonl")
    assert len(questions) == 60
    with opened(ragingest.folder) as store:
        embedder = open_embedder("wordllama")
        hits = 0
        for question in questions:
            found = store.search(embedder.embed_query(question["question"]), 5, "hybrid")
            hits += question["doc_id"] in {hit.id for hit in found}
    assert hits >= HITS_OF_60


def test_the_dirty_file_is_sorted_as_its_key_says(ragingest: Command) -> None:
    expected = json.loads((SAMPLE_DATA / "dirty_expected.json").read_bytes())
    result = ragingest.json("run", DIRTY, "--job", "dirty", code=1)
    counters = result.counters
    bad = [reject["line"] for reject in expected["rejects"]]
    assert counters["read"] == len(expected["good_lines"]) + len(bad)
    assert counters["duplicate"] == len(expected["duplicate_ids"])
    assert result.document["exit_code"] == 1

    rejects = ragingest.rejects("dirty")
    assert sorted(reject["position"]["line"] for reject in rejects) == bad
    assert {reject["position"]["line"]: reject["error"] for reject in rejects} == KINDS_OF_DIRTY_LINES
    assert sum(result.document["reject_kinds"].values()) == counters["rejected"] == len(bad)

    lines = DIRTY.read_bytes().split(b"\n")
    last: dict[str, dict[str, Any]] = {}
    for number in expected["good_lines"]:
        record = json.loads(lines[number - 1].removeprefix(b"\xef\xbb\xbf"))
        last[str(record["id"])] = record
    points = stored(ragingest.folder, last)
    assert points.keys() == last.keys()
    assert {id_: chunks[0].text for id_, chunks in points.items()} == {id_: r["text"] for id_, r in last.items()}
    assert counters["stored"] == len(last)


def test_a_reject_carries_its_position_its_reason_and_itself(ragingest: Command) -> None:
    ragingest.json("run", DIRTY, "--job", "dirty", *NO_WORK, code=1)
    data = DIRTY.read_bytes()
    lines = data.split(b"\n")
    for reject in ragingest.rejects("dirty"):
        raw = lines[reject["position"]["line"] - 1]
        assert data[reject["position"]["offset"] :].startswith(raw)
        if "record" in reject:
            assert reject["record"].encode() == raw
        else:
            assert reject["error"] == "invalid_utf8"
        assert reject["stage"] == "decode"
        assert reject["message"]


def test_records_too_large_or_too_deep_are_rejects_too(ragingest: Command) -> None:
    deep: object = 1
    for _ in range(70):
        deep = [deep]
    source = ragingest.write(
        "odd.jsonl",
        [
            {"id": 1, "text": "fits"},
            {"id": 2, "text": "x" * 5000},
            {"id": 3, "text": "deep", "nested": deep},
            {"id": 4, "text": "wide", "number": 1 << 70},
            {"id": 5, "text": "fits too"},
        ],
    )
    ragingest.json("run", source, "--job", "odd", "--max-record-bytes", "1KiB", *NO_WORK, code=1)
    found = {reject["position"]["line"]: reject for reject in ragingest.rejects("odd")}
    assert {line: reject["error"] for line, reject in found.items()} == {
        2: "too_large",
        3: "nested_too_deeply",
        4: "number_out_of_range",
    }
    assert found[2]["cut"] is True
    assert len(found[2]["record"]) <= 1024


@pytest.mark.parametrize("ending", COMPRESSORS)
def test_compressed_files_are_read_as_what_they_hold(ragingest: Command, ending: str) -> None:
    path = ragingest.folder / f"handbook.jsonl.{ending}"
    path.write_bytes(COMPRESSORS[ending](HANDBOOK.read_bytes()))
    assert ragingest.json("run", path, *NO_WORK).counters["stored"] == 237


def test_a_compressed_json_document_is_read_as_what_it_holds(ragingest: Command) -> None:
    path = ragingest.folder / "handbook.json.gz"
    path.write_bytes(gzip.compress(HANDBOOK_JSON.read_bytes()))
    assert ragingest.json("run", path, *NO_WORK).counters["stored"] == 237


def test_standard_input_takes_both_formats_and_knows_what_it_had(ragingest: Command) -> None:
    lines = ragingest.json("run", "-", *NO_WORK, stdin=HANDBOOK.read_bytes())
    assert lines.counters["stored"] == 237
    assert lines.document["source"] == "standard input"
    again = ragingest.json("run", "-", *NO_WORK, stdin=HANDBOOK.read_bytes())
    assert again.counters["unchanged"] == 237
    assert again.counters["embedded"] == 0
    whole = ragingest.json(
        "run", "-", "--format", "json", "--job", "whole", *NO_WORK, stdin=HANDBOOK_JSON.read_bytes()
    )
    assert whole.counters["stored"] == 237


def test_an_array_is_found_by_its_path(ragingest: Command) -> None:
    path = ragingest.folder / "nested.json"
    path.write_text(json.dumps({"skip": [1], "a": {"b": [{"id": "x", "text": "found"}]}}))
    assert ragingest.json("run", path, "--json-path", "a.b.item", *NO_WORK).counters["stored"] == 1
    lost = ragingest("run", path, "--job", "lost", *NO_WORK, code=4)
    assert "--json-path" in lost.err
    assert "keys there: skip, a" in lost.err


def test_several_text_fields_are_joined_by_an_empty_line(ragingest: Command) -> None:
    source = ragingest.write(
        "parts.jsonl", [{"key": 7, "title": "Head", "body": "Body", "year": 1953}, {"key": "8", "body": "Alone"}]
    )
    fields = ("--id-field", "key", "--text-field", "title", "--text-field", "body")
    ragingest.json("run", source, *fields)
    points = stored(ragingest.folder, ["7", "8"])
    assert {id_: chunks[0].text for id_, chunks in points.items()} == {"7": "Head\n\nBody", "8": "Alone"}
    assert points["7"][0].metadata == {"year": 1953}


def test_a_missing_id_becomes_a_digest_of_the_content_and_is_told_once(ragingest: Command) -> None:
    source = ragingest.write("anonymous.jsonl", [{"text": f"text {n % 1500}"} for n in range(2500)])
    first = ragingest("run", source, "--job", "j", "--json", *NO_WORK)
    assert first.err.count("digest of their content") == 1
    assert first.counters["stored"] == 1500
    assert first.counters["duplicate"] == 1000
    assert ragingest.json("run", source, "--job", "j", *NO_WORK).counters["embedded"] == 0


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.json", "empty.jsonl.gz"])
def test_an_empty_source_is_a_complete_run_of_no_records(ragingest: Command, name: str) -> None:
    path = ragingest.folder / name
    path.touch()
    assert ragingest.json("run", path, *NO_WORK).counters["read"] == 0
    again = ragingest("run", name, *NO_WORK, "--quiet")
    assert "holds no record; check the path" in again.err


@pytest.mark.shared
def test_every_passage_of_a_public_corpus_becomes_one_point(ragingest: Command, shared_data: Path) -> None:
    source = shared_data / "squad_dev" / "docs.jsonl"
    ids = [record["id"] for record in read_lines(source)]
    assert ragingest.json("run", source, "--no-chunk").counters["chunks"] == len(ids) == 2067
    assert len(stored(ragingest.folder, ids)) == 2067
