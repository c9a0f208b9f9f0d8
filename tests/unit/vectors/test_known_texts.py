"""Which text the store has where: a hint that is right, or is found out."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragingest.checkpoint import known as module
from ragingest.checkpoint.known import KnownTexts, Place, StoredTexts
from ragingest.documents import document_digest
from ragingest.errors import TerminalError, TransientError
from ragingest.protocols import StoredPoint
from tests.contracts.embedding import chunk, chunks_of, document
from tests.unit.vectors.support import digest, digests


@pytest.fixture
def known(tmp_path: Path) -> Iterator[KnownTexts]:
    known = KnownTexts(tmp_path / "job.known", "this run")
    yield known
    known.close()


@pytest.fixture(autouse=True)
def small_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page is the least that can be mapped."""
    monkeypatch.setattr(module, "FIRST_SLOTS", module.HEAD_BYTES // module.SLOT_BYTES)
    monkeypatch.setattr(module, "GROWTH", 2)


def places(known: KnownTexts, keys: Sequence[bytes]) -> dict[bytes, Place | None]:
    return {key: known.read(offset) for key, offset in known.find(keys).items()}


def numbered(first: int, count: int) -> dict[bytes, Place]:
    return {digest(number): (f"document {number}", number % 7) for number in range(first, first + count)}


def test_a_text_is_found_where_it_was_noted_and_no_other_is(known: KnownTexts) -> None:
    noted = numbered(0, 300)
    assert places(known, list(noted)) == {}
    known.note(noted)
    assert places(known, [*noted, *digests(range(1000, 1300))]) == noted


def test_the_latest_place_of_a_text_counts(known: KnownTexts) -> None:
    known.note(numbered(0, 100))
    again = {key: ("elsewhere", number) for number, key in enumerate(numbered(0, 50))}
    known.note(again)
    assert places(known, list(numbered(0, 100))) == {**numbered(0, 100), **again}


def test_tables_grow_and_nothing_is_lost_however_many_there_are(tmp_path: Path) -> None:
    known = KnownTexts(tmp_path / "job.known", "this run")
    for start in range(0, 30_000, 500):
        known.note(numbered(start, 500))
    moved = dict.fromkeys(numbered(0, 500), ("moved", 0))
    known.note(moved)
    everything = {**numbered(0, 30_000), **moved}
    assert len(known._tables) > 2
    assert places(known, list(everything)) == everything
    known.close()
    again = KnownTexts(tmp_path / "job.known", "this run")
    assert places(again, list(everything)) == everything
    assert again.find(digests(range(50_000, 51_000))) == {}
    again.close()


@pytest.mark.parametrize(("run", "anew"), [("the next run", False), ("this run", True)])
def test_another_run_begins_with_nothing(tmp_path: Path, run: str, anew: bool) -> None:
    known = KnownTexts(tmp_path / "job.known", "this run")
    known.note(numbered(0, 10))
    known.close()
    other = KnownTexts(tmp_path / "job.known", run, anew=anew)
    assert other.find(list(numbered(0, 10))) == {}
    other.close()
    assert (tmp_path / "job.known.ids").stat().st_size == 0


def test_files_are_for_their_owner_only(known: KnownTexts) -> None:
    known.note(numbered(0, 10))
    for path in known.path.parent.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_full_disk_costs_the_note_and_nothing_else(known: KnownTexts, monkeypatch: pytest.MonkeyPatch) -> None:
    known.note(numbered(0, 10))

    def full(*_args: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        known.note(numbered(10, 10))
    known.note(numbered(20, 10))
    assert places(known, list(numbered(0, 30))) == {**numbered(0, 10), **numbered(20, 10)}


@given(damage=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=40))
def test_a_damaged_file_gives_wrong_hints_or_none_and_does_no_harm(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[float, int]]
) -> None:
    path = tmp_path_factory.mktemp("known") / "job.known"
    known = KnownTexts(path, "this run")
    known.note(numbered(0, 50))
    known.close()
    for end in ("", ".ids"):
        file = path.with_name(path.name + end)
        data = bytearray(file.read_bytes())
        for at, byte in damage:
            data[int(at * len(data))] = byte
        file.write_bytes(data)
    known = KnownTexts(path, "this run")
    for place in places(known, list(numbered(0, 50))).values():
        assert place is None or isinstance(place[0], str)
    known.close()


