"""Rate and CPU of embedding over an API, nothing set, against a bare client with the best fixed concurrency.

    python -m benchmarks.embedding_api [TURNS] [TEXTS]

Both send 100 texts a request for 1,536 dimensions to the loopback server of the tests, which has a CPU of
its own, in turn. The bare client has the same HTTP library and the same decoder, and nothing else: no
retries, no books, no files, and it drops each vector.

Rates are counted by the server, from the first request to the last answer: of the embedding alone, which is what the
bare client does, from texts in memory to vectors (packing, pacing, requests, decoding, books), and of the whole
command (reading, BM25, ledger, checkpoint, spool; no store). CPU a text is that of the embedding alone, with and
without the spool, which has what the store has not confirmed on disk; measured inside the process, so without its start.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import aiohttp
import msgspec
import numpy as np
import pybase64

from benchmarks.corpora import short_records
from benchmarks.measure import RAGINGEST, median, report, run, scratch
from ragingest.checkpoint.vectors import PaidVectors
from ragingest.costs.books import Books
from ragingest.costs.models import facts_of
from ragingest.costs.tokens import RequestPacker, TokenEstimator
from ragingest.documents import Chunk, Document, Record, document_digest
from ragingest.embedders.bm25 import BM25
from ragingest.embedders.openai import OpenAIRequests
from ragingest.embedders.remote import RemoteCalls, RemoteLimits
from tests.servers.openai_api import control, read_books
from tests.servers.process import ServerProcess

MODEL = "text-embedding-3-small"
DIMENSIONS = 1536
BATCH = 100
LATENCIES = (0.0, 0.05)
CONCURRENCIES = (4, 8, 16, 32, 64)
TASKS = 64
SERVER = "tests.servers.openai_api"


class Measured(NamedTuple):
    """Texts a second as the server saw them; CPU seconds a text of the embedding."""

    rate: float
    cpu: float


class Row(msgspec.Struct):
    embedding: msgspec.Raw
    index: int


class Answer(msgspec.Struct):
    data: list[Row]


async def bare(texts: list[str], url: str, concurrency: int) -> None:
    """Embed all texts, so many requests at once."""
    decode = msgspec.json.Decoder(Answer).decode
    starts = iter(range(0, len(texts), BATCH))

    async def work(session: aiohttp.ClientSession) -> None:
        for start in starts:
            body = {"model": MODEL, "encoding_format": "base64", "input": texts[start : start + BATCH]}
            async with session.post(f"{url}/v1/embeddings", data=msgspec.json.encode(body)) as response:
                assert response.status == 200
                rows = decode(await response.read()).data
            # 1,536 float32 are a multiple of three bytes: joined, they are base64 still.
            encoded = b"".join([memoryview(row.embedding)[1:-1] for row in rows])
            vectors = np.frombuffer(pybase64.b64decode(encoded, validate=True), "<f4").reshape(len(rows), -1)
            assert vectors.shape[1] == DIMENSIONS

    headers = {"Content-Type": "application/json", "Authorization": "Bearer sk-test"}
    connector = aiohttp.TCPConnector(limit=concurrency)
    async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
        await asyncio.gather(*(work(session) for _ in range(concurrency)))


async def calls(chunks: list[Chunk], url: str, kept: PaidVectors | None) -> None:
    """Embed all chunks as the pipeline does, with a store that confirms at once."""
    facts = facts_of("openai", MODEL)
    estimator = TokenEstimator.for_limits(facts.max_request_tokens, facts.special_tokens)
    remote = RemoteCalls(
        OpenAIRequests(MODEL, "sk-test", f"{url}/v1", None, 60.0),
        DIMENSIONS,
        RemoteLimits(),
        Books(),
        estimator,
        max_request_tokens=facts.max_request_tokens,
        kept=kept,
    )
    packer: RequestPacker[Chunk] = RequestPacker(
        lambda chunk: chunk.text,
        estimator,
        max_inputs=BATCH,
        max_tokens=facts.max_request_tokens,
        max_input_tokens=facts.max_input_tokens,
    )
    requests = packer.request_stream(chunks)

    async def work() -> None:
        for request in requests:
            batch = await remote.embed(request)
            await remote.confirmed(batch.chunks)

    await asyncio.gather(*(work() for _ in range(TASKS)))
    await remote.close()


def chunk_of(text: str) -> Chunk:
    """With the digest that reading has made for the ledger."""
    document = Document(text, text, {}, document_digest(text, {}), Record(0, 0, b""))
    return Chunk(document, 0, text, len(text))


def cpu_of(work: Callable[[], Awaitable[None]]) -> float:
    began = time.process_time()
    asyncio.run(work())  # type: ignore[arg-type]
    return time.process_time() - began


def measure(mode: str, url: str, corpus: Path, concurrency: int) -> float:
    """CPU seconds a text, in this process."""
    with corpus.open("rb") as file:
        texts = [msgspec.json.decode(line)["text"] for line in file]
    if mode == "bm25":
        model = BM25()
        began = time.process_time()
        model.encode(texts)
        return (time.process_time() - began) / len(texts)
    if mode == "bare":
        return cpu_of(lambda: bare(texts, url, concurrency)) / len(texts)
    chunks = [chunk_of(text) for text in texts]
    with scratch() as folder:
        kept = PaidVectors(folder / "job.vectors", MODEL, DIMENSIONS, False) if mode == "spool" else None
        cpu = cpu_of(lambda: calls(chunks, url, kept))
        if kept is not None:
            kept.close()
    return cpu / len(texts)


class Bench:
    def __init__(self, url: str, folder: Path, texts: int) -> None:
        self.url = url
        self.latency = 0.0
        self.corpus = short_records(folder / "corpus.jsonl", texts)

    def embedding(self, mode: str, concurrency: int = 0) -> Measured:
        """Of a process that does nothing else."""
        command = [sys.executable, "-m", "benchmarks.embedding_api", f"--{mode}", self.url]
        rate, said = self._measured([*command, str(self.corpus), str(concurrency)], Path.cwd())
        return Measured(rate, float(said))

    def whole(self) -> float:
        """Texts a second of the command that people use."""
        options = ["--embedder", "openai", "--store", "null", "--quiet", "--base-url", f"{self.url}/v1"]
        with scratch() as folder:
            command = [*RAGINGEST, "run", str(self.corpus), *options, "--batch-size", str(BATCH)]
            return self._measured(command, folder)[0]

    def _measured(self, command: list[str], folder: Path) -> tuple[float, str]:
        """Texts a second as the server saw them, 0 if it saw none; what the command printed."""
        before = len(read_books(self.url).accepted)
        taken = run(command, folder)
        accepted = read_books(self.url).accepted[before:]
        texts = sum(request.texts for request in accepted)
        rate = texts / (accepted[-1].at - accepted[0].at + self.latency) if accepted else 0.0
        return rate, taken.stdout

    def best_concurrency(self) -> int:
        """Of the bare client, at the server's present latency; each is tried twice."""
        rates = {n: statistics.mean(self.embedding("bare", n).rate for _ in range(2)) for n in CONCURRENCIES}
        return max(rates, key=lambda n: rates[n])

    def compare(self, turns: int) -> dict[str, str]:
        best = self.best_concurrency()
        rates: dict[str, list[float]] = {"bare": [], "memory": [], "whole": []}
        cpus: dict[str, list[float]] = {"bare": [], "spool": [], "memory": []}
        for _ in range(turns):
            for mode, taken in (("bare", self.embedding("bare", best)), ("memory", self.embedding("memory"))):
                rates[mode].append(taken.rate)
                cpus[mode].append(taken.cpu * 1e6)
            rates["whole"].append(self.whole())
            cpus["spool"].append(self.embedding("spool").cpu * 1e6)
        return {
            "concurrency of the bare client": str(best),
            "texts a second, bare": median(rates["bare"]),
            "texts a second, embedding alone": median(rates["memory"]),
            "texts a second, the whole command": median(rates["whole"]),
            "ratio of the rates, embedding alone": _ratio(rates["memory"], rates["bare"]),
            "ratio of the rates, the whole command": _ratio(rates["whole"], rates["bare"]),
            "CPU us a text, bare": median(cpus["bare"]),
            "CPU us a text, embedding with the spool": median(cpus["spool"]),
            "CPU us a text, embedding without": median(cpus["memory"]),
            "ratio of the CPU, with the spool": _ratio(cpus["spool"], cpus["bare"]),
            "ratio of the CPU, without": _ratio(cpus["memory"], cpus["bare"]),
        }


def _ratio(ours: list[float], theirs: list[float]) -> str:
    return median([one / other for one, other in zip(ours, theirs, strict=True)])


def main() -> None:
    turns = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    texts = int(sys.argv[2]) if len(sys.argv) > 2 else 100_000
    os.environ["OPENAI_API_KEY"] = "sk-test"
    cpus = sorted(os.sched_getaffinity(0))
    rows: dict[str, object] = {"texts": texts, "turns": turns}
    with ServerProcess(SERVER, cpus=cpus[-1:]) as server, scratch() as folder:
        os.sched_setaffinity(0, cpus[:-1] or cpus)
        bench = Bench(server.url, folder, texts)
        rows["CPU us a text, BM25"] = round(bench.embedding("bm25").cpu * 1e6, 1)
        for latency in LATENCIES:
            control(server.url, latency=latency)
            bench.latency = latency
            rows[f"latency {1000 * latency:.0f} ms"] = bench.compare(turns)
    report("embedding_api", rows)


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].startswith("--"):
        mode, url, corpus, concurrency = sys.argv[1:]
        print(measure(mode.removeprefix("--"), url, Path(corpus), int(concurrency)))
    else:
        main()
