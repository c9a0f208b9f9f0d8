"""`ragingest run --embedder openai-batch`, as people and cron run it: what becomes of batches, and that it is told truly."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.command import SECONDS, Command, Result, clean_environment, stored
from tests.servers import faults
from tests.servers.config import BatchOutcome, ServerConfig
from tests.servers.openai_api import EmbeddingsServer

from .running import KEY, LONG, MODEL, OVER, Place, make

COUNT = 300
SIZE = 50
DIMENSIONS = 16
OPTIONS = (
    *("--job", "j", "--embedder", "openai-batch", "--model", MODEL, "--dimensions", str(DIMENSIONS)),
    *("--batch-size", str(SIZE), "--poll-interval", "0.01", "--checkpoint-interval", "0.1"),
)
PRICE = 0.01
"""Of a million tokens of that model, in batches."""
FINISHED = 1
"""Exit code of a run with rejects."""
WAITING = 75


class Batches(Place):
    def run(self, records: Sequence[object] | None, *more: str, code: int = 0, job: str = "j") -> Result:
        if records is not None:
            self.command.write("corpus.jsonl", records)
        return self.command.json(
            "run", "corpus.jsonl", "--base-url", self.server.base_url, *OPTIONS, *more, code=code
        )

    def check(self, records: Sequence[dict[str, str]], result: Result) -> dict[str, Any]:
        """That these are stored and nothing else, and that all accounts of what it took agree."""
        self.check_stored(records)
        books: dict[str, Any] = result.document["counters"]["books"]
        server = self.server.books
        assert books["texts"] == books["answered"] == server.batch_texts_answered
        assert books["tokens"] == server.batch_tokens_answered
        assert books["cost"] == books["tokens"] * PRICE / 1e6
        assert books["batches"] == books["batches_done"]
        assert set(server.batch_times_answered.values()) == {1}
        assert server.requests == 0
        assert self.command("stats", "j", "--json").document["counters"]["books"] == books
        self.check_secret(result)
        left = {path.name for path in (self.folder / "checkpoints").iterdir()}
        assert left <= {"j.json", "j.json.bak", "j.ledger.sqlite", "j.rejects.jsonl", "j.lock", "completed"}
        return books


@pytest.fixture
def server() -> Iterator[EmbeddingsServer]:
    with EmbeddingsServer(ServerConfig(api_key=KEY)) as server:
        yield server


@pytest.fixture
def place(tmp_path: Path, server: EmbeddingsServer) -> Batches:
    return Batches(Command(tmp_path, {"OPENAI_API_KEY": KEY}), server)


def without(records: Sequence[dict[str, str]], *numbers: int) -> list[dict[str, str]]:
    return [record for number, record in enumerate(records) if number not in numbers]


# -- when all goes well ------------------------------------------------------------------------------------


def test_everything_is_stored_at_half_the_price(place: Batches) -> None:
    records = make(COUNT)
    books = place.check(records, place.run(records))
    assert books["batches"] == place.server.books.batches_created == COUNT // SIZE
    assert books["requests"] == COUNT
    assert set(place.server.books.batch_times_submitted.values()) == {1}


def test_a_text_that_comes_again_anywhere_is_submitted_once(place: Batches) -> None:
    records = [
        {"id": f"{turn}:{record['id']}", "text": record["text"]} for turn in range(3) for record in make(COUNT)
    ]
    books = place.check(records, place.run(records))
    assert books["texts"] == COUNT
    assert set(place.server.books.batch_times_submitted.values()) == {1}


def test_the_last_version_of_a_document_wins_though_its_vector_comes_first(place: Batches) -> None:
    # The first batch, with the first versions, is done over; the second, with the last ones, comes earlier.
    old, new = make(SIZE), [{"id": f"doc-{n:05}", "text": f"A newer version of {n}."} for n in range(SIZE)]
    padding = [{"id": f"pad-{n}", "text": f"Between them: {n}", "pad": "." * 4000} for n in range(2 * SIZE)]
    place.server.plan_batches([BatchOutcome(end="expired", done=0)])
    result = place.run([*old, *padding, *new])
    assert result.counters["duplicate"] == SIZE
    assert result.counters["stored"] == 3 * SIZE
    found = place.command("search", "A newer version of 7.", "--dense", "--json", "-n", "1").document[0]
    assert (found["id"], found["text"]) == ("doc-00007", "A newer version of 7.")


def test_cron_submits_leaves_fetches_and_stores(place: Batches) -> None:
    records = make(COUNT)
    left = place.run(records, "--no-wait", code=WAITING)
    assert left.document["status"] == "waiting"
    assert left.counters["read"] == 0
    assert "6 batches under way at openai, 0 done" in left.said
    assert "ragingest resume j" in left.said
    told = place.command("stats", "j", "--json").document
    assert told["status"] == "waiting"
    assert (told["counters"]["books"]["batches"], told["counters"]["books"]["batches_done"]) == (6, 0)
    assert "6 batches (0 done)" in place.command("stats", "j").said
    assert place.command.json("resume", "j", code=WAITING).counters["stored"] == 0
    for _ in range(4):
        place.server.advance()
    place.check(records, place.command.json("resume", "j"))
    assert set(place.server.books.batch_times_submitted.values()) == {1}


def test_a_job_done_by_batches_goes_on_at_once_through_the_ordinary_api(place: Batches) -> None:
    records = make(COUNT)
    place.run(records)
    more = make(COUNT + 10)
    result = place.run(more, "--embedder", "openai")
    assert result.counters["read"] == result.counters["stored"] == 10
    assert place.server.books.texts_answered == 10
    place.check_stored(more)


def test_its_ledger_is_rebuilt_from_what_the_batches_made(place: Batches) -> None:
    place.run(make(60))
    place.command("jobs", "repair", "j")
    assert place.run(None).counters["unchanged"] == 60


def test_a_plan_foretells_the_batches(place: Batches) -> None:
    records = make(COUNT)
    place.command.write("corpus.jsonl", records)
    arguments = ("corpus.jsonl", "--embedder", "openai-batch", "--model", MODEL, "--batch-size", str(SIZE))
    plan = place.command("plan", *arguments, "--json").document
    books = place.check(records, place.run(None))
    assert plan["batches"] == books["batches"]
    assert plan["requests"] == books["requests"]
    assert plan["dollars"] == pytest.approx(books["cost"], rel=0.25)
    assert "6 batches" in place.command("plan", *arguments).said


def test_starting_over_keeps_what_is_under_way(place: Batches) -> None:
    records = make(COUNT)
    place.run(records, "--no-wait", code=WAITING)
    place.check(records, place.run(None, "--fresh"))
    assert set(place.server.books.batch_times_submitted.values()) == {1}


def test_who_does_not_want_to_wait_any_more_buys_the_texts_again_and_is_told(place: Batches) -> None:
    records = make(COUNT)
    place.run(records, "--no-wait", code=WAITING)
    command = ("run", "corpus.jsonl", "--base-url", place.server.base_url, *OPTIONS, "--embedder", "openai")
    assert "does not wait for the batches that are under way" in place.command(*command).err
    assert place.server.books.texts_answered == COUNT
    place.check_stored(records)


def test_kept_embeddings_serve_the_ordinary_api_too(place: Batches) -> None:
    records = make(SIZE)
    place.run(records, "--keep-embeddings")
    place.run(None, "--keep-embeddings", "--embedder", "openai", "--job", "k", "--collection", "other")
    assert place.server.books.requests == 0
    place.check_stored(records, "other")


# -- when something goes wrong -----------------------------------------------------------------------------


def test_refused_texts_are_rejected_and_submitted_once(place: Batches) -> None:
    records = make(COUNT, poisoned=(7, 120, 121))
    result = place.run(records, code=FINISHED)
    place.check(without(records, 7, 120, 121), result)
    rejects = place.command.rejects("j")
    assert sorted(reject["id"] for reject in rejects) == ["doc-00007", "doc-00120", "doc-00121"]
    assert {reject["error"] for reject in rejects} == {"refused_by_embedder"}
    assert set(place.server.books.batch_times_submitted.values()) == {1}


@pytest.mark.parametrize("end", ["expired", "cancelled"])
def test_of_a_batch_that_ended_early_the_rest_is_submitted_again(place: Batches, end: Any) -> None:
    records = make(COUNT)
    place.server.plan_batches([BatchOutcome(), BatchOutcome(end=end, done=20), BatchOutcome(end=end, done=0)])
    result = place.command(
        *("run", place.command.write("corpus.jsonl", records), "--base-url", place.server.base_url),
        *(*OPTIONS, "--json"),
    )
    place.check(records, result)
    times = place.server.books.batch_times_submitted.values()
    assert sorted(times) == [1] * (COUNT - 80) + [2] * 80
    assert f"batch 2 is {end}" in result.err


def test_texts_at_which_the_server_fails_are_submitted_again(place: Batches) -> None:
    records = make(COUNT)
    place.server.plan_batches(
        [BatchOutcome(failing=(0, 3, 49), status=500), BatchOutcome(failing=(1,), status=429)]
    )
    place.check(records, place.run(records))
    assert sorted(place.server.books.batch_times_submitted.values())[-5:] == [1, 2, 2, 2, 2]


def test_a_server_that_always_fails_at_a_text_stops_the_run_which_can_be_resumed(place: Batches) -> None:
    records = make(SIZE)
    place.server.plan_batches([BatchOutcome(failing=(0,), status=500)] * 5)
    failed = place.run(records, code=4)
    assert "failed 5 times at the same text" in failed.said
    place.check(records, place.command.json("resume", "j"))


@pytest.mark.parametrize("fault", [faults.cut_json(), faults.cut_body(), faults.html()])
def test_results_that_arrive_cut_are_downloaded_again(place: Batches, fault: faults.Fault) -> None:
    records = make(SIZE)
    # The first request to the files is the upload, the second the download.
    place.server.script([None, fault, fault], endpoint="files")
    place.check(records, place.run(records))
    assert place.server.books.faults == {fault.kind: 2}
    assert set(place.server.books.batch_times_submitted.values()) == {1}


@pytest.mark.parametrize("endpoint", ["files", "batches"])
def test_an_answer_that_is_lost_is_asked_for_and_nothing_is_done_twice(place: Batches, endpoint: Any) -> None:
    records = make(SIZE)
    place.server.script([faults.reset_after(), None, faults.reset_before()], endpoint=endpoint)
    place.check(records, place.run(records))
    books = place.server.books
    assert (books.files_uploaded, books.batches_created) == (1, 1)
    assert books.faults == {"reset_after": 1, "reset_before": 1}


def test_a_batch_that_fails_its_validation_stops_the_run_with_its_reason(place: Batches) -> None:
    records = make(COUNT)
    place.server.plan_batches([BatchOutcome(end="failed")])
    failed = place.run(records, code=4)
    assert "refused batch 1: The batch was refused by the script" in failed.said
    place.check(records, place.command.json("resume", "j"))


@pytest.mark.parametrize("endpoint", ["files", "batches"])
def test_no_money_stops_the_run_which_can_be_resumed(place: Batches, endpoint: Any) -> None:
    records = make(COUNT)
    place.server.script([None, faults.quota()], endpoint=endpoint)
    failed = place.run(records, code=4)
    assert "money or quota" in failed.said
    place.check(records, place.command.json("resume", "j"))
    assert set(place.server.books.batch_times_submitted.values()) == {1}


def test_a_wrong_key_stops_the_run_and_is_not_told(place: Batches) -> None:
    wrong = Batches(Command(place.folder, {"OPENAI_API_KEY": "sk-wrong-0123456789"}), place.server)
    failed = wrong.run(make(SIZE), code=4)
    assert "check the key in OPENAI_API_KEY" in failed.said
    assert "sk-wrong-0123456789" not in failed.said


# -- limits ------------------------------------------------------------------------------------------------


def limited(tmp_path: Path, tokens: int) -> Iterator[Batches]:
    """A server whose queue takes so many tokens; each byte is one."""
    config = ServerConfig(api_key=KEY, batch_enqueued_tokens=tokens, tokens_per_ascii_byte=0.25)
    with EmbeddingsServer(config) as server:
        yield Batches(Command(tmp_path, {"OPENAI_API_KEY": KEY}), server)


@pytest.mark.parametrize("tokens", [900, 1800, 300])
def test_a_queue_that_is_full_is_waited_for_and_batches_are_made_to_fit_it(tmp_path: Path, tokens: int) -> None:
    """A batch of 50 texts has some 750 tokens."""
    records = make(COUNT)
    for place in limited(tmp_path, tokens):
        place.check(records, place.run(records))
        assert set(place.server.books.batch_times_submitted.values()) == {1}


@pytest.mark.parametrize("limit", ["--max-tokens=5000", "--max-cost=0.00005"])
def test_a_limit_stops_the_run_before_the_batch_that_could_exceed_it(place: Batches, limit: str) -> None:
    records = make(COUNT)
    stopped = place.run(records, limit, code=4)
    assert f"the next batch would exceed {limit.partition('=')[0]}" in stopped.said
    assert stopped.document["counters"]["books"]["tokens"] <= 5000
    assert place.server.books.batches_created < COUNT // SIZE
    place.check(records, place.command.json("resume", "j", f"{limit.partition('=')[0]}=1000000"))
    assert set(place.server.books.batch_times_submitted.values()) == {1}


def test_standard_input_is_refused_because_it_cannot_be_read_twice(place: Batches) -> None:
    refused = place.command("run", "-", *OPTIONS, code=2)
    assert "reads the source several times" in refused.said


def test_a_signal_while_it_waits_ends_the_run_and_loses_nothing(place: Batches) -> None:
    records = make(COUNT)
    place.command.write("corpus.jsonl", records)
    command = ("run", "corpus.jsonl", "--base-url", place.server.base_url, *OPTIONS, "--poll-interval", "600")
    process = subprocess.Popen(
        [sys.executable, "-m", "ragingest", *command, "--json", "--quiet"],
        cwd=place.folder,
        env=clean_environment(place.command.environment),
        stdout=subprocess.PIPE,
    )
    place.server.wait_until(lambda books: books.others["batches"].get("200", 0) >= 2 * COUNT // SIZE)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert json.loads(out)["status"] == "interrupted"
    place.check(records, place.command.json("resume", "j", "--poll-interval", "0.01"))
    assert set(place.server.books.batch_times_submitted.values()) == {1}


def test_a_source_that_changes_while_the_run_waits_is_read_from_its_start(place: Batches) -> None:
    records = make(COUNT)
    place.run(records, "--no-wait", code=WAITING)
    changed = [*make(COUNT - 10), *({"id": f"new-{n}", "text": f"A new one: {n}"} for n in range(30))]
    result = place.run(changed)
    place.check_stored(changed)
    assert result.document["run"] == 2
    assert set(place.server.books.batch_times_submitted.values()) == {1}


@pytest.mark.parametrize("ratio", [0.27, 0.9], ids=["as estimated", "denser than estimated"])
def test_what_is_too_long_and_may_be_cut_is_embedded_by_its_beginning_and_kept_whole(
    tmp_path: Path, ratio: float
) -> None:
    with EmbeddingsServer(ServerConfig(api_key=KEY, tokens_per_ascii_byte=ratio)) as server:
        place = Batches(Command(tmp_path, {"OPENAI_API_KEY": KEY}), server)
        records = [*LONG, *make(20)]
        result = place.run(records, "--no-chunk", "--truncate")
        assert result.counters["stored"] == result.counters["chunks"] == len(records)
        assert result.document["counters"]["books"]["truncated"] == len(OVER)
        found = stored(tmp_path, [record["id"] for record in records])
        assert {name: points[0].text for name, points in found.items()} == {
            record["id"]: record["text"] for record in records
        }
        # Once each; where the likely beginning is refused, the certain one after it.
        assert set(server.books.batch_times_submitted.values()) == {1}
        refused = sum(server.books.batch_times_submitted.values()) - server.books.batch_texts_answered
        assert refused == (0 if ratio == 0.27 else 3)


def test_what_is_too_long_and_must_not_be_cut_is_rejected_unsent(place: Batches) -> None:
    result = place.run([*LONG, *make(20)], "--no-chunk", code=FINISHED)
    assert {reject["id"] for reject in place.command.rejects("j")} == OVER
    assert {reject["error"] for reject in place.command.rejects("j")} == {"too_many_tokens"}
    assert sum(place.server.books.batch_times_submitted.values()) == result.counters["stored"]
