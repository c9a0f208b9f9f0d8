"""CocoIndex: an app of one component a record, LiteLLM's embeddings, declared as points of a Qdrant collection."""

import asyncio
import json
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cocoindex as coco
from cocoindex.connectors import qdrant
from cocoindex.ops.litellm import LiteLLMEmbedder
from qdrant_client import QdrantClient

DATABASE = coco.ContextKey[QdrantClient]("database")
EMBEDDER = coco.ContextKey[LiteLLMEmbedder]("embedder", detect_change=True)


@dataclass
class Record:
    id: str
    text: str
    metadata: dict[str, Any]


def records(corpus: str) -> Iterator[tuple[str, Record]]:
    with open(corpus) as file:
        for record in map(json.loads, file):
            yield record["id"], Record(**record)


@coco.fn(memo=True)
async def process(record: Record, target: qdrant.CollectionTarget) -> None:
    vector = await coco.use_context(EMBEDDER).embed(record.text)
    payload = {"id": record.id, "text": record.text, **record.metadata}
    id_ = str(uuid.uuid5(uuid.NAMESPACE_URL, record.id))
    target.declare_point(qdrant.PointStruct(id=id_, vector=vector.tolist(), payload=payload))


@coco.fn
async def load(corpus: str) -> None:
    schema = await qdrant.CollectionSchema.create(vectors=qdrant.QdrantVectorDef(schema=EMBEDDER))
    target = await qdrant.mount_collection_target(DATABASE, "cocoindex", schema)
    await coco.mount_each(process, records(corpus), target)


async def update(app: coco.App[[str], None]) -> int:
    handle = app.update()
    await handle
    return int(handle.stats().by_component["process"].num_adds)


def main(corpus: str, url: str, sink: str) -> None:
    @coco.lifespan
    def resources(builder: coco.EnvironmentBuilder) -> Iterator[None]:
        builder.settings.db_path = Path("cocoindex.db")
        builder.provide(DATABASE, qdrant.create_client(sink, prefer_grpc=False))
        embedder = LiteLLMEmbedder("text-embedding-3-small", api_key="sk-test", api_base=f"{url}/v1")
        builder.provide(EMBEDDER, embedder)
        yield

    stored = asyncio.run(update(coco.App("load", load, corpus)))
    print(json.dumps({"stored": stored}))


if __name__ == "__main__":
    main(*sys.argv[1:4])
