"""What every store promises. An adapter's test supplies `build` and says what the store can do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest

from ragingest.decoding import flattened
from ragingest.documents import Chunk, Document, EmbeddedBatch, Vectors, point_id
from ragingest.errors import RejectedError, TerminalError, UsageError
from ragingest.protocols import CollectionSpec, Hit, Query, SearchMode, Store, StoredPoint

from .embedding import chunk, document

__all__ = ["DIMENSIONS", "Sparse", "StoreContract", "batch_of", "spec_of"]

DIMENSIONS = 8

Open = Callable[[], Store]

METADATA: dict[str, Any] = {
    "title": "Öffnungszeiten 図書館 \U0001f4da",
    "nested": {"list": [1, [2.5, {"deep": None}], "x"], "empty": {}, "none": []},
    "null": None,
    "yes": True,
    "no": False,
    "float": -0.125,
    "large float": 1.5e300,
    "whole float": 1e17,
    "small float": 5e-324,
    "smallest": -(2**63),
    "largest": 2**63 - 1,
    "unsigned": 2**64 - 1,
    "a key with spaces": 1,
    "a.dotted.key": 2,
    "": "no name",
    'quoted "key"': "\\ \0 \n",
}


class Sparse(NamedTuple):
    """A sparse vector, as those of the embedders: term numbers and their weights."""

    indices: list[int]
    values: list[float]


def spec_of(*, sparse: bool, dimensions: int = DIMENSIONS) -> CollectionSpec:
    return CollectionSpec(dimensions, sparse, "fake", "model-1")


def vector(seed: int, dimensions: int = DIMENSIONS) -> Vectors:
    return np.random.default_rng(seed).standard_normal(dimensions).astype(np.float32)


def batch_of(chunks: Sequence[Chunk], seeds: Sequence[int] | None = None, *, sparse: bool) -> EmbeddedBatch:
    """The chunks with a vector of its own for each seed; the sparse one has the seed as its term."""
    seeds = range(len(chunks)) if seeds is None else seeds
    dense = np.stack([vector(seed) for seed in seeds])
    terms = [Sparse([seed, 1_000_000], [1.5, 0.25]) for seed in seeds]
    return EmbeddedBatch(list(chunks), dense, terms if sparse else None)


def _without_nul(value: Any) -> Any:
    return value.replace("\0", "") if isinstance(value, str) else value


class StoreContract:
    sparse: ClassVar[bool] = True
    """Whether it keeps sparse vectors, and finds by them."""
    unsigned: ClassVar[bool] = True
    """Whether integers from 2**63 to 2**64 - 1 come back as they were."""
    nested: ClassVar[bool] = True
    """Whether metadata may hold objects, null, and lists of anything."""
    nul: ClassVar[bool] = True
    """Whether ids, texts and metadata may hold NUL characters."""
    longest_text: ClassVar[int | None] = None
    """Bytes of text that fit beside some metadata; None: any number."""
    searches: ClassVar[bool] = True
    """Whether it can be searched."""
    tells: ClassVar[bool] = True
    """Whether a collection says who made it."""

    def build(self, folder: Path, collection: str) -> Store:
        """A store over that collection, not yet prepared; the same arguments name the same data."""
        raise NotImplementedError

    def point_id(self, document_id: str, chunk: int) -> str:
        """The store's id of a chunk."""
        return point_id(document_id, chunk)

    @pytest.fixture
    def opened(self, tmp_path: Path) -> Iterator[Open]:
        """Makes stores over one collection, and closes them afterwards."""
        stores: list[Store] = []

        def open_() -> Store:
            stores.append(self.build(tmp_path, "docs"))
            return stores[-1]

        yield open_
        for store in stores:
            store.close()

    @pytest.fixture
    def store(self, opened: Open) -> Store:
        """An empty collection."""
        store = opened()
        store.prepare(spec_of(sparse=self.sparse))
        return store

    def maker(self, model: str) -> tuple[str, str]:
        """What a collection says of who made it."""
        return ("fake", model) if self.tells else ("", "")

    def put(self, store: Store, documents: Sequence[Document], seeds: Sequence[int] | None = None) -> EmbeddedBatch:
        batch = batch_of([chunk(document) for document in documents], seeds, sparse=self.sparse)
        store.upsert(batch)
        return batch

    def query(self, seed: int) -> Query:
        return Query(vector(seed), Sparse([seed], [1.0]) if self.sparse else None)

    @property
    def metadata(self) -> dict[str, Any]:
        """All that the store takes."""
        left_out = set() if self.unsigned else {"unsigned"}
        kept = self.fitted({key: value for key, value in METADATA.items() if key not in left_out})
        return kept if self.nul else {key: _without_nul(value) for key, value in kept.items()}

    def fitted(self, metadata: dict[str, Any]) -> dict[str, Any]:
        """Metadata as it is, or as --flatten-metadata makes it for stores that take no more."""
        return dict(metadata) if self.nested else flattened(metadata)

    def keepable(self, texts: Iterable[str]) -> list[str]:
        return [
            text
            for text in texts
            if (self.nul or "\0" not in text)
            and (self.longest_text is None or len(text.encode()) <= self.longest_text)
        ]

    def search(self, store: Store, query: Query, limit: int) -> list[Hit]:
        """What is found by meaning; nothing where the store cannot search, which it must say."""
        assert store.abilities.search == self.searches
        if self.searches:
            return store.search(query, limit)
        with pytest.raises(UsageError, match="cannot search") as caught:
            store.search(query, limit)
        assert caught.value.hint
        return []

    def check(self, point: StoredPoint, of: Chunk, dense: Vectors, terms: Sparse | None) -> None:
        """The point holds the chunk as it was, and its vectors up to their length."""
        assert point.point_id == self.point_id(of.document.id, of.number)
        assert (point.id, point.chunk, point.chunks) == (of.document.id, of.number, of.document.chunks)
        assert point.text == of.text
        assert point.digest == of.document.digest.hex()
        assert dict(point.metadata) == of.document.metadata
        kinds = {key: type(value) for key, value in of.document.metadata.items()}
        assert {key: type(value) for key, value in point.metadata.items()} == kinds
        assert point.dense.dtype == np.float32
        unit = dense / np.linalg.norm(dense)
        np.testing.assert_allclose(point.dense / np.linalg.norm(point.dense), unit, atol=1e-6)
        if terms is not None:
            assert point.sparse is not None
            assert point.sparse.keys() == set(terms.indices)
            np.testing.assert_allclose([point.sparse[term] for term in terms.indices], terms.values, rtol=1e-6)

    def check_holds(self, store: Store, batch: EmbeddedBatch) -> None:
        """Exactly the points of the batch are in the store."""
        assert store.count() == len(batch.chunks)
        points = {(p.id, p.chunk): p for p in store.fetch([(c.document.id, c.number) for c in batch.chunks])}
        assert len(points) == len(batch.chunks)
        for row, of in enumerate(batch.chunks):
            terms = None if batch.sparse is None else batch.sparse[row]
            self.check(points[of.document.id, of.number], of, batch.dense[row], terms)

    # -- the collection ----------------------------------------------------------------------------

    def test_it_says_what_it_takes(self, opened: Open) -> None:
        store = opened()
        assert store.name
        assert not store.forgets
        assert store.limits.max_points >= 1
        assert store.limits.concurrency >= 1

    def test_prepare_creates_an_empty_collection(self, store: Store) -> None:
        assert store.count() == 0
        assert store.fetch([("a", 0)]) == []
        assert not self.search(store, self.query(1), 5)

    def test_preparing_says_who_made_what_is_there(self, store: Store, opened: Open) -> None:
        self.put(store, [document("a", "text")])
        store.flush()
        store.close()
        again = opened()
        held = again.prepare(replace(spec_of(sparse=self.sparse), embedder="other", model="model-2"))
        assert (held.dimensions, held.sparse) == (DIMENSIONS, self.sparse)
        assert (held.embedder, held.model) == self.maker("model-1")

    def test_another_instance_finds_what_was_stored(self, store: Store, opened: Open) -> None:
        batch = self.put(store, [document("a", "text a"), document("b", "text b")])
        store.flush()
        store.close()
        again = opened()
        again.prepare(spec_of(sparse=self.sparse))
        self.check_holds(again, batch)
        more = self.put(again, [document("c", "text c")], [7])
        assert again.count() == 3
        self.check(
            again.fetch([("c", 0)])[0], more.chunks[0], more.dense[0], more.sparse[0] if more.sparse else None
        )

    def test_preparing_again_with_other_dimensions_names_both_sides(self, store: Store, opened: Open) -> None:
        self.put(store, [document("a", "text")])
        store.close()
        other = opened()
        with pytest.raises(TerminalError) as caught:
            other.prepare(spec_of(sparse=self.sparse, dimensions=12))
        assert str(DIMENSIONS) in caught.value.message
        assert "12" in caught.value.message
        assert "docs" in caught.value.message
        assert caught.value.hint

    def test_preparing_again_with_other_kinds_of_vectors_is_refused(self, store: Store, opened: Open) -> None:
        store.close()
        if self.sparse:
            with pytest.raises(TerminalError, match="docs"):
                opened().prepare(spec_of(sparse=False))

    def test_a_refused_collection_can_be_opened_as_what_it_is(self, store: Store, opened: Open) -> None:
        batch = self.put(store, [document("a", "text")])
        store.close()
        other = opened()
        with pytest.raises(TerminalError):
            other.prepare(spec_of(sparse=self.sparse, dimensions=12))
        other.close()
        again = opened()
        again.prepare(spec_of(sparse=self.sparse))
        self.check_holds(again, batch)

    def test_collections_do_not_share_points(self, store: Store, tmp_path: Path) -> None:
        self.put(store, [document("a", "text")])
        other = self.build(tmp_path, "other")
        try:
            other.prepare(spec_of(sparse=self.sparse))
            assert other.count() == 0
            assert other.fetch([("a", 0)]) == []
        finally:
            other.close()

    def test_closing_twice_is_closing(self, store: Store) -> None:
        store.close()
        store.close()

    # -- writing -----------------------------------------------------------------------------------

    def test_what_is_stored_comes_back_as_it_was(self, store: Store) -> None:
        texts = ["plain", "ü 図書館 \U0001f4da \u2028", "\0 nul", " \n white ", '"quoted" \\', "long " * 20_000]
        documents = [document(f"id {n}", text, self.metadata) for n, text in enumerate(self.keepable(texts))]
        ids = ["ü/図書館 '\"; \0", "ü/図書館 '\"; % %s", "x" * 512]
        documents += [document(id_, "odd id") for id_ in self.keepable(ids)]
        self.check_holds(store, self.put(store, documents))

    def test_every_chunk_of_a_document_is_a_point(self, store: Store) -> None:
        whole = document("a", "one two three", {"k": 1}, chunks=3)
        chunks = [chunk(whole, number, text) for number, text in enumerate(whole.text.split())]
        batch = batch_of(chunks, sparse=self.sparse)
        store.upsert(batch)
        self.check_holds(store, batch)

    def test_ids_that_look_like_chunks_of_each_other_are_kept_apart(self, store: Store) -> None:
        documents = [
            document(id_, f"text {id_}", chunks=12) for id_ in self.keepable(["a", "a1", "a\0", "a\x001", "1", ""])
        ]
        chunks = [chunk(of, number) for of in documents for number in (0, 1, 11)]
        batch = batch_of(chunks, sparse=self.sparse)
        store.upsert(batch)
        self.check_holds(store, batch)

    def test_the_same_upsert_again_changes_nothing(self, store: Store) -> None:
        batch = self.put(store, [document("a", "text a", self.metadata), document("b", "text b")])
        store.upsert(batch)
        store.flush()
        store.upsert(batch)
        self.check_holds(store, batch)

    def test_new_content_replaces_the_old_whole(self, store: Store) -> None:
        old, newer = self.fitted({"gone": 1, "kept": {"x": 1, "y": 2}}), self.fitted({"kept": {"x": 3}})
        self.put(store, [document("a", "old", old), document("b", "b")])
        self.put(store, [document("a", "new", newer, chunks=2)], [42])
        batch = batch_of(
            [chunk(document("a", "new", newer, chunks=2)), chunk(document("b", "b"))],
            [42, 1],
            sparse=self.sparse,
        )
        self.check_holds(store, batch)
        assert [hit.text for hit in self.search(store, self.query(42), 1)] == (["new"] if self.searches else [])

    def test_the_largest_upsert_is_taken(self, store: Store) -> None:
        count = store.limits.max_points
        batch = self.put(store, [document(f"d{n}", f"text {n}") for n in range(count)])
        self.check_holds(store, batch)

    def test_what_is_encoded_covers_text_and_vector_and_is_what_is_stored(self, store: Store) -> None:
        batch = batch_of([chunk(document("a", "x")), chunk(document("b", "y" * 5000))], sparse=self.sparse)
        encoded = store.encode(batch)
        if encoded is not None:
            batch.wire = [point for point in encoded if isinstance(point, bytes)]
            small, large = map(len, batch.wire)
            assert small >= DIMENSIONS * 4
            assert large >= DIMENSIONS * 4 + 5000
        store.upsert(batch)
        self.check_holds(store, batch)

    def test_a_scan_shows_every_point_once(self, store: Store) -> None:
        assert store.scan(None, 10) == ([], None)
        batch = self.put(store, [document(f"d{n}", f"text {n}") for n in range(23)])
        found: list[StoredPoint] = []
        after = None
        while True:
            page, after = store.scan(after, 5)
            assert len(page) <= 5
            found += page
            if after is None:
                break
        points = {point.id: point for point in found}
        assert len(found) == len(points) == 23
        for row, of in enumerate(batch.chunks):
            terms = None if batch.sparse is None else batch.sparse[row]
            self.check(points[of.document.id], of, batch.dense[row], terms)

    def test_a_collection_can_be_opened_by_those_who_read(self, store: Store, opened: Open) -> None:
        batch = self.put(store, [document("a", "text")])
        store.flush()
        store.close()
        again = opened()
        spec = again.open()
        assert (spec.dimensions, spec.sparse) == (DIMENSIONS, self.sparse)
        assert (spec.embedder, spec.model) == self.maker("model-1")
        self.check_holds(again, batch)

    def test_who_makes_the_vectors_can_change(self, store: Store, opened: Open) -> None:
        batch = self.put(store, [document("a", "text")])
        store.describe(replace(spec_of(sparse=self.sparse), model="model-2"))
        store.flush()
        store.close()
        again = opened()
        spec = again.open()
        assert (spec.embedder, spec.model) == self.maker("model-2")
        self.check_holds(again, batch)

    def test_a_collection_that_is_not_there_cannot_be_opened(self, opened: Open) -> None:
        with pytest.raises(UsageError, match="docs") as caught:
            opened().open()
        assert caught.value.hint

    def test_a_document_that_cannot_be_stored_is_rejected_and_nothing_of_its_batch_counts(
        self, store: Store
    ) -> None:
        for value in (float("nan"), float("inf"), [float("-inf")], {"deep": [{"x": float("nan")}]}):
            bad = document("bad", "text")
            bad.metadata["number"] = value
            with pytest.raises(RejectedError) as caught:
                self.put(store, [document("good", "text"), bad])
            assert caught.value.kind
            assert store.count() == 0
        self.put(store, [document("good", "text")])
        assert store.count() == 1

    def test_a_nul_character_is_kept_or_refused_with_its_place(self, store: Store) -> None:
        nul = [
            document("id \0", "text"),
            document("text", "text \0"),
            document("value", "text", self.fitted({"list": [{"key": "x\0"}]})),
            document("key", "text", {"a\0": 1}),
            document("looks like one", "\\u0000", {"x": "\\u0000"}),
        ]
        kept = [of for of in nul if self.nul or of.id == "looks like one"]
        for of in nul:
            if of not in kept:
                with pytest.raises(RejectedError, match="character") as caught:
                    self.put(store, [of])
                assert caught.value.kind == "nul_character"
        self.check_holds(store, self.put(store, kept))

    def test_nested_metadata_is_kept_or_refused_with_the_option_that_fits_it(self, store: Store) -> None:
        for value in ({"x": 1}, None, [1], ["x", None], [["x"]]):
            nested = document("a", "text", {"key": value})
            if self.nested:
                self.check_holds(store, self.put(store, [nested]))
            else:
                with pytest.raises(RejectedError, match="--flatten-metadata"):
                    self.put(store, [nested])
            fitted = document("a", "text", flattened({"key": value}))
            self.check_holds(store, self.put(store, [fitted]))

    def test_vectors_of_another_dimension_are_refused_whole(self, store: Store) -> None:
        batch = batch_of([chunk(document("a", "text"))], sparse=self.sparse)
        wide = EmbeddedBatch(batch.chunks, np.ones((1, DIMENSIONS + 1), dtype=np.float32), batch.sparse)
        with pytest.raises(TerminalError) as caught:
            store.upsert(wide)
        assert str(DIMENSIONS) in caught.value.message
        assert str(DIMENSIONS + 1) in caught.value.message
        assert store.count() == 0

    def test_deletion_is_by_document_and_chunk_and_may_be_repeated(self, store: Store) -> None:
        whole = document("a", "one two three", chunks=3)
        store.upsert(batch_of([chunk(whole, n, str(n)) for n in range(3)], sparse=self.sparse))
        self.put(store, [document("b", "b")], [9])
        store.delete([("a", 1), ("a", 2), ("a", 7), ("missing", 0)])
        store.delete([("a", 1)])
        store.delete([])
        assert store.count() == 2
        found = store.fetch([("a", 0), ("a", 1), ("a", 2), ("b", 0)])
        assert {(point.id, point.chunk) for point in found} == {("a", 0), ("b", 0)}
        hits = self.search(store, self.query(1), 10)
        assert {(hit.id, hit.chunk) for hit in hits} == ({("a", 0), ("b", 0)} if self.searches else set())

    def test_what_was_deleted_can_be_stored_again(self, store: Store) -> None:
        batch = self.put(store, [document("a", "text")])
        store.delete([("a", 0)])
        assert store.count() == 0
        store.upsert(batch)
        self.check_holds(store, batch)

    def test_finishing_loses_nothing(self, store: Store) -> None:
        batch = self.put(store, [document(f"d{n}", f"text {n}") for n in range(50)])
        store.finish()
        self.check_holds(store, batch)

    def test_fetching_nothing_is_nothing(self, store: Store) -> None:
        assert store.fetch([]) == []

    # -- searching ---------------------------------------------------------------------------------

    @property
    def modes(self) -> list[SearchMode]:
        if not self.searches:
            return []
        return ["dense", "sparse", "hybrid"] if self.sparse else ["dense"]

    def test_every_mode_finds_the_right_chunk_first(self, store: Store) -> None:
        documents = [document(f"d{n}", f"text {n}", {"n": n}) for n in range(40)]
        self.put(store, documents)
        for mode in self.modes:
            for seed in (0, 17, 39):
                hits = store.search(self.query(seed), 5, mode)
                assert (hits[0].id, hits[0].chunk) == (f"d{seed}", 0)
                assert hits[0].text == f"text {seed}"
                assert dict(hits[0].metadata) == {"n": seed}
                scores = [hit.score for hit in hits]
                assert scores == sorted(scores, reverse=True)

    def test_no_more_than_the_limit_is_found_and_nothing_twice(self, store: Store) -> None:
        self.put(store, [document(f"d{n}", f"text {n}") for n in range(20)])
        for mode in self.modes:
            for limit in (1, 3, 100):
                hits = store.search(self.query(3), limit, mode)
                assert 1 <= len(hits) <= min(limit, 20)
                assert len({(hit.id, hit.chunk) for hit in hits}) == len(hits)
        assert len(self.search(store, self.query(3), 100)) == (20 if self.searches else 0)

    def test_a_mode_that_there_is_not_is_a_usage_error(self, opened: Open, tmp_path: Path) -> None:
        plain = self.build(tmp_path, "plain")
        try:
            plain.prepare(spec_of(sparse=False))
            plain.upsert(batch_of([chunk(document("a", "text"))], sparse=False))
            with pytest.raises(UsageError, match="sparse" if self.searches else "cannot search"):
                plain.search(Query(vector(0), Sparse([1], [1.0])), 5, "sparse")
            with pytest.raises(UsageError, match="sparse" if self.searches else "cannot search"):
                plain.search(Query(vector(0)), 5, "hybrid")
            assert [hit.id for hit in self.search(plain, Query(vector(0)), 5)] == (["a"] if self.searches else [])
        finally:
            plain.close()

    def test_a_query_of_another_dimension_is_refused(self, store: Store) -> None:
        self.put(store, [document("a", "text")])
        with pytest.raises(
            (TerminalError, UsageError), match=str(DIMENSIONS) if self.searches else "cannot search"
        ):
            store.search(Query(vector(0, DIMENSIONS + 1)), 5)

    FILTERED: ClassVar[dict[str, dict[str, Any]]] = {
        "plain": {"section": "archives", "year": 1999, "open": True, "b": "outside"},
        "nested": {"a": {"b": "inside", "c": {"d": 5}}, "open": False, "year": -3},
        "flat": {"a.b": "inside", "two words": "x", "größe": "ü"},
        "text": {"year": "1999", "open": "true", "big": 2**63 - 1, "list": ["one", "two"]},
        "numbers": {"1st": "first", "with-dash": "y", "under_score": "z", "": "unnamed"},
    }

    FILTERS: ClassVar[list[tuple[dict[str, str], set[str]]]] = [
        ({"section": "archives"}, {"plain"}),
        ({"section": "Archives"}, set()),
        ({"section": "arch"}, set()),
        ({"missing": "x"}, set()),
        ({"year": "1999"}, {"plain", "text"}),
        ({"year": "-3"}, {"nested"}),
        ({"year": "19"}, set()),
        ({"big": str(2**63 - 1)}, {"text"}),
        ({"big": str(2**63)}, set()),
        ({"open": "true"}, {"plain", "text"}),
        ({"open": "false"}, {"nested"}),
        ({"a.b": "inside"}, {"nested", "flat"}),
        ({"a.c.d": "5"}, {"nested"}),
        ({"b": "inside"}, set()),
        ({"two words": "x"}, {"flat"}),
        ({"größe": "ü"}, {"flat"}),
        ({"list": "two"}, {"text"}),
        ({"1st": "first"}, {"numbers"}),
        ({"with-dash": "y"}, {"numbers"}),
        ({"under_score": "z"}, {"numbers"}),
        ({"year": "1999", "open": "true"}, {"plain", "text"}),
        ({"year": "1999", "section": "archives"}, {"plain"}),
        ({"year": "1999", "section": "none"}, set()),
        ({}, set(FILTERED)),
    ]

    def test_a_filter_lets_through_what_has_the_value(self, store: Store) -> None:
        self.put(store, [document(name, name, self.fitted(metadata)) for name, metadata in self.FILTERED.items()])
        everything = Query(vector(0), Sparse([1_000_000], [1.0]) if self.sparse else None)
        for mode in self.modes:
            for filters, names in self.FILTERS:
                found = {hit.id for hit in store.search(everything, 10, mode, filters)}
                assert (mode, filters, found) == (mode, filters, names)

    def test_a_key_of_any_form_filters_or_is_a_usage_error(self, store: Store) -> None:
        keys = [
            'quoted "key"',
            "back\\slash",
            "a..b",
            ".",
            "a[",
            "a[]",
            "a[0].b",
            " ",
            "a'b",
            "\n",
            "*",
            "%s",
            "\0",
        ]
        kept = self.keepable(keys)
        self.put(store, [*(document(key, "text", {key: "x"}) for key in kept), document("b", "text", {"c": "x"})])
        for key in keys:
            with suppress(UsageError):
                hits = store.search(self.query(0), 50, "dense", {key: "x"})
                assert [hit.id for hit in hits] == [key]
