"""What is printed where, and that all who tell of a run tell the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from ragingest.version import __version__
from tests.e2e.command import HANDBOOK, NO_WORK, SAMPLE_DATA, Command, counts

DIRTY = SAMPLE_DATA / "dirty.jsonl"
MIXED = ("read", "stored", "unchanged", "duplicate", "rejected")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """A folder in which the handbook is loaded. To be searched only."""
    command = Command(tmp_path_factory.mktemp("library"))
    command.json("run", HANDBOOK)
    return command


def test_screen_json_checkpoint_archive_and_stats_tell_the_same_counters(ragingest: Command) -> None:
    run = ("run", DIRTY, "--job", "dirty", "--fresh", *NO_WORK)
    screen = ragingest(*run, code=1)
    told = ragingest.json(*run, code=1)
    # A fresh run does the same work as the one before, so both must tell one story.
    counters = told.counters
    for name in MIXED:
        assert f"{name} {counters[name]:,}" in screen.said
    assert f"{counters['chunks']:,} chunks" in screen.said
    for kind, count in told.document["reject_kinds"].items():
        assert f"{count} {kind}" in screen.said

    checkpoint = ragingest.checkpoint("dirty")
    stats = ragingest("stats", "dirty", "--json").document
    (listed,) = ragingest("stats", "--json").document
    archives = [json.loads(path.read_bytes()) for path in (ragingest.folder / "checkpoints/completed").iterdir()]
    assert stats["counters"] == listed["counters"] == told.document["counters"]
    assert counts(checkpoint["counters"]) == counters
    assert checkpoint["reject_kinds"] == stats["reject_kinds"] == told.document["reject_kinds"]
    assert checkpoint["seconds"] == stats["seconds"] == told.document["seconds"]
    assert counters in [counts(archive["counters"]) for archive in archives]
    assert told.document["status"] == stats["status"] == checkpoint["status"] == "completed"
    assert told.document["rejects"] == stats["rejects"] == "checkpoints/dirty.rejects.jsonl"


def test_json_leaves_stdout_to_one_document_and_quiet_leaves_stderr_empty(ragingest: Command) -> None:
    loud = ragingest("run", HANDBOOK, "--job", "a", *NO_WORK, "--json")
    assert loud.document["counters"]["stored"] == 237
    assert "run 1 of" in loud.err
    silent = ragingest("run", HANDBOOK, "--job", "b", *NO_WORK, "--quiet")
    assert silent.err == ""
    assert "read 237 = stored 237" in silent.out
    both = ragingest("run", DIRTY, "--job", "c", *NO_WORK, "--quiet", "--json", code=1)
    assert both.err == ""
    assert both.document["status"] == "completed"


def test_an_error_is_told_on_stderr_and_with_json_as_a_document_too(ragingest: Command) -> None:
    plain = ragingest("run", "missing.jsonl", "--quiet", code=4)
    assert plain.out == ""
    assert plain.err.count("\n") == 2
    told = ragingest("run", "missing.jsonl", "--quiet", "--json", code=4)
    assert told.document["exit_code"] == 4
    assert told.document["message"] in told.err


def test_stats_lists_all_jobs_shows_one_and_names_them_to_who_asks_for_another(ragingest: Command) -> None:
    assert "no jobs in checkpoints" in ragingest("stats").out
    assert ragingest("stats", "--json").document == []
    ragingest("run", HANDBOOK, "--job", "night.1", *NO_WORK)
    ragingest("run", DIRTY, "--job", "day-2", *NO_WORK, code=1)
    table = ragingest("stats").out.splitlines()
    assert [line.split()[:6] for line in table[1:]] == [
        ["day-2", "completed", "56", "33", "0", "2"],
        ["night.1", "completed", "237", "237", "0", "0"],
    ]
    one = ragingest("stats", "day-2").out
    assert "rejected: invalid_utf8" in one
    assert "text fields" in one
    assert "('text',)" not in one
    unknown = ragingest("stats", "nigth.1", code=2)
    assert "jobs there: day-2, night.1" in unknown.err


def test_search_is_hybrid_dense_or_sparse_and_keeps_to_its_limit(library: Command) -> None:
    question = "When does the Old Tannery close on Wednesday?"
    modes: Sequence[tuple[str, ...]] = ((), ("--dense",), ("--sparse",))
    scores = []
    for mode in modes:
        hits = library("search", question, *mode, "--limit", "3", "--json").document
        assert len(hits) == 3
        assert "hours-old-tannery" in [hit["id"] for hit in hits]
        assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
        scores.append(hits[0]["score"])
    assert len(set(scores)) == 3
    shown = library("search", question)
    assert shown.err == ""
    assert shown.out.splitlines()[0].startswith("1. ")
    assert "hours-old-tannery" in shown.out


def test_search_filters_by_metadata(library: Command) -> None:
    found = library(
        "search", "opening", "--filter", "section=opening-hours", "-f", "audience=public", "-n", "50", "--json"
    ).document
    assert found
    assert {(hit["metadata"]["section"], hit["metadata"]["audience"]) for hit in found} == {
        ("opening-hours", "public")
    }
    assert library("search", "opening", "--filter", "section=no such").out == "nothing found\n"


def test_a_collection_can_be_empty_or_missing(ragingest: Command) -> None:
    (ragingest.folder / "empty.jsonl").touch()
    ragingest("run", "empty.jsonl", "--collection", "bare")
    assert ragingest("search", "anything", "--collection", "bare").out == "nothing found\n"
    assert ragingest("search", "anything", "--collection", "bare", "--json").document == []
    missing = ragingest("search", "anything", "--collection", "other", code=2)
    assert "there: bare" in missing.err


def test_version_and_help_say_what_the_command_is(tmp_path: Path) -> None:
    ragingest = Command(tmp_path)
    assert ragingest("--version").out == f"ragingest {__version__}\n"
    for words in (("--help",), ("run", "-h"), ("resume", "--help")):
        said = ragingest(*words).said
        assert "6 the checkpoint or the collection does not fit the settings" in said
        assert "130 interrupted by Ctrl-C; resumable" in said
    assert "Commands" in ragingest(code=2).said
    assert list(tmp_path.iterdir()) == []
