from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import qdrant_edge

from ragingest.documents import EmbeddedBatch
from ragingest.embedders.bm25 import WithBM25
from ragingest.embedders.null import NullEmbedder
from ragingest.errors import RagingestError, TerminalError, UsageError
from ragingest.protocols import Query, SearchMode, Store
from ragingest.settings import StoreSettings
from ragingest.stores import open_store
from ragingest.stores import qdrant_edge as module
from ragingest.stores.null import NullStore
from ragingest.stores.qdrant_edge import QdrantEdgeStore, collections, read_spec
from tests.contracts.embedding import chunk, chunks_of, document
from tests.contracts.store_contract import Sparse, batch_of, spec_of

ROOT = Path(__file__).parents[3]
SPEC = spec_of(sparse=True)

Open = Callable[..., QdrantEdgeStore]


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Makes stores that do not wait for each other, and closes them afterwards."""
    monkeypatch.setattr(module, "LOCK_SECONDS", 0)
    stores: list[QdrantEdgeStore] = []

    def open_(collection: str = "docs") -> QdrantEdgeStore:
        stores.append(QdrantEdgeStore(tmp_path, collection))
        return stores[-1]

    yield open_
    for store in stores:
        store.close()


@pytest.fixture
def store(opened: Open) -> QdrantEdgeStore:
    store = opened()
    store.prepare(SPEC)
    return store


def some(count: int = 3) -> EmbeddedBatch:
    return batch_of([chunk(document(f"d{n}", f"text {n}")) for n in range(count)], sparse=True)


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# -- one at a time ---------------------------------------------------------------------------------

HOLDER = """
import sys
from pathlib import Path
from ragingest.settings import StoreSettings
from ragingest.stores import open_store
from ragingest.stores.qdrant_edge import QdrantEdgeStore
from tests.contracts.store_contract import batch_of, spec_of
from tests.contracts.embedding import chunk, document

build = {"inside": QdrantEdgeStore, "apart": lambda folder, name: open_store(StoreSettings(store_path=str(folder), collection=name))}[sys.argv[1]]
store = build(Path(sys.argv[2]), "docs")
store.prepare(spec_of(sparse=True))
for start in range(0, 1000, 100):
    chunks = [chunk(document(f"d{n}", f"text {n}", {"n": n})) for n in range(start, start + 100)]
    store.upsert(batch_of(chunks, range(start, start + 100), sparse=True))
store.flush()
print("flushed", flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(how: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has stored and flushed 1,000 points, and keeps the collection open."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, how, str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "flushed\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("how", ["inside", "apart"])
def test_what_was_flushed_outlives_a_kill(how: str, tmp_path: Path) -> None:
    with holder(how, tmp_path) as process:
        process.kill()
        process.wait()
        store = QdrantEdgeStore(tmp_path, "docs")
        store.prepare(SPEC)
        try:
            assert store.count() == 1000
            points = {point.id: point for point in store.fetch([(f"d{n}", 0) for n in range(1000)])}
            assert len(points) == 1000
            assert all(points[f"d{n}"].metadata == {"n": n} for n in range(1000))
        finally:
            store.close()


def test_another_process_cannot_open_the_collection_and_says_so(tmp_path: Path, opened: Open) -> None:
    with holder("inside", tmp_path):
        with pytest.raises(TerminalError, match="docs is open in another process") as caught:
            opened().prepare(SPEC)
        assert "one process at a time" in caught.value.hint
        with pytest.raises(TerminalError, match="another process"):
            opened().open()
        opened("other").prepare(SPEC)


def test_a_second_instance_in_this_process_cannot_open_the_collection(store: QdrantEdgeStore, opened: Open) -> None:
    store.upsert(some())
    second = opened()
    with pytest.raises(TerminalError, match="open in another process"):
        second.prepare(SPEC)
    second.close()
    assert store.count() == 3
    store.close()
    second.prepare(SPEC)
    assert second.count() == 3


# -- the disk --------------------------------------------------------------------------------------


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def set_free(free: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))

    return set_free


def test_nothing_is_created_on_a_disk_that_is_nearly_full(
    opened: Open, tmp_path: Path, full_disk: Callable[[int], None]
) -> None:
    full_disk(module.FREE_BYTES_NEEDED - 1)
    store = opened()
    with pytest.raises(TerminalError, match="134 MB left") as caught:
        store.prepare(SPEC)
    assert "free some space" in caught.value.hint
    assert files_of(tmp_path) <= {"docs", "docs/lock"}
    full_disk(module.FREE_BYTES_NEEDED)
    opened().prepare(SPEC)


def test_nothing_is_written_to_a_disk_that_is_nearly_full(
    store: QdrantEdgeStore, full_disk: Callable[[int], None]
) -> None:
    store.upsert(some(2))
    full_disk(1_000_000)
    with pytest.raises(TerminalError, match="1 MB left"):
        store.upsert(some(3))
    assert store.count() == 2
    full_disk(module.FREE_BYTES_NEEDED)
    store.upsert(some(3))
    assert store.count() == 3


# -- what lies in the folder -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b"\xff", b'{"dimensions": "many"}', b'{"dimensions": 8, "sparse": true}']
)
def test_a_damaged_description_is_named_and_left_alone(store: QdrantEdgeStore, opened: Open, damage: bytes) -> None:
    store.upsert(some())
    store.close()
    path = store._folder / "collection.json"
    good = path.read_bytes()
    path.write_bytes(damage)
    attempts: list[Callable[[], object]] = [lambda: opened().prepare(SPEC), lambda: opened().open()]
    for attempt in attempts:
        with pytest.raises(TerminalError, match=r"collection\.json cannot be read") as caught:
            attempt()
        assert "restore it" in caught.value.hint
    assert path.read_bytes() == damage
    path.write_bytes(good)
    again = opened()
    again.prepare(SPEC)
    assert again.count() == 3


