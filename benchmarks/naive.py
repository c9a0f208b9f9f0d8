"""The pipeline that tutorials teach: a producer, a queue of batches, three embedders, one upserter.

    python -m benchmarks.naive CORPUS URL STORE [--checkpoint] [--bm25]

AsyncOpenAI as it comes, `asyncio.Queue` between the stages, points with the lists that the SDK returns, into Qdrant
Edge in the same process (STORE `edge`) or nowhere (`none`). With --checkpoint it does what tutorials do to resume: after
each batch the list of all ids that are done is written as JSON again. With --bm25 its points are those that ragingest
stores, else dense ones.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import uuid
from pathlib import Path
from typing import Any

import qdrant_edge as edge
from openai import AsyncOpenAI

from benchmarks.edge import SPARSE, create_shard

MODEL = "text-embedding-3-small"
DIMENSIONS = 1536
BATCH = 100
EMBEDDERS = 3

Batch = list[dict[str, Any]]
Embedded = tuple[Batch, list[list[float]]]


class Pipeline:
    def __init__(
        self, client: AsyncOpenAI, shard: edge.EdgeShard | None, checkpoint: Path | None, bm25: bool
    ) -> None:
        self._client = client
        self._shard = shard
        self._checkpoint = checkpoint
        self._bm25 = edge.Bm25() if bm25 else None
        self._batches: asyncio.Queue[Batch | None] = asyncio.Queue(maxsize=10)
        self._embedded: asyncio.Queue[Embedded | None] = asyncio.Queue(maxsize=10)
        self.processed: list[str] = []

    async def run(self, corpus: Path) -> None:
        embedders = [asyncio.create_task(self._embed()) for _ in range(EMBEDDERS)]
        upserter = asyncio.create_task(self._upsert())
        await self._read(corpus)
        for _ in embedders:
            await self._batches.put(None)
        await asyncio.gather(*embedders)
        await self._embedded.put(None)
        await upserter

    async def _read(self, corpus: Path) -> None:
        batch: Batch = []
        with corpus.open() as file:
            for line in file:
                batch.append(json.loads(line))
                if len(batch) == BATCH:
                    await self._batches.put(batch)
                    batch = []
        if batch:
            await self._batches.put(batch)

    async def _embed(self) -> None:
        while (batch := await self._batches.get()) is not None:
            response = await self._client.embeddings.create(
                model=MODEL, input=[document["text"] for document in batch]
            )
            await self._embedded.put((batch, [item.embedding for item in response.data]))

    async def _upsert(self) -> None:
        while (embedded := await self._embedded.get()) is not None:
            batch, vectors = embedded
            if self._shard is not None:
                points = [
                    edge.Point(
                        str(uuid.uuid5(uuid.NAMESPACE_URL, document["id"])),
                        self._vectors(document, vector),
                        document,
                    )
                    for document, vector in zip(batch, vectors, strict=True)
                ]
                self._shard.update(edge.UpdateOperation.upsert_points(points))
            self.processed += [document["id"] for document in batch]
            if self._checkpoint is not None:
                self._checkpoint.write_text(json.dumps({"processed": self.processed}))

    def _vectors(self, document: dict[str, Any], dense: list[float]) -> Any:
        return dense if self._bm25 is None else {"": dense, SPARSE: self._bm25.embed_document(document["text"])}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.naive")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("url")
    parser.add_argument("store", choices=("edge", "none"))
    parser.add_argument("--checkpoint", action="store_true")
    parser.add_argument("--bm25", action="store_true")
    options = parser.parse_args()
    shard = create_shard(Path("shard"), DIMENSIONS, sparse=options.bm25) if options.store == "edge" else None
    client = AsyncOpenAI(api_key="sk-test", base_url=f"{options.url}/v1")
    pipeline = Pipeline(client, shard, Path("processed.json") if options.checkpoint else None, options.bm25)
    asyncio.run(pipeline.run(options.corpus))
    stored = len(pipeline.processed)
    if shard is not None:
        shard.flush()
        stored = min(stored, shard.count(edge.CountRequest(exact=True)))
        shard.close()
    print(json.dumps({"stored": stored}))


if __name__ == "__main__":
    main()
