"""The real command against the server on loopback, and the two accounts of what was sent."""

from __future__ import annotations

import math
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragingest.checkpoint.vectors import PaidVectors
from ragingest.documents import document_digest
from tests.e2e.command import Command, Result, clean_environment, stored
from tests.servers.books import Books
from tests.servers.config import ServerConfig
from tests.servers.faults import LOST, REFUSED, SPOILED
from tests.servers.openai_api import EmbeddingsServer, digest_of
from tests.servers.vectors import vector_of

__all__ = [
    "BATCH",
    "DIMENSIONS",
    "LONG",
    "MODEL",
    "OVER",
    "Place",
    "answered",
    "batches",
    "check_told",
    "disturbances",
    "halvings",
    "make",
    "texts_of",
]

KEY = "sk-test-SECRET-0123456789"
MODEL = "text-embedding-3-small"
DIMENSIONS = 16
BATCH = 50
OPENAI = (
    *("--embedder", "openai", "--model", MODEL, "--dimensions", str(DIMENSIONS)),
    *("--batch-size", str(BATCH), "--checkpoint-interval", "0.1"),
)
PRICE = 0.02
"""Of a million tokens of that model."""

LONG = [
    {"id": "short", "text": "A short text."},
    {"id": "long", "text": "words of a long text " * 2500},
    {"id": "very long", "text": "no end of words " * 10_000},
    {"id": "wide", "text": "図書館は九時に開きます。" * 900},
    {"id": "one word", "text": "x" * 40_000},
    {"id": "just under", "text": "word " * 1600},
]
OVER = {"long", "very long", "wide", "one word"}
"""The ids of those that have more tokens than the model takes."""


def make(count: int, poisoned: Iterable[int] = ()) -> list[dict[str, str]]:
    """Records with different texts of some 60 bytes; the server refuses those of the poisoned numbers."""
    bad = set(poisoned)
    return [
        {
            "id": f"doc-{n:05}",
            "text": f"{'POISON' if n in bad else 'Record'} {n} tells of number {n} and of nothing else.",
        }
        for n in range(count)
    ]


def texts_of(records: Sequence[dict[str, str]]) -> list[str]:
    return [record["text"] for record in records]


def batches(count: int, size: int = BATCH) -> int:
    return math.ceil(count / size)


def halvings(size: int = BATCH) -> int:
    """Requests that one guilty text of a batch may cost beyond the first: twice the logarithm."""
    return 2 * math.ceil(math.log2(size))


