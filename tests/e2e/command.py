"""Runs the real command, and looks at what it left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ragingest.protocols import StoredPoint
from ragingest.stores.qdrant_edge import QdrantEdgeStore
from tests.forking import ForkedPopen

SAMPLE_DATA = Path(__file__).parents[2] / "sample_data"
HANDBOOK = SAMPLE_DATA / "library_handbook.jsonl"

NO_WORK = ("--embedder", "null", "--store", "null")
"""For tests of what happens around embedder and store."""

SECONDS = 120
"""A bound for what hangs; nothing is expected to take a tenth of it."""


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """What stdout holds, which must be exactly one JSON document."""
        return json.loads(self.out)

    @property
    def counters(self) -> dict[str, int]:
        """Those of the records and of the work done on them."""
        counters = counts(self.document["counters"])
        assert balanced(counters)
        return counters

    @property
    def said(self) -> str:
        """Everything on both streams, on one line: where it was wrapped does not matter."""
        return " ".join(f"{self.out} {self.err}".split())


@dataclass(frozen=True)
class Command:
    """`ragingest` in `folder`, with nothing inherited that could change what it does."""

    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    start: type[subprocess.Popen[bytes]] = ForkedPopen

    def __call__(
        self,
        *arguments: str | Path,
        code: int = 0,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
    ) -> Result:
        """Run it to its end; it must exit with `code`, and never with a traceback."""
        process = self.start(
            [sys.executable, "-m", "ragingest", *map(str, arguments)],
            cwd=self.folder,
            env=clean_environment({**self.environment, **(environment or {})}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            out, err = process.communicate(stdin, timeout=SECONDS)
        finally:
            process.kill()
        result = Result(process.returncode, out.decode(), err.decode())
        assert result.code == code, result
        assert "Traceback" not in result.err, result.err
        return result

    def json(self, *arguments: str | Path, code: int = 0, stdin: bytes = b"") -> Result:
        """The same with `--json` and `--quiet`; stdout is checked to be one document when it is looked at."""
        return self(*arguments, "--json", "--quiet", code=code, stdin=stdin)

    def checkpoint(self, job: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "checkpoints" / f"{job}.json").read_bytes())
        return found

    def rejects(self, job: str) -> list[dict[str, Any]]:
        return read_lines(self.folder / "checkpoints" / f"{job}.rejects.jsonl")

    def write(self, name: str, records: Iterable[object]) -> Path:
        """A JSON Lines file in the folder."""
        path = self.folder / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path


def clean_environment(extra: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAGINGEST_")}
    return {**kept, "NO_COLOR": "1", "COLUMNS": "120", **extra}


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def counts(counters: Mapping[str, Any]) -> dict[str, int]:
    """The counters without the books of requests, which are told in other units on the screen than on disk."""
    return {name: value for name, value in counters.items() if isinstance(value, int)}


def balanced(counters: Mapping[str, int]) -> bool:
    outcomes = ("stored", "unchanged", "duplicate", "rejected")
    return counters["read"] == sum(counters[name] for name in outcomes)


@contextmanager
def opened(folder: Path, collection: str = "documents") -> Iterator[QdrantEdgeStore]:
    """A collection that no process has open."""
    store = QdrantEdgeStore(folder / "ragingest_data", collection)
    store.open()
    try:
        yield store
    finally:
        store.close()


def stored(folder: Path, ids: Iterable[str], collection: str = "documents") -> dict[str, list[StoredPoint]]:
    """The chunks of each document in their order; the collection holds nothing else."""
    wanted = list(dict.fromkeys(ids))
    with opened(folder, collection) as store:
        heads = store.fetch([(id_, 0) for id_ in wanted])
        rest = store.fetch([(head.id, number) for head in heads for number in range(1, head.chunks)])
        assert store.count() == len(heads) + len(rest)
    found: dict[str, list[StoredPoint]] = {}
    for point in sorted(heads + rest, key=lambda point: point.chunk):
        found.setdefault(point.id, []).append(point)
    assert all(len(points) == points[0].chunks for points in found.values())
    return found