def test_a_damaged_shard_is_an_error_with_a_hint(store: QdrantEdgeStore, opened: Open) -> None:
    store.close()
    shard = store._folder / "shard"
    shutil.rmtree(shard)
    shard.write_text("no folder")
    with pytest.raises(TerminalError, match="cannot be opened") as caught:
        opened().prepare(SPEC)
    assert caught.value.hint


def test_a_creation_that_was_cut_short_is_done_again(store: QdrantEdgeStore, opened: Open) -> None:
    store.close()
    (store._folder / "shard").rename(store._folder / "shard.new")
    (store._folder / "shard.new" / "half").write_text("written")
    again = opened()
    again.prepare(SPEC)
    again.upsert(some())
    assert again.count() == 3
    assert not (store._folder / "shard.new").exists()


def test_the_description_says_who_made_the_vectors(store: QdrantEdgeStore) -> None:
    assert read_spec(store._folder) == SPEC
    written = json.loads((store._folder / "collection.json").read_text())
    assert (written["embedder"], written["model"], written["dimensions"]) == ("fake", "model-1", 8)


def test_opening_takes_the_description_for_its_settings(store: QdrantEdgeStore, opened: Open) -> None:
    store.upsert(some())
    store.close()
    searching = opened()
    assert searching.open() == SPEC
    assert searching.count() == 3


def test_a_missing_collection_is_answered_with_those_there_are(opened: Open, tmp_path: Path) -> None:
    for name in ("birds", "apes"):
        made = opened(name)
        made.prepare(SPEC)
        made.close()
    (tmp_path / "no-collection").mkdir()
    assert collections(tmp_path) == ["apes", "birds"]
    with pytest.raises(UsageError, match="no collection cats") as caught:
        opened("cats").open()
    assert "apes, birds" in caught.value.hint
    assert not (tmp_path / "cats").exists()


def test_where_there_is_no_folder_there_are_no_collections(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert collections(missing) == []
    with pytest.raises(UsageError, match="no collection docs") as caught:
        QdrantEdgeStore(missing, "docs").open()
    assert "none" in caught.value.hint
    assert not missing.exists()


def test_a_file_in_the_place_of_the_folder_is_named(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "docs").write_text("a file")
    with pytest.raises(TerminalError, match="docs"):
        opened().prepare(SPEC)
    with pytest.raises(TerminalError, match="not a folder"):
        opened().open()


def test_the_folder_is_for_its_owner_only(store: QdrantEdgeStore) -> None:
    assert store._folder.stat().st_mode & 0o777 == 0o700


# -- the engine ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "attempt"),
    [
        ("update", lambda store: store.upsert(some())),
        ("update", lambda store: store.delete([("a", 0)])),
        ("flush", lambda store: store.flush()),
        ("count", lambda store: store.count()),
        ("retrieve", lambda store: store.fetch([("a", 0)])),
        ("query", lambda store: store.search(Query(np.ones(8, dtype=np.float32)), 5)),
    ],
)
def test_what_the_engine_raises_leaves_as_an_error_of_ours(
    store: QdrantEdgeStore, method: str, attempt: Callable[[Store], object]
) -> None:
    class Failing:
        def __getattr__(self, name: str) -> Callable[..., None]:
            assert name == method

            def fail(*args: object, **options: object) -> None:
                raise Exception("OutputTooSmall")  # noqa: TRY002  # as the engine does

            return fail

    shard = store._shard
    store._shard = Failing()  # type: ignore[assignment]
    try:
        with pytest.raises(TerminalError, match=r"docs.*OutputTooSmall") as caught:
            attempt(store)
    finally:
        store._shard = shard
    assert caught.value.hint


