"""Postgres with the extension vector (https://github.com/pgvector/pgvector): a table a collection.

    point_id uuid PRIMARY KEY, id text, chunk integer, chunks integer, text text, digest bytea,
    metadata jsonb, dense vector(d)

The table's comment says as JSON which embedder made it. A batch is one COPY into a temporary table
and one INSERT ... ON CONFLICT, in one transaction.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import psycopg
from psycopg.sql import SQL, Composable, Composed, Identifier, Literal

from ragingest.documents import EmbeddedBatch, Fault, point_id
from ragingest.errors import RejectedError, TerminalError, UsageError
from ragingest.protocols import (
    DEFAULT_LAYOUT,
    Abilities,
    CollectionSpec,
    Hit,
    Query,
    SearchMode,
    StoredPoint,
    StoreLimits,
)
from ragingest.settings import Layout
from ragingest.stores.pg_connections import Connection, Connections, Session
from ragingest.stores.pg_copy import COLUMNS, copy_body, encode_rows, vectors_of
from ragingest.stores.pg_indexes import build_indexes, metadata_indexes, metadata_paths, nearness, vector_index

__all__ = ["PgvectorStore"]

DEFAULT_SCHEMA = "public"
MOST_DIMENSIONS = 16_000
"""Of a column of type vector (pgvector's README, "What is the maximum number of dimensions")."""
IDENTIFIER_BYTES = 63
"""Longer names would be cut (NAMEDATALEN - 1)."""
STAGING = "ragingest_staging"
CANDIDATES = 4
"""Looked at for each hit that is wanted."""
LEAST_BREADTH, MOST_BREADTH = 100, 1000
"""Bounds of `hnsw.ef_search`; pgvector's are 1 and 1,000."""

_DESCRIBE = """
SELECT a.attname, t.typname, a.atttypmod, obj_description(c.oid, 'pg_class'), c.relkind = 'r'
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_type t ON t.oid = a.atttypid
WHERE n.nspname = %s AND c.relname = %s
"""
_TABLES = """
SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'dense' AND NOT a.attisdropped
JOIN pg_type t ON t.oid = a.atttypid AND t.typname = 'vector'
WHERE n.nspname = %s AND c.relkind = 'r' ORDER BY 1
"""
_CREATE = """
CREATE TABLE {table} (
    point_id uuid PRIMARY KEY,
    id text NOT NULL,
    chunk integer NOT NULL,
    chunks integer NOT NULL,
    text text NOT NULL,
    digest bytea NOT NULL,
    metadata jsonb NOT NULL,
    dense vector({dimensions}) NOT NULL
)
"""
_STAGE = """
CREATE TEMPORARY TABLE {staging} ON COMMIT DELETE ROWS AS SELECT {columns} FROM {table} WITH NO DATA
"""
# In the order of ids, so that two jobs that load the same documents do not wait for each other in a circle.
_MERGE = """
INSERT INTO {table} ({columns}) SELECT {columns} FROM {staging} ORDER BY point_id
ON CONFLICT (point_id) DO UPDATE SET {updates}
"""
_READ = "SELECT point_id::text, id, chunk, chunks, text, digest, metadata, vector_send(dense) FROM {table} "
_NEAREST = """
SELECT id, chunk, text, metadata, dense <=> {query} FROM {table} {where} ORDER BY dense <=> {query} LIMIT {limit}
"""
_NEAREST_ROUNDED = """
SELECT id, chunk, text, metadata, dense <=> {query} AS distance FROM (
    SELECT * FROM {table} {where} ORDER BY dense::{half} <=> {query}::{half} LIMIT {candidates}
) AS candidates ORDER BY distance LIMIT {limit}
"""
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?", re.ASCII).fullmatch


class PgvectorStore:
    """A table of a database. Cosine distance; an HNSW index is built when a run has come to its end.

    Args:
        url: `postgresql://user@host/database`.
        table: is created if it is missing.
        schema: likewise; None for `public`.
        timeout: seconds for one request.
    """

    name = "pgvector"
    # COPY has no limit of its own; this much shares out the cost of a transaction.
    limits = StoreLimits(max_points=1000, max_bytes=8_000_000, concurrency=4, adaptive=True)
    # While a new table is loaded it has no index anyway: that is all that `bulk` asks for.
    abilities = Abilities(sparse=False, layout=frozenset({"bulk", "index_metadata"}))
    forgets = False
    memory_bytes = 0

    def __init__(
        self, url: str, table: str, schema: str | None = None, *, timeout: float = 60.0, drop_text: bool = False
    ) -> None:
        for flag, name in (("--collection", table), ("--namespace", schema or DEFAULT_SCHEMA)):
            # psycopg would take a percent sign for a parameter.
            if len(name.encode()) > IDENTIFIER_BYTES or "\0" in name or "%" in name:
                raise UsageError(
                    f"{flag} {name!r} cannot be used in Postgres", "give at most 63 bytes, without NUL and %"
                )
        self._connections = Connections(url, timeout)
        self._schema = schema or DEFAULT_SCHEMA
        self._table = table
        self._drop_text = drop_text
        self._described = f"the table {self._schema}.{table}"
        self._spec: CollectionSpec | None = None
        self._layout = DEFAULT_LAYOUT
        columns = SQL(", ").join(map(Identifier, COLUMNS))
        self._parts: dict[str, Composable] = {
            "table": Identifier(self._schema, table),
            "columns": columns,
            "staging": Identifier("pg_temp", STAGING),
            "updates": SQL(", ").join(
                SQL("{0} = excluded.{0}").format(Identifier(column)) for column in COLUMNS if column != "point_id"
            ),
        }

    # -- opening -----------------------------------------------------------------------------------

    def prepare(self, spec: CollectionSpec, layout: Layout = DEFAULT_LAYOUT) -> CollectionSpec:
        if spec.sparse:
            raise TerminalError(f"{self._described} cannot hold sparse vectors", "give another --store")
        if spec.dimensions > MOST_DIMENSIONS:
            raise TerminalError(
                f"{spec.embedder} makes {spec.dimensions}-dimensional vectors, pgvector keeps {MOST_DIMENSIONS}",
                "ask the model for fewer with --dimensions",
            )
        with self._connections.session() as session, session.connection.transaction():
            self._check_encoding(session.connection)
            existing = self._describe(session.connection)
            if existing is None:
                self._create(session.connection, spec)
            elif existing.dimensions != spec.dimensions:
                raise TerminalError(
                    f"{self._described} holds {existing.dimensions}-dimensional vectors, "
                    f"but {spec.embedder} makes {spec.dimensions}-dimensional ones",
                    "give another --collection, or drop the table",
                )
        self._spec = existing or spec
        self._layout = layout
        return self._spec

    def describe(self, spec: CollectionSpec) -> None:
        if spec == self._spec:  # only the table's owner may change its comment
            return
        with self._connections.session() as session, session.connection.transaction():
            self._say(session.connection, spec)
        self._spec = spec

    def open(self) -> CollectionSpec:
        with self._connections.session() as session:
            spec = self._describe(session.connection)
            if spec is None:
                names = [str(row[0]) for row in session.connection.execute(_TABLES, [self._schema])]
                known = ", ".join(names) or "none"
                raise UsageError(
                    f"there is no table {self._table} in the schema {self._schema} ({self._connections.place})",
                    f"run ragingest run first, or give --collection or --namespace (there: {known})",
                )
        self._spec = spec
        return spec

    def _check_encoding(self, connection: Connection) -> None:
        encoding = connection.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            raise TerminalError(
                f"{self._connections.place} keeps texts as {encoding}, which lacks most characters",
                "give a database with the encoding UTF8",
            )

    def _describe(self, connection: Connection) -> CollectionSpec | None:
        """What the table holds; None if there is none.

        Raises:
            TerminalError: it is no table of points.
        """
        rows = connection.execute(_DESCRIBE, [self._schema, self._table]).fetchall()
        if not rows:
            return None
        types = {row[0]: (row[1], row[2]) for row in rows}
        kind, dimensions = types.get("dense", ("", -1))
        missing = [column for column in COLUMNS if column not in types]
        why = None
        if missing:
            why = f"it has no column {missing[0]}"
        elif kind != "vector" or not isinstance(dimensions, int) or dimensions < 1:
            why = "it has no column dense vector(n)"
        elif not rows[0][4]:
            why = "it is a view, or partitioned"
        if why is not None:
            raise TerminalError(f"{self._described} is no table of points: {why}", "give another --collection")
        assert isinstance(dimensions, int)
        try:
            spec = msgspec.json.decode(str(rows[0][3]), type=CollectionSpec)
        except msgspec.MsgspecError:
            return CollectionSpec(dimensions, False, "", "")
        return replace(spec, dimensions=dimensions, sparse=False)

    def _create(self, connection: Connection, spec: CollectionSpec) -> None:
        try:
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        except (psycopg.errors.FeatureNotSupported, psycopg.errors.UndefinedFile):
            raise TerminalError(
                f"{self._connections.place} has no extension vector",
                "install pgvector on the server (https://github.com/pgvector/pgvector#installation)",
            ) from None
        except psycopg.errors.InsufficientPrivilege:
            raise TerminalError(
                f"{self._connections.place} has no extension vector, and this role may not create it",
                "let the owner of the database run: CREATE EXTENSION vector",
            ) from None
        # CREATE SCHEMA IF NOT EXISTS asks for the privilege even where there is nothing to create.
        if not connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", [self._schema]).fetchone():
            connection.execute(SQL("CREATE SCHEMA {}").format(Identifier(self._schema)))
        connection.execute(SQL(_CREATE).format(**self._parts, dimensions=Literal(spec.dimensions)))
        self._say(connection, spec)

    def _say(self, connection: Connection, spec: CollectionSpec) -> None:
        comment = Literal(msgspec.json.encode(spec).decode())
        connection.execute(SQL("COMMENT ON TABLE {table} IS {comment}").format(**self._parts, comment=comment))

    @property
    def _ready(self) -> CollectionSpec:
        if self._spec is None:
            raise RuntimeError("the store is used before prepare()")
        return self._spec

    # -- writing -----------------------------------------------------------------------------------

    def encode(self, batch: EmbeddedBatch) -> list[bytes | Fault] | None:
        return encode_rows(batch, drop_text=self._drop_text)

    def upsert(self, batch: EmbeddedBatch) -> None:
        self._check_dimensions(batch.dense.shape[1])
        body = copy_body(batch.wire if batch.wire is not None else self._encoded(batch))
        with self._connections.session(writes=True) as session:
            self._stage(session)
            # One statement at a time, each awaited: when the line is lost, nothing can be left to happen later but a
            # COMMIT, whose rows are locked until then. So a later version of a document cannot be overtaken.
            with session.connection.transaction():
                cursor = session.connection.cursor()
                with cursor.copy(self._sql("COPY {staging} ({columns}) FROM STDIN (FORMAT binary)")) as copy:
                    copy.write(body)
                cursor.execute(self._sql(_MERGE))

    def _encoded(self, batch: EmbeddedBatch) -> list[bytes]:
        rows = []
        for row in encode_rows(batch, drop_text=self._drop_text):
            if isinstance(row, Fault):
                raise RejectedError(row.kind, row.message)
            rows.append(row)
        return rows

    def _stage(self, session: Session) -> None:
        if not session.staged:
            session.connection.execute(self._sql(_STAGE))
            session.staged = True

    def _check_dimensions(self, given: int) -> None:
        if given != self._ready.dimensions:
            raise TerminalError(
                f"{self._described} holds {self._ready.dimensions}-dimensional vectors, not {given}-dimensional ones",
                "give another --collection, or the embedder that made this one",
            )

    def delete(self, points: Sequence[tuple[str, int]]) -> None:
        ids = [point_id(*point) for point in points]
        with self._connections.session() as session:
            session.connection.execute(self._sql("DELETE FROM {table} WHERE point_id = ANY (%s::uuid[])"), [ids])

    def flush(self) -> None:
        """Nothing to do: what is committed survives."""

    # -- reading -----------------------------------------------------------------------------------

    def count(self) -> int:
        with self._connections.patient() as connection:
            row = connection.execute(self._sql("SELECT count(*) FROM {table}")).fetchone()
        assert row is not None
        return int(str(row[0]))

    def fetch(self, points: Sequence[tuple[str, int]]) -> list[StoredPoint]:
        ids = [point_id(*point) for point in points]
        return self._read("WHERE point_id = ANY (%s::uuid[])", [ids])

    def scan(self, after: str | None, limit: int) -> tuple[list[StoredPoint], str | None]:
        where = "" if after is None else "WHERE point_id > %s::uuid"
        parameters: list[object] = [] if after is None else [after]
        found = self._read(f"{where} ORDER BY point_id LIMIT %s", [*parameters, limit])
        return found, found[-1].point_id if len(found) == limit else None

    def _read(self, which: str, parameters: Sequence[object]) -> list[StoredPoint]:
        with self._connections.session() as session:
            return [
                _stored(*row) for row in session.connection.execute(self._sql(_READ + which), parameters).fetchall()
            ]

    def search(
        self, query: Query, limit: int, mode: SearchMode = "dense", filters: Mapping[str, str] | None = None
    ) -> list[Hit]:
        if mode != "dense":
            raise UsageError(f"{self._described} has no sparse vectors", "search with --dense")
        self._check_dimensions(len(query.dense))
        with self._connections.session() as session, session.connection.transaction():
            return self._search(session.connection, query, limit, filters or {})

    def _search(self, connection: Connection, query: Query, limit: int, filters: Mapping[str, str]) -> list[Hit]:
        near = nearness(connection, self._ready.dimensions)
        statement = self._nearest(query, limit, _filter(filters), rounded=near.rounded)
        if near.resumes:
            connection.execute("SET LOCAL hnsw.iterative_scan = strict_order")
        breadth = max(LEAST_BREADTH, min(limit * CANDIDATES, MOST_BREADTH))
        connection.execute(SQL("SET LOCAL hnsw.ef_search = {}").format(breadth))
        rows = connection.execute(statement).fetchall()
        if len(rows) < limit:
            # An index stops after some candidates, even if a filter has let few of them through.
            connection.execute("SET LOCAL enable_indexscan = off")
            rows = connection.execute(statement).fetchall()
        return [_hit(*row) for row in rows]

    def _nearest(self, query: Query, limit: int, where: Composable, *, rounded: bool) -> Composed:
        parts = {
            **self._parts,
            "where": where,
            "query": SQL("{}::vector").format(Literal(str(query.dense.tolist()))),
            "limit": Literal(limit),
            "candidates": Literal(limit * CANDIDATES),
            "half": SQL(f"halfvec({self._ready.dimensions})"),
        }
        return SQL(_NEAREST_ROUNDED if rounded else _NEAREST).format(**parts)

    def finish(self, report: Callable[[float], None] = lambda _share: None) -> None:
        """Build the indexes that are missing, while others read and write."""
        with self._connections.session() as session:
            near = nearness(session.connection, self._ready.dimensions)
        wanted = [
            *vector_index(self._table, self._ready.dimensions, near),
            *metadata_indexes(self._table, self._layout.index_metadata),
        ]
        build_indexes(self._connections, self._schema, self._table, wanted, report)

    def close(self) -> None:
        self._connections.close()

    def _sql(self, text: str) -> Composed:
        return SQL(text).format(**self._parts)


def _filter(filters: Mapping[str, str]) -> Composable:
    """A condition that lets through what has all the values, given as text; as one of a list, too."""
    conditions = [
        SQL("({})").format(
            SQL(" OR ").join(
                SQL("({}) @> {}::jsonb").format(place, Literal(value))
                for _path, place in metadata_paths(_keepable(key))
                for value in _values(_keepable(text))
            )
        )
        for key, text in filters.items()
    ]
    return SQL("WHERE {}").format(SQL(" AND ").join(conditions)) if conditions else SQL("")


def _values(text: str) -> list[str]:
    """What the text may stand for, as JSON."""
    values = [json.dumps(text)]
    if text in ("true", "false") or _NUMBER(text):
        values.append(text)
    return values


def _keepable(text: str) -> str:
    try:
        usable = b"\0" not in text.encode()
    except UnicodeEncodeError:
        usable = False
    if not usable:
        raise UsageError(
            f"Postgres cannot filter by {text!r}", "give text without NUL and without halves of characters"
        )
    return text


def _hit(id_: Any, chunk: Any, text: Any, metadata: Any, distance: Any) -> Hit:
    # The distance from a zero vector is NaN.
    return Hit(0.0 if math.isnan(distance) else 1.0 - distance, id_, chunk, text, metadata)


def _stored(
    point: Any, id_: Any, chunk: Any, chunks: Any, text: Any, digest: Any, metadata: Any, sent: Any
) -> StoredPoint:
    return StoredPoint(point, id_, chunk, chunks, text, digest.hex(), metadata, vectors_of(sent))
