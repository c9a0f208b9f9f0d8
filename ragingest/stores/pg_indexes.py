"""Indexes of a table of points: which there should be, and building them without locking anybody out."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from psycopg.sql import SQL, Composable, Composed, Identifier, Literal

from ragingest.stores.pg_connections import Connection, Connections

__all__ = ["Index", "Nearness", "build_indexes", "metadata_indexes", "metadata_paths", "nearness", "vector_index"]

MOST_INDEXED = 2_000
"""Dimensions that HNSW takes of a vector (pgvector's README, "HNSW")."""
MOST_ROUNDED = 4_000
"""The same of a halfvec, which there is since 0.7.0."""
HALFVEC_SINCE = (0, 7)
ITERATIVE_SINCE = (0, 8)
NAME_BYTES = 63
POLL_SECONDS = 0.5

_TYPE = re.compile(r":(keyword|integer|float|bool|datetime|uuid|text|geo)$")
_VERSION = "SELECT extversion FROM pg_extension WHERE extname = 'vector'"
_THERE = """
SELECT i.relname, m.amname, x.indisvalid
FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_am m ON m.oid = i.relam
JOIN pg_class c ON c.oid = x.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s
"""
_PROGRESS = """
SELECT p.blocks_done::float8 / nullif(p.blocks_total, 0)
FROM pg_stat_progress_create_index p JOIN pg_class c ON c.oid = p.relid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s AND p.phase LIKE 'building index%%'
"""
_LOCK = "SELECT pg_try_advisory_lock(hashtextextended('ragingest', 0) # hashtextextended(%s, 0))"


class Nearness(NamedTuple):
    """What a search goes by: `rounded` where vectors are too long for an index but in half precision.

    `indexed`: an index is possible at all. `resumes`: a scan of it goes on when a filter lets too few through.
    """

    indexed: bool
    rounded: bool
    resumes: bool


class Index(NamedTuple):
    """An index that should be there; any of the `methods` will do for a vector, else only its name counts."""

    name: str
    target: Composable
    methods: frozenset[str] = frozenset()


def nearness(connection: Connection, dimensions: int) -> Nearness:
    """What this server's version of the extension can do for vectors of that length."""
    row = connection.execute(_VERSION).fetchone()
    version = tuple(int(part) for part in str(row[0]).split(".")[:2]) if row is not None else (0, 0)
    rounded = dimensions > MOST_INDEXED
    indexed = dimensions <= (MOST_ROUNDED if version >= HALFVEC_SINCE else MOST_INDEXED)
    return Nearness(indexed, rounded and indexed, indexed and version >= ITERATIVE_SINCE)


def vector_index(table: str, dimensions: int, near: Nearness) -> list[Index]:
    """The HNSW index, by cosine distance; none where vectors are too long for one."""
    if not near.indexed:
        return []
    target = SQL("hnsw (dense vector_cosine_ops)")
    if near.rounded:
        target = SQL(f"hnsw ((dense::halfvec({dimensions})) halfvec_cosine_ops)")
    return [Index(_name(table, "dense_hnsw"), target, frozenset({"hnsw", "ivfflat"}))]


def metadata_indexes(table: str, keys: Sequence[str]) -> list[Index]:
    """A GIN index for each way to a key; it serves values of any type, so a type after a colon goes."""
    return [
        Index(_name(table, f"metadata_{'->'.join(path)}"), SQL("gin (({}) jsonb_path_ops)").format(place))
        for key in keys
        for path, place in metadata_paths(_TYPE.sub("", key))
    ]


def metadata_paths(key: str) -> list[tuple[list[str], Composed]]:
    """The ways to a key: nested as its dots say, or one key that has dots in it."""
    paths = [key.split("."), [key]] if "." in key else [[key]]
    return [(path, SQL(" -> ").join([SQL("metadata"), *map(Literal, path)])) for path in paths]


def build_indexes(
    connections: Connections, schema: str, table: str, wanted: Sequence[Index], report: Callable[[float], None]
) -> None:
    """Build those that are missing, and again those that a crash has left unfinished; then ANALYZE.

    Raises:
        TransientError, TerminalError: as for any request.
    """
    place = Identifier(schema, table)

    def progress() -> float:
        with connections.session() as session:
            row = session.connection.execute(_PROGRESS, [schema, table]).fetchone()
        return float(str(row[0])) if row is not None and row[0] is not None else 0.0

    with connections.patient() as connection:
        _wait_for_others(connection, f"{schema}.{table}", lambda: report(progress() / max(1, len(wanted))))
        for number, index in enumerate(wanted):
            there = connection.execute(_THERE, [schema, table]).fetchall()
            if any(valid and (name == index.name or method in index.methods) for name, method, valid in there):
                continue
            if any(name == index.name for name, _method, _valid in there):
                connection.execute(
                    SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(Identifier(schema, index.name))
                )
            statement = SQL("CREATE INDEX CONCURRENTLY {} ON {} USING {}").format(
                Identifier(index.name), place, index.target
            )
            for share in _shares(connection, statement, progress):
                report((number + share) / len(wanted))
        connection.execute(SQL("ANALYZE {}").format(place))
    report(1.0)


def _wait_for_others(connection: Connection, table: str, watch: Callable[[], None]) -> None:
    """Until no other session builds on this table: one of a run that was killed goes on at the server.

    Asks again and again: a session that waits in a statement would itself be waited for by the one
    that builds CONCURRENTLY.
    """
    while not connection.execute(_LOCK, [table]).fetchall()[0][0]:
        watch()
        threading.Event().wait(POLL_SECONDS)


def _shares(connection: Connection, statement: Composed, progress: Callable[[], float]) -> Iterator[float]:
    """Execute it in a thread; meanwhile, how far it is."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            connection.execute(statement)
        except BaseException as error:  # noqa: BLE001  # raised again where it is waited for
            failures.append(error)

    worker = threading.Thread(target=work, name="index", daemon=True)
    worker.start()
    while worker.is_alive():
        worker.join(POLL_SECONDS)
        if worker.is_alive():
            yield progress()
    if failures:
        raise failures[0]
    yield 1.0


def _name(table: str, what: str) -> str:
    """A name of at most 63 bytes, the same for the same table and purpose."""
    name = f"{table}_{what}"
    if len(name.encode()) <= NAME_BYTES and name.isascii():
        return name
    digest = hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
    return f"{table[:40]}_{digest}"
