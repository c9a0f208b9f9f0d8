"""What the Qdrant adapter does beyond the contract of stores, over both protocols."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from ragingest.documents import point_id
from ragingest.errors import TOO_LARGE, RejectedError, TerminalError, TransientError, UsageError
from ragingest.protocols import Query
from ragingest.settings import Layout, StoreSettings
from ragingest.stores import open_store
from ragingest.stores.qdrant import QdrantStore
from tests.contracts.embedding import chunk, document
from tests.contracts.store_contract import DIMENSIONS, batch_of, spec_of
from tests.servers import faults
from tests.servers.faults import Fault
from tests.servers.qdrant_server import QdrantConfig, QdrantServer

SPEC = spec_of(sparse=True)
COSINE = models.VectorParams(size=DIMENSIONS, distance=models.Distance.COSINE)
BM25 = models.SparseVectorParams(modifier=models.Modifier.IDF)

Open = Callable[..., QdrantStore]


@pytest.fixture
def server(qdrant: QdrantServer) -> Iterator[QdrantServer]:
    qdrant.engine.clear()
    yield qdrant
    qdrant.script(None)


@pytest.fixture(params=["rest", "grpc"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def opened(server: QdrantServer, protocol: str) -> Iterator[Open]:
    """Makes stores, and closes them afterwards."""
    stores: list[QdrantStore] = []

    def open_(of: QdrantServer = server, collection: str = "docs", **options: Any) -> QdrantStore:
        url = of.url if protocol == "rest" else of.grpc_url
        stores.append(QdrantStore(url, collection, **{"timeout": 30, "sleep": lambda _seconds: None, **options}))
        return stores[-1]

    yield open_
    for store in stores:
        store.close()


@pytest.fixture
def store(opened: Open) -> QdrantStore:
    store = opened()
    store.prepare(SPEC)
    return store


@pytest.fixture
def client(server: QdrantServer) -> Iterator[QdrantClient]:
    """The client library, by which a person looks at the server."""
    client = QdrantClient(url=server.url, check_compatibility=False)
    yield client
    client.close()


def some(count: int = 3, **metadata: Any) -> Any:
    return batch_of([chunk(document(f"d{n}", f"text {n}", metadata)) for n in range(count)], sparse=True)


# -- failures --------------------------------------------------------------------------------------

NO_WAIT: list[tuple[Fault, bool]] = [
    (faults.status(500), False),
    (faults.status(503), True),
    (faults.status(504), False),
    (faults.status(408), False),
    (faults.html(), False),
    (faults.reset_before(), False),
    (faults.reset_after(), False),
    (faults.cut_body(), False),
    (faults.cut_json(), False),
]


@pytest.mark.parametrize(("fault", "throttled"), NO_WAIT, ids=lambda value: getattr(value, "kind", None))
def test_what_passes_is_worth_another_try_and_the_next_one_stores_it_once(
    server: QdrantServer, store: QdrantStore, protocol: str, fault: Fault, throttled: bool
) -> None:
    server.script([fault])
    before = server.books.points
    with pytest.raises(TransientError) as caught:
        store.upsert(some())
    assert caught.value.retry_after is None
    # gRPC says UNAVAILABLE where no server is, too: that is no plea for fewer calls.
    assert caught.value.throttled == (throttled and protocol == "rest")
    assert store.count() == (3 if fault.kind in faults.LOST else 0)
    store.upsert(some())
    assert store.count() == 3
    assert server.books.points == before + (6 if fault.kind in faults.LOST else 3)


@pytest.mark.parametrize(
    ("header", "seconds"), [(7, 7.0), (0.25, 0.25), ("1.5", 1.5), (None, None), ("soon", None)]
)
def test_too_many_requests_say_how_long_to_wait(
    server: QdrantServer, store: QdrantStore, header: int | float | str | None, seconds: float | None
) -> None:
    server.script([faults.rate_limited(header)])
    with pytest.raises(TransientError, match="retry later") as caught:
        store.upsert(some())
    assert (caught.value.retry_after, caught.value.throttled) == (seconds, True)
    assert store.count() == 0


@pytest.mark.parametrize(("header", "seconds"), [(7, 7.0), (0.25, 0.25), (None, None)])
def test_so_do_the_calls_of_the_client_library(
    server: QdrantServer, store: QdrantStore, header: int | float | None, seconds: float | None
) -> None:
    calls: list[Callable[[], object]] = [
        store.count,
        lambda: store.delete([("d0", 0)]),
        lambda: store.fetch([("d0", 0)]),
    ]
    for call in calls:
        server.script([faults.rate_limited(header)], endpoints=None)
        with pytest.raises(TransientError) as caught:
            call()
        assert (caught.value.retry_after, caught.value.throttled) == (seconds, True)


@pytest.mark.parametrize("fault", [fault for fault, _ in NO_WAIT], ids=lambda fault: str(fault.kind))
def test_every_call_sorts_its_errors(server: QdrantServer, store: QdrantStore, fault: Fault) -> None:
    store.upsert(some())
    query = Query(np.ones(DIMENSIONS, dtype=np.float32))
    calls: list[Callable[[], object]] = [
        store.count,
        lambda: store.delete([("d0", 0)]),
        lambda: store.fetch([("d0", 0)]),
        lambda: store.scan(None, 5),
        lambda: store.search(query, 5),
        store.finish,
    ]
    for call in calls:
        server.script([fault], endpoints=None)
        with pytest.raises(TransientError):
            call()
        call()


@pytest.mark.parametrize("status", ["acknowledged", "wait_timeout"])
def test_a_write_counts_only_when_it_is_applied(server: QdrantServer, store: QdrantStore, status: str) -> None:
    writes: list[Callable[[], None]] = [lambda: store.upsert(some()), lambda: store.delete([("d0", 0)])]
    for write in writes:
        server.next_statuses([status])
        with pytest.raises(TransientError, match=status):
            write()
        write()
    assert store.count() == 2


def test_a_server_that_takes_too_long_is_asked_again(server: QdrantServer, opened: Open) -> None:
    store = opened(timeout=0.2)
    store.prepare(SPEC)
    server.script([Fault(kind="reset_after", delay=1.0)])
    with pytest.raises(TransientError):
        store.upsert(some())
    assert store.count() == 3


def test_nobody_there_is_worth_another_try(protocol: str) -> None:
    store = QdrantStore({"rest": "http", "grpc": "grpc"}[protocol] + "://127.0.0.1:1", "docs", timeout=5)
    try:
        for call in (lambda: store.prepare(SPEC), store.count):
            with pytest.raises(TransientError, match=r"127\.0\.0\.1:1"):
                call()
    finally:
        store.close()


def test_the_wrong_protocol_for_a_port_is_named(server: QdrantServer) -> None:
    store = QdrantStore(server.url.replace("http:", "grpc:"), "docs", timeout=5)
    try:
        with pytest.raises(TransientError, match=server.url.removeprefix("http://")):
            store.prepare(SPEC)
    finally:
        store.close()


def test_the_key_comes_from_the_environment_and_never_stands_in_an_error(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    with QdrantServer(QdrantConfig(api_key="right-key")) as locked:
        for key in ("", "wrong-key"):
            monkeypatch.setenv("QDRANT_API_KEY", key)
            store = opened(locked)
            with pytest.raises(TerminalError) as caught:
                store.prepare(SPEC)
            with pytest.raises(TerminalError) as hot:
                store._upserts.send(store._encoded(some()))
            for error in (caught.value, hot.value):
                assert "QDRANT_API_KEY" in error.hint
                assert not key or key not in error.message + error.hint
        monkeypatch.setenv("QDRANT_API_KEY", "right-key")
        store = opened(locked)
        store.prepare(SPEC)
        store.upsert(some())
        assert store.count() == 3
        store.close()


def test_a_key_that_a_server_repeats_is_blotted_out(
    server: QdrantServer, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QDRANT_API_KEY", "ordered")  # a word of the message of the fault
    store = opened()
    store.prepare(SPEC)
    server.script([faults.status(500)])
    with pytest.raises(TransientError, match=r"\*\*\* by the script"):
        store.upsert(some())


def test_a_key_with_line_breaks_is_refused_before_it_is_sent(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QDRANT_API_KEY", "two\nlines")
    with pytest.raises(UsageError, match="characters") as caught:
        opened()
    assert "lines" not in caught.value.message


def test_a_collection_that_is_gone_ends_the_run(server: QdrantServer, store: QdrantStore) -> None:
    server.engine.clear()
    for call in (lambda: store.upsert(some()), store.count, lambda: store.delete([("d0", 0)])):
        with pytest.raises(TerminalError, match="docs") as caught:
            call()
        assert "--collection" in caught.value.hint


def test_a_collection_that_was_made_anew_for_other_vectors_ends_the_run(
    server: QdrantServer, store: QdrantStore
) -> None:
    server.engine.clear()
    server.engine.create("docs", models.CreateCollection(vectors=COSINE.model_copy(update={"size": 5})))
    with pytest.raises(TerminalError, match=r"dimension|vector name"):
        store.upsert(some())


# -- limits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 413])
def test_a_body_over_the_limit_is_too_large(opened: Open, protocol: str, status: int) -> None:
    config = QdrantConfig(max_body_bytes=20_000, oversize_status=status)
    with QdrantServer(config) as small:
        store = opened(small)
        store.prepare(SPEC)
        if protocol == "grpc":  # which has no such limit
            store.upsert(some(text="x" * 20_000))
        else:
            with pytest.raises(RejectedError, match="20000") as caught:
                store.upsert(some(text="x" * 20_000))
            assert caught.value.kind == TOO_LARGE
            assert small.books.refused_for_size == 1
        store.upsert(some(1))
        store.close()


def test_more_points_than_strict_mode_allows_are_too_large(server: QdrantServer, store: QdrantStore) -> None:
    strict = models.StrictModeConfig(enabled=True, upsert_max_batchsize=2)
    server.engine.change("docs", models.UpdateCollection(strict_mode_config=strict))
    with pytest.raises(RejectedError, match="upsert limit") as caught:
        store.upsert(some(3))
    assert caught.value.kind == TOO_LARGE
    assert store.count() == 0
    store.upsert(some(2))
    assert store.count() == 2


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (
            429,
            "Rate limiting exceeded: request larger than rate limiter capacity, please try to split your request",
            RejectedError,
        ),
        (400, "Bad request: Max vector storage size limit of 10MB reached!", TerminalError),
        (400, "Wrong input: Vector dimension error: expected dim: 8, got 9", TerminalError),
        (400, "Wrong input: Not existing vector name error: bm25", TerminalError),
        (400, "Wrong input: something about a point", RejectedError),
        (422, "Validation error in JSON body: something", RejectedError),
        (405, "Method not allowed", TerminalError),
        (507, "Insufficient storage: the disk is full", TransientError),
    ],
)
def test_a_refusal_is_sorted_by_who_can_do_something(
    server: QdrantServer, store: QdrantStore, status: int, message: str, kind: type[Exception]
) -> None:
    assert type(store._errors._of_answer(status, message, None)) is kind


def test_no_message_is_longer_than_the_limit_that_the_packer_is_told(store: QdrantStore) -> None:
    wire = store._encoded(some(3))
    envelope = 32 * 2**20 - (store.limits.max_bytes or 0)
    sent: list[bytes] = []
    with suppress(Exception), pytest.MonkeyPatch.context() as patch:
        upserts: Any = store._upserts
        if hasattr(upserts, "_client"):
            patch.setattr(upserts._client, "put", lambda _url, content: sent.append(content))
        else:
            patch.setattr(upserts, "_upsert", lambda content, **_options: sent.append(content))
        upserts.send(wire)
    assert len(sent[0]) <= sum(map(len, wire)) + envelope
    assert envelope < 100


# -- collections that others made ------------------------------------------------------------------

OTHERS: list[tuple[models.CreateCollection, str]] = [
    (models.CreateCollection(vectors=COSINE.model_copy(update={"distance": models.Distance.DOT})), "Dot"),
    (models.CreateCollection(vectors={"text": COSINE}), "text"),
    (models.CreateCollection(vectors={"": COSINE, "image": COSINE}), "image"),
    (models.CreateCollection(vectors=COSINE, sparse_vectors={"splade": BM25}), "splade"),
    (models.CreateCollection(vectors=COSINE, sparse_vectors={"bm25": models.SparseVectorParams()}), "without IDF"),
    (models.CreateCollection(sparse_vectors={"bm25": BM25}), "bm25"),
    (models.CreateCollection(vectors=COSINE), "without BM25"),
]


@pytest.mark.parametrize(("made", "named"), OTHERS, ids=[named for _, named in OTHERS])
def test_a_collection_of_other_vectors_is_refused_with_both_sides_named(
    server: QdrantServer, opened: Open, made: models.CreateCollection, named: str
) -> None:
    server.engine.create("docs", made)
    with pytest.raises(TerminalError) as caught:
        opened().prepare(SPEC)
    message = caught.value.message
    assert named in message
    assert "fake makes 8-dimensional vectors with BM25" in message
    if named != "without BM25":
        with pytest.raises(TerminalError, match="does not read"):
            opened().open()


def test_an_empty_collection_that_somebody_made_ready_is_taken_and_told_who_embeds_it(
    server: QdrantServer, opened: Open
) -> None:
    server.engine.create(
        "docs", models.CreateCollection(vectors=COSINE, sparse_vectors={"bm25": BM25}, shard_number=3)
    )
    opened().prepare(SPEC)
    assert server.engine.info("docs").config.params.shard_number == 3
    assert opened().open() == SPEC


def test_a_server_without_metadata_does_not_know_who_embedded(opened: Open) -> None:
    with QdrantServer(QdrantConfig(keeps_metadata=False)) as old:
        store = opened(old)
        store.prepare(SPEC, Layout(bulk=True))
        store.upsert(some())
        spec = opened(old).open()
        assert (spec.dimensions, spec.sparse, spec.embedder, spec.model) == (8, True, "", "")
        store.finish()
        assert old.engine.info("docs").config.hnsw_config.m == 16


def test_a_point_that_is_not_ours_is_named(server: QdrantServer, store: QdrantStore) -> None:
    alien = models.PointStruct(id=7, vector=[1.0] * DIMENSIONS, payload={"other": 1})
    server.engine.upsert("docs", [alien])
    with pytest.raises(TerminalError, match=r"point 7 .* not stored by ragingest"):
        store.scan(None, 5)


def test_what_the_client_library_reads_is_what_was_meant(client: QdrantClient, store: QdrantStore) -> None:
    """The layout is Qdrant's own: anybody can use the collection without ragingest."""
    whole = document("doc", "a b", {"k": [1, None]}, chunks=2)
    batch = batch_of([chunk(whole, 1, "b")], sparse=True)
    store.upsert(batch)
    [record] = client.retrieve("docs", [point_id("doc", 1)], with_vectors=True)
    assert record.payload == {
        "id": "doc",
        "chunk": 1,
        "chunks": 2,
        "text": "b",
        "digest": whole.digest.hex(),
        "metadata": {"k": [1, None]},
    }
    assert isinstance(record.vector, dict)
    assert record.vector.keys() == {"", "bm25"}
    info = client.get_collection("docs")
    assert info.config.params.vectors == COSINE
    assert info.config.params.sparse_vectors == {"bm25": BM25}


