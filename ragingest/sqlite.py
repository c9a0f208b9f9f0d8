"""SQLite files as state is kept in them: for their owner only, in WAL mode, with transactions that are begun by hand."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["connect", "transaction"]

WAIT_SECONDS = 5.0


def connect(path: Path, schema: str, *pragmas: str, wait_seconds: float = WAIT_SECONDS) -> sqlite3.Connection:
    """Open the file, or make it; never through a symbolic link. Any thread may use it, one at a time.

    Args:
        schema: statements that may find their tables there already.
        pragmas: such as `synchronous = FULL`.
        wait_seconds: for another process that writes.

    Raises:
        OSError, sqlite3.Error: it cannot be opened, or is damaged.
    """
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600))
    db = sqlite3.connect(path, timeout=wait_seconds, isolation_level=None, check_same_thread=False)
    try:
        for pragma in ("journal_mode = WAL", *pragmas):
            db.execute(f"PRAGMA {pragma}")
        db.executescript(schema)
    except BaseException:
        db.close()
        raise
    return db


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """All of the block or nothing of it."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield db
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # a full disk ends it by itself
            db.execute("ROLLBACK")
        raise
