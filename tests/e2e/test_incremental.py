"""A source that changed: only what is new costs anything, and what disappeared goes if that is wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragingest.stores.qdrant_edge import QdrantEdgeStore
from tests.api.running import MODEL, Place, make
from tests.e2e.command import Command, opened, stored

LARGE = "text-embedding-3-large"
LONG = " ".join(f"Sentence number {n} speaks of shelf {n % 7}." for n in range(60))
CHUNKED = ("--chunk-size", "64", "--chunk-overlap", "8")


def records(count: int, **changes: dict[str, Any]) -> list[dict[str, Any]]:
    plain = [{"id": f"d{n}", "text": f"document {n} tells of {n * n}", "year": 1900 + n} for n in range(count)]
    return [{**record, **changes.get(str(record["id"]), {})} for record in plain]


def load(ragingest: Command, given: list[Any], *arguments: str, code: int = 0) -> dict[str, int]:
    ragingest.write("source.jsonl", given)
    return ragingest.json("run", "source.jsonl", "--job", "j", *arguments, code=code).counters


def held(ragingest: Command, *ids: str) -> set[str]:
    with opened(ragingest.folder) as store:
        found = {point.id for point in store.fetch([(id_, 0) for id_ in ids])}
        assert len(found) <= store.count()
    return found


def maker(folder: Path) -> str:
    store = QdrantEdgeStore(folder / "ragingest_data", "documents")
    try:
        return store.open().model
    finally:
        store.close()


# -- metadata ----------------------------------------------------------------------------------------


def test_a_change_of_metadata_alone_costs_no_embedding(ragingest: Command) -> None:
    given = [*records(20), {"id": "long", "text": LONG, "shelf": 1}]
    first = load(ragingest, given, *CHUNKED)
    ids = [f"d{n}" for n in range(20)] + ["long"]
    before = stored(ragingest.folder, ids)
    assert len(before["long"]) >= 5

    changed = [
        *records(20, d3={"year": 2000}, d4={"text": "other words"}),
        {"id": "long", "text": LONG, "shelf": 2},
    ]
    second = load(ragingest, changed, *CHUNKED)
    assert (second["stored"], second["unchanged"], second["embedded"]) == (3, 18, 1)
    assert second["revised"] == 1 + len(before["long"])
    after = stored(ragingest.folder, ids)
    assert after["d3"][0].metadata == {"year": 2000}
    assert [point.metadata for point in after["long"]] == [{"shelf": 2}] * len(before["long"])
    for id_ in ("d3", "long"):
        for old, new in zip(before[id_], after[id_], strict=True):
            assert new.text == old.text
            assert new.digest != old.digest
            assert new.sparse == old.sparse
            np.testing.assert_allclose(new.dense, old.dense, atol=1e-6)
    assert first["chunks"] == sum(map(len, after.values()))
    ragingest("verify", "j", "--vectors")


def test_points_that_are_gone_are_embedded_again_when_their_metadata_changes(ragingest: Command) -> None:
    load(ragingest, records(5))
    with opened(ragingest.folder) as store:
        store.delete([("d2", 0)])
    again = load(ragingest, records(5, d1={"year": 1}, d2={"year": 2}))
    assert (again["embedded"], again["revised"]) == (1, 1)
    ragingest("verify", "j")


# -- what disappeared --------------------------------------------------------------------------------


def test_documents_that_disappeared_stay_unless_they_are_to_go(ragingest: Command) -> None:
    load(ragingest, [*records(20), {"id": "long", "text": LONG}], *CHUNKED)
    kept = load(ragingest, records(18), *CHUNKED)
    assert (kept["removed"], kept["deleted"]) == (0, 0)
    assert held(ragingest, "d18", "d19", "long") == {"d18", "d19", "long"}
    gone = load(ragingest, records(18), "--delete-missing", *CHUNKED)
    assert gone["removed"] == 3
    assert gone["deleted"] >= 2 + 5
    assert held(ragingest, "d17", "d18", "d19", "long") == {"d17"}
    ragingest("verify", "j")
    back = load(ragingest, records(19), "--delete-missing", *CHUNKED)
    assert (back["stored"], back["unchanged"], back["removed"]) == (1, 18, 0)


def test_more_than_a_share_is_removed_only_when_it_is_confirmed(ragingest: Command) -> None:
    load(ragingest, records(20))
    ragingest.write("source.jsonl", records(10))
    refused = ragingest("run", "source.jsonl", "--job", "j", "--delete-missing", code=4)
    assert "10 of 20 documents have disappeared" in refused.said
    assert "--yes" in refused.said
    assert held(ragingest, "d15") == {"d15"}
    assert ragingest.json("resume", "j", "--max-delete", "49%", code=4).counters["removed"] == 0
    assert ragingest.json("resume", "j", "--yes").counters["removed"] == 10
    assert held(ragingest, *(f"d{n}" for n in range(20))) == {f"d{n}" for n in range(10)}
    assert load(ragingest, records(8), "--delete-missing", "--max-delete", "20")["removed"] == 2


def test_a_record_that_is_rejected_has_not_disappeared(ragingest: Command) -> None:
    load(ragingest, records(20))
    broken = records(20, d3={"text": ""}, d4={"text": 7})
    assert load(ragingest, broken, "--delete-missing", code=1)["removed"] == 0
    assert held(ragingest, "d3", "d4") == {"d3", "d4"}
    mended = load(ragingest, records(20), "--delete-missing")
    assert (mended["stored"], mended["unchanged"], mended["removed"]) == (0, 20, 0)


def test_beside_records_that_nobody_can_read_nothing_is_removed(ragingest: Command) -> None:
    load(ragingest, records(20))
    lines = ragingest.write("source.jsonl", records(19)).read_text() + '{"id": "d19", "te\n'
    (ragingest.folder / "source.jsonl").write_text(lines)
    run = ("run", "source.jsonl", "--job", "j", "--delete-missing")
    assert "could not be read" in ragingest(*run, code=4).said
    assert held(ragingest, "d19") == {"d19"}
    assert ragingest.json(*run, "--yes", code=1).counters["removed"] == 1


def test_a_run_that_stopped_half_way_removes_nothing(ragingest: Command) -> None:
    load(ragingest, records(300))
    ragingest.write("source.jsonl", [*records(100), *([{"id": "x"}] * 50), *records(300)[200:]])
    stopped = ragingest.json(
        "run", "source.jsonl", "--job", "j", "--delete-missing", "--yes", "--max-errors", "9", code=3
    )
    assert stopped.counters["removed"] == 0
    assert len(held(ragingest, *(f"d{n}" for n in range(300)))) == 300


# -- one id twice ------------------------------------------------------------------------------------

TWICE = [{"id": "a", "text": "first"}, {"id": "b", "text": "between"}, {"id": "a", "text": "second"}]


@pytest.mark.parametrize(("which", "text"), [("first", "first"), ("last", "second")])
@pytest.mark.parametrize("apart", [0, 1200])
def test_of_one_id_twice_the_wanted_one_is_kept(ragingest: Command, which: str, text: str, apart: int) -> None:
    between = [{"id": f"x{n}", "text": f"text {n}"} for n in range(apart)]
    given = [TWICE[0], *between, *TWICE[1:]]
    for _ in range(2):
        counters = load(ragingest, given, "--on-duplicate", which)
        assert counters["duplicate"] == 1
        with opened(ragingest.folder) as store:
            assert store.fetch([("a", 0)])[0].text == text
            assert store.count() == 2 + apart


@pytest.mark.parametrize("apart", [0, 1200])
def test_one_id_twice_can_be_an_error(ragingest: Command, apart: int) -> None:
    between = [{"id": f"x{n}", "text": f"text {n}"} for n in range(apart)]
    ragingest.write("source.jsonl", [TWICE[0], *between, *TWICE[1:]])
    told = ragingest("run", "source.jsonl", "--job", "j", "--on-duplicate", "error", code=4)
    assert f"the id 'a' comes twice: records 1 and {3 + apart:,}" in told.said


# -- appending ---------------------------------------------------------------------------------------


def test_what_was_appended_is_read_from_where_the_file_ended(ragingest: Command) -> None:
    load(ragingest, records(30))
    ragingest.write("source.jsonl", records(34))
    grown = ragingest("run", "source.jsonl", "--job", "j", "--json")
    assert (grown.counters["read"], grown.counters["stored"]) == (4, 4)
    assert "its first 30 lines are as they were" in grown.said
    full = ragingest.json("run", "source.jsonl", "--job", "j", "--full").counters
    assert (full["read"], full["unchanged"]) == (34, 34)


def test_what_disappeared_is_looked_for_in_the_whole_source(ragingest: Command) -> None:
    load(ragingest, records(30))
    appended = load(ragingest, records(34), "--delete-missing")
    assert (appended["read"], appended["unchanged"], appended["stored"], appended["removed"]) == (34, 30, 4, 0)


def test_a_file_that_was_rewritten_and_is_longer_is_read_whole(ragingest: Command) -> None:
    load(ragingest, records(30))
    rewritten = load(ragingest, records(34, d0={"text": "something else, and longer"}))
    assert (rewritten["read"], rewritten["stored"], rewritten["unchanged"]) == (34, 5, 29)


# -- other settings ----------------------------------------------------------------------------------


def test_other_settings_store_everything_again_in_place(ragingest: Command) -> None:
    given = [*records(10), {"id": "long", "text": LONG}]
    load(ragingest, given, *CHUNKED)
    ids = [f"d{n}" for n in range(10)] + ["long"]
    before = stored(ragingest.folder, ids)
    refused = ragingest("run", "source.jsonl", "--job", "j", "--chunk-size", "128", code=6)
    assert "--reembed" in refused.said
    again = load(ragingest, given, "--chunk-size", "128", "--reembed")
    assert (again["stored"], again["embedded"] < sum(map(len, before.values()))) == (11, True)
    after = stored(ragingest.folder, ids)
    assert 1 < len(after["long"]) < len(before["long"])
    assert load(ragingest, given, "--chunk-size", "128")["unchanged"] == 11
    assert load(ragingest, given, "--chunk-size", "128", "--reembed")["stored"] == 11
    elsewhere = ("--chunk-size", "128", "--collection", "other", "--reembed")
    assert "--collection was documents" in ragingest("run", "source.jsonl", "--job", "j", *elsewhere, code=6).said


def test_a_collection_that_is_stored_anew_knows_who_made_it(tmp_path: Path) -> None:
    with Place.opened(tmp_path) as place:
        place.run(make(30))
        large = ("--model", LARGE, "--reembed")
        again = place.run(None, *large)
        assert again.counters["stored"] == again.counters["embedded"] == 30
        assert maker(tmp_path) == LARGE


def test_two_models_do_not_share_a_collection_unless_that_is_wanted(tmp_path: Path) -> None:
    with Place.opened(tmp_path) as place:
        place.run(make(30))
        refused = place.command(*place.arguments(make(40), "--model", LARGE, job="other"), code=6)
        assert f"the collection documents holds vectors of openai {MODEL}" in refused.err
        assert f"openai {LARGE}" in refused.err
        assert "--reembed" in refused.err
        assert maker(tmp_path) == MODEL
        assert place.run(None, "--model", LARGE, "--reembed", job="other").counters["stored"] == 40
        # Now it is the first job whose vectors do not fit.
        assert place.command("resume", "j", code=6).err.count(LARGE) == 1
        assert place.run(None, "--collection", "mine", job="third").counters["stored"] == 40
        here = "qdrant-edge:ragingest_data"
        copied = place.command("copy", "--from", f"{here}/mine", "--to", f"{here}/documents", code=6)
        assert f"openai {LARGE}" in copied.err
        assert f"openai {MODEL}" in copied.err


def test_an_empty_collection_is_anybodys(tmp_path: Path) -> None:
    with Place.opened(tmp_path) as place:
        place.run([])
        assert maker(tmp_path) == MODEL
        place.run(make(5), "--model", LARGE, job="other")
        assert maker(tmp_path) == LARGE
