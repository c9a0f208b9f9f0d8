"""What can be done with the state of jobs: `ragingest failures` and `ragingest jobs ...`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.e2e.command import HANDBOOK, NO_WORK, SAMPLE_DATA, Command, opened

DIRTY = SAMPLE_DATA / "dirty.jsonl"


@pytest.fixture
def dirty(ragingest: Command) -> Command:
    """A finished job `d` with rejects."""
    ragingest("run", DIRTY, "--job", "d", "--max-errors", "100", *NO_WORK, code=1)
    return ragingest


# -- failures ----------------------------------------------------------------------------------------


def test_failures_are_the_rejects_of_the_run_each_counted_once(dirty: Command) -> None:
    found = dirty("failures", "d", "--json", code=1).document
    rejects = dirty.rejects("d")
    assert found["rejected"] == sum(group["count"] for group in found["groups"]) == len(rejects)
    assert found["read"] == 56
    by_line = {reject["position"]["line"]: reject for reject in rejects}
    for group in found["groups"]:
        assert group["share"] == group["count"] / 56
        assert group["advice"]
        for example in group["examples"]:
            reject = by_line[example["position"]["line"]]
            assert (reject["stage"], reject["error"]) == (group["stage"], group["error"])
            assert (reject["id"], reject["message"]) == (example["id"], example["message"])
            assert group["first"] <= reject["at"] <= group["last"]


def test_without_a_job_all_of_them_are_told_and_the_report_says_the_same(dirty: Command) -> None:
    dirty("run", HANDBOOK, "--job", "fine", *NO_WORK)
    result = dirty("failures", "--report", "alert.html", code=1)
    assert "d: run 1 completed, 21 of 56 records rejected (38 %)" in result.out
    assert "fine" not in result.out
    page = (dirty.folder / "alert.html").read_text()
    assert "1 of 2 jobs with failures" in page
    assert "21 of 56 records rejected" in page
    assert [job["job"] for job in dirty("failures", "--json", code=1).document] == ["d", "fine"]


def test_a_job_in_which_nothing_went_wrong_exits_with_zero(ragingest: Command) -> None:
    ragingest("run", HANDBOOK, "--job", "fine", *NO_WORK)
    assert ragingest("failures", "fine").out == ragingest("failures").out == "nothing went wrong\n"


def test_what_stopped_a_job_as_a_whole_is_told_with_what_to_do(ragingest: Command) -> None:
    records = [{"id": str(n)} for n in range(200)]
    ragingest("run", ragingest.write("bad.jsonl", records), "--job", "bad", *NO_WORK, code=3)
    found = ragingest("failures", "bad", "--json", code=1).document
    assert found["status"] == "failed"
    assert "records were rejected" in found["message"]
    assert "--max-errors" in found["hint"]
    said = ragingest("failures", code=1).said
    assert found["message"] in said
    assert found["hint"] in said


def test_a_report_that_cannot_be_written_is_one_message(dirty: Command) -> None:
    result = dirty("failures", "--report", "missing/alert.html", code=4)
    assert "missing/alert.html cannot be written" in result.err


# -- retry -------------------------------------------------------------------------------------------


def test_a_retry_of_mended_records_takes_them_off_the_list_and_tells_the_rest(dirty: Command) -> None:
    mended = [{"id": "dirty-no-text", "text": "now with text"}, {"id": "dirty-number-text", "text": 7}, {"id": "x"}]
    path = dirty.write("mended.jsonl", mended)
    before = dirty.rejects("d")
    result = dirty("retry", "d", "--from", path, "--json", code=1)
    assert result.counters["rejected"] == len(before) - 1
    assert (result.document["status"], result.document["run"]) == ("completed", 1)
    assert "1 passed over" in result.err
    left = {reject["position"]["line"]: reject for reject in dirty.rejects("d")}
    assert len(left) == len(before) - 1
    again = next(reject for reject in left.values() if reject["id"] == "dirty-number-text")
    assert json.loads(again["record"]) == mended[1]
    assert sum(dirty.checkpoint("d")["reject_kinds"].values()) == len(left)
    archived = sorted((dirty.folder / "checkpoints" / "completed").iterdir())
    assert json.loads(archived[-1].read_bytes())["counters"]["rejected"] == len(left)


def test_a_retry_after_an_outage_needs_no_file_and_empties_the_list(ragingest: Command) -> None:
    big = {"id": "big", "text": "x" * 3000}
    source = ragingest.write("corpus.jsonl", [{"id": "a", "text": "a"}, big, {"id": "b", "text": "b"}])
    ragingest("run", source, "--job", "j", "--max-record-bytes", "2000B", *NO_WORK, code=1)
    assert ragingest("retry", "j", "--json", code=1).counters["rejected"] == 1
    counters = ragingest("retry", "j", "--max-record-bytes", "1MB", "--json").counters
    assert (counters["read"], counters["stored"], counters["rejected"]) == (3, 3, 0)
    assert ragingest.rejects("j") == []
    assert ragingest("failures").out == "nothing went wrong\n"
    assert ragingest("retry", "j", "--json").counters == counters


def test_only_a_finished_job_with_its_list_can_be_retried(ragingest: Command) -> None:
    source = ragingest.write("bad.jsonl", [{"id": str(n)} for n in range(200)])
    ragingest("run", source, "--job", "j", *NO_WORK, code=3)
    assert "ragingest resume j" in ragingest("retry", "j", code=2).err
    ragingest("resume", "j", "--max-errors", "100%", code=1)
    assert "there is no file" in ragingest("retry", "j", "--from", "missing.jsonl", code=4).err
    (ragingest.folder / "checkpoints" / "j.rejects.jsonl").unlink()
    assert "is gone" in ragingest("retry", "j", code=2).err


# -- list, rm, unlock --------------------------------------------------------------------------------


def test_jobs_lists_what_is_kept_also_where_the_checkpoint_is_gone_or_damaged(dirty: Command) -> None:
    for name in ("lost", "broken"):
        dirty("run", HANDBOOK, "--job", name, *NO_WORK)
    for path in (dirty.folder / "checkpoints").glob("lost.json*"):
        path.unlink()
    for path in (dirty.folder / "checkpoints").glob("broken.json*"):
        path.write_bytes(b"{")
    listed = {job["job"]: job for job in dirty("jobs", "--json").document}
    assert {name: job["status"] for name, job in listed.items()} == {
        "broken": "unreadable",
        "d": "completed",
        "lost": "no checkpoint",
    }
    assert (listed["d"]["read"], listed["d"]["rejected"], listed["d"]["run"]) == (56, 21, 1)
    assert all(job["size"] > 0 for job in listed.values())
    assert [line.split()[0] for line in dirty("jobs").out.splitlines()] == ["job", "broken", "d", "lost"]
    for name in listed:
        dirty("jobs", "rm", name, "--yes")
    assert "no jobs in checkpoints" in dirty("jobs").out


def test_rm_deletes_all_of_a_job_and_nothing_else(dirty: Command) -> None:
    folder = dirty.folder / "checkpoints"
    dirty("run", HANDBOOK, "--job", "d.b", *NO_WORK)
    (folder / "d.vectors.0123456789abcdef").write_bytes(b"paid")
    (folder / "embeddings.0123456789abcdef").write_bytes(b"shared")
    refused = dirty("jobs", "rm", "d", code=2)
    assert "--yes" in refused.err
    assert dirty("stats", "d", "--json").document["status"] == "completed"
    removed = dirty("jobs", "rm", "d", "--yes", "--json").document
    assert {Path(path).name.partition(".")[0] for path in removed["removed"]} >= {"d"}
    left = {path.name for path in folder.rglob("*") if path.is_file()}
    assert {
        name for name in left if name.startswith(("d.", "d_")) and not name.startswith(("d.b.", "d.b_"))
    } == set()
    assert "embeddings.0123456789abcdef" in left
    assert dirty("stats", "d.b", "--json").document["status"] == "completed"
    dirty("jobs", "rm", "d", "--yes", code=2)


def test_unlock_explains_that_nobody_holds_a_lock(dirty: Command) -> None:
    lock = dirty.folder / "checkpoints" / "d.lock"
    lock.touch()
    assert dirty("jobs", "unlock", "d").out == "d is not locked\n"
    assert not lock.exists()


# -- export, import ----------------------------------------------------------------------------------


def test_a_job_moved_to_another_machine_embeds_nothing_again(ragingest: Command, tmp_path: Path) -> None:
    source = ragingest.folder / "corpus.jsonl"
    shutil.copy(HANDBOOK, source)
    ragingest("run", source, "--job", "j", "-c", "c")
    ragingest("jobs", "export", "j", "j.tar")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("corpus.jsonl", "j.tar", "ragingest_data"):
        shutil.move(ragingest.folder / name, elsewhere / name)
    shutil.rmtree(ragingest.folder / "checkpoints")
    other = Command(elsewhere)
    said = other("jobs", "import", "j.tar", "--source", "corpus.jsonl", "--store-path", "ragingest_data").out
    assert "ragingest resume j" in said
    counters = other.json("resume", "j").counters
    assert (counters["embedded"], counters["unchanged"]) == (0, counters["read"])
    assert "already" in other("jobs", "import", "j.tar", code=2).err


# -- repair ------------------------------------------------------------------------------------------


def records(count: int, words: int = 10) -> list[dict[str, object]]:
    return [
        {"id": f"doc-{n}", "text": " ".join(f"word{n}x{k}" for k in range(words * (1 + 30 * (n % 10 == 0))))}
        for n in range(count)
    ]


SETTINGS = ("--job", "j", "-c", "c", "--chunk-size", "64", "--chunk-overlap", "8")


@pytest.fixture
def loaded(ragingest: Command) -> Command:
    """A job `j` with documents of one and of several chunks."""
    result = ragingest.json("run", ragingest.write("corpus.jsonl", records(60)), *SETTINGS)
    assert result.counters["chunks"] > result.counters["stored"]
    return ragingest


def test_a_lost_checkpoint_folder_is_rebuilt_from_the_store(loaded: Command) -> None:
    shutil.rmtree(loaded.folder / "checkpoints")
    assert "give the source" in loaded("jobs", "repair", "j", code=2).err
    done = json.loads(loaded("jobs", "repair", "j", "corpus.jsonl", *SETTINGS[2:], "--json").out)
    assert (done["documents"], done["incomplete"]) == (60, 0)
    counters = loaded.json("run", "corpus.jsonl", *SETTINGS).counters
    assert (counters["unchanged"], counters["embedded"]) == (60, 0)


def test_only_documents_whose_chunks_are_all_there_count_as_stored(loaded: Command) -> None:
    with opened(loaded.folder, "c") as store:
        assert store.fetch([("doc-10", 2), ("doc-20", 0), ("doc-1", 0)])[0].chunks
        store.delete([("doc-10", 2), ("doc-20", 0), ("doc-1", 0)])
        store.flush()
    done = json.loads(loaded("jobs", "repair", "j", "--json").out)
    assert (done["documents"], done["incomplete"]) == (57, 2)
    counters = loaded.json("resume", "j").counters
    assert (counters["unchanged"], counters["stored"]) == (57, 3)
    assert loaded.json("resume", "j").counters["unchanged"] == 60


@pytest.mark.parametrize("damage", [b"", b"x" * 9000])
def test_damaged_state_is_rebuilt_too(loaded: Command, damage: bytes) -> None:
    folder = loaded.folder / "checkpoints"
    for name in ("j.json", "j.json.bak", "j.ledger.sqlite"):
        (folder / name).write_bytes(damage)
    loaded("jobs", "repair", "j")
    counters = loaded.json("resume", "j").counters
    assert (counters["unchanged"], counters["embedded"]) == (60, 0)


def test_a_document_that_shrank_after_the_repair_loses_its_leftovers(loaded: Command) -> None:
    loaded("jobs", "repair", "j")
    loaded.write("corpus.jsonl", [{**record, "text": "short now"} for record in records(60)])
    loaded.json("resume", "j")
    with opened(loaded.folder, "c") as store:
        assert store.count() == 60


def test_documents_of_another_job_are_not_deleted_after_a_repair(loaded: Command) -> None:
    other = loaded.write("other.jsonl", [{"id": "other", "text": "of another job"}])
    loaded("run", other, "--job", "k", *SETTINGS[2:])
    loaded("jobs", "repair", "j")
    assert loaded.json("resume", "j").counters["unchanged"] == 60
    loaded.write("corpus.jsonl", records(50))
    counters = loaded.json("resume", "j", "--delete-missing").counters
    assert (counters["removed"], counters["unchanged"]) == (10, 50)
    with opened(loaded.folder, "c") as store:
        assert len(store.fetch([("other", 0)])) == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("corpus.jsonl", *SETTINGS[2:-1], "9"), "--chunk-overlap was 8 and is now 9"),
        (("corpus.jsonl", *SETTINGS[2:], "--embedder", "null"), "--embedder was wordllama and is now null"),
    ],
)
def test_settings_that_disagree_with_the_checkpoint_are_refused(
    loaded: Command, options: tuple[str, ...], told: str
) -> None:
    assert told in loaded("jobs", "repair", "j", *options, code=6).err


def test_a_collection_that_another_embedder_made_is_refused(loaded: Command) -> None:
    shutil.rmtree(loaded.folder / "checkpoints")
    result = loaded("jobs", "repair", "j", "corpus.jsonl", *SETTINGS[2:], "--embedder", "null", code=6)
    assert "--embedder wordllama, not null" in result.err


def test_a_store_that_keeps_nothing_cannot_repair(dirty: Command) -> None:
    assert "keeps nothing" in dirty("jobs", "repair", "d", code=2).err


def test_tables_of_the_configuration_reach_the_commands_of_jobs(dirty: Command) -> None:
    (dirty.folder / "checkpoints").rename(dirty.folder / "state")
    (dirty.folder / "ragingest.toml").write_text(
        'checkpoint-dir = "state"\n[jobs]\njson = true\n[jobs.rm]\nyes = true\n'
    )
    assert json.loads(dirty("jobs").out)[0]["job"] == "d"
    dirty("jobs", "rm", "d")
    assert json.loads(dirty("jobs").out) == []
    (dirty.folder / "ragingest.toml").write_text("[jobs.fly]\n")
    assert "a table for no command: jobs fly" in dirty("jobs", code=2).err