def test_an_engine_that_cannot_open_gives_the_collection_free(
    opened: Open, store: QdrantEdgeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.close()

    class Refusing:
        @staticmethod
        def load(path: str, _config: object) -> None:
            raise Exception("Can't init WAL")  # noqa: TRY002  # as the engine does

    with monkeypatch.context() as patch:
        patch.setattr(qdrant_edge, "EdgeShard", Refusing)
        with pytest.raises(TerminalError, match="cannot be opened: Can't init WAL"):
            opened().prepare(SPEC)
    opened().prepare(SPEC)


def test_a_text_of_stop_words_has_no_terms_and_is_stored_all_the_same(store: QdrantEdgeStore) -> None:
    embedder = WithBM25(NullEmbedder(8))
    store.upsert(embedder.embed(chunks_of(["the and of", "!!!", "library"])))
    assert store.count() == 3
    assert [hit.id for hit in store.search(embedder.embed_query("libraries"), 5, "sparse")] == ["d2"]
    assert store.search(embedder.embed_query("the"), 5, "sparse") == []
    assert len(store.search(embedder.embed_query("the"), 5, "hybrid")) == 3


def test_the_same_id_twice_in_a_batch_keeps_the_last(store: QdrantEdgeStore) -> None:
    store.upsert(batch_of([chunk(document("a", "first")), chunk(document("a", "second"))], sparse=True))
    assert [point.text for point in store.fetch([("a", 0)])] == ["second"]
    assert store.count() == 1


# -- segments --------------------------------------------------------------------------------------

EXACT: tuple[SearchMode, ...] = ("dense", "sparse")
SEGMENT = 300
POINTS = 1000


def load(store: QdrantEdgeStore, count: int = POINTS) -> None:
    for start in range(0, count, 100):
        chunks = [chunk(document(f"d{n}", f"text {n}", {"n": n})) for n in range(start, start + 100)]
        store.upsert(batch_of(chunks, range(start, start + 100), sparse=True))


def ids_in(store: QdrantEdgeStore) -> list[str]:
    found, after = [], None
    while True:
        page, after = store.scan(after, 400)
        found += [point.id for point in page]
        if after is None:
            return found


@pytest.fixture
def segmented(store: QdrantEdgeStore, monkeypatch: pytest.MonkeyPatch) -> QdrantEdgeStore:
    """1,000 points, of which 900 are in segments that are closed."""
    store.close()
    shutil.rmtree(store._folder)
    monkeypatch.setattr(module, "SEGMENT_POINTS", SEGMENT)
    store.prepare(SPEC)
    load(store)
    assert store._open_shard.info().segments_count == POINTS // SEGMENT + 1
    return store


def test_points_of_closed_segments_are_found_as_those_of_one(segmented: QdrantEdgeStore, opened: Open) -> None:
    one = opened("one")
    one.prepare(SPEC)
    one._written = -POINTS
    load(one)
    assert one._open_shard.info().segments_count == 1
    assert segmented.count() == one.count() == POINTS
    for seed in (0, 299, 300, 999):
        query = Query(
            batch_of(chunks_of([""]), [seed], sparse=True).dense[0], Sparse([seed, 1_000_000], [1.0, 1.0])
        )
        scores: dict[SearchMode, list[float]] = {
            mode: [hit.score for hit in one.search(query, 5, mode)] for mode in EXACT
        }
        for mode, expected in scores.items():
            assert [hit.score for hit in segmented.search(query, 5, mode)] == pytest.approx(expected, rel=1e-5)
        for store in (one, segmented):
            assert store.search(query, 1, "sparse")[0].id == store.search(query, 1, "hybrid")[0].id == f"d{seed}"


def test_a_point_of_a_closed_segment_is_overwritten_and_deleted(segmented: QdrantEdgeStore, opened: Open) -> None:
    segmented.upsert(batch_of([chunk(document("d5", "newer", {"n": -5}))], [5], sparse=True))
    segmented.delete([("d7", 0), ("d999", 0)])
    for _ in range(2):
        assert sorted(ids_in(segmented)) == sorted({f"d{n}" for n in range(POINTS)} - {"d7", "d999"})
        assert segmented.count() == POINTS - 2
        assert [(point.text, point.metadata) for point in segmented.fetch([("d5", 0), ("d7", 0)])] == [
            ("newer", {"n": -5})
        ]
        segmented.close()
        segmented.open()


def test_a_collection_of_one_large_segment_goes_on_in_closed_ones(
    store: QdrantEdgeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.close()
    shutil.rmtree(store._folder)
    with monkeypatch.context() as before:
        plain = qdrant_edge.EdgeVectorParams(SPEC.dimensions, qdrant_edge.Distance.Cosine)
        words = {"bm25": qdrant_edge.EdgeSparseVectorParams(modifier=qdrant_edge.Modifier.Idf)}
        graph = qdrant_edge.HnswIndexConfig(m=0, ef_construct=100, full_scan_threshold=10_000)
        before.setattr(module, "SPARSE", "bm25")
        before.setattr(module, "_config", lambda _spec: qdrant_edge.EdgeConfig(plain, words, hnsw_config=graph))
        store.prepare(SPEC)
        load(store)
        store.close()
    monkeypatch.setattr(module, "SEGMENT_POINTS", SEGMENT)
    store.open()
    load(store)
    assert store._open_shard.info().segments_count > 1
    assert sorted(ids_in(store)) == sorted(f"d{n}" for n in range(POINTS))


WRITER = """
import os
import sys
from pathlib import Path
from ragingest.stores import qdrant_edge
from ragingest.stores.qdrant_edge import QdrantEdgeStore
from tests.contracts.store_contract import batch_of, spec_of
from tests.contracts.embedding import chunk, document

qdrant_edge.SEGMENT_POINTS = 200
store = QdrantEdgeStore(Path(sys.argv[1]), "docs")
store.prepare(spec_of(sparse=True))
first = int(sys.argv[2])
for start in range(first, first + 100_000, 100):
    chunks = [chunk(document(f"d{n}", f"text {n}", {"n": n})) for n in range(start, start + 100)]
    store.upsert(batch_of(chunks, range(start, start + 100), sparse=True))
    print(start + 100, flush=True)
    if start % 500 == 0:
        store.flush()
"""


def test_a_kill_while_segments_are_closed_loses_nothing_and_doubles_nothing(tmp_path: Path, opened: Open) -> None:
    told = 0
    for upserts in (1, 3, 3, 4, 3):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(told)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(upserts):
                told = int(process.stdout.readline())
            process.kill()
            told = max([told, *map(int, process.stdout.read().split())])
        store = opened()
        store.prepare(SPEC)
        ids = ids_in(store)
        assert len(ids) == len(set(ids)) == store.count()
        assert {f"d{n}" for n in range(told)} <= set(ids)
        assert len(ids) <= told + 100
        store.close()


# -- the table of stores ---------------------------------------------------------------------------


def test_an_unknown_store_is_answered_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'sqlite'") as caught:
        open_store(StoreSettings(store="sqlite"))
    assert "qdrant-edge" in caught.value.hint


@pytest.mark.parametrize("name", ["qdrant-edge", "null"])
def test_a_store_on_this_machine_has_no_use_for_a_url(name: str) -> None:
    for settings in (
        StoreSettings(store=name, url="http://localhost:1"),
        StoreSettings(store=name, namespace="v1"),
    ):
        with pytest.raises(UsageError, match=name) as caught:
            open_store(settings)
        assert "--store" in caught.value.hint


def test_without_the_package_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "qdrant_edge", None)
    with pytest.raises(UsageError) as caught:
        open_store(StoreSettings(store_path=str(tmp_path)))
    assert "pip install qdrant-edge-py" in caught.value.hint


def test_the_null_store_counts_and_forgets(tmp_path: Path) -> None:
    store = open_store(StoreSettings(store="null", store_path=str(tmp_path)))
    assert isinstance(store, NullStore)
    assert store.forgets
    store.prepare(SPEC)
    store.upsert(some(3))
    store.delete([("d0", 0)])
    store.flush()
    assert store.count() == 3
    assert store.encode(some(3)) is None
    assert store.fetch([("d1", 0)]) == []
    assert store.scan(None, 5) == ([], None)
    with pytest.raises(UsageError, match="keeps nothing"):
        store.open()
    with pytest.raises(RagingestError, match="keeps nothing"):
        store.search(Query(np.ones(8, dtype=np.float32), Sparse([1], [1.0])), 5)
    store.finish()
    store.close()
    assert files_of(tmp_path) == set()
