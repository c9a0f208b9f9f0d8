"""State that was damaged, lost with the power, or is on a full disk; and who may read it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.command import NO_WORK
from tests.faults.harness import SMALL_CHUNKS, SMALL_STEPS, Workplace, finish, make_corpus, write_checkpoint

RUN = ("--job", "j", *SMALL_CHUNKS, *SMALL_STEPS)
SMALL = make_corpus(250, seed=11)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _fill(path: Path) -> None:
    path.write_bytes(b"\xff" * 3000)


def _edit(path: Path) -> None:
    checkpoint = json.loads(path.read_bytes())
    checkpoint["counters"]["chunks"] += 1
    path.write_text(json.dumps(checkpoint))


def _swap(path: Path) -> None:
    write_checkpoint(path, job="other")


def _overwrite_pages(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:8192] + b"\xff" * (len(data) - 8192))


@pytest.mark.parametrize("damage", [_cut, _empty, _fill, _edit, _swap])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(
    place: Workplace, damage: Callable[[Path], None]
) -> None:
    source = SMALL.write(place.folder / "source.jsonl")
    place.run("run", source, *RUN, *NO_WORK, code=1)
    damage(place.state / "j.json")
    result = place.resume()
    assert "j.json" in result.err
    assert "continuing from the one before" in result.err
    assert result.document["run"] == 1
    assert result.counters["read"] == len(SMALL.lines)
    place.check_rejects(SMALL)


def test_with_both_checkpoints_damaged_fresh_is_told_and_gives_the_same_store(place: Workplace) -> None:
    source = SMALL.write(place.folder / "source.jsonl")
    command = ("run", source, *RUN, "--json")
    first = place.run(*command, code=1).counters
    _cut(place.state / "j.json")
    _edit(place.state / "j.json.bak")
    (place.folder / "empty.jsonl").touch()
    place.command("run", "empty.jsonl", "--job", "whole", *NO_WORK)

    failed = place.run(*command, code=4)
    assert "j.json cannot be read" in failed.err
    assert "j.json.bak cannot be read: its checksum does not match" in failed.err
    assert "--fresh" in failed.err
    table = place.command("stats")
    assert "whole" in table.out
    assert "j.json cannot be read" in table.err

    again = place.run(*command, "--fresh", code=1)
    assert place.check(SMALL, again) == first


@pytest.mark.parametrize("damage", [_fill, _overwrite_pages])
def test_a_damaged_ledger_is_told_and_fresh_begins_it_anew(
    place: Workplace, damage: Callable[[Path], None]
) -> None:
    source = SMALL.write(place.folder / "source.jsonl")
    command = ("run", source, *RUN, "--json")
    first = place.run(*command, code=1).counters
    damage(place.state / "j.ledger.sqlite")
    failed = place.run(*command, code=4)
    assert "j.ledger.sqlite is damaged" in failed.err
    assert "--fresh" in failed.err
    again = place.run(*command, "--fresh", code=1)
    assert "the ledger was damaged and is begun anew" in again.err
    assert place.check(SMALL, again) == first


def test_after_a_restart_of_the_machine_only_what_was_flushed_is_believed(place: Workplace) -> None:
    source = SMALL.write(place.folder / "source.jsonl")
    rarely = ("--checkpoint-interval", "3600")
    place.run("run", source, *RUN, *rarely, fault="kill:after:Ledger.commit:6", code=-signal.SIGKILL)
    lost = place.in_ledger()
    assert lost
    place.lose(lost)
    write_checkpoint(place.state / "j.json", boot="another boot")
    result = place.resume()
    assert f"restarted since: {len(lost):,} documents are stored again" in result.err
    place.check(SMALL, result)
    assert "restarted" not in place.resume().err


def test_after_a_restart_a_stream_is_not_believed_either(place: Workplace) -> None:
    source = SMALL.write(place.folder / "source.jsonl")
    rarely = ("--checkpoint-interval", "3600")
    with source.open("rb") as stdin:
        process = place.start("run", "-", *RUN, *rarely, fault="kill:after:Ledger.commit:6", stdin=stdin)
        finish(process, -signal.SIGKILL)
    lost = place.in_ledger()
    assert lost
    place.lose(lost)
    write_checkpoint(place.state / "j.json", boot="another boot")
    with source.open("rb") as stdin:
        result = place.resume(stdin=stdin)
    assert f"restarted since: {len(lost):,} documents are stored again" in result.err
    place.check(SMALL, result)


def test_a_full_disk_under_the_checkpoints_is_one_message_and_loses_nothing(place: Workplace) -> None:
    source = SMALL.write(place.folder / "source.jsonl")
    failed = place.run("run", source, *RUN, "--quiet", "--json", fault="full:before:write_durably:2", code=4)
    assert "checkpoints cannot be written: No space left on device" in failed.err
    assert failed.err.count("ragingest: ") == 1
    place.check_books()
    place.check(SMALL, place.resume())


def test_a_full_disk_at_the_start_leaves_no_job_behind(place: Workplace) -> None:
    source = SMALL.write(place.folder / "source.jsonl")
    failed = place.run("run", source, *RUN, "--quiet", fault="full:before:write_durably:1", code=4)
    assert "No space left on device" in failed.err
    assert len(failed.err.splitlines()) == 2
    assert not (place.state / "j.json").exists()
    place.check(SMALL, place.run("run", source, *RUN, "--json", code=1))


def test_a_full_disk_under_the_ledger_is_one_message_and_loses_nothing(place: Workplace) -> None:
    corpus = make_corpus(3000, seed=12)
    source = corpus.write(place.folder / "source.jsonl")
    failed = place.run("run", source, "--job", "j", *NO_WORK, "--json", "--quiet", limit=64 * 1024, code=4)
    assert "the ledger checkpoints/j.ledger.sqlite failed: " in failed.err
    assert failed.err.count("ragingest: ") == 1
    assert failed.counters["read"] < len(corpus.lines)
    result = place.resume()
    assert result.counters["read"] == len(corpus.lines)
    assert result.counters["stored"] == len(corpus.accepted)
    place.check_rejects(corpus)


def test_a_full_disk_under_the_rejects_is_one_message_and_doubles_none(place: Workplace) -> None:
    source = place.folder / "source.jsonl"
    source.write_text('{"id": "x"}\n' * 600)
    command = ("run", source, "--job", "j", "--max-errors", "100%", *NO_WORK, "--json")
    failed = place.run(*command, "--quiet", limit=64 * 1024, code=4)
    assert "j.rejects.jsonl cannot be written: File too large" in failed.err
    assert place.resume().counters["rejected"] == 600
    assert sorted(reject["position"]["line"] for reject in place.command.rejects("j")) == list(range(1, 601))


def test_only_its_owner_may_read_a_jobs_state(place: Workplace) -> None:
    source = SMALL.write(place.folder / "source.jsonl")
    place.run("run", source, *RUN, fault="kill:after:Ledger.commit:6", code=-signal.SIGKILL, umask=0)
    # What a run leaves when it is killed: its write-ahead log too.
    assert {path.name for path in place.state.iterdir()} >= {"j.json", "j.ledger.sqlite-wal", "j.lock"}
    place.resume(umask=0, fault="kill:after:CheckpointManager.archive:1", code=-signal.SIGKILL)
    place.resume(umask=0)
    for path in (place.state, *place.state.rglob("*"), place.folder / "ragingest_data" / "documents"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    assert (place.state / "completed").is_dir()
    assert (place.state / "j.rejects.jsonl").is_file()
