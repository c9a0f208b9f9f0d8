"""The practical limit: the fastest client for just this file, this server and this store, and nothing around it.

    python -m benchmarks.bare CORPUS URL STORE CONCURRENCY [--bm25]

Reads JSON Lines, embeds 100 texts a request with a fixed concurrency, and upserts into Qdrant Edge in the same
process (STORE `edge`) or drops the vectors (`none`). No checkpoint, no ledger, no retry, no limit, no check. With
--bm25 its points are those that ragingest stores, else dense ones.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np
import pybase64
import qdrant_edge as edge

from benchmarks.edge import SPARSE, create_shard, point_id

MODEL = "text-embedding-3-small"
DIMENSIONS = 1536
BATCH = 100


class Item(msgspec.Struct):
    id: str
    text: str
    metadata: dict[str, Any]


class Row(msgspec.Struct):
    embedding: msgspec.Raw


class Answer(msgspec.Struct):
    data: list[Row]


Upsert = Callable[[list[Item], np.ndarray[Any, np.dtype[np.float32]]], None]


def into_edge(shard: edge.EdgeShard, *, bm25: bool) -> Upsert:
    encode = edge.Bm25().embed_document if bm25 else None

    def upsert(items: list[Item], vectors: np.ndarray[Any, np.dtype[np.float32]]) -> None:
        points = []
        for item, row in zip(items, vectors, strict=True):
            dense: Any = memoryview(row)
            vector = dense if encode is None else {"": dense, SPARSE: encode(item.text)}
            payload = {"id": item.id, "text": item.text, "metadata": item.metadata}
            points.append(edge.Point(point_id(item.id), vector, payload))
        shard.update(edge.UpdateOperation.upsert_points(points))

    return upsert


async def load(corpus: Path, url: str, concurrency: int, upsert: Upsert) -> int:
    """Documents that were embedded and handed to `upsert`."""
    decode_line = msgspec.json.Decoder(Item).decode
    decode_answer = msgspec.json.Decoder(Answer).decode
    headers = {"Content-Type": "application/json", "Authorization": "Bearer sk-test"}
    done = 0

    with corpus.open("rb") as lines:

        async def work(session: aiohttp.ClientSession) -> None:
            nonlocal done
            while items := [decode_line(line) for line in islice(lines, BATCH)]:
                body = {"model": MODEL, "encoding_format": "base64", "input": [item.text for item in items]}
                async with session.post(f"{url}/v1/embeddings", data=msgspec.json.encode(body)) as response:
                    rows = decode_answer(await response.read()).data
                # 1,536 float32 are a multiple of three bytes: joined, they are still base64.
                encoded = b"".join([memoryview(row.embedding)[1:-1] for row in rows])
                vectors = np.frombuffer(pybase64.b64decode(encoded, validate=True), np.float32).reshape(
                    len(items), DIMENSIONS
                )
                upsert(items, vectors)
                done += len(items)

        connector = aiohttp.TCPConnector(limit=concurrency)
        async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
            await asyncio.gather(*(work(session) for _ in range(concurrency)))
    return done


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bare")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("url")
    parser.add_argument("store", choices=("edge", "none"))
    parser.add_argument("concurrency", type=int)
    parser.add_argument("--bm25", action="store_true")
    options = parser.parse_args()
    if options.store == "none":
        done = asyncio.run(load(options.corpus, options.url, options.concurrency, lambda _items, _vectors: None))
    else:
        shard = create_shard(Path("shard"), DIMENSIONS, sparse=options.bm25)
        done = asyncio.run(
            load(options.corpus, options.url, options.concurrency, into_edge(shard, bm25=options.bm25))
        )
        shard.flush()
        done = min(done, shard.count(edge.CountRequest(exact=True)))
        shard.close()
    print(json.dumps({"stored": done}))


if __name__ == "__main__":
    main()
