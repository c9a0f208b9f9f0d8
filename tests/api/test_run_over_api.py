"""`ragingest run --embedder openai`, as people run it: what is stored, what is paid, and that both are told truly."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from ragingest.checkpoint.vectors import PaidVectors
from ragingest.embedders.remote import FIRST_CONCURRENCY
from tests.e2e.command import Command, opened, stored
from tests.servers import faults
from tests.servers.faults import Fault, odds

from .running import (
    BATCH,
    LONG,
    MODEL,
    OVER,
    Place,
    answered,
    batches,
    disturbances,
    halvings,
    make,
    texts_of,
)

COUNT = 3000
FEW = 600


def paid_files(place: Place) -> list[Path]:
    return PaidVectors.files(place.vectors)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with Place.opened(tmp_path) as place:
        yield place


# -- when all goes well ------------------------------------------------------------------------------------


def test_everything_is_stored_and_the_books_are_the_servers(place: Place) -> None:
    records = make(COUNT)
    result = place.run(records)
    assert result.counters["stored"] == COUNT
    place.check_stored(records)
    books = place.check_books(result)
    assert books["texts"] == COUNT
    assert books["reused"] == books["throttled"] == 0
    # A batch that is kept waiting by a slow reader is sent before it is full.
    assert batches(COUNT) <= books["requests"] <= batches(COUNT) + 2
    assert set(place.server.books.times_answered.values()) == {1}
    assert paid_files(place) == []
    human = place.command("stats", "j")
    assert f"{books['requests']:,} requests" in human.said
    place.check_secret(result, human)


def test_texts_that_come_again_are_paid_once_while_they_wait(place: Place) -> None:
    records = [
        {"id": f"{turn}:{record['id']}", "text": record["text"]} for record in make(100) for turn in range(3)
    ]
    result = place.run(records)
    assert result.counters["stored"] == 300
    books = place.check_books(result)
    assert books["texts"] == 100
    assert books["reused"] == 200
    place.check_stored(records)


def recurring(count: int, distinct: int) -> list[dict[str, str]]:
    """Every third has a text of its own, the others take turns with the same few texts."""
    records = make(count)
    for number, record in enumerate(records):
        if number % 3:
            record["text"] = records[number % distinct]["text"]
    return records


def test_a_text_that_comes_again_when_the_first_is_long_stored_is_not_paid_again(place: Place) -> None:
    records = recurring(COUNT, 600)
    result = place.run(records, "--upsert-size", "20", "--max-concurrency", "2")
    assert result.counters["stored"] == COUNT
    place.check_stored(records)
    books = place.check_books(result)
    distinct = len(set(texts_of(records)))
    assert set(place.server.books.times_answered.values()) == {1}
    assert (books["texts"], books["reused"]) == (distinct, COUNT - distinct)
    assert paid_files(place) == []


def test_a_text_whose_document_has_changed_in_the_meantime_is_right_wherever_it_comes_again(place: Place) -> None:
    records = make(FEW)
    newer = [{"id": record["id"], "text": f"{record['text']} Or so."} for record in records]
    again = [{"id": f"{record['id']}-again", "text": record["text"]} for record in records]
    result = place.run([*records, *newer, *again], "--upsert-size", "20", "--max-concurrency", "2")
    place.check_stored([*newer, *again])
    place.check_books(result)


def test_a_plan_sends_nothing_and_foretells_the_run(place: Place) -> None:
    arguments = place.arguments(make(COUNT))
    plan = place.command("plan", *arguments[1:2], *arguments[4:-2], "--json").document
    dry = place.command(*arguments, "--dry-run", "--json").document
    assert place.server.books.requests == 0
    assert not (place.folder / "ragingest_data").exists()
    assert dry["requests"] == plan["requests"]
    result = place.run(None)
    books = place.check_books(result)
    assert plan["requests"] <= books["requests"] <= 1.1 * plan["requests"]
    assert 0.8 * books["tokens"] <= plan["tokens"] <= 1.25 * books["tokens"]
    assert plan["chunks"] == result.counters["chunks"]


def test_a_search_is_embedded_by_the_same_api(place: Place) -> None:
    records = make(FEW)
    place.run(records)
    before = place.server.books.requests
    found = place.command("search", records[123]["text"], "--dense", "--json", "-n", "3")
    assert found.document[0]["id"] == records[123]["id"]
    assert found.document[0]["score"] == pytest.approx(1, abs=1e-4)
    assert place.server.books.requests == before + 1
    assert place.command("search", records[7]["text"], "--json").document[0]["id"] == records[7]["id"]
    place.check_secret(found)


def test_kept_embeddings_serve_another_job_and_another_collection(place: Place) -> None:
    records = make(FEW)
    place.run(records, "--keep-embeddings")
    before = place.server.books
    second = place.run(None, "--keep-embeddings", "--collection", "other", job="second")
    assert place.server.books == before
    books = second.document["counters"]["books"]
    assert (books["requests"], books["texts"], books["tokens"], books["cost"]) == (0, 0, 0, 0)
    assert books["reused"] == FEW
    place.check_stored(records, "other")


# -- when things go wrong ------------------------------------------------------------------------------------


def test_with_thirty_percent_of_the_requests_failing_each_good_text_is_stored_and_paid_once(place: Place) -> None:
    guilty = [417, 1205, 2999]
    records = make(COUNT, guilty)
    chances = faults.retryable(delay=0.02)
    place.server.script(odds([(0.3 / len(chances), fault) for fault in chances], seed=20))
    result = place.run(records, code=1)
    good = [record for number, record in enumerate(records) if number not in guilty]
    assert result.counters["stored"] == len(good)
    assert result.counters["rejected"] == len(guilty)
    place.check_stored(good)
    rejects = place.command.rejects("j")
    assert sorted(reject["id"] for reject in rejects) == [records[number]["id"] for number in guilty]
    assert {reject["stage"] for reject in rejects} == {"embed"}
    assert all("'$.input' is invalid" in reject["message"] for reject in rejects)

    books = place.check_books(result)
    server = place.server.books
    assert answered(server, texts_of(records)) == {
        record["text"]: int(number not in guilty) for number, record in enumerate(records)
    }
    assert disturbances(server) > 0.1 * server.requests
    assert books["requests"] - disturbances(server) <= batches(COUNT) + 2 + halvings() * len(guilty)
    place.check_secret(result)


@pytest.mark.parametrize("headers", [True, False], ids=["told", "not told"])
def test_a_servers_limit_is_kept_to_until_all_is_stored(tmp_path: Path, headers: bool) -> None:
    # Told of a limit a minute, the client keeps to it; not told, it runs into the window, which is a second here.
    limit: dict[str, Any] = {"rpm": 200, "window": 60.0} if headers else {"rpm": 4, "window": 1.0}
    with Place.opened(tmp_path, rate_limit_headers=headers, **limit) as place:
        result = place.run(make(FEW))
        assert result.counters["stored"] == FEW
        books = place.check_books(result)
        limited = place.server.books.limited
        assert books["throttled"] == limited
        assert (limited == 0) == headers
        assert set(place.server.books.times_answered.values()) == {1}


def test_a_limit_of_which_the_server_says_nothing_at_all_is_found_out(tmp_path: Path) -> None:
    with Place.opened(tmp_path, rate_limit_headers=False, retry_after=False, rpm=4, window=0.5) as place:
        result = place.run(make(FEW))
        assert result.counters["stored"] == FEW
        place.check_books(result)


FATAL = {
    "no money": (faults.quota(), "money or quota"),
    "over the budget": (faults.quota("organization_spend_limit_exceeded"), "money or quota"),
    "no such key": (faults.status(401), "OPENAI_API_KEY"),
    "no right": (faults.forbidden(), "OPENAI_API_KEY"),
    "no such model": (faults.status(404), f"--model {MODEL}"),
}


@pytest.mark.parametrize(("fault", "advice"), FATAL.values(), ids=FATAL)
def test_what_no_waiting_mends_stops_the_run_at_once_and_says_what_to_do(
    place: Place, fault: Fault, advice: str
) -> None:
    records = make(FEW)
    place.server.script(lambda request: fault if request.ordinal >= 2 else None)
    failed = place.run(records, code=4)
    assert advice in failed.said
    assert failed.document["status"] == "failed"
    assert "ragingest resume j" in failed.said
    # Two answered, and those that were sent before the first refusal came back.
    assert place.server.books.requests <= 2 + 2 * FIRST_CONCURRENCY
    place.check_secret(failed)
    place.server.script(None)
    result = place.resume()
    assert result.counters["stored"] == FEW
    place.check_stored(records)
    place.check_books(result)
    assert set(place.server.books.times_answered.values()) == {1}


def test_a_wrong_key_in_the_environment_is_told_and_not_shown(place: Place) -> None:
    wrong = "sk-wrong-SECRET-9876543210"
    arguments = place.arguments(make(10))
    failed = Command(place.folder, {"OPENAI_API_KEY": wrong}).json(*arguments, code=4)
    assert "OPENAI_API_KEY" in failed.said
    assert wrong not in failed.said
    assert place.server.books.by_status == {"401": 1}
    assert place.resume().counters["stored"] == 10


def test_without_a_key_nothing_begins(place: Place) -> None:
    place.command.write("corpus.jsonl", make(3))
    arguments = ("run", "corpus.jsonl", "--embedder", "openai")
    failed = Command(place.folder, {"OPENAI_API_KEY": ""})(*arguments, code=2)
    assert "OPENAI_API_KEY" in failed.said


def test_a_server_that_is_down_is_given_up_in_time_and_what_is_done_is_kept(place: Place) -> None:
    records = make(FEW)
    place.server.script(lambda request: faults.status(500) if request.ordinal >= 4 else None)
    failed = place.run(records, "--give-up-after", "1", code=4)
    assert "500" in failed.said
    assert "resume" in failed.said
    place.check_books(failed)
    place.server.script(None)
    result = place.resume("--give-up-after", "60")
    assert result.counters["stored"] == FEW
    place.check_books(result)
    assert set(place.server.books.times_answered.values()) == {1}


# -- limits of the user ---------------------------------------------------------------------------------------


def test_no_token_over_max_tokens_is_spent_and_a_higher_limit_goes_on(place: Place) -> None:
    records = make(COUNT)
    stopped = place.run(records, "--max-tokens", "20000", code=4)
    assert "--max-tokens" in stopped.said
    books = place.check_books(stopped)
    # What a request may cost at most is its bytes.
    assert 20_000 - BATCH * 70 < books["tokens"] <= 20_000
    result = place.resume("--max-tokens", "1000000")
    assert result.counters["stored"] == COUNT
    place.check_books(result)
    assert set(place.server.books.times_answered.values()) == {1}
    place.check_stored(records)


def test_no_cent_over_max_cost_is_spent(place: Place) -> None:
    stopped = place.run(make(FEW), "--price-per-million", "1000", "--max-cost", "5", code=4)
    assert "--max-cost" in stopped.said
    books = place.check_books(stopped, price=1000)
    assert 0 < books["cost"] <= 5


# -- models that nobody knows -----------------------------------------------------------------------------------


def test_an_unknown_models_dimensions_are_learned_and_its_price_is_unknown(tmp_path: Path) -> None:
    with Place.opened(tmp_path, models={"home-made": 24}) as place:
        records = make(200)
        place.command.write("corpus.jsonl", records)
        # The very first request, which is to tell the dimensions, is tried again like any other.
        place.server.script([faults.status(503), faults.reset_before()])
        arguments = ("run", "corpus.jsonl", "--job", "j", "--embedder", "openai", "--model", "home-made")
        result = place.command.json(*arguments, "--base-url", place.server.base_url)
        assert result.counters["stored"] == 200
        books = place.check_books(result, price=None)
        assert books["texts"] == 200 + 1
        assert "cost unknown" in place.command("stats", "j").said
        with opened(tmp_path) as store:
            [point] = store.fetch([(records[0]["id"], 0)])
        assert len(point.dense) == 24
        assert (
            place.command("search", records[9]["text"], "--dense", "--json").document[0]["id"] == records[9]["id"]
        )


def test_an_unknown_model_takes_dimensions_and_a_price(tmp_path: Path) -> None:
    with Place.opened(tmp_path, models={"home-made": 24}) as place:
        records = make(200)
        place.command.write("corpus.jsonl", records)
        arguments = ("run", "corpus.jsonl", "--job", "j", "--embedder", "openai", "--model", "home-made")
        more = ("--base-url", place.server.base_url, "--dimensions", "8", "--price-per-million", "10")
        result = place.command.json(*arguments, *more)
        books = place.check_books(result, price=10)
        assert books["texts"] == 200
        place.check_stored(records)
        assert (
            place.command("search", records[9]["text"], "--dense", "--json").document[0]["id"] == records[9]["id"]
        )


def test_a_cost_cannot_be_bounded_without_a_price(place: Place) -> None:
    place.command.write("corpus.jsonl", make(3))
    arguments = ("run", "corpus.jsonl", "--embedder", "openai", "--model", "home-made")
    failed = place.command(*arguments, "--base-url", place.server.base_url, "--max-cost", "1", code=2)
    assert "--price-per-million" in failed.said
    assert place.server.books.requests == 0


def test_dimensions_that_the_model_does_not_make_stop_the_run_and_reject_no_record(tmp_path: Path) -> None:
    with Place.opened(tmp_path, models={"home-made": 24}) as place:
        place.command.write("corpus.jsonl", make(200))
        arguments = ("run", "corpus.jsonl", "--job", "j", "--embedder", "openai", "--model", "home-made")
        failed = place.command.json(
            *(*arguments, "--base-url", place.server.base_url, "--dimensions", "48", "--batch-size", "50"), code=4
        )
        assert "Must be at most 24" in failed.said
        assert "--dimensions" in failed.said
        assert failed.counters["read"] == failed.counters["rejected"] == 0
        place.check_books(failed, price=None)


# -- texts over the limit -----------------------------------------------------------------------------------------


def test_what_is_too_long_is_split_and_nothing_over_a_limit_is_sent(place: Place) -> None:
    result = place.run([*LONG, *make(100)])
    assert result.counters["stored"] == len(LONG) + 100
    assert result.counters["chunks"] > len(LONG) + 100
    assert set(place.server.books.by_status) == {"200"}
    place.check_books(result)


def test_what_is_too_long_and_must_not_be_split_is_rejected_unsent(place: Place) -> None:
    result = place.run([*LONG, *make(100)], "--no-chunk", code=1)
    rejects = {reject["id"]: reject for reject in place.command.rejects("j")}
    assert rejects.keys() == OVER
    assert {reject["error"] for reject in rejects.values()} == {"too_many_tokens"}
    assert all("--no-chunk" in reject["message"] for reject in rejects.values())
    assert result.counters["stored"] == len(LONG) - len(OVER) + 100
    assert set(place.server.books.by_status) == {"200"}
    place.check_books(result)


@pytest.mark.parametrize("ratio", [0.27, 0.9], ids=["as estimated", "denser than estimated"])
def test_what_is_too_long_and_may_be_cut_is_embedded_by_its_beginning_and_kept_whole(
    tmp_path: Path, ratio: float
) -> None:
    with Place.opened(tmp_path, tokens_per_ascii_byte=ratio) as place:
        records = [*LONG, *make(100)]
        cut = ("--no-chunk", "--truncate")
        plan = place.command(*place.arguments(records, *cut), "--dry-run", "--json").document
        assert (plan["rejected"], plan["truncated"]) == (0, len(OVER))
        result = place.run(records, *cut)
        assert result.counters["stored"] == result.counters["chunks"] == len(records)
        books = place.check_books(result)
        assert books["truncated"] == len(OVER)
        refused = place.server.books.by_status.get("400", 0)
        assert refused == (0 if ratio == 0.27 else 3)  # all but the one that is not ASCII
        found = stored(place.folder, [record["id"] for record in records])
        assert {name: points[0].text for name, points in found.items()} == {
            record["id"]: record["text"] for record in records
        }
        assert paid_files(place) == []
        assert "truncated" in place.command("stats", "j").said
        assert f"{len(OVER)} texts were cut" in place.command(*place.arguments(None, *cut, job="k")).out


def test_nothing_is_cut_where_documents_are_split(place: Place) -> None:
    assert "--no-chunk" in place.run(make(3), "--truncate", code=2).said


def test_requests_are_filled_up_to_the_limit_and_never_over_it(place: Place) -> None:
    # 1,900 texts of 1,500 bytes are some 770,000 tokens; a request takes 300,000 and 2,048 texts.
    records = [{"id": f"d{n}", "text": f"{n:05} " + "plain words in a row " * 71} for n in range(1900)]
    place.command.write("corpus.jsonl", records)
    arguments = (
        "run",
        "corpus.jsonl",
        "--job",
        "j",
        "--embedder",
        "openai",
        "--dimensions",
        "16",
        "--store",
        "null",
    )
    result = place.command.json(*arguments, "--base-url", place.server.base_url)
    assert result.counters["stored"] == 1900
    assert set(place.server.books.by_status) == {"200"}
    assert max(request.tokens for request in place.server.books.accepted) > 60_000
    place.check_books(result)


# -- a crash --------------------------------------------------------------------------------------------------------

CONCURRENCY = 4
IN_FLIGHT = CONCURRENCY * BATCH
"""Texts that may have been answered when the process died, and whose vectors had not been written yet."""


@pytest.mark.parametrize("distinct", [None, 300])
def test_no_vector_on_disk_is_bought_again_whenever_the_run_is_killed_and_the_store_is_gone(
    place: Place, distinct: int | None
) -> None:
    records = make(COUNT) if distinct is None else recurring(COUNT, distinct)
    texts = texts_of(records)
    chance = random.Random(5)  # noqa: S311  # repeatable
    place.server.set_latency(0.02)
    bounded = ("--max-concurrency", str(CONCURRENCY))
    arguments = place.arguments(records, *bounded)
    paid: dict[str, int] = {}
    kills = 4
    for turn in range(kills):
        sent = place.server.books.requests
        wanted = sent + chance.randint(1, 12)
        process = place.start(*arguments)
        try:
            place.server.wait_until(lambda books, wanted=wanted: books.requests >= wanted)  # type: ignore[misc]
        finally:
            process.kill()
            process.wait()
        place.server.wait_until(lambda books: books.in_flight == 0)
        arguments = ["resume", "j"]
        kept = place.on_disk(texts)
        safe = kept | place.in_ledger(records)
        assert paid.keys() <= safe
        now = answered(place.server.books, safe)
        assert {text: now[text] for text in paid} == paid
        paid = now
        if turn % 2:
            before = place.server.books
            with opened(place.folder):
                assert "another process" in place.resume(code=4).said
            assert place.server.books == before
            assert place.on_disk(texts) == kept

    result = place.resume()
    assert result.counters["stored"] == COUNT
    place.check_stored(records)
    server = place.server.books
    assert paid
    assert answered(server, paid) == paid
    assert server.texts_answered - len(set(texts)) <= kills * IN_FLIGHT
    assert paid_files(place) == []
    # Counted before they are sent: of those under way at a kill, some may not have come to the server.
    assert 0 <= result.document["counters"]["books"]["requests"] - server.requests <= kills * CONCURRENCY


def test_a_store_that_is_lost_while_vectors_come_in_costs_none_that_had_arrived(place: Place) -> None:
    records = make(FEW)
    texts = texts_of(records)
    place.server.set_latency(0.02)
    arguments = place.arguments(records, "--upsert-size", "1000", "--max-concurrency", str(CONCURRENCY))
    real = replace(place.command, start=subprocess.Popen)  # the store's process is its child
    process = replace(place, command=real).start(*arguments)
    try:
        place.server.wait_until(lambda books: books.texts_answered >= 300)
        children = psutil.Process(process.pid).children(recursive=True)
        for child in children:
            child.kill()
        process.wait(60)
    finally:
        process.kill()
        process.wait()
    assert children
    assert process.returncode == 4
    place.server.wait_until(lambda books: books.in_flight == 0)
    arrived = place.on_disk(texts) | place.in_ledger(records)
    before = place.server.books
    assert len(arrived) >= before.texts_answered - IN_FLIGHT
    result = place.resume()
    assert result.counters["stored"] == FEW
    assert set(answered(place.server.books, arrived).values()) == {1}
    assert place.server.books.texts_answered - before.texts_answered == FEW - len(arrived)
    place.check_stored(records)


def killed_half_way(place: Place, records: list[dict[str, str]]) -> set[str]:
    """The texts whose vectors are on disk, because the store had not confirmed them."""
    place.server.set_latency(0.02)
    process = place.start(*place.arguments(records, "--upsert-size", "1000", "--max-concurrency", str(CONCURRENCY)))
    try:
        place.server.wait_until(lambda books: books.texts_answered >= 300)
    finally:
        process.kill()
        process.wait()
    place.server.wait_until(lambda books: books.in_flight == 0)
    kept = place.on_disk(texts_of(records))
    assert kept
    return kept


def test_what_a_killed_run_had_paid_for_goes_into_the_cache_if_one_is_wanted_now(place: Place) -> None:
    records = make(FEW)
    kept = killed_half_way(place, records)
    result = place.resume("--keep-embeddings")
    assert result.counters["stored"] == FEW
    assert set(answered(place.server.books, kept).values()) == {1}
    assert paid_files(place) == []
    before = place.server.books
    place.run(None, "--keep-embeddings", "--collection", "other", job="second")
    assert place.server.books == before


def test_without_a_spool_no_vector_is_written_but_what_a_run_before_has_left_is_used(place: Place) -> None:
    records = make(FEW)
    kept = killed_half_way(place, records)
    assert place.resume("--no-spool").counters["stored"] == FEW
    assert set(answered(place.server.books, kept).values()) == {1}
    process = place.start(
        *place.arguments(records, "--no-spool", "--collection", "other", "--upsert-size", "1000", "--job", "second")
    )
    try:
        before = place.server.books.texts_answered
        place.server.wait_until(lambda books: books.texts_answered >= before + 300)
        assert PaidVectors.files(place.vectors.with_name("second.vectors")) == []
    finally:
        process.kill()
        process.wait()
    place.run(None, "--no-spool", "--collection", "other", job="second")
    place.check_stored(records)
