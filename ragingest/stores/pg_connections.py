"""Connections to one database: one a thread at a time, kept for the next, and cut when the time is over."""

from __future__ import annotations

import math
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL

from ragingest.errors import UsageError
from ragingest.stores.pg_errors import sorted_errors

__all__ = ["Connection", "Connections", "Session"]

Connection = psycopg.Connection[tuple[object, ...]]

# An upsert counts when it is committed, so its commit must survive a crash of the server.
# The extension may live in a schema where the role does not look for types.
_CONFIGURE = SQL("""
SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'
UNION ALL
SELECT set_config('search_path', concat_ws(', ', nullif(current_setting('search_path'), ''),
                  quote_ident(n.nspname)), false)
FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
WHERE e.extname = 'vector' AND n.nspname <> ALL (current_schemas(true))
""")


@dataclass(slots=True, eq=False)
class Session:
    """A connection in autocommit mode; `staged` once its staging table is there."""

    connection: Connection
    staged: bool = False


class Connections:
    """Opened when they are needed, at most as many as are used at once.

    Args:
        url: `postgresql://user@host:port/database?option=value`; the password comes from PGPASSWORD or
            ~/.pgpass, and everything else that is not said there from libpq's other variables.
        timeout: seconds for one request.
    """

    def __init__(self, url: str, timeout: float) -> None:
        try:
            parts = conninfo_to_dict(url) if urlsplit(url).scheme in ("postgresql", "postgres") else {}
        except psycopg.Error:
            parts = {}
        if not parts:
            raise UsageError(f"--url {url!r} is no address of Postgres", "write postgresql://host/database")
        self._url = url
        self._timeout = timeout
        self._idle: list[Session] = []
        host, port = parts.get("host"), parts.get("port")
        where = f" at {host}{f':{port}' if port else ''}" if host else ""
        self.place = f"Postgres{where}, database {parts.get('dbname') or parts.get('user') or 'of the role'}"

    @contextmanager
    def session(self, *, writes: bool = False) -> Iterator[Session]:
        """A connection for one request, which is given up when it takes longer than the time allowed.

        Raises:
            TransientError, TerminalError: psycopg's errors, as what they mean.
            RejectedError: likewise, where the request `writes` rows.
        """
        session = self._take() or Session(self._connect(self._timeout))
        try:
            with sorted_errors(self.place, writes=writes), _cut_after(self._timeout, session.connection):
                yield session
        except BaseException:
            if session.connection.broken:
                self.close()  # the others have most likely lost theirs, too
            session.connection.close()
            raise
        self._idle.append(session)

    @contextmanager
    def patient(self) -> Iterator[Connection]:
        """A connection of its own, for what may take hours."""
        connection = self._connect(0)
        try:
            with sorted_errors(self.place):
                yield connection
        finally:
            connection.close()

    def close(self) -> None:
        """Close those that are not in use."""
        while (session := self._take()) is not None:
            session.connection.close()

    def _take(self) -> Session | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _connect(self, timeout: float) -> Connection:
        with sorted_errors(self.place):
            connection = psycopg.connect(
                self._url,
                autocommit=True,
                client_encoding="utf8",
                connect_timeout=max(2, round(self._timeout)),
                keepalives_idle=60,
                prepare_threshold=None,
                fallback_application_name="ragingest",
            )
            try:
                connection.execute(_CONFIGURE)
                connection.execute(SQL("SET statement_timeout = {}").format(math.ceil(timeout * 1000)))
            except BaseException:
                connection.close()
                raise
            return connection


@contextmanager
def _cut_after(seconds: float, connection: Connection) -> Iterator[None]:
    """End a request that hangs: libpq itself would wait for its answer for ever."""
    line = os.dup(connection.fileno())

    def cut() -> None:
        with suppress(OSError), socket.socket(fileno=os.dup(line)) as end:
            end.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        os.close(line)
