"""qdrant-client's `upload_points`, fed by the openai package, 100 texts a request: the short script."""

import json
import sys
import uuid
from collections.abc import Iterator
from itertools import islice

from openai import OpenAI
from qdrant_client import QdrantClient, models


def points(corpus: str, url: str) -> Iterator[models.PointStruct]:
    client = OpenAI(api_key="sk-test", base_url=f"{url}/v1")
    with open(corpus) as file:
        records = map(json.loads, file)
        while batch := list(islice(records, 100)):
            response = client.embeddings.create(
                model="text-embedding-3-small", input=[record["text"] for record in batch]
            )
            for record, item in zip(batch, response.data, strict=True):
                id_ = str(uuid.uuid5(uuid.NAMESPACE_URL, record["id"]))
                yield models.PointStruct(id=id_, vector=item.embedding, payload=record)


def main(corpus: str, url: str, sink: str) -> None:
    client = QdrantClient(url=sink)
    client.create_collection(
        "upload", vectors_config=models.VectorParams(size=1536, distance=models.Distance.COSINE)
    )
    stored = 0

    def counted() -> Iterator[models.PointStruct]:
        nonlocal stored
        for point in points(corpus, url):
            stored += 1
            yield point

    client.upload_points("upload", counted(), batch_size=100, wait=True)
    print(json.dumps({"stored": stored}))


if __name__ == "__main__":
    main(*sys.argv[1:4])
