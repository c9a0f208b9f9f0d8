"""The files that others read: whole, each point once, and nothing lost when the disk is full or the process dies."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from ragingest.documents import EmbeddedBatch, point_id
from ragingest.errors import TerminalError, UsageError
from ragingest.protocols import Store
from ragingest.settings import StoreSettings
from ragingest.stores import files as module
from ragingest.stores import open_store
from ragingest.stores import parquet as parquet_module
from ragingest.stores.files import Export, FileStore
from ragingest.stores.jsonl import JsonLines
from ragingest.stores.parquet import Parquet
from tests.contracts.embedding import chunk, document
from tests.contracts.store_contract import DIMENSIONS, METADATA, batch_of, spec_of

SPEC = spec_of(sparse=True)
EXPORTS: dict[str, Callable[[], Export]] = {"jsonl": JsonLines, "parquet": Parquet}

Point = dict[str, Any]
Open = Callable[..., FileStore]


def read_points(folder: Path, name: str) -> list[Point]:
    """What another program finds in the file."""
    path = folder / "docs" / f"points.{name}"
    if name == "jsonl":
        return [json.loads(line) for line in path.read_bytes().splitlines()]
    rows: list[Point] = pq.read_table(path).to_pylist()
    return [{**row, "metadata": json.loads(row["metadata"])} for row in rows]


def as_points(batch: EmbeddedBatch) -> list[Point]:
    """The batch as the file must show it."""
    points = []
    for row, of in enumerate(batch.chunks):
        terms = None if batch.sparse is None else batch.sparse[row]
        points.append(
            {
                "point_id": point_id(of.document.id, of.number),
                "id": of.document.id,
                "chunk": of.number,
                "chunks": of.document.chunks,
                "text": of.text,
                "digest": of.document.digest.hex(),
                "metadata": of.document.metadata,
                "vector": batch.dense[row].tobytes(),
                **({} if terms is None else {"sparse": {"indices": terms.indices, "values": terms.values}}),
            }
        )
    return points


def comparable(points: list[Point]) -> list[Point]:
    """Vectors as bytes: every bit counts."""
    return [{**point, "vector": np.array(point["vector"], dtype=np.float32).tobytes()} for point in points]


def some(ids: Any, text: str = "text", *, sparse: bool = True) -> EmbeddedBatch:
    chunks = [chunk(document(f"d{n}", f"{text} {n}", {"n": n})) for n in ids]
    return batch_of(chunks, list(ids), sparse=sparse)


@pytest.fixture(params=sorted(EXPORTS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def opened(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    monkeypatch.setattr(module, "LOCK_SECONDS", 0)
    stores: list[FileStore] = []

    def open_(folder: Path = tmp_path) -> FileStore:
        stores.append(FileStore(folder, "docs", EXPORTS[name]()))
        return stores[-1]

    yield open_
    for store in stores:
        store.close()


@pytest.fixture
def store(opened: Open) -> FileStore:
    store = opened()
    store.prepare(SPEC)
    return store


# -- what is in the file ---------------------------------------------------------------------------


def test_the_file_holds_every_point_as_it_is_documented(store: FileStore, tmp_path: Path, name: str) -> None:
    whole = document("ü/\0", "one two \u2028 \0", METADATA, chunks=2)
    batch = batch_of([chunk(whole, 0, "one"), chunk(whole, 1, "two \u2028 \0")], sparse=True)
    store.upsert(batch)
    store.finish()
    assert comparable(read_points(tmp_path, name)) == as_points(batch)


def test_without_sparse_vectors_there_is_no_such_key(opened: Open, tmp_path: Path, name: str) -> None:
    store = opened()
    store.prepare(spec_of(sparse=False))
    batch = some(range(3), sparse=False)
    store.upsert(batch)
    store.finish()
    assert comparable(read_points(tmp_path, name)) == as_points(batch)


def test_an_empty_collection_is_an_empty_file(store: FileStore, tmp_path: Path, name: str) -> None:
    store.finish()
    assert read_points(tmp_path, name) == []


def test_a_line_spends_no_more_digits_than_float32_needs(tmp_path: Path) -> None:
    store = FileStore(tmp_path, "docs", JsonLines())
    store.prepare(spec_of(sparse=False))
    batch = some(range(1), sparse=False)
    batch.dense[:] = np.float32(0.1)
    store.upsert(batch)
    store.finish()
    assert f'"vector":[{",".join(["0.1"] * DIMENSIONS)}]' in (tmp_path / "docs" / "points.jsonl").read_text()
    store.close()


def test_a_table_has_vectors_of_one_length_and_says_who_made_it(tmp_path: Path) -> None:
    store = FileStore(tmp_path, "docs", Parquet())
    store.prepare(SPEC)
    store.upsert(some(range(5)))
    store.finish()
    store.close()
    schema = pq.read_schema(tmp_path / "docs" / "points.parquet")
    assert str(schema.field("vector").type) == f"fixed_size_list<element: float>[{DIMENSIONS}]"
    assert json.loads(schema.metadata[b"ragingest"]) == {
        "dimensions": DIMENSIONS, "sparse": True, "embedder": "fake", "model": "model-1", "extra": {},
    }  # fmt: skip


@pytest.mark.parametrize(("limit", "value"), [("GROUP_ROWS", 10), ("GROUP_BYTES", 600)])
def test_row_groups_are_bounded_by_rows_and_by_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(parquet_module, limit, value)
    store = FileStore(tmp_path, "docs", Parquet())
    store.prepare(SPEC)
    store.upsert(some(range(95)))
    store.finish()
    store.close()
    file = pq.ParquetFile(tmp_path / "docs" / "points.parquet")
    sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    assert sum(sizes) == 95
    assert 9 <= len(sizes) <= 20
    assert len(read_points(tmp_path, "parquet")) == 95


# -- when it is written ----------------------------------------------------------------------------


def test_the_file_comes_at_the_end_and_again_only_after_a_change(
    store: FileStore, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "docs" / f"points.{name}"
    store.upsert(some(range(3)))
    store.flush()
    assert not path.exists()
    shares: list[float] = []
    store.finish(shares.append)
    assert (shares[-1], shares) == (1.0, sorted(shares))
    first = path.stat().st_ino, path.read_bytes()
    store.finish()
    assert (path.stat().st_ino, path.read_bytes()) == first
    store.delete([("d1", 0)])
    assert path.read_bytes() == first[1]
    store.finish()
    assert [point["id"] for point in read_points(tmp_path, name)] == ["d0", "d2"]
    path.unlink()
    store.finish()
    assert [point["id"] for point in read_points(tmp_path, name)] == ["d0", "d2"]


def test_both_kinds_of_files_can_be_made_of_one_collection(tmp_path: Path) -> None:
    for export in (JsonLines(), Parquet()):
        store = FileStore(tmp_path, "docs", export)
        store.prepare(SPEC)
        if export.name == "jsonl":
            store.upsert(some(range(3)))
        store.finish()
        store.close()
    assert comparable(read_points(tmp_path, "jsonl")) == comparable(read_points(tmp_path, "parquet"))


def test_a_disk_that_is_full_at_the_end_leaves_the_old_file_and_every_point(
    store: FileStore, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "docs" / f"points.{name}"
    store.upsert(some(range(3)))
    store.finish()
    before = path.read_bytes()
    store.upsert(some(range(3, 2000)))
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.symlink_to("/dev/full")
    with pytest.raises(TerminalError, match="No space left") as caught:
        store.finish()
    assert "resume" in caught.value.hint
    assert path.read_bytes() == before
    assert not temporary.is_symlink()
    assert store.count() == 2000
    store.finish()
    assert len(read_points(tmp_path, name)) == 2000


def test_a_disk_that_is_full_while_loading_loses_only_the_batch(store: FileStore) -> None:
    store.upsert(some(range(10)))
    pages = store._ready.execute("PRAGMA page_count").fetchone()[0]
    store._ready.execute(f"PRAGMA max_page_count = {pages + 1}")
    with pytest.raises(TerminalError, match="full") as caught:
        store.upsert(some(range(5, 1000), "long " * 100))
    assert caught.value.hint
    assert store.count() == 10
    assert {point.text for point in store.fetch([("d7", 0)])} == {"text 7"}
    store._ready.execute("PRAGMA max_page_count = 1000000")
    store.upsert(some(range(5, 1000), "long " * 100))
    assert store.count() == 1000


# -- one at a time, and damage ---------------------------------------------------------------------


def test_one_process_at_a_time(store: FileStore, opened: Open) -> None:
    calls: list[Callable[[], object]] = [lambda: opened().prepare(SPEC), lambda: opened().open()]
    for call in calls:
        with pytest.raises(TerminalError, match="another process"):
            call()
    store.close()
    opened().open()


def test_a_damaged_working_file_is_named(store: FileStore, opened: Open, tmp_path: Path) -> None:
    store.upsert(some(range(100)))
    store.close()
    (tmp_path / "docs" / "points.sqlite").write_bytes(b"not a database" * 1000)
    with pytest.raises(TerminalError, match=r"points\.sqlite is damaged"):
        opened().prepare(SPEC)


def test_a_folder_that_cannot_be_made_is_an_error_with_its_name(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TerminalError, match="file"):
        opened(tmp_path / "file").prepare(SPEC)


@pytest.mark.parametrize(("name", "package"), [("jsonl", "orjson"), ("parquet", "pyarrow")])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, name: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"ragingest.stores.{name}")
    with pytest.raises(UsageError, match=package) as caught:
        open_store(StoreSettings(store=name))
    assert f"ragingest[{name}]" in caught.value.hint


def test_files_have_no_use_for_an_address(name: str) -> None:
    with pytest.raises(UsageError, match="--url"):
        open_store(StoreSettings(store=name, url="http://localhost"))


# -- any history -----------------------------------------------------------------------------------


class History(RuleBasedStateMachine):
    """Upserts, deletions and crashes in any order: the file shows what was confirmed, each point once."""

    folders = iter(range(1_000_000))

    def __init__(self) -> None:
        super().__init__()
        self.root = HISTORY_ROOT / str(next(self.folders))
        self.expected: dict[int, str] = {}
        self.store = self.opened(self.root)

    @staticmethod
    def opened(folder: Path) -> Store:
        store = FileStore(folder, "docs", JsonLines())
        store.prepare(SPEC)
        return store

    @rule(ids=st.sets(st.integers(0, 15), min_size=1), text=st.sampled_from("abc"))
    def upsert(self, ids: set[int], text: str) -> None:
        self.store.upsert(some(sorted(ids), text))
        self.expected |= {n: f"{text} {n}" for n in ids}

    @rule(ids=st.sets(st.integers(0, 15)))
    def delete(self, ids: set[int]) -> None:
        self.store.delete([(f"d{n}", 0) for n in ids])
        for n in ids:
            self.expected.pop(n, None)

    @rule()
    def flush(self) -> None:
        self.store.flush()

    @rule()
    def finish(self) -> None:
        self.store.finish()
        found = [(point["id"], point["text"]) for point in read_points(self.root, "jsonl")]
        assert len(found) == len(self.expected)
        assert dict(found) == {f"d{n}": text for n, text in self.expected.items()}

    @rule()
    def crash(self) -> None:
        """Go on with what is on the disk while the store is open: no more than a killed process leaves."""
        left = HISTORY_ROOT / str(next(self.folders))
        shutil.copytree(self.root, left)
        self.store.close()
        shutil.rmtree(self.root)
        self.root = left
        self.store = self.opened(left)

    @invariant()
    def counts(self) -> None:
        assert self.store.count() == len(self.expected)

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.root)


HISTORY_ROOT = Path()


def test_any_history_ends_in_each_point_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "HISTORY_ROOT", tmp_path)
    run_state_machine_as_test(History, settings=settings(max_examples=30, stateful_step_count=20))