# -- layout ----------------------------------------------------------------------------------------


def test_a_bulk_load_builds_its_graph_at_the_end_and_waits_for_it(
    server: QdrantServer, client: QdrantClient, opened: Open
) -> None:
    pauses: list[float] = []
    store = opened(sleep=pauses.append)
    store.prepare(SPEC, Layout(bulk=True))
    assert client.get_collection("docs").config.hnsw_config.m == 0
    store.upsert(some(9))
    shares: list[float] = []
    store.finish(shares.append)
    info = client.get_collection("docs")
    assert info.status == models.CollectionStatus.GREEN
    assert info.config.hnsw_config.m == 16
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert len(pauses) == len(shares) - 1 == server.config.polls
    before = changes_of(server)
    store.finish()
    assert changes_of(server) == before > 0


def changes_of(server: QdrantServer) -> int:
    """How often the settings of a collection were changed."""
    return sum(count for name, count in server.books.requests.items() if name.endswith("update_collection"))


def test_a_bulk_load_that_was_cut_short_is_finished_by_whoever_finishes(server: QdrantServer, opened: Open) -> None:
    first = opened()
    first.prepare(SPEC, Layout(bulk=True))
    first.upsert(some())
    first.close()
    second = opened()
    second.prepare(SPEC, Layout())
    assert server.engine.info("docs").config.hnsw_config.m == 0
    second.finish()
    assert server.engine.info("docs").config.hnsw_config.m == 16


