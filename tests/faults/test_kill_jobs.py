"""SIGKILL while the state of a job is deleted, imported or rebuilt: what is left is not believed beyond what it is worth."""

from __future__ import annotations

import signal
import subprocess
from dataclasses import replace

import pytest

from tests.e2e.command import SECONDS
from tests.faults.harness import SMALL_CHUNKS, SMALL_STEPS, Workplace, make_corpus

CORPUS = make_corpus(120, seed=11)
RUN = ("source.jsonl", "--job", "j", *SMALL_CHUNKS, *SMALL_STEPS)


@pytest.fixture
def loaded(place: Workplace) -> Workplace:
    CORPUS.write(place.folder / "source.jsonl")
    place.run("run", *RUN, code=1)
    return place


@pytest.mark.parametrize(
    "fault",
    [
        "kill:before:Ledger.sync:1",
        "kill:before:Path.unlink:1",
        "kill:before:Path.rename:1",
        "kill:after:Path.rename:1",
        "kill:before:CheckpointManager.save:1",
    ],
)
def test_a_repair_that_is_killed_can_be_repeated_and_harms_nothing(loaded: Workplace, fault: str) -> None:
    source = ("source.jsonl", *SMALL_CHUNKS)
    loaded.run("jobs", "repair", "j", *source, fault=fault, code=-signal.SIGKILL)
    loaded.command("jobs", "repair", "j", *source)
    before = len(loaded.embedded())
    counters = loaded.check(CORPUS, loaded.run("run", *RUN, "--json", code=1))
    # A document that comes twice, with two contents, is stored twice in every run.
    assert counters["unchanged"] + counters["stored"] == len(CORPUS.accepted)
    assert counters["stored"] <= CORPUS.duplicates
    assert len(loaded.embedded()) - before == counters["embedded"]


@pytest.mark.parametrize(
    "fault", ["kill:before:Path.unlink:2", "kill:after:Path.rename:1", "kill:before:CheckpointManager.save:1"]
)
def test_an_import_that_is_killed_leaves_a_job_that_runs_right(loaded: Workplace, fault: str) -> None:
    loaded.command("jobs", "export", "j", "j.tar")
    loaded.run("jobs", "import", "j.tar", "--force", fault=fault, code=-signal.SIGKILL)
    loaded.check(CORPUS, loaded.run("run", *RUN, "--json", code=1))
    loaded.command("jobs", "import", "j.tar", "--force")
    loaded.check(CORPUS, loaded.run("run", *RUN, "--json", code=1))


@pytest.mark.parametrize("fault", ["kill:after:Path.unlink:1", "kill:after:Path.unlink:3"])
def test_a_job_that_was_half_deleted_runs_right(loaded: Workplace, fault: str) -> None:
    loaded.run("jobs", "rm", "j", "--yes", fault=fault, code=-signal.SIGKILL)
    loaded.check(CORPUS, loaded.run("run", *RUN, "--json", code=1))


def test_unlock_names_the_process_that_holds_the_lock(place: Workplace) -> None:
    CORPUS.write(place.folder / "source.jsonl")
    place = Workplace(
        replace(place.command, start=subprocess.Popen)
    )  # what is forked has the command line of its parent
    process = place.start("run", *RUN, "--quiet", fault=place.with_gate(2))
    with place.gate(process):
        told = place.command("jobs", "unlock", "j", "--json", code=5).document
        assert told["locked"]
        assert [holder["pid"] for holder in told["holders"]] == [process.pid]
        assert "source.jsonl" in told["holders"][0]["command"]
        assert f"process {process.pid} since" in place.command("jobs", "unlock", "j", code=5).out
        assert f"process {process.pid}" in place.command("jobs", "rm", "j", "--yes", code=5).err
        assert "another process" in place.command("jobs", "export", "j", "j.tar", code=5).err
        process.kill()
        process.communicate(timeout=SECONDS)
    assert "not locked" in place.command("jobs", "unlock", "j").out
