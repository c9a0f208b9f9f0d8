"""Rate and CPU of embedding over an API, nothing set, against a bare client with the best fixed concurrency.

    python -m benchmarks.embedding_api [TURNS] [TEXTS]

Both send 100 texts a request for 1,536 dimensions to the loopback server of the tests, which has a CPU of
its own, in turn. The bare client has the same HTTP library and the same decoder, and nothing else: no
retries, no books, no files. Rates are counted by the server, from the first request to the last answer.
CPU a text is that of a long run less that of a short one; of ragingest's, what the same run takes with
the null embedder, and what BM25 takes, is shown apart.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import aiohttp
import msgspec
import numpy as np

from benchmarks.corpora import short_records
from benchmarks.measure import RAGINGEST, median, report, run, scratch
from tests.servers.openai_api import control, read_books
from tests.servers.process import ServerProcess

MODEL = "text-embedding-3-small"
BATCH = 100
LATENCIES = (0.0, 0.05)
CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64)
WARM_UP = 1000
"""Texts of the short run."""


class Measured(NamedTuple):
    """Texts a second as the server saw them; CPU seconds of the client, its start included."""

    rate: float
    cpu: float


class Row(msgspec.Struct):
    embedding: bytes
    index: int


class Answer(msgspec.Struct):
    data: list[Row]


async def bare(url: str, corpus: Path, concurrency: int) -> None:
    """Embed all texts, so many requests at once."""
    decode = msgspec.json.Decoder(Answer).decode
    with corpus.open("rb") as file:
        texts = [msgspec.json.decode(line)["text"] for line in file]
    starts = iter(range(0, len(texts), BATCH))
    vectors = np.empty((len(texts), 1536), dtype=np.float32)

    async def work(session: aiohttp.ClientSession) -> None:
        for start in starts:
            body = {"model": MODEL, "encoding_format": "base64", "input": texts[start : start + BATCH]}
            async with session.post(f"{url}/v1/embeddings", data=msgspec.json.encode(body)) as response:
                assert response.status == 200
                rows = decode(await response.read()).data
            found = np.frombuffer(b"".join(row.embedding for row in rows), "<f4").reshape(len(rows), -1)
            vectors[start : start + BATCH] = found

    headers = {"Content-Type": "application/json", "Authorization": "Bearer sk-test"}
    connector = aiohttp.TCPConnector(limit=concurrency)
    async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
        await asyncio.gather(*(work(session) for _ in range(concurrency)))
    assert np.isfinite(vectors).all()


def bm25(corpus: Path) -> float:
    """CPU seconds a text."""
    from ragingest.embedders.bm25 import BM25

    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    model = BM25()
    model.encode(texts[:BATCH])
    began = time.process_time()
    for start in range(0, len(texts), BATCH):
        model.encode(texts[start : start + BATCH])
    return (time.process_time() - began) / len(texts)


class Bench:
    def __init__(self, url: str, folder: Path, texts: int) -> None:
        self.url = url
        self.texts = texts
        self.latency = 0.0
        self.long = short_records(folder / "long.jsonl", texts)
        self.short = short_records(folder / "short.jsonl", WARM_UP)

    def bare(self, concurrency: int, corpus: Path) -> Measured:
        command = [sys.executable, "-m", "benchmarks.embedding_api", "--bare", self.url, str(corpus)]
        return self._measured([*command, str(concurrency)], Path.cwd())

    def ragingest(self, corpus: Path, embedder: str = "openai") -> Measured:
        with scratch() as folder:
            options = ["--embedder", embedder, "--store", "null", "--quiet", "--json"]
            if embedder == "openai":
                options += ["--base-url", f"{self.url}/v1", "--batch-size", str(BATCH)]
            else:
                options += ["--dimensions", "1536", "--batch-size", str(BATCH)]
            return self._measured([*RAGINGEST, "run", str(corpus), *options], folder)

    def _measured(self, command: list[str], folder: Path) -> Measured:
        before = len(read_books(self.url).accepted)
        taken = run(command, folder)
        accepted = read_books(self.url).accepted[before:]
        if len(accepted) < 2:
            assert "null" in command, taken
            return Measured(0.0, taken.cpu)
        texts = sum(request.texts for request in accepted)
        return Measured(texts / (accepted[-1].at - accepted[0].at + self.latency), taken.cpu)

    def best_concurrency(self) -> int:
        """Of the bare client, at the server's present latency; each is tried twice."""
        rates = {n: statistics.mean(self.bare(n, self.long).rate for _ in range(2)) for n in CONCURRENCIES}
        return max(rates, key=lambda n: rates[n])

    def compare(self, turns: int, bm25_cpu: float) -> dict[str, str]:
        best = self.best_concurrency()
        more = self.texts - WARM_UP
        rates: dict[str, list[float]] = {"bare": [], "ragingest": []}
        cpus: dict[str, list[float]] = {"bare": [], "all": [], "embedding": []}
        for _ in range(turns):
            bare = self.bare(best, self.long)
            ours = self.ragingest(self.long)
            rates["bare"].append(bare.rate)
            rates["ragingest"].append(ours.rate)
            null = self.ragingest(self.long, "null").cpu - self.ragingest(self.short, "null").cpu
            all_of_it = ours.cpu - self.ragingest(self.short).cpu
            cpus["bare"].append((bare.cpu - self.bare(best, self.short).cpu) / more * 1e6)
            cpus["all"].append(all_of_it / more * 1e6)
            cpus["embedding"].append((all_of_it - null) / more * 1e6 - bm25_cpu * 1e6)
        ratio = [ours / theirs for ours, theirs in zip(rates["ragingest"], rates["bare"], strict=True)]
        cpu_ratio = statistics.median(cpus["embedding"]) / statistics.median(cpus["bare"])
        return {
            "concurrency of the bare client": str(best),
            "texts a second, bare": median(rates["bare"]),
            "texts a second, ragingest": median(rates["ragingest"]),
            "ratio of the rates": median(ratio),
            "CPU us a text, bare": median(cpus["bare"]),
            "CPU us a text, ragingest, all of it": median(cpus["all"]),
            "CPU us a text, ragingest, without null embedder's run and BM25": median(cpus["embedding"]),
            "ratio of the CPU for embedding": f"{cpu_ratio:.2f}",
        }


def main() -> None:
    turns = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    texts = int(sys.argv[2]) if len(sys.argv) > 2 else 20_000
    os.environ["OPENAI_API_KEY"] = "sk-test"
    cpus = sorted(os.sched_getaffinity(0))
    rows: dict[str, object] = {"texts": texts, "turns": turns}
    with ServerProcess("tests.servers.openai_api", cpus=cpus[-1:]) as server, scratch() as folder:
        os.sched_setaffinity(0, cpus[:-1] or cpus)
        bench = Bench(server.url, folder, texts)
        measured = subprocess.run(
            [sys.executable, "-m", "benchmarks.embedding_api", "--bm25", str(bench.long)],
            check=True,
            capture_output=True,
            text=True,
        )
        bm25_cpu = float(measured.stdout)
        rows["CPU us a text, BM25"] = round(bm25_cpu * 1e6, 1)
        for latency in LATENCIES:
            control(server.url, latency=latency)
            bench.latency = latency
            rows[f"latency {1000 * latency:.0f} ms"] = bench.compare(turns, bm25_cpu)
    report("embedding_api", rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--bare"]:
        asyncio.run(bare(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])))
    elif sys.argv[1:2] == ["--bm25"]:
        print(bm25(Path(sys.argv[2])))
    else:
        main()
