"""What only Postgres does: privileges, indexes, lost connections, locks. The rest is the contract of stores."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragingest.documents import Chunk, EmbeddedBatch, Fault
from ragingest.errors import RejectedError, TerminalError, TransientError, UsageError
from ragingest.protocols import CollectionSpec, Query
from ragingest.settings import Layout, StoreSettings
from ragingest.stores import open_store
from ragingest.stores.pgvector import PgvectorStore
from ragingest.stores.pgvector import _filter as where
from tests.contracts.embedding import chunk, document
from tests.contracts.store_contract import DIMENSIONS, batch_of, spec_of, vector
from tests.servers.postgres import PASSWORD_USER, PostgresServer
from tests.servers.postgres_line import FaultyLine, LineFault

SPEC = spec_of(sparse=False)

Open = Callable[..., PgvectorStore]

numbers = itertools.count()


@pytest.fixture
def schema() -> str:
    return f"s{next(numbers)}"


@pytest.fixture
def opened(postgres: PostgresServer, schema: str) -> Iterator[Open]:
    """Makes stores over one table, and closes them afterwards."""
    stores: list[PgvectorStore] = []

    def open_(table: str = "docs", url: str | None = None, **options: Any) -> PgvectorStore:
        stores.append(PgvectorStore(url or postgres.url(), table, options.pop("schema", schema), **options))
        return stores[-1]

    yield open_
    for store in stores:
        store.close()


@pytest.fixture
def store(opened: Open) -> PgvectorStore:
    store = opened()
    store.prepare(SPEC)
    return store


def some(count: int, metadata: Callable[[int], dict[str, Any]] = lambda n: {"n": n}) -> EmbeddedBatch:
    return batch_of([chunk(document(f"d{n}", f"text {n}", metadata(n))) for n in range(count)], sparse=False)


def database(postgres: PostgresServer, options: str = "") -> str:
    """A new one; its name."""
    name = f"db{next(numbers)}"
    postgres.execute(f"CREATE DATABASE {name} {options}")
    return name


def indexes(postgres: PostgresServer, schema: str) -> dict[str, tuple[str, bool, int]]:
    """Definition, validity and identity of each index but that of the primary key."""
    rows = postgres.execute(
        "SELECT c.relname, pg_get_indexdef(c.oid), i.indisvalid, c.oid FROM pg_index i "
        "JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = %s AND NOT i.indisprimary",
        [schema],
    )
    return {row[0]: row[1:] for row in rows}


# -- rows ------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
values = st.recursive(
    st.none()
    | st.booleans()
    | texts
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def kinds(value: Any) -> Any:
    """The value with the type of every number in it, which == does not look at."""
    if isinstance(value, dict):
        return {key: kinds(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [kinds(inner) for inner in value]
    return type(value), value


def test_any_document_comes_back_as_it_was(opened: Open) -> None:
    store = opened()
    store.prepare(SPEC)

    @settings(max_examples=150)
    @given(texts, texts, st.dictionaries(texts, values, max_size=4))
    def check(id_: str, text: str, metadata: dict[str, Any]) -> None:
        batch = batch_of([chunk(document(id_, text, metadata))], sparse=False)
        store.upsert(batch)
        (found,) = store.fetch([(id_, 0)])
        assert (found.id, found.text, kinds(dict(found.metadata))) == (id_, text, kinds(metadata))
        assert found.dense.tobytes() == batch.dense.tobytes()

    check()


def test_the_text_can_be_left_out(opened: Open) -> None:
    store = opened(drop_text=True)
    store.prepare(SPEC)
    store.upsert(some(1))
    assert store.fetch([("d0", 0)])[0].text == ""


def test_what_can_never_be_kept_is_known_before_it_is_sent(store: PgvectorStore) -> None:
    batch = some(3)
    batch.chunks[1].text = "\0"
    encoded = store.encode(batch)
    assert encoded is not None
    assert [isinstance(row, Fault) for row in encoded] == [False, True, False]
    assert isinstance(encoded[1], Fault)
    assert (encoded[1].kind, "character 1" in encoded[1].message) == ("nul_character", True)


# -- the table -------------------------------------------------------------------------------------


def test_the_table_says_who_made_it(opened: Open, postgres: PostgresServer, schema: str) -> None:
    spec = CollectionSpec(DIMENSIONS, False, "openai", "it's", {"base_url": "http://localhost/v1"})
    opened().prepare(spec)
    assert opened().open() == spec
    postgres.execute(f"COMMENT ON TABLE {schema}.docs IS 'our documents'")
    assert opened().open() == CollectionSpec(DIMENSIONS, False, "", "")


@pytest.mark.parametrize(
    ("made", "why"),
    [
        ("TABLE {0}.others (x integer)", "no column point_id"),
        ("TABLE {0}.others ()", "no column point_id"),
        ("TABLE {0}.others AS SELECT *, 1 AS one FROM {0}.docs", None),
        ("VIEW {0}.others AS SELECT * FROM {0}.docs", "view"),
        ("TABLE {0}.others (LIKE {0}.docs) PARTITION BY HASH (point_id)", "partitioned"),
        ("INDEX others ON {0}.docs (id)", "no column point_id"),
    ],
)
def test_what_is_no_table_of_points_is_left_alone(
    store: PgvectorStore, opened: Open, postgres: PostgresServer, schema: str, made: str, why: str | None
) -> None:
    postgres.execute(f"CREATE {made.format(schema)}")
    calls: list[Callable[[], object]] = [lambda: opened("others").prepare(SPEC), lambda: opened("others").open()]
    for call in calls:
        if why is None:
            call()
            continue
        with pytest.raises(TerminalError, match=why):
            call()


def test_a_column_of_vectors_of_any_length_is_refused(
    store: PgvectorStore, opened: Open, postgres: PostgresServer, schema: str
) -> None:
    postgres.execute(f"ALTER TABLE {schema}.docs ALTER dense TYPE vector")
    with pytest.raises(TerminalError, match="dense"):
        opened().prepare(SPEC)


def test_those_that_there_are_are_named(store: PgvectorStore, opened: Open) -> None:
    with pytest.raises(UsageError) as caught:
        opened("dcos").open()
    assert "there: docs" in caught.value.hint


def test_sparse_vectors_and_too_many_dimensions_are_refused_before_anything_is_made(
    opened: Open, postgres: PostgresServer, schema: str
) -> None:
    with pytest.raises(TerminalError, match="sparse"):
        opened().prepare(spec_of(sparse=True))
    with pytest.raises(TerminalError, match="16001"):
        opened().prepare(spec_of(sparse=False, dimensions=16_001))
    assert not postgres.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", [schema])


def test_the_extension_may_live_in_a_schema_of_its_own(opened: Open, postgres: PostgresServer) -> None:
    name = database(postgres)
    with psycopg.connect(postgres.url(database=name), autocommit=True) as connection:
        connection.execute("CREATE SCHEMA extensions")
        connection.execute("CREATE EXTENSION vector SCHEMA extensions")
    store = opened(url=postgres.url(database=name))
    store.prepare(SPEC)
    store.upsert(some(20))
    store.finish()
    assert store.search(Query(vector(7)), 1)[0].id == "d7"


def test_without_the_extension_it_says_who_can_create_it(opened: Open, postgres: PostgresServer) -> None:
    name = database(postgres)
    postgres.execute("CREATE ROLE humble LOGIN")
    with pytest.raises(TerminalError) as caught:
        opened(url=postgres.url(user="humble", database=name)).prepare(SPEC)
    assert "CREATE EXTENSION vector" in caught.value.hint


def test_a_database_that_lacks_most_characters_is_refused(opened: Open, postgres: PostgresServer) -> None:
    name = database(postgres, "ENCODING 'LATIN1' TEMPLATE template0")
    with pytest.raises(TerminalError, match="LATIN1"):
        opened(url=postgres.url(database=name)).prepare(SPEC)


def test_one_who_may_only_read_can_search(
    store: PgvectorStore, opened: Open, postgres: PostgresServer, schema: str
) -> None:
    store.upsert(some(20))
    postgres.execute("CREATE ROLE reader LOGIN")
    postgres.execute(f"GRANT USAGE ON SCHEMA {schema} TO reader")
    postgres.execute(f"GRANT SELECT ON {schema}.docs TO reader")
    reader = opened(url=postgres.url(user="reader"))
    reader.open()
    assert reader.search(Query(vector(3)), 1)[0].id == "d3"
    assert reader.count() == 20
    with pytest.raises(TerminalError, match="permission denied"):
        reader.delete([("d3", 0)])


def test_one_who_does_not_own_the_table_can_load_it(
    store: PgvectorStore, opened: Open, postgres: PostgresServer, schema: str
) -> None:
    store.finish()
    postgres.execute("CREATE ROLE loader LOGIN")
    postgres.execute(f"GRANT USAGE ON SCHEMA {schema} TO loader")
    postgres.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {schema}.docs TO loader")
    loader = opened(url=postgres.url(user="loader"))
    loader.prepare(SPEC)
    loader.describe(SPEC)
    loader.upsert(some(20))
    loader.finish()
    assert loader.count() == 20
    with pytest.raises(TerminalError, match="owner"):
        loader.describe(CollectionSpec(DIMENSIONS, False, "another", "model"))


# -- the address -----------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["http://localhost/db", "localhost", "postgresql://localhost/db?no_such_option=1"])
def test_what_is_no_address_is_a_usage_error(opened: Open, url: str) -> None:
    with pytest.raises(UsageError, match="--url"):
        opened(url=url)


def test_names_that_postgres_would_cut_are_refused(opened: Open) -> None:
    for names in ({"table": "x" * 64}, {"schema": "ü" * 32}, {"schema": "100%"}):
        with pytest.raises(UsageError, match="cannot be used"):
            opened(**names)


def test_the_store_by_name_needs_an_address_and_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="--url"):
        open_store(StoreSettings(store="pgvector"))
    monkeypatch.setitem(sys.modules, "psycopg", None)
    for name in [name for name in sys.modules if name.startswith("ragingest.stores.pg")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UsageError) as caught:
        open_store(StoreSettings(store="pgvector", url="postgresql://localhost/db"))
    assert "ragingest[pgvector]" in caught.value.hint


def test_the_password_comes_from_the_environment_and_is_never_shown(
    opened: Open, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(url=postgres.url(user=PASSWORD_USER))
    for password in (None, "wrong-one"):
        if password is not None:
            monkeypatch.setenv("PGPASSWORD", password)
        with pytest.raises(TerminalError) as caught:
            store.prepare(SPEC)
        assert "PGPASSWORD" in caught.value.hint
        assert "wrong-one" not in str(vars(caught.value))
    monkeypatch.setenv("PGPASSWORD", "secret")
    store.prepare(SPEC)


def test_a_missing_role_or_database_ends_the_run_and_a_missing_server_does_not(
    opened: Open, postgres: PostgresServer
) -> None:
    for url in (postgres.url(user="nobody_here"), postgres.url(database="nothing_here")):
        with pytest.raises(TerminalError, match="_here"):
            opened(url=url).prepare(SPEC)
    with pytest.raises(TransientError, match="database db"):
        opened(url="postgresql:///db?host=/nowhere").prepare(SPEC)


def test_a_commit_counts_only_when_it_survives_a_crash_whatever_the_role_says(
    store: PgvectorStore, opened: Open, postgres: PostgresServer
) -> None:
    postgres.execute("CREATE ROLE hasty LOGIN SUPERUSER")
    postgres.execute("ALTER ROLE hasty SET synchronous_commit = off")
    hasty = opened(url=postgres.url(user="hasty"))
    hasty.prepare(SPEC)
    with hasty._connections.session() as session:
        assert session.connection.execute("SHOW synchronous_commit").fetchone() == ("on",)


# -- what goes wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("22003", RejectedError),
        ("23514", RejectedError),
        ("54000", RejectedError),
        ("40001", TransientError),
        ("40P01", TransientError),
        ("53200", TransientError),
        ("53300", TransientError),
        ("57014", TransientError),
        ("57P01", TransientError),
        ("55P03", TransientError),
        ("53100", TerminalError),
        ("42501", TerminalError),
        ("25006", TerminalError),
        ("XX000", TerminalError),
        ("P0001", TerminalError),
    ],
)
def test_an_error_of_the_server_is_sorted_by_its_code(
    store: PgvectorStore, postgres: PostgresServer, schema: str, code: str, kind: type[Exception]
) -> None:
    postgres.execute(
        f"CREATE FUNCTION {schema}.fail() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION 'so it goes' USING ERRCODE = '{code}'; END $$"
    )
    postgres.execute(f"CREATE TRIGGER fail BEFORE INSERT ON {schema}.docs EXECUTE FUNCTION {schema}.fail()")
    with pytest.raises(kind, match="so it goes") as caught:
        store.upsert(some(3))
    if isinstance(caught.value, TransientError):
        assert caught.value.throttled == code.startswith("53")
    if isinstance(caught.value, TerminalError):
        assert caught.value.hint
    assert store.count() == 0
    postgres.execute(f"DROP TRIGGER fail ON {schema}.docs")
    store.upsert(some(3))
    assert store.count() == 3


def test_a_row_that_postgres_cannot_read_is_a_rejected_batch(store: PgvectorStore) -> None:
    batch = some(3)
    batch.wire = [
        row.replace(b'{"n":1}', b'{"n":x}') for row in store.encode(batch) or [] if isinstance(row, bytes)
    ]
    with pytest.raises(RejectedError, match="json"):
        store.upsert(batch)
    assert store.count() == 0


def test_a_table_that_was_dropped_ends_the_run(store: PgvectorStore, postgres: PostgresServer, schema: str) -> None:
    store.upsert(some(1))
    postgres.execute(f"DROP TABLE {schema}.docs")
    with pytest.raises(TerminalError, match="docs"):
        store.upsert(some(1))


def end_all_connections(postgres: PostgresServer) -> None:
    postgres.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'ragingest'")


@pytest.mark.parametrize("harm", [end_all_connections, PostgresServer.restart, lambda p: p.restart("immediate")])
def test_lost_connections_are_told_once_and_replaced(
    store: PgvectorStore, postgres: PostgresServer, harm: Callable[[PostgresServer], None]
) -> None:
    with store._connections.session(), store._connections.session(), store._connections.session():
        pass
    store.upsert(some(5))
    harm(postgres)
    with pytest.raises(TransientError):
        store.upsert(some(10))
    store.upsert(some(10))
    assert store.count() == 10


@pytest.mark.parametrize(("fault", "applied"), [("lost", 0), ("cut", 5), ("hang", 5)])
def test_an_upsert_that_was_not_confirmed_is_done_again_to_the_same_effect(
    store: PgvectorStore, opened: Open, postgres: PostgresServer, fault: LineFault, applied: int
) -> None:
    with FaultyLine(postgres.folder) as line:
        far = opened(url=postgres.url(host=line.folder), timeout=1.0)
        far.prepare(SPEC)
        line.faults = iter([fault, fault])
        for _ in range(2):
            with pytest.raises(TransientError):
                far.upsert(some(5))
            assert store.count() == applied
        far.upsert(some(5))
        far.close()
        assert line.struck == 2
    assert store.count() == 5


def test_a_server_that_does_not_answer_in_time_is_transient(
    store: PgvectorStore, opened: Open, postgres: PostgresServer, schema: str
) -> None:
    hasty = opened(timeout=0.5)
    hasty.prepare(SPEC)
    with psycopg.connect(postgres.url()) as connection:
        connection.execute(f"LOCK TABLE {schema}.docs IN ACCESS EXCLUSIVE MODE".encode())
        with pytest.raises(TransientError):
            hasty.upsert(some(2))
    hasty.upsert(some(2))
    assert store.count() == 2


def test_jobs_that_load_the_same_documents_do_not_block_each_other(opened: Open) -> None:
    def load(order: Sequence[int]) -> None:
        store = opened()
        store.prepare(SPEC)
        for _ in range(10):
            chunks = [chunk(document(f"d{n}", f"text {n}")) for n in order]
            store.upsert(batch_of(chunks, order, sparse=False))

    opened().prepare(SPEC)
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(load, range(200)[:: 1 if n % 2 else -1]) for n in range(4)]:
            done.result()
    store = opened()
    store.open()
    assert store.count() == 200


# -- indexes ---------------------------------------------------------------------------------------


def test_the_index_is_built_after_the_load_and_once(
    store: PgvectorStore, postgres: PostgresServer, schema: str
) -> None:
    store.upsert(some(100))
    assert indexes(postgres, schema) == {}
    shares: list[float] = []
    store.finish(shares.append)
    built = indexes(postgres, schema)
    ((definition, valid, _),) = built.values()
    assert "USING hnsw (dense vector_cosine_ops)" in definition
    assert valid
    assert shares[-1] == 1.0
    assert shares == sorted(shares)
    store.finish()
    assert indexes(postgres, schema) == built


def test_an_index_that_a_crash_left_unfinished_is_built_again(
    store: PgvectorStore, postgres: PostgresServer, schema: str
) -> None:
    store.finish()
    ((name, (_, _, before)),) = indexes(postgres, schema).items()
    postgres.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s", [before])
    store.finish()
    _, valid, after = indexes(postgres, schema)[name]
    assert (len(indexes(postgres, schema)), valid, after != before) == (1, True, True)


@pytest.mark.parametrize("method", ["hnsw", "ivfflat"])
def test_an_index_of_the_users_own_will_do(
    store: PgvectorStore, postgres: PostgresServer, schema: str, method: str
) -> None:
    postgres.execute(f"CREATE INDEX mine ON {schema}.docs USING {method} (dense vector_cosine_ops)")
    store.finish()
    assert indexes(postgres, schema).keys() == {"mine"}


def test_a_build_that_loses_its_connection_is_transient_and_can_be_repeated(
    store: PgvectorStore, postgres: PostgresServer, schema: str
) -> None:
    def end_the_build(_share: float) -> None:
        postgres.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONCURRENTLY%%'"
        )

    store.upsert(some(10))
    with psycopg.connect(postgres.url()) as writer:
        # An index is not built over the head of a transaction that is under way.
        writer.execute(f"DELETE FROM {schema}.docs WHERE id = 'd0'".encode())
        with pytest.raises(TransientError):
            store.finish(end_the_build)
    store.finish()
    ((_, valid, _),) = indexes(postgres, schema).values()
    assert valid


def test_a_build_that_another_process_has_under_way_is_waited_for(
    store: PgvectorStore, opened: Open, postgres: PostgresServer, schema: str
) -> None:
    other = opened()
    other.prepare(SPEC)
    waiting, shares = threading.Event(), list[float]()

    def report(share: float) -> None:
        shares.append(share)
        waiting.set()

    with ThreadPoolExecutor(2) as pool:
        with psycopg.connect(postgres.url()) as writer:
            writer.execute(f"LOCK TABLE {schema}.docs IN ROW EXCLUSIVE MODE".encode())
            first = pool.submit(store.finish, report)
            assert waiting.wait(60)
            waiting.clear()
            second = pool.submit(other.finish, report)
            assert waiting.wait(60)
        first.result(60)
        second.result(60)
    assert len(indexes(postgres, schema)) == 1


def test_with_an_index_a_search_finds_as_many_as_without(store: PgvectorStore, postgres: PostgresServer) -> None:
    store.upsert(some(1000, lambda n: {"rare": n % 250 == 0, "n": n}))
    before = [store.search(Query(vector(n)), 10) for n in range(20)]
    store.finish()
    after = [store.search(Query(vector(n)), 10) for n in range(20)]
    assert [hits[0].id for hits in after] == [f"d{n}" for n in range(20)]
    shared = [len({h.id for h in a} & {h.id for h in b}) for a, b in zip(before, after, strict=True)]
    assert sum(shared) >= 190
    assert len(store.search(Query(vector(1)), 1000)) == 1000
    assert {hit.id for hit in store.search(Query(vector(1)), 10, "dense", {"rare": "true"})} == {
        "d0", "d250", "d500", "d750",
    }  # fmt: skip
    assert [hit.id for hit in store.search(Query(vector(1)), 10, "dense", {"n": "321"})] == ["d321"]


def test_a_search_by_an_indexed_key_uses_the_index(opened: Open, postgres: PostgresServer, schema: str) -> None:
    store = opened()
    keys = ("lang", "year:integer", "author.name", "it's")
    store.prepare(SPEC, Layout(index_metadata=keys, bulk=True))
    store.upsert(some(100, lambda n: {"lang": f"l{n}", "year": n, "author": {"name": f"a{n}"}, "it's": n}))
    store.finish()
    assert len(indexes(postgres, schema)) == 6
    assert all(valid for _, valid, _ in indexes(postgres, schema).values())
    for key, value in (("lang", "l7"), ("year", "7"), ("author.name", "a7"), ("it's", "7")):
        statement = store._nearest(Query(vector(0)), 5, where({key: value}), rounded=False)
        with store._connections.session() as session, session.connection.transaction():
            session.connection.execute("SET LOCAL enable_seqscan = off")
            session.connection.execute("SET LOCAL enable_indexscan = off")
            rows = session.connection.execute(b"EXPLAIN " + statement.as_bytes(session.connection)).fetchall()
        assert "Bitmap Index Scan" in str(rows)
        assert "Seq Scan" not in str(rows)
        assert [hit.id for hit in store.search(Query(vector(0)), 5, "dense", {key: value})] == ["d7"]


def wide(dimensions: int, count: int = 30) -> tuple[CollectionSpec, EmbeddedBatch]:
    chunks: list[Chunk] = [chunk(document(f"d{n}", f"text {n}")) for n in range(count)]
    dense = np.random.default_rng(0).standard_normal((count, dimensions)).astype(np.float32)
    return spec_of(sparse=False, dimensions=dimensions), EmbeddedBatch(chunks, dense)


@pytest.mark.parametrize(
    ("dimensions", "definition"),
    [(2_000, "vector_cosine_ops"), (4_000, "halfvec_cosine_ops"), (4_001, None), (16_000, None)],
)
def test_longer_vectors_have_an_index_in_half_precision_or_none(
    opened: Open, postgres: PostgresServer, schema: str, dimensions: int, definition: str | None
) -> None:
    spec, batch = wide(dimensions)
    store = opened()
    store.prepare(spec)
    store.upsert(batch)
    store.finish()
    found = [definition for definition, _, _ in indexes(postgres, schema).values()]
    assert len(found) == (definition is not None)
    assert all((definition or "") in text for text in found)
    hits = store.search(Query(batch.dense[17]), 30)
    assert hits[0].id == "d17"
    assert hits[0].score == pytest.approx(1.0)
    assert len(hits) == 30
    assert store.fetch([("d17", 0)])[0].dense.tobytes() == batch.dense[17].tobytes()
