"""Batches that are under way at an embeddings API, and which texts are in them.

A batch takes hours, so all that is known of it is on disk, before and after each step:

    filling -> filled -> uploading -> uploaded -> creating -> created -> ended -> fetched -> done

`uploading` and `creating` are written before the request is sent and mean that its answer may have been
lost: whoever finds one of them asks the server by the batch's marker before it sends anything again.
A text is in one batch, or refused, or not here; so none is submitted twice. The lines of a batch
stand in a file beside this one until they are uploaded.

Each commit is synced: a loss of power takes back no step that a request was built on.
"""

from __future__ import annotations

import os
import re
import secrets
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ragingest.errors import TerminalError
from ragingest.sqlite import connect, transaction

__all__ = ["ANSWERS", "Batch", "BatchLine", "BatchStates", "Refusal", "State", "Totals"]

State = Literal[
    "filling", "filled", "uploading", "uploaded", "creating", "created", "ended", "fetched", "done", "dropped"
]
ANSWERS: tuple[Literal["output"], Literal["errors"]] = ("output", "errors")
"""The two files that come of a batch."""

LOOKUP = 500  # digests in one query

_SCHEMA = """
CREATE TABLE IF NOT EXISTS batches (
    number INTEGER PRIMARY KEY,
    state TEXT NOT NULL,
    since REAL NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 1,
    held INTEGER NOT NULL DEFAULT 0,
    texts INTEGER NOT NULL DEFAULT 0,
    file_bytes INTEGER NOT NULL DEFAULT 0,
    text_bytes INTEGER NOT NULL DEFAULT 0,
    strange INTEGER NOT NULL DEFAULT 0,
    wide INTEGER NOT NULL DEFAULT 0,
    file_id TEXT,
    batch_id TEXT,
    output_id TEXT,
    error_id TEXT,
    completed INTEGER,
    run INTEGER,
    requests INTEGER NOT NULL DEFAULT 0,
    answered INTEGER NOT NULL DEFAULT 0,
    tokens INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS texts (
    digest BLOB PRIMARY KEY,
    batch INTEGER,
    tries INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS texts_of_a_batch ON texts (batch);
CREATE TABLE IF NOT EXISTS refused (digest BLOB PRIMARY KEY, kind TEXT NOT NULL, message TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
INSERT OR IGNORE INTO meta VALUES ('format', 1);
"""


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch: its state and since when (seconds since 1970), its size, its names at the server, its result.

    `attempt` counts how often it was created, `held` says that the server's queue had no room for it.
    `completed` is how many of its requests the server says have succeeded; `run` fetched it.
    """

    number: int
    state: State
    since: float
    attempt: int
    held: bool
    texts: int
    file_bytes: int
    text_bytes: int
    strange: int
    wide: int
    file_id: str | None
    batch_id: str | None
    output_id: str | None
    error_id: str | None
    completed: int | None
    run: int | None
    requests: int
    answered: int
    tokens: int


class BatchLine(NamedTuple):
    """A text's line of a request file, and the text's size (see `tokens.TextSize`)."""

    digest: bytes
    data: bytes
    text_bytes: int
    strange: int
    wide: int


class Refusal(NamedTuple):
    """Why a text will never have a vector."""

    kind: str
    message: str


class Totals(NamedTuple):
    """Of a run's batches: how many were submitted and how many are fetched; what came of the fetched ones."""

    submitted: int
    fetched: int
    requests: int
    answered: int
    tokens: int


