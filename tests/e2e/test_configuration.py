"""Where settings come from, and what is said to those that make no sense."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.command import NO_WORK, Command


@pytest.fixture
def source(ragingest: Command) -> Path:
    return ragingest.write("source.jsonl", [{"id": "a", "text": "one"}])


def test_flags_come_before_variables_before_the_file(ragingest: Command, source: Path) -> None:
    (ragingest.folder / "ragingest.toml").write_text(
        'embedder = "null"\nstore = "null"\ncollection = "file"\nchunk-size = 99\nquiet = true\n'
        '[run]\ncollection = "table"\nbatch_size = 7\n[search]\nlimit = 1\n'
    )
    by_file = ragingest("run", source, "--json")
    assert by_file.err == ""
    assert by_file.document["collection"] == "table"
    checkpoint = ragingest.checkpoint(by_file.document["job"])
    assert checkpoint["settings"]["chunk_size"] == 99
    assert checkpoint["options"]["batch_size"] == 7

    variables = {"RAGINGEST_COLLECTION": "variable", "RAGINGEST_JOB": "named", "RAGINGEST_QUIET": "0"}
    by_variable = ragingest("run", source, "--json", environment=variables)
    assert "named: run 1" in by_variable.err
    assert by_variable.document["collection"] == "variable"
    by_flag = ragingest("run", source, "--json", "--collection", "flag", "--job", "other", environment=variables)
    assert by_flag.document["collection"] == "flag"
    assert by_flag.document["job"] == "other"


def test_every_option_can_stand_in_the_file_as_on_the_command_line(ragingest: Command) -> None:
    (ragingest.folder / "ragingest.toml").write_text(
        'format = "json"\ntext-field = ["title", "body"]\nchunk = false\njson = true\n[run]\nid_field = "key"\n'
    )
    (ragingest.folder / "records").write_text(json.dumps([{"key": 1, "title": "T", "body": "B"}]))
    assert ragingest("run", "records", *NO_WORK).counters["stored"] == 1


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("collection = ", "ragingest.toml cannot be read"),
        ('chunksize = 3\nchunk_overlap = 1\ncolection = "x"', "no option: chunksize, colection"),
        ("[run]\nlimit = 3", "no option of run: limit"),
        ("[nightly]\nlimit = 3", "a table for no command: nightly"),
        ('chunk-size = "many"', "--chunk-size"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(ragingest: Command, content: str, told: str) -> None:
    (ragingest.folder / "ragingest.toml").write_text(content)
    refused = ragingest("run", "source.jsonl", *NO_WORK, code=2)
    assert told in refused.said


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--bogus",), "--bogus"),
        (("--embedder", "magic"), "choose one of: "),
        (("--store", "magic"), "choose one of: qdrant-edge"),
        (("--max-memory", "0"), "--max-memory"),
        (("--max-record-bytes", "12 parsecs"), "--max-record-bytes"),
        (("--max-errors", "120%"), "--max-errors"),
        (("--chunk-size", "4"), "--chunk-size 4 is too small"),
        (("--chunk-overlap", "512"), "--chunk-overlap 512 does not fit"),
        (("--batch-size", "0"), "--batch-size 0 is too small"),
        (("--id-field", "text"), "--id-field"),
        (("--json-path", "a..b", "--format", "json"), "--json-path"),
        (("--collection", "../x"), "not a collection name"),
        (("--job", "../x"), "not a job name"),
    ],
)
def test_wrong_usage_is_refused_before_anything_is_written(
    ragingest: Command, source: Path, arguments: tuple[str, ...], told: str
) -> None:
    refused = ragingest("run", source, *NO_WORK, *arguments, code=2)
    assert told in refused.said
    assert refused.out == ""
    assert not list(ragingest.folder.glob("checkpoints/*.json"))
    assert not (ragingest.folder / "ragingest_data").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("resume", "../x"), "not a job name"),
        (("stats", "../x"), "not a job name"),
        (("search", "x", "--filter", "section"), "is not key=value"),
        (("search", "x", "--dense", "--sparse"), "exclude each other"),
        (("search", "x", "--limit", "0"), "--limit 0 is too small"),
        (("search", " "), "nothing to search for"),
        (("serch", "x"), "No such command"),
    ],
)
def test_other_commands_refuse_wrong_usage_too(ragingest: Command, arguments: tuple[str, ...], told: str) -> None:
    assert told in ragingest(*arguments, code=2).said
    assert list(ragingest.folder.iterdir()) == []


def test_an_unknown_kind_of_file_is_asked_about(ragingest: Command) -> None:
    (ragingest.folder / "records.txt").write_text('{"id": 1, "text": "x"}\n')
    assert "--format jsonl" in ragingest("run", "records.txt", *NO_WORK, code=2).err
    assert ragingest.json("run", "records.txt", "--format", "jsonl", *NO_WORK).counters["stored"] == 1
