"""The same job again: what is unchanged costs nothing, what has changed takes the place of what was."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.command import HANDBOOK, NO_WORK, Command, stored

LONG = " ".join(f"Sentence number {n} speaks of shelf {n % 7}." for n in range(60))
CHUNKED = ("--chunk-size", "64", "--chunk-overlap", "8")


def records(**changes: dict[str, Any]) -> list[dict[str, Any]]:
    given: dict[str, dict[str, Any]] = {
        "same": {"text": "stays as it is"},
        "text": {"text": "is written anew"},
        "meta": {"text": "keeps its text", "year": 1953},
        "long": {"text": LONG},
    }
    return [{"id": id_, **fields, **changes.get(id_, {})} for id_, fields in given.items()]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """A folder with a finished job `j`, which the tests leave as it is."""
    command = Command(tmp_path_factory.mktemp("loaded"))
    command.write("source.jsonl", records())
    command.json("run", "source.jsonl", "--job", "j", *NO_WORK)
    return command


def test_the_same_command_finds_its_job_and_embeds_nothing(ragingest: Command) -> None:
    first = ragingest.json("run", HANDBOOK).document
    again = ragingest.json("run", HANDBOOK)
    assert again.document["job"] == first["job"]
    assert again.document["run"] == 2
    assert again.counters["unchanged"] == again.counters["read"] == 237
    assert again.counters["embedded"] == again.counters["upserts"] == again.counters["chunks"] == 0
    elsewhere = ragingest.json("run", HANDBOOK, "--collection", "other", *NO_WORK).document
    assert elsewhere["job"] != first["job"]


def test_what_has_changed_is_stored_again_and_leftover_chunks_go(ragingest: Command) -> None:
    source = ragingest.write("source.jsonl", records())
    first = ragingest.json("run", source, "--job", "j", *CHUNKED).counters
    before = stored(ragingest.folder, ["same", "text", "meta", "long"])
    assert len(before["long"]) >= 5

    changed = records(text={"text": "was written anew"}, meta={"year": 1954}, long={"text": LONG[:100]})
    ragingest.write("source.jsonl", changed)
    second = ragingest.json("run", source, "--job", "j", *CHUNKED).counters
    assert (second["unchanged"], second["stored"]) == (1, 3)
    assert (second["embedded"], second["revised"]) == (2, 1)
    assert second["deleted"] == len(before["long"]) - 1
    after = stored(ragingest.folder, before)
    assert sum(map(len, after.values())) == 4 == first["chunks"] - second["deleted"]
    assert after["text"][0].text == "was written anew"
    assert after["meta"][0].metadata == {"year": 1954}
    assert after["long"][0].text == LONG[:100].strip()
    assert after["same"][0].digest == before["same"][0].digest


def test_of_documents_with_one_id_the_last_one_in_the_file_wins(ragingest: Command) -> None:
    block = [{"id": f"k{n}", "text": f"text {n}"} for n in range(1200)]
    source = ragingest.write(
        "source.jsonl",
        [
            {"id": "near", "text": "first"},
            {"id": "far", "text": "first"},
            {"id": "same", "text": "only"},
            {"id": "near", "text": "second"},
            *block,
            {"id": "far", "text": "second"},
            {"id": "same", "text": "only"},
        ],
    )
    counters = ragingest.json("run", source).counters
    assert counters["read"] == 1206
    assert counters["duplicate"] == 3
    assert counters["stored"] == 1203
    found = stored(ragingest.folder, ["near", "far", "same", *(record["id"] for record in block)])
    assert [found[id_][0].text for id_ in ("near", "far", "same")] == ["second", "second", "only"]


def test_fresh_embeds_everything_again_and_doubles_nothing(ragingest: Command) -> None:
    source = ragingest.write("source.jsonl", records())
    first = ragingest.json("run", source, *CHUNKED).counters
    again = ragingest.json("run", source, *CHUNKED, "--fresh")
    assert again.counters == first
    assert again.document["run"] == 1
    # Other chunks than before: those that are over must still be known.
    whole = ragingest.json("run", source, "--no-chunk", "--fresh").counters
    assert whole["chunks"] == 4
    assert {
        id_: len(points) for id_, points in stored(ragingest.folder, ["same", "text", "meta", "long"]).items()
    } == {
        "same": 1,
        "text": 1,
        "meta": 1,
        "long": 1,
    }


@pytest.mark.parametrize(
    "changes",
    [
        {("--chunk-size", "256"): "--chunk-size was 512 and is now 256"},
        {
            ("--chunk-overlap", "0"): "--chunk-overlap was 64 and is now 0",
            ("--no-chunk",): "--chunk/--no-chunk was True and is now False",
            ("--text-field", "text", "--text-field", "title"): "--text-field was text and is now text,title",
            ("--metadata-field", "metadata"): "--metadata-field was not given and is now metadata",
            ("--id-field", "key"): "--id-field was id and is now key",
            ("--collection", "other"): "--collection was documents and is now other",
            ("--store-path", "elsewhere"): "--store-path was",
            ("--dimensions", "16"): "--dimensions was not given and is now 16",
        },
    ],
)
def test_other_settings_are_refused_with_flag_old_and_new_value(
    loaded: Command, changes: dict[tuple[str, ...], str]
) -> None:
    flags = [word for flag in changes for word in flag]
    refused = loaded("run", "source.jsonl", "--job", "j", *NO_WORK, *flags, code=6)
    for told in changes.values():
        assert told in refused.said
    assert refused.said.count(" and is now ") == len(changes)
    assert "--fresh" in refused.err


def test_another_source_or_store_under_the_same_name_is_refused(loaded: Command) -> None:
    other = loaded.write("other.jsonl", records())
    refused = loaded("run", other, "--job", "j", "--embedder", "wordllama", code=6)
    assert f"SOURCE was {loaded.folder / 'source.jsonl'} and is now {other}" in refused.said
    assert "--embedder was null and is now wordllama" in refused.said
    assert "--store was null and is now qdrant-edge" in refused.said


def test_how_a_job_runs_may_change_from_run_to_run(ragingest: Command) -> None:
    source = ragingest.write("source.jsonl", records())
    ragingest.json("run", source, "--job", "j", *NO_WORK)
    options = ("--batch-size", "2", "--concurrency", "1", "--max-record-bytes", "1MiB", "--max-memory", "90%")
    assert ragingest.json("run", source, "--job", "j", *NO_WORK, *options).counters["unchanged"] == 4


def test_a_collection_that_somebody_emptied_is_not_taken_for_full(ragingest: Command) -> None:
    source = ragingest.write("source.jsonl", records())
    ragingest.json("run", source, "--job", "j")
    shutil.rmtree(ragingest.folder / "ragingest_data")
    refused = ragingest("run", source, "--job", "j", code=6)
    assert "the collection documents is empty" in refused.said
    assert ragingest.json("run", source, "--job", "j", "--fresh").counters["stored"] == 4
    assert len(stored(ragingest.folder, ["same", "text", "meta", "long"])) == 4


def test_without_its_checkpoint_a_ledger_is_not_believed(ragingest: Command) -> None:
    source = ragingest.write("source.jsonl", [{"id": "a", "text": "one"}, {"id": "b", "text": "two"}])
    ragingest.json("run", source, "--job", "j")
    for path in (ragingest.folder / "checkpoints").glob("j.json*"):
        path.unlink()
    ragingest.write("source.jsonl", [{"id": "b", "text": "three"}, {"id": "a", "text": "one"}])
    again = ragingest("run", source, "--job", "j", "--json")
    assert "no checkpoint any more" in again.err
    assert again.counters["stored"] == again.counters["embedded"] == 2
    assert stored(ragingest.folder, ["a", "b"])["b"][0].text == "three"


def test_resume_runs_a_finished_job_again(ragingest: Command) -> None:
    source = ragingest.write("source.jsonl", records())
    ragingest.json("run", source, "--job", "j", *NO_WORK)
    again = ragingest("resume", "j", "--json")
    assert "was finished" in again.err
    assert again.counters["unchanged"] == 4
    unknown = ragingest("resume", "k", code=2)
    assert "jobs there: j" in unknown.err


def test_a_job_means_the_same_from_every_folder(ragingest: Command, tmp_path: Path) -> None:
    ragingest.write("source.jsonl", records())
    ragingest.json("run", "source.jsonl", "--job", "j")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    again = Command(elsewhere).json("resume", "j", "--checkpoint-dir", tmp_path / "checkpoints")
    assert again.counters["unchanged"] == 4
    assert len(stored(tmp_path, ["same", "text", "meta", "long"])) == 4
    assert list(elsewhere.iterdir()) == []
