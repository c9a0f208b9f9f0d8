from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from ragingest.sqlite import connect, transaction

SCHEMA = "CREATE TABLE IF NOT EXISTS numbers (n INTEGER PRIMARY KEY);"


def numbers(db: sqlite3.Connection) -> list[int]:
    return [n for (n,) in db.execute("SELECT n FROM numbers ORDER BY n")]


def test_a_transaction_is_all_or_nothing(tmp_path: Path) -> None:
    with closing(connect(tmp_path / "file", SCHEMA)) as db:
        with transaction(db):
            db.execute("INSERT INTO numbers VALUES (1)")
        with pytest.raises(sqlite3.IntegrityError), transaction(db):
            db.executemany("INSERT INTO numbers VALUES (?)", [(2,), (1,)])
        assert numbers(db) == [1]
    with closing(connect(tmp_path / "file", SCHEMA)) as db:
        assert numbers(db) == [1]


def test_what_ended_a_transaction_is_told_though_the_engine_has_ended_it_already(tmp_path: Path) -> None:
    with closing(connect(tmp_path / "file", SCHEMA, "page_size = 512", "max_page_count = 4")) as db:
        with pytest.raises(sqlite3.OperationalError, match="full"), transaction(db):
            db.executemany("INSERT INTO numbers VALUES (?)", ((n,) for n in range(10_000)))
        assert numbers(db) == []
        with transaction(db):
            db.execute("INSERT INTO numbers VALUES (1)")
        assert numbers(db) == [1]


def test_a_file_is_its_owners_alone_and_no_link_is_followed(tmp_path: Path) -> None:
    connect(tmp_path / "file", SCHEMA).close()
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="link"):
        connect(tmp_path / "link", SCHEMA)
    assert not (tmp_path / "elsewhere").exists()


def test_what_is_no_database_is_closed_again(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"no database, " * 100)
    with pytest.raises(sqlite3.DatabaseError):
        connect(path, SCHEMA)
    assert path.read_bytes() == b"no database, " * 100