# -- followed to the store ---------------------------------------------------------------------------------


class FakeStore:
    """Points by place, as `Store.fetch` returns them."""

    def __init__(self) -> None:
        self.points: dict[Place, StoredPoint] = {}
        self.asked: list[list[Place]] = []
        self.failure: Exception | None = None

    def put(
        self, id_: str, text: str, vector: float, *, number: int = 0, chunks: int = 1, kept: bool = True
    ) -> None:
        whole = document_digest(text, {"some": "metadata"}).hex()
        dense = np.full(4, vector, np.float32)
        point = StoredPoint("id", id_, number, chunks, text if kept else "", whole, {}, dense)
        self.points[id_, number] = point

    def fetch(self, places: Sequence[Place]) -> list[StoredPoint]:
        self.asked.append(list(places))
        if self.failure is not None:
            raise self.failure
        return [self.points[place] for place in places if place in self.points]


class Texts:
    def __init__(self, known: KnownTexts) -> None:
        self.store = FakeStore()
        self.stored = StoredTexts(known, self.store.fetch)

    def confirm(self, texts: Sequence[str]) -> None:
        chunks = chunks_of(texts)
        for number, one in enumerate(chunks):
            one.digest = document_digest(one.text, {})[:16]
            self.store.put(one.document.id, one.text, number)
        self.stored.confirmed(chunks)

    def get(self, *texts: str) -> dict[str, float]:
        """The first number of the vector of each."""
        asked = {document_digest(text, {})[:16]: text for text in texts}
        likely = self.stored.likely(list(asked))
        found = self.stored.get({key: asked[key] for key in likely})
        return {asked[key]: float(vector[0]) for key, vector in found.items()}


@pytest.fixture
def texts(known: KnownTexts) -> Texts:
    return Texts(known)


@pytest.mark.parametrize("settled", [False, True])
def test_a_confirmed_text_comes_back_with_its_vector(texts: Texts, settled: bool) -> None:
    texts.confirm(["zero", "one", "two"])
    if settled:
        texts.stored.settle()
    assert texts.get("one", "two", "three") == {"one": 1, "two": 2}


def test_a_text_that_nobody_has_seen_costs_no_question(texts: Texts) -> None:
    texts.confirm(["zero"])
    assert texts.get("one", "two") == {}
    assert [asked for asked in texts.store.asked if asked] == []


def test_what_has_been_replaced_or_deleted_in_the_store_is_not_taken_for_the_text(texts: Texts) -> None:
    texts.confirm(["zero", "one", "two"])
    texts.store.put("d1", "another text under this id", 9)
    del texts.store.points["d2", 0]
    assert texts.get("zero", "one", "two") == {"zero": 0}


def test_where_the_store_keeps_no_texts_the_digest_of_a_whole_document_tells(texts: Texts) -> None:
    texts.confirm(["whole", "other"])
    texts.store.put("d0", "whole", 5, kept=False)
    texts.store.put("d1", "something else", 6, kept=False)
    piece = chunk(document("long", "a piece and more", chunks=2), 1, "a piece")
    piece.digest = document_digest("a piece", {})[:16]
    texts.store.put("long", "a piece", 7, number=1, chunks=2, kept=False)
    texts.stored.confirmed([piece])
    assert texts.get("whole", "other", "a piece") == {"whole": 5}


@pytest.mark.parametrize("failure", [TransientError("down"), TerminalError("gone", "mend it")])
def test_a_store_that_fails_is_done_without(texts: Texts, failure: Exception) -> None:
    texts.confirm(["zero"])
    texts.store.failure = failure
    assert texts.get("zero") == {}
    texts.store.failure = None
    assert texts.get("zero") == {"zero": 0}


def test_many_are_asked_for_in_questions_of_a_bounded_size(texts: Texts) -> None:
    some = [f"text {number}" for number in range(2 * module.FETCH + 5)]
    texts.confirm(some)
    assert len(texts.get(*some)) == len(some)
    assert [len(asked) for asked in texts.store.asked] == [module.FETCH, module.FETCH, 5]