class BatchStates:
    """The file that knows all this. Used by one thread at a time.

    Args:
        path: of the SQLite file; the names of request files begin with it.
        model: whose vectors are ordered; what was ordered of another model is forgotten.
        run: the run's number; `begun` if this is not its first attempt, so that another of this number is meant.
        max_texts, max_bytes: of a batch.

    Raises (every method):
        TerminalError: the disk is full or the files cannot be used.
    """

    def __init__(
        self, path: Path, model: str, run: int, *, begun: bool = True, max_texts: int, max_bytes: int
    ) -> None:
        self.path = path
        self.forgotten = 0
        """Batches of another model that were under way, which nobody will fetch."""
        self._run = run
        self._max_texts = max_texts
        self._max_bytes = max_bytes
        with self._explained():
            self._db = connect(self.path, _SCHEMA, "synchronous = FULL")
            if self._meta("model", model) != model:
                self.forgotten = len(self.in_state("creating", "created", "ended"))
                self._delete()
                self._db = connect(self.path, _SCHEMA, "synchronous = FULL")
                self._meta("model", model)
            self._token = str(self._meta("token", secrets.token_hex(8)))
            if not begun:
                self._db.execute("UPDATE batches SET run = 0 WHERE run = ?", (run,))
            self._mend()

    # -- texts -------------------------------------------------------------------------------------

    def known(self, digests: Sequence[bytes]) -> tuple[set[bytes], dict[bytes, Refusal]]:
        """Of these texts: those that are in a batch, and those that are refused."""
        waiting: set[bytes] = set()
        refused: dict[bytes, Refusal] = {}
        with self._explained():
            for start in range(0, len(digests), LOOKUP):
                some = digests[start : start + LOOKUP]
                marks = ",".join("?" * len(some))
                query = f"SELECT digest FROM texts WHERE batch IS NOT NULL AND digest IN ({marks})"
                waiting.update(row[0] for row in self._db.execute(query, some))
                query = f"SELECT digest, kind, message FROM refused WHERE digest IN ({marks})"
                refused.update((row[0], Refusal(*row[1:])) for row in self._db.execute(query, some))
        return waiting, refused

    def add(self, lines: Iterable[BatchLine], most_text_bytes: float) -> None:
        """Write lines into the batch that is being filled, and begin another wherever it is full.

        Args:
            most_text_bytes: of a batch, in texts; one that is longer has a batch of its own.
        """
        with self._explained():
            batch: list[BatchLine] = []
            size = self._open_batch()
            for line in lines:
                over = (
                    size.texts >= self._max_texts
                    or size.file_bytes + len(line.data) > self._max_bytes
                    or size.text_bytes + line.text_bytes > most_text_bytes
                )
                if size.texts and over:
                    self._append(batch)
                    self._close_open()
                    batch, size = [], _Size()
                batch.append(line)
                size = size.plus(line)
            self._append(batch)

    def refuse(self, refused: Mapping[bytes, Refusal]) -> None:
        """These have no vector and never will; said before they were sent."""
        with self._explained(), transaction(self._db):
            self._refuse(refused)

    def close_open(self) -> None:
        """The batch that is being filled gets no more texts."""
        with self._explained():
            self._close_open()

    # -- batches -----------------------------------------------------------------------------------

    def in_state(self, *states: State) -> list[Batch]:
        """The batches in these states, oldest first."""
        with self._explained():
            return self._batches(f"WHERE state IN ({','.join('?' * len(states))})", *states)

    def update(self, number: int, **changes: Any) -> Batch:
        """Write down a step, for good when this returns; the batch as it is now."""
        with self._explained():
            changes["since"] = time.time()
            names = ", ".join(f"{name} = ?" for name in changes)
            self._db.execute(f"UPDATE batches SET {names} WHERE number = ?", (*changes.values(), number))
            if changes.get("state") not in (None, "filling", "filled", "uploading"):
                self.requests_of(number).unlink(missing_ok=True)
            return self._batches("WHERE number = ?", number)[0]

    def settle(
        self, number: int, refused: Mapping[bytes, Refusal], failed: Sequence[bytes], *, answered: int, tokens: int
    ) -> int:
        """The answers of a batch are kept elsewhere: count them, remember the refusals, let the rest be ordered again.

        Args:
            failed: texts at which the server failed.

        Returns:
            How often it has failed at one text, at most.
        """
        with self._explained(), transaction(self._db):
            self._refuse(refused)
            self._db.executemany("UPDATE texts SET batch = NULL, tries = tries + 1 WHERE digest = ?", _rows(failed))
            self._db.execute("DELETE FROM texts WHERE batch = ?", (number,))
            self._db.execute(
                "UPDATE batches SET state = 'fetched', since = ?, run = ?, requests = ?, answered = ?, tokens = ? "
                "WHERE number = ?",
                (time.time(), self._run, answered + len(refused) + len(failed), answered, tokens, number),
            )
            self._db.execute("UPDATE batches SET held = 0")
            most: int | None = self._db.execute("SELECT max(tries) FROM texts").fetchone()[0]
            return most or 0

    def release(self, number: int) -> None:
        """Forget a batch that will bring nothing; its texts can be ordered again."""
        with self._explained():
            with transaction(self._db):
                self._db.execute("DELETE FROM texts WHERE batch = ? AND tries = 0", (number,))
                self._db.execute("UPDATE texts SET batch = NULL WHERE batch = ?", (number,))
                self._db.execute(
                    "UPDATE batches SET state = 'dropped', since = ? WHERE number = ?", (time.time(), number)
                )
            self.requests_of(number).unlink(missing_ok=True)

    def forgive(self) -> None:
        """Count the failures at texts from nothing."""
        with self._explained():
            self._db.execute("DELETE FROM texts WHERE batch IS NULL")
            self._db.execute("UPDATE texts SET tries = 0 WHERE tries > 0")

    def requests_of(self, number: int) -> Path:
        """The file with the lines of a batch, until it is uploaded."""
        return self.path.with_name(f"{self.path.stem}-{number}.jsonl")

    def answers_of(self, number: int, which: Literal["output", "errors"]) -> Path:
        """Where what was fetched of a batch is while it is read."""
        return self.path.with_name(f"{self.path.stem}-{number}.{which}")

    def file_name(self, batch: Batch) -> str:
        """What its file is called at the server; no other file ever has this name."""
        return f"ragingest-{self._token}-{batch.number}.jsonl"

    def marker(self, batch: Batch) -> str:
        """What marks the batch at the server; no other batch, and no other attempt at this one, ever has it."""
        return f"{self._token}-{batch.number}-{batch.attempt}"

    @property
    def totals(self) -> Totals:
        """Of this run: its fetched batches, and all that are under way."""
        with self._explained():
            row = self._db.execute(
                "SELECT count(*), count(run), total(requests), total(answered), total(tokens) FROM batches "
                "WHERE run = ? OR (run IS NULL AND batch_id IS NOT NULL AND state <> 'dropped')",
                (self._run,),
            ).fetchone()
            return Totals(*map(int, row))

    # -- the server's queue ------------------------------------------------------------------------

    @property
    def queue_tokens(self) -> int | None:
        """How many tokens the server takes in all unfinished batches, once it has said so."""
        with self._explained():
            return self._get("queue_tokens")

    @property
    def batch_tokens(self) -> int | None:
        """How many tokens a batch should have at most, for the sake of the queue."""
        with self._explained():
            return self._get("batch_tokens")

    def learn_queue(self, queue_tokens: int | None, batch_tokens: int | None) -> None:
        """Remember either for the batches to come; None is no news."""
        with self._explained():
            for key, value in (("queue_tokens", queue_tokens), ("batch_tokens", batch_tokens)):
                if value is not None:
                    self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    # -- the end -----------------------------------------------------------------------------------

    def delete(self) -> None:
        """The job is done: nothing of this is needed any more."""
        with self._explained():
            self._delete()

    def close(self) -> None:
        with self._explained():
            self._db.close()

    # -- inside ------------------------------------------------------------------------------------

    def _delete(self) -> None:
        self._db.close()
        ours = re.compile(re.escape(self.path.stem) + r"-\d+\.(jsonl|output|errors)").fullmatch
        for path in self.path.parent.iterdir():
            if ours(path.name):
                path.unlink(missing_ok=True)
        for end in ("-wal", "-shm", ""):
            self.path.with_name(self.path.name + end).unlink(missing_ok=True)

    def _meta(self, key: str, value: str) -> str:
        """What stands there; `value` if nothing did."""
        self._db.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (key, value))
        return str(self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()[0])

    def _get(self, key: str) -> int | None:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else int(row[0])

    def _batches(self, where: str, *values: object) -> list[Batch]:
        names = ", ".join(field.name for field in fields(Batch))
        return [
            Batch(*row) for row in self._db.execute(f"SELECT {names} FROM batches {where} ORDER BY number", values)
        ]

    def _mend(self) -> None:
        """Cut off lines that no commit knows of; let texts go whose lines are lost."""
        for batch in self.in_state("filling", "filled", "uploading"):
            path = self.requests_of(batch.number)
            there = path.stat().st_size if path.exists() else 0
            if batch.state == "filling" and there > batch.file_bytes:
                os.truncate(path, batch.file_bytes)
            elif there != batch.file_bytes:
                self.release(batch.number)

    def _open_batch(self) -> _Size:
        row = self._db.execute(
            "SELECT texts, file_bytes, text_bytes FROM batches WHERE state = 'filling' ORDER BY number"
        ).fetchone()
        return _Size(*row) if row else _Size()

    def _append(self, lines: Sequence[BatchLine]) -> None:
        if not lines:
            return
        row = self._db.execute("SELECT number FROM batches WHERE state = 'filling'").fetchone()
        number = row[0] if row else 1 + self._db.execute("SELECT ifnull(max(number), 0) FROM batches").fetchone()[0]
        handle = os.open(self.requests_of(number), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "ab") as file:
            if row is None:
                file.truncate(0)
            file.write(b"".join(line.data for line in lines))
            file.flush()
            os.fsync(file.fileno())
        with transaction(self._db):
            self._db.execute(
                "INSERT OR IGNORE INTO batches (number, state, since) VALUES (?, 'filling', ?)",
                (number, time.time()),
            )
            self._db.execute(
                "UPDATE batches SET texts = texts + ?, file_bytes = file_bytes + ?, text_bytes = text_bytes + ?, "
                "strange = strange + ?, wide = wide + ? WHERE number = ?",
                (
                    len(lines),
                    *(
                        sum(numbers)
                        for numbers in zip(
                            *((len(line.data), line.text_bytes, line.strange, line.wide) for line in lines),
                            strict=True,
                        )
                    ),
                    number,
                ),
            )
            self._db.executemany(
                "INSERT INTO texts (digest, batch) VALUES (?, ?) ON CONFLICT (digest) DO UPDATE SET batch = excluded.batch",
                ((line.digest, number) for line in lines),
            )

    def _close_open(self) -> None:
        self._db.execute("UPDATE batches SET state = 'filled', since = ? WHERE state = 'filling'", (time.time(),))

    def _refuse(self, refused: Mapping[bytes, Refusal]) -> None:
        rows = [(digest, *refusal) for digest, refusal in refused.items()]
        self._db.executemany("INSERT OR REPLACE INTO refused VALUES (?, ?, ?)", rows)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise TerminalError(
                f"the state of the batches in {self.path} cannot be kept: {getattr(error, 'strerror', None) or error}",
                "free disk space or mend its permissions, then resume",
            ) from None


class _Size(NamedTuple):
    texts: int = 0
    file_bytes: int = 0
    text_bytes: int = 0

    def plus(self, line: BatchLine) -> _Size:
        return _Size(self.texts + 1, self.file_bytes + len(line.data), self.text_bytes + line.text_bytes)


def _rows(digests: Iterable[bytes]) -> Iterator[tuple[bytes]]:
    return ((digest,) for digest in digests)
