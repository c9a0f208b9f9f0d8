"""LangChain: `index()` with `SQLRecordManager` and OpenAI's embeddings into a `QdrantVectorStore`."""

import json
import sys
from collections.abc import Iterator

from langchain_classic.indexes import SQLRecordManager
from langchain_core.documents import Document
from langchain_core.indexing import index
from langchain_openai import OpenAIEmbeddings
from langchain_qdrant import QdrantVectorStore
from qdrant_client import QdrantClient, models


def documents(corpus: str) -> Iterator[Document]:
    with open(corpus) as file:
        for record in map(json.loads, file):
            yield Document(page_content=record["text"], metadata={"source": record["id"], **record["metadata"]})


def main(corpus: str, url: str, sink: str) -> None:
    client = QdrantClient(url=sink)
    client.create_collection(
        "langchain", vectors_config=models.VectorParams(size=1536, distance=models.Distance.COSINE)
    )
    # Without the length check, which tokenises with tiktoken.
    embedding = OpenAIEmbeddings(
        model="text-embedding-3-small",
        api_key="sk-test",
        base_url=f"{url}/v1",
        chunk_size=100,
        check_embedding_ctx_length=False,
    )
    store = QdrantVectorStore(client, "langchain", embedding)
    records = SQLRecordManager("qdrant/langchain", db_url="sqlite:///records.sqlite")
    records.create_schema()
    done = index(
        documents(corpus),
        records,
        store,
        cleanup="incremental",
        source_id_key="source",
        batch_size=100,
        key_encoder="sha256",
    )
    print(json.dumps({"stored": done["num_added"]}))


if __name__ == "__main__":
    main(*sys.argv[1:4])