@dataclass(frozen=True)
class Place:
    """A folder, and the command in it, which talks to `server`."""

    command: Command
    server: EmbeddingsServer
    embedder: tuple[str, ...] = OPENAI

    @classmethod
    @contextmanager
    def opened(
        cls, folder: Path, embedder: tuple[str, ...] = OPENAI, key: str = "OPENAI_API_KEY", **config: Any
    ) -> Iterator[Place]:
        with EmbeddingsServer(ServerConfig(api_key=KEY, **config)) as server:
            yield cls(Command(folder, {key: KEY}), server, embedder)

    @property
    def base_url(self) -> str:
        """The server, as the embedder takes it."""
        return self.server.url if "cohere" in self.embedder else self.server.base_url

    @property
    def folder(self) -> Path:
        return self.command.folder

    def arguments(self, records: Sequence[object] | None, *more: str, job: str = "j") -> list[str]:
        """`run` over these records, or over those written last."""
        if records is not None:
            self.command.write("corpus.jsonl", records)
        return [*("run", "corpus.jsonl", "--job", job, "--base-url", self.base_url), *self.embedder, *more]

    def run(self, records: Sequence[object] | None, *more: str, code: int = 0, job: str = "j") -> Result:
        return self.command.json(*self.arguments(records, *more, job=job), code=code)

    def resume(self, *more: str, code: int = 0, job: str = "j") -> Result:
        return self.command.json("resume", job, *more, code=code)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start the command, of which nobody will hear; the caller sees to its end."""
        return self.command.start(
            [sys.executable, "-m", "ragingest", *arguments, "--quiet"],
            cwd=self.folder,
            env=clean_environment(self.command.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    # -- what must hold ------------------------------------------------------------------------------

    def check_books(self, result: Result, price: float | None = PRICE, job: str = "j") -> dict[str, Any]:
        """That summary, `stats` and checkpoint tell the same of the requests, and it is what the server counted."""
        books: dict[str, Any] = result.document["counters"]["books"]
        check_told(books, self.server.books, price)
        assert self.command("stats", job, "--json").document["counters"]["books"] == books
        saved = self.command.checkpoint(job)["counters"]["books"]
        assert sum(saved["latencies"].values()) == books["answered"]
        same = books.keys() & saved.keys() - {"waited"}
        assert {"requests", "answered", "texts", "reused", "tokens", "throttled", "price_per_million"} <= same
        assert {name: saved[name] for name in same} == {name: books[name] for name in same}
        return books

    def check_stored(self, records: Sequence[dict[str, str]], collection: str = "documents") -> None:
        """That the collection holds these, whole, and nothing else."""
        found = stored(self.folder, [record["id"] for record in records], collection)
        assert len(found) == len(records)
        for record in records:
            [point] = found[record["id"]]
            assert point.text == record["text"]
            assert bytes.fromhex(point.digest) == document_digest(record["text"], {})
            assert abs(float(point.dense @ vector_of(record["text"], len(point.dense))) - 1) < 1e-5

    def check_secret(self, *results: Result) -> None:
        """That the key stands in no file and was not printed."""
        for result in results:
            assert KEY not in result.out + result.err
        for path in self.folder.rglob("*"):
            if path.is_file():
                assert KEY.encode() not in path.read_bytes(), path

    def on_disk(self, texts: Iterable[str]) -> set[str]:
        """Those of which a paid vector lies beside the checkpoint; no process works on the job."""
        files = PaidVectors.files(self.vectors)
        if not files:
            return set()
        # As the contract of `PaidVectors` has it: 16 bytes of BLAKE2b of the text.
        digests = {document_digest(text, {})[:16]: text for text in texts}
        kept = PaidVectors(self.vectors, f"openai {self.server.base_url} {MODEL}", DIMENSIONS, False)
        try:
            assert [file for file in files if ".known" not in file.name] == [kept.path]
            return {digests[digest] for digest in kept.get(list(digests))}
        finally:
            kept.close()

    def in_ledger(self, records: Sequence[dict[str, str]]) -> set[str]:
        """The texts of those that the job knows to be stored; no process works on it."""
        path = self.folder / "checkpoints" / "j.ledger.sqlite"
        if not path.exists():
            return set()
        with closing(sqlite3.connect(path)) as db:
            known = {row[0] for row in db.execute("SELECT id FROM documents WHERE digest <> x''")}
        return {record["text"] for record in records if record["id"] in known}

    @property
    def vectors(self) -> Path:
        return self.folder / "checkpoints" / "j.vectors"


def check_told(books: Mapping[str, Any], server: Books, price: float | None = PRICE) -> None:
    """That a run told of its requests what the server counted."""
    assert server.in_flight == 0
    assert books["requests"] == server.requests == sum(server.by_status.values())
    busy = server.by_status.get("429", 0) + server.by_status.get("503", 0)
    assert books["throttled"] == busy - server.faults.get("quota", 0)
    assert books["texts"] == server.texts_answered
    assert books["tokens"] == server.tokens_answered + server.tokens_spoiled
    assert books["answered"] == server.by_status.get("200", 0) - wasted(server)
    assert books["cost"] == (None if price is None else books["tokens"] * price / 1e6)
    assert books["price_per_million"] == price


def wasted(books: Books) -> int:
    """Answers 200 that brought nothing."""
    return sum(books.faults.get(kind, 0) for kind in ("html", "cut_body", "cut_json", *SPOILED))


def disturbances(books: Books) -> int:
    """Requests after which another try was needed."""
    return sum(books.faults.get(kind, 0) for kind in (*REFUSED, *LOST, *SPOILED))


def answered(books: Books, texts: Iterable[str]) -> dict[str, int]:
    """How often each was."""
    return {text: books.times_answered.get(digest_of(text), 0) for text in texts}
