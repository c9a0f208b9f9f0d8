"""What stops a run: its exit code, one or two lines that say what to do, and how it goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ragingest.protocols import CollectionSpec
from ragingest.stores.qdrant_edge import QdrantEdgeStore
from tests.e2e.command import NO_WORK, SECONDS, Command, clean_environment, stored


def lines_of(text: str) -> int:
    return len(text.splitlines())


@pytest.fixture
def source(ragingest: Command) -> Path:
    return ragingest.write("source.jsonl", [{"id": "a", "text": "one"}])


def test_a_source_that_is_not_there_is_one_message(ragingest: Command) -> None:
    (ragingest.folder / "folder.jsonl").mkdir()
    os.mkfifo(ragingest.folder / "pipe.jsonl")
    for name, told in (
        ("missing.jsonl", "there is no file"),
        ("missing.json", "there is no file"),
        ("folder.jsonl", "is a folder"),
        ("pipe.jsonl", "no regular file"),
    ):
        failed = ragingest("run", name, *NO_WORK, "--quiet", code=4)
        assert told in failed.err
        assert lines_of(failed.err) == 2


def test_what_is_no_json_text_at_all_is_named(ragingest: Command) -> None:
    for name, data, told in (
        ("wide.jsonl", '{"id": 1}\n'.encode("utf-16"), "UTF-16"),
        ("packed.jsonl", b"\x1f\x8b\x08\x00" + bytes(20), "gzip"),
        ("cut.jsonl.gz", b"\x1f\x8b\x08\x00", "broken near byte"),
        ("scalar.json", b"42", "no array"),
    ):
        (ragingest.folder / name).write_bytes(data)
        failed = ragingest("run", name, *NO_WORK, "--quiet", code=4)
        assert told in failed.err
        assert lines_of(failed.err) == 3


def test_a_name_that_is_not_utf8_is_wrong_usage(ragingest: Command) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ragingest", "run", b"caf\xe9.jsonl", *NO_WORK],
        cwd=ragingest.folder,
        env=clean_environment({}),
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 2
    assert b"is not UTF-8" in done.stderr
    assert lines_of(done.stderr.decode()) == 2


def test_a_closed_standard_input_is_one_message(ragingest: Command) -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", sys.executable, "-m", "ragingest", "run", "-", "--quiet", *NO_WORK],
        cwd=ragingest.folder,
        env=clean_environment({}),
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 4
    assert b"standard input is closed" in done.stderr
    assert lines_of(done.stderr.decode()) == 2


def test_a_checkpoint_folder_that_is_a_file_is_one_message(ragingest: Command, source: Path) -> None:
    for folder in (source, source / "deeper"):
        failed = ragingest("run", source, *NO_WORK, "--quiet", "--checkpoint-dir", folder, code=4)
        assert "is not a folder" in failed.err
        assert lines_of(failed.err) == 2


def test_a_store_folder_that_is_a_file_is_one_message(ragingest: Command, source: Path) -> None:
    failed = ragingest("run", source, "--quiet", "--store-path", source, code=4)
    assert "Not a directory" in failed.err
    assert lines_of(failed.err) == 2


def test_a_symbolic_link_in_place_of_state_is_not_followed(ragingest: Command, source: Path) -> None:
    folder = ragingest.folder / "checkpoints"
    folder.mkdir()
    victim = ragingest.folder / "victim"
    victim.write_text("mine")
    (folder / "j.rejects.jsonl").symlink_to(victim)
    failed = ragingest("run", source, "--job", "j", "--quiet", *NO_WORK, code=4)
    assert "symbolic link" in failed.err
    assert victim.read_text() == "mine"


def test_a_collection_takes_one_process_at_a_time(ragingest: Command, source: Path) -> None:
    store = QdrantEdgeStore(ragingest.folder / "ragingest_data", "documents")
    store.prepare(CollectionSpec(256, True, "wordllama", "l2_supercat"))
    try:
        for arguments in (("run", source, "--quiet"), ("search", "anything")):
            failed = ragingest(*arguments, code=4)
            assert "open in another process" in failed.err
            assert lines_of(failed.err) == 2
    finally:
        store.close()
    assert ragingest.json("run", source).counters["stored"] == 1


def test_a_collection_of_other_vectors_names_both_sides(ragingest: Command, source: Path) -> None:
    ragingest.json("run", source, "--embedder", "null", "--dimensions", "16")
    failed = ragingest("run", source, "--job", "other", "--quiet", code=4)
    assert "holds 16-dimensional vectors without BM25" in failed.err
    assert "wordllama makes 256-dimensional vectors with BM25" in failed.err


def mixed(good: int, bad: int) -> list[object]:
    """Every so many records a bad one."""
    total = good + bad
    return [
        {"id": str(n), "text": "" if n * bad // total != (n + 1) * bad // total else f"text {n}"}
        for n in range(total)
    ]


def test_too_many_rejects_stop_the_run_and_a_higher_limit_goes_on(ragingest: Command) -> None:
    source = ragingest.write("source.jsonl", mixed(2800, 700))
    stopped = ragingest("run", source, "--job", "j", "--json", "--quiet", *NO_WORK, code=3)
    assert stopped.document["status"] == "failed"
    assert stopped.counters["read"] < 3500
    assert "more than --max-errors 10% allows" in stopped.err
    assert "ragingest resume j" in stopped.err
    assert len(ragingest.rejects("j")) == stopped.counters["rejected"]

    more = ragingest("resume", "j", "--max-errors", "400", "--json", "--quiet", code=3)
    assert "more than --max-errors 400 allows" in more.err
    assert stopped.counters["read"] < more.counters["read"] < 3500
    done = ragingest.json("resume", "j", "--max-errors", "25%", code=1)
    assert done.counters == {**done.counters, "read": 3500, "stored": 2800, "rejected": 700, "embedded": 2800}
    positions = [reject["position"]["line"] for reject in ragingest.rejects("j")]
    assert len(positions) == len(set(positions)) == 700


def test_a_share_of_errors_counts_only_once_a_hundred_records_are_read(ragingest: Command) -> None:
    few = ragingest.write("few.jsonl", mixed(49, 50))
    assert ragingest.json("run", few, *NO_WORK, code=1).counters["rejected"] == 50
    enough = ragingest.write("enough.jsonl", mixed(50, 50))
    assert ragingest.json("run", enough, *NO_WORK, code=3).counters["rejected"] == 50
    strict = ragingest.json("run", few, "--job", "strict", "--max-errors", "49", *NO_WORK, code=3)
    assert strict.document["status"] == "failed"


def test_a_document_that_breaks_keeps_all_before_the_break(ragingest: Command) -> None:
    documents = [{"id": f"d{n}", "text": f"text number {n}"} for n in range(1500)]
    whole = json.dumps({"documents": documents}).encode()
    path = ragingest.folder / "broken.json"
    at = whole.index(b'{"id": "d1200"')
    path.write_bytes(whole[: at - 2] + b"  " + whole[at:])  # a comma is lost
    broken = ragingest("run", path, "--json", "--quiet", code=4)
    assert f"breaks at byte {at:,}" in broken.err
    assert broken.counters["stored"] == 1200
    assert broken.document["status"] == "failed"
    assert len(stored(ragingest.folder, [record["id"] for record in documents])) == 1200

    path.write_bytes(whole)
    mended = ragingest.json("run", path).counters
    assert (mended["unchanged"], mended["stored"], mended["embedded"]) == (1200, 300, 300)
    found = stored(ragingest.folder, [record["id"] for record in documents])
    assert {id_: points[0].text for id_, points in found.items()} == {r["id"]: r["text"] for r in documents}
