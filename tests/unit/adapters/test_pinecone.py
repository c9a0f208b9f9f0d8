"""The Pinecone adapter against the server on loopback: what it sends, what it makes of answers, what it says."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import trustme

from ragingest.batching import PointPacker
from ragingest.documents import EmbeddedBatch
from ragingest.errors import TOO_LARGE, RejectedError, TerminalError, TransientError, UsageError
from ragingest.protocols import CollectionSpec, Query
from ragingest.settings import StoreSettings
from ragingest.stores import open_store
from ragingest.stores.pinecone import PineconeStore
from tests.contracts.embedding import chunk, document
from tests.servers.fault_proxy import HALF_OPEN, FaultProxy, Weather
from tests.servers.faults import (
    Fault,
    cut_body,
    forbidden,
    html,
    quota,
    rate_limited,
    reset_after,
    reset_before,
    slow,
    status,
)
from tests.servers.pinecone_server import IndexConfig, Limits, PineconeConfig, PineconeServer

T = TypeVar("T")

KEY = "pc-SECRET-0123456789"
SPEC = CollectionSpec(8, False, "openai", "text-embedding-3-small", {"base_url": "http://localhost:8000/v1"})
CONFIG = PineconeConfig(api_key=KEY, indexes=[IndexConfig(name="docs", dimension=8)])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[PineconeServer]:
    with PineconeServer(CONFIG) as server:
        monkeypatch.setenv("PINECONE_CONTROLLER_HOST", server.url)
        for name in ("PINECONE_CLOUD", "PINECONE_REGION"):
            monkeypatch.delenv(name, raising=False)
        yield server


@pytest.fixture
def store(server: PineconeServer) -> Iterator[PineconeStore]:
    """Prepared, by the host of the index."""
    store = PineconeStore("docs", "v1", host=server.host("docs"), key=KEY)
    store.prepare(SPEC)
    yield store
    store.close()


def batch(count: int = 2, dimensions: int = 8, padding: int = 0) -> EmbeddedBatch:
    dense = np.random.default_rng(count).standard_normal((count, dimensions)).astype(np.float32)
    documents = [document(f"d{n}", f"text {n}", {"pad": "." * padding} if padding else {}) for n in range(count)]
    return EmbeddedBatch([chunk(of) for of in documents], dense)


def again(call: Callable[[], T]) -> T:
    """Call until it works: a connection that was reset may fail calls that had nothing to do with it."""
    for _ in range(20):
        with suppress(TransientError):
            return call()
    return call()


def http(code: int, retry_after: float | None = None) -> Fault:
    """The status as a proxy gives it, which knows no gRPC."""
    return Fault(kind="status", status=code, code="http", retry_after=retry_after)


# -- what answers mean -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "throttled", "retry_after"),
    [
        (rate_limited(), True, None),
        (rate_limited(retry_after=7), True, 7),
        (rate_limited(retry_after=0.25), True, 0.25),
        (http(429, 3), True, None),
        (http(503), True, None),
        (status(500), False, None),
        (status(503), False, None),
        (status(504), False, None),
        (status(408), False, None),
        (status(409), False, None),
        (http(500), False, None),
        (http(502), False, None),
        (http(504), False, None),
        (html(), False, None),
        (reset_before(), False, None),
        (reset_after(), False, None),
        (cut_body(), False, None),
    ],
    ids=lambda value: f"{value.kind}-{value.status}-{value.retry_after}" if isinstance(value, Fault) else "",
)
def test_what_may_pass_is_transient_and_the_next_try_stores_it(
    server: PineconeServer, store: PineconeStore, fault: Fault, throttled: bool, retry_after: float | None
) -> None:
    server.script([fault])
    with pytest.raises(TransientError) as caught:
        store.upsert(batch())
    assert caught.value.throttled == throttled
    assert caught.value.retry_after == retry_after
    assert server.books.upserts == 1
    again(lambda: store.upsert(batch()))
    assert set(server.records("docs", "v1")) == {"d0#0", "d1#0"}


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (quota(), "plan"),
        (forbidden(), "PINECONE_API_KEY"),
        (status(401), "PINECONE_API_KEY"),
        (status(404), "--index"),
        (http(401), "PINECONE_API_KEY"),
        (http(403), "PINECONE_API_KEY"),
        (http(404), "--index"),
    ],
    ids=lambda value: f"{value.kind}-{value.status}-{value.code}" if isinstance(value, Fault) else "",
)
def test_what_will_not_pass_is_terminal_and_says_what_to_do(
    server: PineconeServer, store: PineconeStore, fault: Fault, says: str
) -> None:
    server.script([fault])
    with pytest.raises(TerminalError) as caught:
        store.upsert(batch())
    assert says in caught.value.hint
    assert "Pinecone answered" in caught.value.message


def test_a_request_that_hangs_is_given_up_in_time_though_it_was_done(server: PineconeServer) -> None:
    server.script([slow(60)])
    store = PineconeStore("docs", "v1", host=server.host("docs"), key=KEY, timeout=0.5)
    store.prepare(SPEC)
    with pytest.raises(TransientError, match="cannot be reached"):
        store.upsert(batch())
    store.close()
    assert set(server.records("docs", "v1")) == {"d0#0", "d1#0"}


def test_a_server_that_is_gone_is_transient_and_no_throttling() -> None:
    with PineconeServer(CONFIG) as server:
        store = PineconeStore("docs", host=server.host("docs"), key=KEY)
        store.prepare(SPEC)
        store.upsert(batch())
    with pytest.raises(TransientError) as caught:
        store.upsert(batch())
    assert not caught.value.throttled
    with pytest.raises(TransientError):
        store.count()
    store.close()


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (rate_limited(), TransientError),
        (status(500), TransientError),
        (status(503), TransientError),
        (html(), TransientError),
        (http(503), TransientError),
        (reset_before(), TransientError),
        (cut_body(), TransientError),
        (quota(), TerminalError),
        (forbidden(), TerminalError),
        (status(401), TerminalError),
        (http(401), TerminalError),
        (status(400), TerminalError),
    ],
    ids=lambda value: f"{value.kind}-{value.status}-{value.code}" if isinstance(value, Fault) else "",
)
def test_reading_and_deleting_fail_in_the_same_words(
    server: PineconeServer, store: PineconeStore, fault: Fault, error: type[Exception]
) -> None:
    store.upsert(batch())
    calls: list[tuple[Any, Any]] = [
        ("Fetch", lambda: store.fetch([("d0", 0)])),
        ("List", lambda: store.scan(None, 5)),
        ("Query", lambda: store.search(Query(np.ones(8, dtype=np.float32)), 5)),
        ("DescribeIndexStats", store.count),
        ("Delete", lambda: store.delete([("d0", 0)])),
    ]
    for endpoint, call in calls:
        server.script([fault], endpoint=endpoint)
        with pytest.raises(error) as caught:
            call()
        assert KEY not in str(caught.value)
        again(call)


# -- sizes -------------------------------------------------------------------------------------------------


def test_upserts_are_filled_to_the_limit_and_never_beyond(server: PineconeServer, store: PineconeStore) -> None:
    whole = batch(3000, padding=3000)
    encoded = store.encode(whole)
    assert encoded is not None
    whole.wire = [point for point in encoded if isinstance(point, bytes)]
    packer = PointPacker(store.limits.max_points, store.limits.max_bytes)
    for part in [*packer.add(whole), *packer.flush()]:
        store.upsert(part)
    books = server.books
    assert books.too_large == 0
    assert sum(count for count, _ in books.accepted) == 3000
    full = [size for _, size in books.accepted[:-1]]
    assert len(full) >= 2
    each = max(map(len, whole.wire))
    assert all(2_000_000 - each <= size <= 2_000_000 for size in full)


def test_a_request_of_exactly_the_limit_is_taken(server: PineconeServer, store: PineconeStore) -> None:
    limit = store.limits.max_bytes
    assert limit is not None
    points = batch(104, padding=19_000)
    encoded = store.encode(points)
    assert encoded is not None
    points.wire = [point for point in encoded if isinstance(point, bytes)]
    missing = limit - sum(map(len, points.wire))
    points.chunks[0].document.metadata = {"pad": "." * (19_000 + missing)}
    (first,) = store.encode(EmbeddedBatch(points.chunks[:1], points.dense[:1])) or [b""]
    assert isinstance(first, bytes)
    points.wire[0] = first
    assert sum(map(len, points.wire)) == limit
    store.upsert(points)
    assert server.books.accepted == [(104, 2_000_000)]


@pytest.mark.parametrize(
    ("limits", "fault"),
    [
        (Limits(request_bytes=1000), None),
        (Limits(records=10), None),
        (Limits(), Fault(kind="status", status=413, code="http")),
    ],
    ids=["bytes", "records", "413 of a proxy"],
)
def test_a_smaller_limit_than_was_thought_asks_for_less(limits: Limits, fault: Fault | None) -> None:
    config = PineconeConfig(api_key=KEY, limits=limits, indexes=list(CONFIG.indexes))
    with PineconeServer(config) as server:
        server.script([fault])
        store = PineconeStore("docs", host=server.host("docs"), key=KEY)
        store.prepare(SPEC)
        with pytest.raises(RejectedError) as caught:
            store.upsert(batch(20))
        assert caught.value.kind == TOO_LARGE
        store.upsert(batch(3))
        store.close()


def test_metadata_that_the_server_finds_too_large_is_no_matter_of_the_request() -> None:
    config = PineconeConfig(api_key=KEY, limits=Limits(metadata_bytes=1000), indexes=list(CONFIG.indexes))
    with PineconeServer(config) as server:
        store = PineconeStore("docs", host=server.host("docs"), key=KEY)
        store.prepare(SPEC)
        with pytest.raises(RejectedError) as caught:
            store.upsert(batch(2, padding=1000))
        assert caught.value.kind == "metadata_too_large"
        store.close()


def test_points_over_one_request_are_deleted_and_read_in_several(
    server: PineconeServer, store: PineconeStore
) -> None:
    for start in range(0, 2500, 500):
        some = [document(f"d{n}", "x") for n in range(start, start + 500)]
        store.upsert(EmbeddedBatch([chunk(of) for of in some], np.ones((500, 8), dtype=np.float32)))
    points = [(f"d{n}", 0) for n in range(2500)]
    assert len(store.fetch(points)) == 2500
    seen: list[str] = []
    after = None
    while True:
        page, after = store.scan(after, 256)
        seen += [point.id for point in page]
        if after is None:
            break
    assert sorted(seen) == sorted(id_ for id_, _ in points)
    store.delete(points[:2400])
    assert store.count() == 100
    assert server.books.requests["Delete"] == {"200": 3}


def test_deleting_where_nothing_was_stored_yet_is_nothing(store: PineconeStore) -> None:
    store.delete([("a", 0)])


# -- finding the index -------------------------------------------------------------------------------------


def opened(index: str = "docs", namespace: str | None = None, **more: Any) -> PineconeStore:
    return PineconeStore(index, namespace, key=KEY, **more)


def test_an_index_that_is_missing_is_created_for_the_spec(
    server: PineconeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PINECONE_REGION", "eu-west-1")
    store = opened("made")
    store.prepare(SPEC)
    store.upsert(batch())
    store.close()
    made = server.index("made")
    assert (made.config.dimension, made.config.metric, made.config.vector_type) == (8, "cosine", "dense")
    assert (made.config.cloud, made.config.region) == ("aws", "eu-west-1")
    reader = opened("made")
    assert reader.open() == SPEC
    assert reader.count() == 2
    reader.close()


def test_an_index_of_the_users_own_is_told_who_loads_it_and_keeps_its_tags(server: PineconeServer) -> None:
    server.index("docs").tags["team"] = "search"
    store = opened()
    store.prepare(SPEC)
    store.close()
    assert server.index("docs").tags == {
        "team": "search",
        "ragingest-embedder": "openai",
        "ragingest-model": "text-embedding-3-small",
        "ragingest-base-url": "http://localhost:8000/v1",
    }
    other = opened()
    other.prepare(CollectionSpec(8, False, "null", "constant"))
    other.close()
    assert server.index("docs").tags["ragingest-embedder"] == "openai"


def test_tags_speak_for_a_namespace_that_is_the_only_one(server: PineconeServer) -> None:
    other = replace(SPEC, model="text-embedding-3-large")
    told = []
    for namespace, spec in (("v1", SPEC), ("v1", other), ("v2", other), ("v2", SPEC), ("v1", other)):
        store = opened("docs", namespace)
        told.append(store.prepare(spec).model)
        store.upsert(batch())
        store.close()
    assert told == ["", "text-embedding-3-small", "", "", ""]


def test_what_no_tag_can_hold_is_not_told_and_nothing_older_in_its_place(server: PineconeServer) -> None:
    server.index("docs").tags["team"] = "search"
    store = opened()
    store.prepare(SPEC)
    store.describe(CollectionSpec(8, False, "sentence-transformers", "/models/größe"))
    assert server.index("docs").tags == {"team": "search"}
    store.describe(CollectionSpec(8, False, "null", "constant"))
    assert server.index("docs").tags == {
        "team": "search",
        "ragingest-embedder": "null",
        "ragingest-model": "constant",
    }
    store.close()


def test_a_key_that_may_not_change_indexes_loads_all_the_same(server: PineconeServer) -> None:
    server.script([None, forbidden()], endpoint="control")
    store = opened()
    store.prepare(SPEC)
    store.upsert(batch())
    store.close()
    assert server.index("docs").tags == {}


def test_by_its_host_the_control_plane_is_never_asked(server: PineconeServer, store: PineconeStore) -> None:
    store.upsert(batch())
    reader = PineconeStore("docs", "v1", host=server.host("docs"), key=KEY)
    assert reader.open() == CollectionSpec(8, False, "", "")
    reader.close()
    assert "control" not in server.books.requests


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (IndexConfig(name="other", dimension=1536), ("8-dim", "1536-dim", "other")),
        (IndexConfig(name="other", dimension=8, metric="dotproduct"), ("dotproduct", "cosine", "other")),
        (IndexConfig(name="other", vector_type="sparse", metric="dotproduct"), ("sparse", "dense", "other")),
        (IndexConfig(name="other", dimension=8, pods=True), ("pods", "other")),
    ],
    ids=["dimension", "metric", "kind", "pods"],
)
def test_an_index_for_other_vectors_is_refused_naming_both(
    config: IndexConfig, says: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    with PineconeServer(PineconeConfig(api_key=KEY, indexes=[config])) as server:
        monkeypatch.setenv("PINECONE_CONTROLLER_HOST", server.url)
        store = opened("other")
        with pytest.raises(TerminalError) as caught:
            store.prepare(SPEC)
        assert all(word in caught.value.message for word in says)
        assert "--index" in caught.value.hint
        store.close()


def test_an_index_that_is_being_made_is_waited_for(server: PineconeServer) -> None:
    server.index("docs").ready = False
    store = opened()
    with pytest.raises(TransientError, match="not ready"):
        store.prepare(SPEC)
    server.index("docs").ready = True
    store.prepare(SPEC)
    store.close()


def test_a_missing_index_and_a_missing_namespace_are_named_with_those_there_are(server: PineconeServer) -> None:
    store = opened("docs", "v1")
    store.prepare(SPEC)
    store.upsert(batch())
    store.close()
    with pytest.raises(UsageError, match="no index typo") as caught:
        opened("typo").open()
    assert "docs" in caught.value.hint
    with pytest.raises(UsageError, match="no namespace v2") as caught:
        opened("docs", "v2").open()
    assert "v1" in caught.value.hint


def test_no_index_is_made_where_its_name_region_or_dimension_cannot_be(
    server: PineconeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="My_Index"):
        opened("My_Index").prepare(SPEC)
    with pytest.raises(TerminalError, match="20,000"):
        opened("wide").prepare(CollectionSpec(20_001, False, "e", "m"))
    monkeypatch.setenv("PINECONE_REGION", "mars-1")
    with pytest.raises(TerminalError, match="mars-1") as caught:
        opened("far").prepare(SPEC)
    assert "PINECONE_REGION" in caught.value.hint
    assert server.books.records.keys() == {"docs"}


@pytest.mark.parametrize("namespace", ["ü", "x" * 513, "a\0", ""])
def test_a_namespace_that_cannot_be_is_refused_at_once(namespace: str) -> None:
    with pytest.raises(UsageError, match="namespace"):
        opened("docs", namespace)


def test_the_default_namespace_has_two_names(server: PineconeServer) -> None:
    for namespace in (None, "__default__"):
        store = opened("docs", namespace)
        store.prepare(SPEC)
        store.upsert(batch())
        assert store.count() == 2
        store.close()
    assert server.books.records == {"docs": {"__default__": 2}}


def test_namespaces_do_not_share_points(server: PineconeServer, store: PineconeStore) -> None:
    store.upsert(batch())
    other = opened("docs", "v2")
    other.prepare(SPEC)
    assert other.count() == 0
    assert other.fetch([("d0", 0)]) == []
    assert other.search(Query(np.ones(8, dtype=np.float32)), 5) == []
    other.close()


# -- statistics lag ----------------------------------------------------------------------------------------


def test_statistics_that_lag_do_not_make_a_full_namespace_look_empty(
    server: PineconeServer, store: PineconeStore
) -> None:
    server.index("docs").lag = True
    for start in range(0, 250, 50):
        some = [document(f"d{n}", "x") for n in range(start, start + 50)]
        store.upsert(EmbeddedBatch([chunk(of) for of in some], np.ones((50, 8), dtype=np.float32)))
    assert store.count() == 250
    reader = PineconeStore("docs", "v1", host=server.host("docs"), key=KEY)
    reader.open()
    reader.close()


# -- the key -----------------------------------------------------------------------------------------------


def test_the_key_comes_from_the_environment_and_is_shown_nowhere(
    server: PineconeServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    settings = StoreSettings(store="pinecone", collection="docs", namespace="v1")
    monkeypatch.delenv("PINECONE_API_KEY", raising=False)
    with pytest.raises(UsageError) as missing:
        open_store(settings).prepare(SPEC)
    assert "PINECONE_API_KEY" in missing.value.hint
    wrong = KEY + "-wrong"
    for url in (None, server.host("docs")):
        monkeypatch.setenv("PINECONE_API_KEY", wrong)
        with pytest.raises(TerminalError) as caught:
            open_store(StoreSettings(store="pinecone", collection="docs", url=url)).prepare(SPEC)
        assert "PINECONE_API_KEY" in caught.value.hint
        assert wrong not in caught.value.message + caught.value.hint
    for odd in ("two\nlines", "schlüssel"):
        monkeypatch.setenv("PINECONE_API_KEY", odd)
        with pytest.raises(UsageError) as caught_odd:
            open_store(settings).prepare(SPEC)
        assert odd not in caught_odd.value.message + caught_odd.value.hint
    monkeypatch.setenv("PINECONE_API_KEY", f" {KEY}\n")
    store = open_store(settings)
    store.prepare(SPEC)
    store.upsert(batch())
    store.close()
    # hpack's are those of the server in this process, which reads the key.
    assert not [record for record in caplog.records if record.name != "hpack.hpack" and KEY in record.getMessage()]


def test_points_can_be_encoded_without_a_key_and_without_a_server() -> None:
    store = open_store(StoreSettings(store="pinecone", collection="docs"))
    encoded = store.encode(batch(3))
    assert encoded is not None
    assert all(isinstance(point, bytes) for point in encoded)
    store.close()


def test_only_dense_searches_of_up_to_ten_thousand(store: PineconeStore) -> None:
    query = Query(np.ones(8, dtype=np.float32))
    with pytest.raises(UsageError, match="sparse"):
        store.search(query, 5, "hybrid")
    with pytest.raises(UsageError, match="10,000"):
        store.search(query, 10_001)
    with pytest.raises(UsageError, match=r"\$or"):
        store.search(query, 5, "dense", {"$or": "x"})
    with pytest.raises(UsageError, match="sparse"):
        store.prepare(CollectionSpec(8, True, "wordllama", "m"))


# -- the way there -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Certificate and key for localhost that the system's authorities know nothing of."""
    folder = tmp_path_factory.mktemp("tls")
    issued = (authority := trustme.CA()).issue_cert("localhost", "127.0.0.1")
    issued.private_key_pem.write_to_path(str(folder / "key.pem"))
    for blob in (*issued.cert_chain_pems, authority.cert_pem):
        blob.write_to_path(str(folder / "certificate.pem"), append=True)
    return folder / "certificate.pem", folder / "key.pem"


