"""`ragingest run --embedder cohere`, as people run it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import faults
from tests.servers.faults import odds

from .running import BATCH, Place, answered, batches, disturbances, halvings, make, texts_of

COUNT = 1000
SETTINGS = ("--checkpoint-interval", "0.1")
V4 = ("--embedder", "cohere", "--dimensions", "256", *SETTINGS)
ENGLISH = ("--embedder", "cohere", "--model", "embed-english-v3.0", *SETTINGS)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with Place.opened(tmp_path, V4, "COHERE_API_KEY") as place:
        yield place


def test_everything_is_stored_in_requests_of_96_and_found_again(place: Place) -> None:
    records = make(COUNT)
    result = place.run(records)
    assert result.counters["stored"] == COUNT
    place.check_stored(records)
    books = place.check_books(result, price=None)
    assert batches(COUNT, 96) <= books["requests"] <= batches(COUNT, 96) + 2
    assert max(request.texts for request in place.server.books.accepted) == 96
    assert place.server.books.by_input_type == {"search_document": COUNT}
    found = place.command("search", records[123]["text"], "--dense", "--json")
    assert found.document[0]["id"] == records[123]["id"]
    assert place.server.books.by_input_type == {"search_document": COUNT, "search_query": 1}
    place.check_secret(result, found)


def test_with_thirty_percent_of_the_requests_failing_each_good_text_is_stored_and_paid_once(place: Place) -> None:
    guilty = [17, 705]
    records = make(COUNT, guilty)
    chances = [fault for fault in faults.retryable() if fault.kind != "out_of_order"]  # rows have no index
    place.server.script(odds([(0.3 / len(chances), fault) for fault in chances], seed=20))
    result = place.run(records, "--batch-size", str(BATCH), code=1)
    assert result.counters["stored"] == COUNT - len(guilty)
    assert sorted(reject["id"] for reject in place.command.rejects("j")) == [records[n]["id"] for n in guilty]
    books = place.check_books(result, price=None)
    server = place.server.books
    assert answered(server, texts_of(records)) == {
        record["text"]: int(number not in guilty) for number, record in enumerate(records)
    }
    assert disturbances(server) > 0
    assert books["requests"] - disturbances(server) <= batches(COUNT) + 2 + halvings() * len(guilty)


def test_the_end_of_a_trial_keys_month_stops_the_run_and_keeps_what_is_done(place: Place) -> None:
    records = make(COUNT)
    place.server.script(lambda request: faults.quota() if request.ordinal >= 2 else None)
    failed = place.run(records, code=4)
    assert "API calls / month" in failed.said
    assert "ragingest resume j" in failed.said
    place.server.script(None)
    assert place.resume().counters["stored"] == COUNT
    assert set(place.server.books.times_answered.values()) == {1}


def test_dimensions_that_the_model_does_not_make_are_refused_before_anything_is_sent(place: Place) -> None:
    failed = place.command(*place.arguments(make(3), "--dimensions", "300"), code=2)
    assert "256, 512, 1024 or 1536" in failed.said
    assert place.server.books.requests == 0


def test_no_text_over_a_small_models_limit_is_sent(tmp_path: Path) -> None:
    long = [
        {"id": "prose", "text": "words of a long text " * 400},
        {"id": "wide", "text": "図書館は九時に開きます。" * 90},
        {"id": "one word", "text": "x" * 4_000},
    ]
    with Place.opened(tmp_path, ENGLISH, "COHERE_API_KEY") as place:
        result = place.run([*long, *make(50)])
        assert result.counters["stored"] == len(long) + 50
        assert set(place.server.books.by_status) == {"200"}
        place.check_books(result, price=None)
