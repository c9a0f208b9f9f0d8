"""Disks that are really full or really read-only: one message, nothing lost, and on it goes when there is room."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator

import pytest

from tests.api.running import KEY, MODEL
from tests.faults.harness import SMALL_CHUNKS, SMALL_STEPS, Workplace, make_corpus
from tests.faults.small_disk import SmallDisk
from tests.servers.config import ServerConfig
from tests.servers.openai_api import EmbeddingsServer

pytestmark = pytest.mark.mounts

RUN = ("--job", "j", *SMALL_CHUNKS, *SMALL_STEPS)
CORPUS = make_corpus(250, seed=11)
PLENTY = "size=256m"


def on(place: Workplace, disk: SmallDisk) -> Workplace:
    """The same workplace, where the disk is seen."""
    return Workplace(place.command, disk.inside(place.folder))


@pytest.mark.parametrize("size", ["4k", "40k", "100k", "200k"])
def test_checkpoints_on_a_full_disk(place: Workplace, size: str) -> None:
    source = CORPUS.write(place.folder / "source.jsonl")
    with SmallDisk(place.state, size) as disk:
        there = on(place, disk)
        failed = there.run("run", source, *RUN, "--quiet", "--json", code=4)
        assert failed.err.count("ragingest: ") == 1
        assert re.search(r"No space left|disk is full|disk I/O error", failed.err), failed.err
        assert "then resume" in failed.err
        begun = (disk.there / "j.json").exists()
        disk.change(PLENTY)
        arguments = ("resume", "j") if begun else ("run", str(source), *RUN)
        result = there.run(*arguments, "--json", code=1)
        disk.take_out()
    place.check(CORPUS, result)


def test_a_store_on_a_full_disk(place: Workplace) -> None:
    source = CORPUS.write(place.folder / "source.jsonl")
    with SmallDisk(place.folder / "ragingest_data", "130m") as disk:
        there = on(place, disk)
        failed = there.run("run", source, *RUN, "--quiet", "--json", code=4)
        assert "before it is full" in failed.err
        assert "free some space, then resume" in failed.err
        disk.change("size=512m")
        result = there.resume()
        disk.take_out()
    place.check(CORPUS, result)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddingsServer]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with EmbeddingsServer(ServerConfig(api_key=KEY)) as server:
        yield server


def test_paid_vectors_on_a_full_disk_are_bought_once_but_for_those_under_way(
    place: Workplace, server: EmbeddingsServer
) -> None:
    source = place.folder / "source.jsonl"
    source.write_text("".join(f'{{"id": "d{n}", "text": "Record {n} of many."}}\n' for n in range(400)))
    embedder = ("--embedder", "openai", "--model", MODEL, "--base-url", server.base_url, "--batch-size", "20")
    with SmallDisk(place.state, "300k") as disk:
        there = on(place, disk)
        options = ("--job", "j", *embedder, "--max-concurrency", "2", "--checkpoint-interval", "0.05")
        failed = there.run("run", source, *options, "--quiet", "--json", code=4)
        assert failed.err.count("ragingest: ") == 1
        assert re.search(r"No space left|disk is full|disk I/O error", failed.err), failed.err
        disk.change(PLENTY)
        result = there.resume(code=0)
        disk.take_out()
    assert result.counters["stored"] == 400
    assert server.books.texts_answered - 400 <= 4 * 20  # two on the wire, two whose answer could not be kept


@pytest.fixture
def loaded(place: Workplace) -> Workplace:
    CORPUS.write(place.folder / "source.jsonl")
    place.run("run", "source.jsonl", *RUN, code=1)
    return place


def test_a_read_only_folder_is_told_before_anything_is_done_and_can_be_looked_at(loaded: Workplace) -> None:
    before = loaded.embedded()
    kept = {path.name: path.read_bytes() for path in loaded.state.iterdir() if path.is_file()}
    with SmallDisk(loaded.state, PLENTY.removeprefix("size=")) as disk:
        for name, data in kept.items():
            (disk.there / name).write_bytes(data)
        disk.change("ro")
        there = on(loaded, disk)
        for command in (
            ("run", "source.jsonl", *RUN),
            ("resume", "j"),
            ("retry", "j"),
            ("jobs", "rm", "j", "--yes"),
        ):
            refused = there.run(*command, code=4)
            assert "checkpoints" in refused.err
            assert re.search("Read-only file system|no permission to write", refused.err), refused.err
            assert "--checkpoint-dir" in refused.err
        assert there.run("stats", "j", "--json").document["status"] == "completed"
        assert there.run("failures", "j", "--json", code=1).document["rejected"] == len(CORPUS.rejected)
        assert there.run("jobs", "--json").document[0]["job"] == "j"
        assert {path.name: path.read_bytes() for path in disk.there.iterdir()} == kept
    assert loaded.embedded() == before
    loaded.check(CORPUS, loaded.resume())


def test_a_state_is_exported_and_imported_whole_or_not_at_all(loaded: Workplace) -> None:
    loaded.command("jobs", "export", "j", "j.tar")
    size = (loaded.folder / "j.tar").stat().st_size
    elsewhere = loaded.folder / "elsewhere"
    with SmallDisk(elsewhere, f"{size // 2048}k") as disk:
        there = on(loaded, disk)
        failed = there.run("jobs", "export", "j", str(elsewhere / "j.tar"), code=4)
        assert "cannot be written: database or disk is full" in failed.err
        assert not list(disk.there.iterdir())
        failed = there.run("jobs", "import", "j.tar", "--checkpoint-dir", str(elsewhere), code=4)
        assert "No space left" in failed.err
        assert {path.name for path in disk.there.iterdir()} <= {"j.lock"}
        disk.change(PLENTY)
        there.run("jobs", "import", "j.tar", "--checkpoint-dir", str(elsewhere))
        assert json.loads((disk.there / "j.json").read_bytes())["status"] == "completed"


@pytest.mark.parametrize("command", [("failures", "j", "--report", "/dev/full")])
def test_a_report_that_has_no_room_is_one_message(loaded: Workplace, command: tuple[str, ...]) -> None:
    failed = loaded.command(*command, code=4)
    assert "/dev/full cannot be written: No space left on device" in failed.err


@pytest.mark.parametrize(
    "command", [("stats", "j"), ("stats", "j", "--json"), ("resume", "j", "--json"), ("search", "x")]
)
def test_standard_output_without_room_is_no_traceback(loaded: Workplace, command: tuple[str, ...]) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    process = loaded.start(*command, stdout=full)
    os.close(full)
    _, err = process.communicate()
    assert b"Traceback" not in err, err
    assert process.returncode == 4
