"""LlamaIndex: `IngestionPipeline` with OpenAI's embeddings into a `QdrantVectorStore`."""

import json
import sys

from llama_index.core import Document
from llama_index.core.ingestion import IngestionPipeline
from llama_index.embeddings.openai import OpenAIEmbedding
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient


def main(corpus: str, url: str, sink: str) -> None:
    with open(corpus) as file:
        documents = [
            Document(text=record["text"], id_=record["id"], metadata=record["metadata"])
            for record in map(json.loads, file)
        ]
    embedding = OpenAIEmbedding(
        model="text-embedding-3-small", api_key="sk-test", api_base=f"{url}/v1", embed_batch_size=100
    )
    store = QdrantVectorStore("llamaindex", client=QdrantClient(url=sink))
    nodes = IngestionPipeline(transformations=[embedding], vector_store=store).run(documents=documents)
    print(json.dumps({"stored": len(nodes)}))


if __name__ == "__main__":
    main(*sys.argv[1:4])
