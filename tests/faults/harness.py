"""Starts the real command, harms it at a chosen moment, and checks that nothing is lost and nothing doubled."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ragingest.checkpoint.state import decode, encode
from ragingest.documents import document_digest
from tests.e2e.command import SECONDS, Command, Result, balanced, clean_environment, counts, opened, stored

LAUNCHER = Path(__file__).with_name("launcher.py")

BATCH = 16
CONCURRENCY = 2
CHUNK_SIZE = 64
SMALL_STEPS = (
    *("--batch-size", str(BATCH), "--upsert-size", str(BATCH), "--concurrency", str(CONCURRENCY)),
    *("--checkpoint-interval", "0.05"),
)
SMALL_CHUNKS = ("--chunk-size", str(CHUNK_SIZE), "--chunk-overlap", "8")

MOST_CHUNKS = 12
"""Chunks of the longest document of a corpus, at most."""

IN_FLIGHT = (CONCURRENCY + 2) * BATCH + 5 * BATCH + (CONCURRENCY + 2) * MOST_CHUNKS
"""Chunks that may be embedded and not yet in the ledger: those in the embedder's hands (a batch a slot) and
queued behind it (one), being packed (one); packed, queued and in the store's hands (an upsert each, two in the
last); and the stored chunks of documents that are not whole yet."""


@dataclass(frozen=True)
class Corpus:
    """Lines of a generated source, and what a loader must make of them."""

    lines: list[str]

    @property
    def accepted(self) -> dict[str, bytes]:
        """The digest of the last valid version of each document."""
        found: dict[str, bytes] = {}
        for record in self._valid():
            found[record["id"]] = document_digest(record["text"], record.get("metadata", {}))
        return found

    @property
    def rejected(self) -> list[int]:
        """Ordinals of the bad records."""
        return [ordinal for ordinal, line in enumerate(self.lines) if _bad(line)]

    @property
    def duplicates(self) -> int:
        return len(self._valid()) - len(self.accepted)

    def _valid(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines if not _bad(line)]

    def write(self, path: Path) -> Path:
        """As what the file's name says: .jsonl, .jsonl.gz or .json."""
        data = "".join(f"{line}\n" for line in self.lines).encode()
        if path.suffix == ".json":
            data = ('{"made": true, "documents": [\n' + ",\n".join(self.lines) + "\n]}").encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
        return path


BAD = ('{"id": "none"}', '{"id": "empty", "text": ""}', "42", '["x"]', '{"id": "nan", "text": "x", "n": NaN}')


def _bad(line: str) -> bool:
    return line in BAD


def make_corpus(count: int, seed: int, first: int = 0, padding: int = 0) -> Corpus:
    """Short and long documents, bad records, and ids that come again near and far, with and without changes.

    With `padding` bytes in each record, a block (256 KiB of a file, 1,000 records at most) holds fewer of them.
    """
    pad = "." * padding
    chance = random.Random(seed)  # noqa: S311  # repeatable
    words = [f"{chance.choice('bdfgklmnprst')}{chance.choice('aeiou')}{n}" for n in range(400)]
    lines: list[str] = []
    ids: list[str] = []
    for number in range(first, first + count):
        draw = chance.random()
        if draw < 0.03:
            lines.append(chance.choice(BAD))
            continue
        id_ = f"doc-{number}"
        if ids and draw < 0.05:
            id_ = ids[-chance.randint(1, min(len(ids), 20))]
        elif len(ids) > 400 and draw < 0.06:
            id_ = ids[-chance.randint(300, len(ids))]
        length = chance.randint(60, 150) if draw > 0.97 else chance.randint(4, 20)
        text = " ".join(chance.choices(words, k=length)) + "."
        ids.append(id_)
        lines.append(json.dumps({"id": id_, "text": text, "metadata": {"n": number % 7, "pad": pad}}))
        if draw > 0.995:
            lines.append(lines[-1])
    return Corpus(lines)