def test_a_wait_that_was_cut_short_is_taken_up_again(server: QdrantServer, opened: Open) -> None:
    first = opened()
    first.prepare(SPEC, Layout(bulk=True))

    def interrupted(_share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.finish(interrupted)
    shares: list[float] = []
    second = opened()
    second.prepare(SPEC)
    second.finish(shares.append)
    assert shares[-1] == 1.0
    assert server.engine.info("docs").config.metadata == {
        "ragingest": {"embedder": "fake", "model": "model-1", "extra": {}, "bulk": False}
    }


def test_a_collection_without_a_graph_by_its_owners_wish_stays_without(server: QdrantServer, opened: Open) -> None:
    server.engine.create(
        "docs",
        models.CreateCollection(
            vectors=COSINE, sparse_vectors={"bm25": BM25}, hnsw_config=models.HnswConfigDiff(m=0, payload_m=16)
        ),
    )
    store = opened()
    store.prepare(SPEC, Layout(bulk=True))
    store.finish()
    assert server.engine.info("docs").config.hnsw_config.m == 0


def test_an_index_that_cannot_be_built_is_an_error(
    server: QdrantServer, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened()
    store.prepare(SPEC, Layout(bulk=True))
    info = server.engine.info("docs")
    broken = info.model_copy(
        update={"optimizer_status": models.OptimizersStatusOneOf1(error="no space left on device")}
    )
    monkeypatch.setattr(server.engine, "info", lambda _name: broken)
    with pytest.raises(TerminalError, match="no space left on device"):
        store.finish()


def test_a_layout_is_that_of_the_collection(client: QdrantClient, opened: Open) -> None:
    opened().prepare(SPEC, Layout(on_disk=True, quantization="scalar"))
    config = client.get_collection("docs").config
    assert isinstance(config.params.vectors, models.VectorParams)
    assert config.params.vectors.on_disk
    assert isinstance(config.quantization_config, models.ScalarQuantization)
    opened(collection="binary").prepare(SPEC, Layout(quantization="binary"))
    assert isinstance(client.get_collection("binary").config.quantization_config, models.BinaryQuantization)
    opened(collection="plain").prepare(SPEC)
    plain = client.get_collection("plain").config
    assert plain.quantization_config is None
    assert plain.hnsw_config.m == 16


def test_metadata_is_indexed_and_filters_by_it_work_in_strict_mode(
    server: QdrantServer, client: QdrantClient, opened: Open
) -> None:
    store = opened()
    store.prepare(SPEC, Layout(index_metadata=("lang", "year:integer", "a.b", "odd key:bool")))
    assert {
        name: index.data_type.value for name, index in client.get_collection("docs").payload_schema.items()
    } == {
        "metadata.lang": "keyword",
        "metadata.year": "integer",
        "metadata.a.b": "keyword",
        'metadata."odd key"': "bool",
    }
    store.prepare(SPEC, Layout(index_metadata=("lang", "more")))  # again, and one more
    strict = models.StrictModeConfig(enabled=True, unindexed_filtering_retrieve=False)
    server.engine.change("docs", models.UpdateCollection(strict_mode_config=strict))
    store.upsert(some(2, lang="en", other="x"))
    query = Query(np.ones(DIMENSIONS, dtype=np.float32))
    assert len(store.search(query, 5, "dense", {"lang": "en"})) == 2
    with pytest.raises(UsageError, match="without an index") as caught:
        store.search(query, 5, "dense", {"other": "x"})
    assert "--index-metadata other" in caught.value.hint


@pytest.mark.parametrize("asked", ["year:number", "year:", 'quoted"key'])
def test_an_index_that_there_is_not_is_refused_before_anything_is_made(
    server: QdrantServer, opened: Open, asked: str
) -> None:
    with pytest.raises(UsageError):
        opened().prepare(SPEC, Layout(index_metadata=(asked,)))
    assert server.engine.names() == []


# -- the name table --------------------------------------------------------------------------------


def test_without_a_url_there_is_an_example() -> None:
    with pytest.raises(UsageError, match="needs --url") as caught:
        open_store(StoreSettings(store="qdrant"))
    assert "http://localhost:6333" in caught.value.hint


def test_a_namespace_is_refused() -> None:
    with pytest.raises(UsageError, match="--namespace"):
        open_store(StoreSettings(store="qdrant", url="http://localhost:6333", namespace="v1"))


@pytest.mark.parametrize("url", ["ftp://localhost:6333", "postgresql://localhost/db", "localhost:6333"])
def test_an_address_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_store(StoreSettings(store="qdrant", url=url))
    assert "grpc://host:6334" in caught.value.hint


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ragingest.stores.qdrant")
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    with pytest.raises(UsageError) as caught:
        open_store(StoreSettings(store="qdrant", url="http://localhost:6333"))
    assert caught.value.hint == "pip install 'ragingest[qdrant]'"
