"""Haystack: a `Pipeline` of OpenAI's document embedder and a writer into a `QdrantDocumentStore`."""

import json
import sys

from haystack import Document, Pipeline
from haystack.components.embedders import OpenAIDocumentEmbedder
from haystack.components.writers import DocumentWriter
from haystack.document_stores.types import DuplicatePolicy
from haystack.utils import Secret
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore


def main(corpus: str, url: str, sink: str) -> None:
    with open(corpus) as file:
        documents = [
            Document(id=record["id"], content=record["text"], meta=record["metadata"])
            for record in map(json.loads, file)
        ]
    embedder = OpenAIDocumentEmbedder(
        Secret.from_token("sk-test"),
        model="text-embedding-3-small",
        api_base_url=f"{url}/v1",
        batch_size=100,
        progress_bar=False,
    )
    store = QdrantDocumentStore(url=sink, index="haystack", embedding_dim=1536, progress_bar=False)
    pipeline = Pipeline()
    pipeline.add_component("embedder", embedder)
    pipeline.add_component("writer", DocumentWriter(store, policy=DuplicatePolicy.OVERWRITE))
    pipeline.connect("embedder.documents", "writer.documents")
    done = pipeline.run({"embedder": {"documents": documents}})
    print(json.dumps({"stored": done["writer"]["documents_written"]}))


if __name__ == "__main__":
    main(*sys.argv[1:4])