@dataclass(frozen=True)
class Workplace:
    """A folder in which one job, `j`, is run, harmed and resumed."""

    command: Command
    before: tuple[str, ...] = ()
    """A command that starts the one behind it, in another place."""

    @property
    def folder(self) -> Path:
        return self.command.folder

    @property
    def state(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def log(self) -> Path:
        return self.folder / "embedded.log"

    def start(
        self,
        *arguments: str | Path,
        fault: str = "",
        limit: int | None = None,
        clock: int | None = None,
        **popen: Any,
    ) -> subprocess.Popen[bytes]:
        """Start the command under the launcher; the caller sees to its end."""
        extra = {
            "FAULT_LOG": str(self.log),
            "FAULT": fault,
            "FAULT_LIMIT": str(limit or ""),
            "FAULT_CLOCK": str(clock or ""),
        }
        start = subprocess.Popen if self.before else self.command.start
        return start(
            [*self.before, sys.executable, str(LAUNCHER), *map(str, arguments)],
            cwd=self.folder,
            env=clean_environment(extra),
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **popen},
        )

    def run(self, *arguments: str | Path, code: int = 0, **start: Any) -> Result:
        """Run the command under the launcher to its end, which must be `code`."""
        return finish(self.start(*arguments, **start), code)

    def kill_at(self, moment: Callable[[], bool], *arguments: str | Path) -> bool:
        """Run, and SIGKILL as soon as `moment` has come; whether it came before the end."""
        process = self.start(*arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            come = wait_for(process, moment)
        finally:
            process.kill()
            process.wait(SECONDS)
        return come

    def resume(self, *arguments: str, code: int = 1, **start: Any) -> Result:
        return self.run("resume", "j", "--json", *arguments, code=code, **start)

    @contextmanager
    def gate(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        """From when the first upsert has come to the gate until the block ends, nothing is stored."""
        path = self.folder / "gate"
        handles: list[int] = []

        def reached() -> bool:
            with suppress(OSError):  # nobody reads it yet
                handles.append(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
            return bool(handles)

        assert wait_for(process, reached), "it ended before it came to the gate"
        try:
            yield
        finally:
            opened = self.folder / "gate.opened"
            opened.touch()
            opened.replace(path)  # at no moment is there none
            os.close(handles[0])

    def with_gate(self, call: int) -> str:
        """The fault that makes every upsert from that call on wait at the gate."""
        os.mkfifo(self.folder / "gate")
        return f"gate:before:Store.upsert:{call}"

    def known(self) -> int:
        """How many documents the ledger of the running job holds; 0 where there is none yet."""
        path = self.state / "j.ledger.sqlite"
        if not path.exists():
            return 0
        with suppress(sqlite3.OperationalError), closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            return int(db.execute("SELECT count(*) FROM documents WHERE digest <> x''").fetchone()[0])
        return 0

    def embedded(self) -> list[str]:
        """Every chunk that any attempt has embedded, as often as it did."""
        return self.log.read_text().split("\n")[:-1] if self.log.exists() else []

    def check(self, corpus: Corpus, result: Result) -> dict[str, int]:
        """That a finished run accounts for everything, and the store holds the corpus and nothing else."""
        counters = result.counters
        checkpoint = self.command.checkpoint("j")
        assert counts(checkpoint["counters"]) == counters
        assert checkpoint["status"] == result.document["status"] == "completed"
        assert counters["read"] == len(corpus.lines), (counters, result.err)
        assert counters["rejected"] == len(corpus.rejected)
        self.check_rejects(corpus)
        self.check_content(corpus)
        return counters

    def check_rejects(self, corpus: Corpus) -> None:
        unit = "element" if "element" in self.command.rejects("j")[0]["position"] else "line"
        positions = [reject["position"][unit] - 1 for reject in self.command.rejects("j")]
        assert sorted(positions) == corpus.rejected

    def check_content(self, corpus: Corpus) -> None:
        accepted = corpus.accepted
        found = stored(self.folder, accepted)
        assert {id_: bytes.fromhex(points[0].digest) for id_, points in found.items()} == accepted
        assert all(point.digest == points[0].digest for points in found.values() for point in points)
        with closing(sqlite3.connect(self.state / "j.ledger.sqlite")) as db:
            rows = {row[0]: row[1:] for row in db.execute("SELECT id, digest, chunks FROM documents")}
        assert rows == {id_: (accepted[id_], len(points)) for id_, points in found.items()}

    def lose(self, ids: Iterable[str]) -> None:
        """Take documents out of the store, as a loss of power does with what was not flushed."""
        chosen = list(ids)
        with opened(self.folder) as store:
            store.delete([(id_, number) for id_ in chosen for number in range(MOST_CHUNKS)])
            assert store.fetch([(id_, 0) for id_ in chosen]) == []

    def in_ledger(self) -> set[str]:
        with closing(sqlite3.connect(self.state / "j.ledger.sqlite")) as db:
            return {row[0] for row in db.execute("SELECT id FROM documents WHERE digest <> x''")}

    def check_books(self) -> None:
        """That the checkpoint on disk balances, whatever happened."""
        assert balanced(self.command.checkpoint("j")["counters"])


def finish(process: subprocess.Popen[bytes], code: int) -> Result:
    """Wait for the end of a process, which must be `code`, and without a traceback."""
    try:
        out, err = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    result = Result(process.returncode, (out or b"").decode(), (err or b"").decode())
    assert result.code == code, result
    assert "Traceback" not in result.err, result.err
    return result


def wait_for(process: subprocess.Popen[bytes], moment: Callable[[], bool]) -> bool:
    """Wait until `moment` has come; False if the process ended first."""
    while not moment():
        try:
            process.wait(0.002)
        except subprocess.TimeoutExpired:
            continue
        return moment()
    return True


def listens(process: subprocess.Popen[bytes]) -> bool:
    """Whether the command has come as far as to handle signals itself."""
    with suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
    return False


def write_checkpoint(path: Path, **changes: Any) -> None:
    """Change fields of a checkpoint as one who has the right to: its checksum fits again."""
    path.write_bytes(encode(msgspec.structs.replace(decode(path.read_bytes()), **changes)))