def test_over_tls_everything_works_if_the_authority_is_known(
    server: PineconeServer, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    with FaultProxy(server.host("docs"), tls=certificate) as proxy:
        host = proxy.url.replace("http://127.0.0.1", "https://localhost")
        store = PineconeStore("docs", "v1", host=host, key=KEY)
        store.prepare(SPEC)
        store.upsert(batch())
        assert {point.id for point in store.fetch([("d0", 0), ("d1", 0)])} == {"d0", "d1"}
        store.close()


def test_a_certificate_that_nobody_vouches_for_is_terminal(
    server: PineconeServer, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultProxy(server.host("docs"), tls=certificate) as proxy:
        url = proxy.url.replace("http://127.0.0.1", "https://localhost")
        for name, host in (("data", url), ("control", None)):
            monkeypatch.setenv("PINECONE_CONTROLLER_HOST", url)
            with pytest.raises(TerminalError, match="TLS") as caught:
                PineconeStore("docs", host=host, key=KEY).prepare(SPEC)
            assert "SSL_CERT_FILE" in caught.value.hint, name
        # An upsert meets it too, should the certificate change while a run goes on.
        store = PineconeStore("docs", host=server.host("docs"), key=KEY)
        store.prepare(SPEC)
        store._host = url
        store._dial()
        with pytest.raises(TerminalError, match="TLS"):
            store.upsert(batch())
        store.close()


def test_no_tls_where_it_is_spoken_is_terminal(server: PineconeServer) -> None:
    with pytest.raises(TerminalError, match="TLS") as caught:
        PineconeStore("docs", host=server.host("docs").replace("http:", "https:"), key=KEY).prepare(SPEC)
    assert "https or http" in caught.value.hint


def test_a_file_of_authorities_without_any_is_named(
    server: PineconeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "empty.pem").touch()
    for name in ("missing.pem", "empty.pem"):
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / name))
        with pytest.raises(UsageError, match=name):
            PineconeStore("docs", host=server.host("docs"), key=KEY).prepare(SPEC)


def test_a_connection_that_has_died_in_silence_is_left_for_another(server: PineconeServer) -> None:
    with FaultProxy(server.host("docs"), [HALF_OPEN, Weather(), HALF_OPEN, Weather()]) as proxy:
        store = PineconeStore("docs", "v1", host=proxy.url, key=KEY, timeout=1)
        with pytest.raises(TransientError, match="cannot be reached"):
            store.prepare(SPEC)
        store.prepare(SPEC)
        with pytest.raises(TransientError, match="cannot be reached"):
            store.upsert(batch())
        store.upsert(batch())
        assert {point.id for point in again(lambda: store.fetch([("d0", 0), ("d1", 0)]))} == {"d0", "d1"}
        store.close()


def test_what_the_environment_names_as_a_proxy_is_gone_through(
    server: PineconeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with pytest.raises(TransientError):
        opened().prepare(SPEC)
    with pytest.raises(TransientError):
        PineconeStore("docs", host=server.host("docs"), key=KEY).prepare(SPEC)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    store = opened()
    store.prepare(SPEC)
    store.upsert(batch())
    store.close()
