"""Many runs, each killed one to five times at random moments, and what is lost, extra or done twice at the end.

    python -m benchmarks.random_death [RUNS] [RECORDS] [STORE ...]

Stores: qdrant-edge, jsonl, parquet, pgvector (a Postgres of its own), qdrant (a server on loopback), by default qdrant-edge. The corpus has bad records, ids
that come again near and far, and documents of several chunks. Each run is resumed until it ends by itself; then the
store is read point by point and compared with what the corpus says.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from benchmarks.measure import report, scratch
from ragingest.settings import StoreSettings
from ragingest.stores import open_store
from tests.faults.harness import LAUNCHER, Corpus, make_corpus
from tests.servers.postgres import PostgresServer
from tests.servers.process import ServerProcess

OPTIONS = ("--embedder", "null", "--chunk-size", "64", "--chunk-overlap", "8", "--max-errors", "100%")
MOST_KILLS = 5


class Deaths:
    """Runs of one corpus into one kind of store."""

    def __init__(self, folder: Path, corpus: Corpus, store: str, url: str | None) -> None:
        self._folder = folder
        self._accepted = {id_: digest.hex() for id_, digest in corpus.accepted.items()}
        self._source = corpus.write(folder / "corpus.jsonl")
        self._store = store
        self._url = url
        self.seconds = 0.0
        self.kills = self.missing = self.extra = self.wrong = self.unbalanced = self.again = 0

    def run(self, number: int, kills: int, dice: random.Random) -> None:
        place = self._folder / str(number)
        place.mkdir()
        settings = StoreSettings(
            store=self._store, store_path=str(place / "data"), url=self._url, collection=f"death{number}"
        )
        where = ["--store", self._store, "--collection", settings.collection, "--store-path", settings.store_path]
        where += ["--url", self._url] if self._url else []
        log = place / "embedded"
        command = ["run", str(self._source), "--job", "j", *OPTIONS, *where]
        while True:
            began = time.monotonic()
            process = self._start(place, log, command)
            if kills:
                kills -= 1
                try:
                    process.wait(0.3 + dice.random() * max(0.1, self.seconds - 0.3))
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    self.kills += 1
            output, _ = process.communicate()
            if process.returncode in (0, 1):
                break
            if (place / "checkpoints" / "j.json").exists():
                command = ["resume", "j"]
        self.seconds = self.seconds or time.monotonic() - began
        self._check(settings, json.loads(output)["counters"], log)
        shutil.rmtree(place)

    def _start(self, place: Path, log: Path, command: list[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, str(LAUNCHER), *command, "--json", "--quiet"],
            cwd=place,
            env={**os.environ, "PYTHONPATH": str(Path.cwd()), "FAULT_LOG": str(log)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def _check(self, settings: StoreSettings, counters: dict[str, int], log: Path) -> None:
        outcomes = ("stored", "unchanged", "duplicate", "rejected")
        self.unbalanced += counters["read"] != sum(counters[name] for name in outcomes)
        store = open_store(settings)
        store.open()
        found: Counter[str] = Counter()
        chunks: dict[str, int] = {}
        after = None
        while True:
            page, after = store.scan(after, 1000)
            for point in page:
                found[point.id] += 1
                chunks[point.id] = point.chunks
                self.extra += point.id not in self._accepted or point.chunk >= point.chunks
                self.wrong += self._accepted.get(point.id) != point.digest
            if after is None:
                break
        store.close()
        self.missing += sum(found[id_] < chunks.get(id_, 1) for id_ in self._accepted)
        embedded = Counter(log.read_text().splitlines())
        self.again += sum(embedded.values()) - len(embedded)


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    records = int(sys.argv[2]) if len(sys.argv) > 2 else 20_000
    stores = sys.argv[3:] or ["qdrant-edge"]
    corpus = make_corpus(records, seed=1953)
    dice = random.Random(7)  # noqa: S311  # not for secrets
    results: dict[str, object] = {"records": records}
    for store in stores:
        with ExitStack() as stack:
            folder = stack.enter_context(scratch())
            deaths = Deaths(folder, corpus, store, _server(store, stack))
            deaths.run(0, 0, dice)  # undisturbed: how long it takes
            base = deaths.again
            for number in range(1, runs + 1):
                deaths.run(number, dice.randint(1, MOST_KILLS), dice)
                harm = deaths.missing + deaths.extra + deaths.wrong + deaths.unbalanced
                print(f"{store}: {number} of {runs} runs, {deaths.kills} kills, harm {harm}", file=sys.stderr)
            results[store] = {
                "runs": runs,
                "kills": deaths.kills,
                "documents or chunks missing": deaths.missing,
                "points too many": deaths.extra,
                "points with other content": deaths.wrong,
                "runs whose counters do not add up": deaths.unbalanced,
                "chunks embedded again, a kill": round((deaths.again - base * (runs + 1)) / max(1, deaths.kills)),
            }
    report("random_death", results)


def _server(store: str, stack: ExitStack) -> str | None:
    if store == "pgvector":
        return stack.enter_context(PostgresServer()).url()
    if store == "qdrant":
        return stack.enter_context(ServerProcess("tests.servers.qdrant_server")).url
    return None


if __name__ == "__main__":
    main()
