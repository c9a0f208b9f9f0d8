from __future__ import annotations

import dataclasses

import msgspec
import pytest

from ragingest.events import CheckpointSaved, Counters, Noticed, Paused, Resumed, Summary


def summary(**changes: object) -> Summary:
    fields: dict[str, object] = {
        "job": "job",
        "run": 1,
        "status": "completed",
        "source": "/corpus.jsonl",
        "collection": "documents",
        "store": "null",
        "embedder": "null",
        "model": "constant",
        "counters": {"read": 10, "stored": 10},
        "seconds": 4.0,
        "attempts": 1,
        "started": "2025-01-02T03:04:05+00:00",
        "updated": "2025-01-02T03:04:09+00:00",
        "checkpoint": "/checkpoints/job.json",
    }
    return msgspec.convert(fields | changes, Summary)


@pytest.mark.parametrize("outcome", ["stored", "unchanged", "duplicate", "rejected"])
def test_the_books_balance_when_every_record_read_has_one_outcome(outcome: str) -> None:
    counters = Counters(read=1)
    assert not counters.balanced
    setattr(counters, outcome, 1)
    assert counters.balanced
    setattr(counters, outcome, 2)
    assert not counters.balanced


def test_new_books_balance() -> None:
    assert Counters().balanced


def test_what_was_sent_is_not_part_of_the_balance() -> None:
    assert Counters(chunks=3, embedded=4, embed_calls=1, upserts=2, deleted=5).balanced


def test_a_copy_of_the_books_does_not_change_with_them() -> None:
    counters = Counters(read=1, stored=1)
    copy = counters.copy()
    before = msgspec.json.encode(copy)
    counters.read += 1
    counters.books.latencies[1] = 1
    counters.books.requests += 1
    assert msgspec.json.encode(copy) == before


def test_the_rate_is_records_a_second_and_zero_for_no_time() -> None:
    assert summary().rate == 2.5
    assert summary(seconds=0.0).rate == 0


def test_two_summaries_do_not_share_their_reject_kinds() -> None:
    first, second = summary(), summary()
    first.reject_kinds["empty_text"] = 1
    assert second.reject_kinds == {}


def test_a_summary_survives_being_json() -> None:
    before = summary(reject_kinds={"empty_text": 1}, message="why")
    assert msgspec.json.decode(msgspec.json.encode(before), type=Summary) == before


@pytest.mark.parametrize("event", [Paused(1, 2, "the machine"), Resumed(1), CheckpointSaved(1), Noticed("once")])
def test_an_event_cannot_be_changed_by_who_hears_it(event: object) -> None:
    name = dataclasses.fields(event)[0].name  # type: ignore[arg-type]  # all of them are dataclasses
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(event, name, 0)
