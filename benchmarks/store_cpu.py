"""CPU of this process for 1,000 points of 768 dimensions and 500 B of metadata, against the client's own way of uploading.

python -m benchmarks.store_cpu STORE [POINTS]

Both in the same run, by turns, into the same server; vectors start as numpy arrays, metadata as dicts.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pinecone as pinecone_client
import psycopg
from pgvector.psycopg import register_vector
from pinecone.grpc import GrpcIndex
from psycopg.types.json import Jsonb
from qdrant_client import QdrantClient, models

from benchmarks.measure import median, report, scratch
from ragingest.batching import PointPacker
from ragingest.documents import EmbeddedBatch, point_id
from ragingest.protocols import Store
from ragingest.settings import StoreSettings
from ragingest.stores import open_store
from ragingest.stores.pinecone import PineconeStore
from tests.loading import Load
from tests.servers.pinecone_server import IndexConfig, PineconeConfig, PineconeProcess
from tests.servers.postgres import PostgresServer
from tests.servers.qdrant_server import QdrantProcess

ROUNDS = 5

Way = Callable[[EmbeddedBatch], None]


def ours(store: Store) -> Way:
    def write(batch: EmbeddedBatch) -> None:
        batch.wire = None
        encoded = store.encode(batch)
        if encoded is not None:
            batch.wire = [row for row in encoded if isinstance(row, bytes)]
        packer = PointPacker(store.limits.max_points, store.limits.max_bytes)
        for full in (*packer.add(batch), *packer.flush()):
            store.upsert(full)

    return write


COLUMNS = "point_id, id, chunk, chunks, text, digest, metadata, dense"


def rows(batch: EmbeddedBatch) -> Iterator[tuple[Any, ...]]:
    for chunk, vector in zip(batch.chunks, batch.dense, strict=True):
        of = chunk.document
        id_ = UUID(point_id(of.id, chunk.number))
        yield id_, of.id, chunk.number, of.chunks, chunk.text, of.digest, Jsonb(of.metadata), vector


def documented_copy(url: str) -> Way:
    """pgvector-python's examples/loading: COPY in binary, row by row; it cannot replace what is there."""
    connection = psycopg.connect(url, autocommit=True)
    register_vector(connection)
    connection.execute("CREATE TABLE copied (LIKE documents INCLUDING ALL)")
    types = ["uuid", "text", "int4", "int4", "text", "bytea", "jsonb", "vector"]

    def write(batch: EmbeddedBatch) -> None:
        connection.execute("TRUNCATE copied")
        with connection.cursor().copy(f"COPY copied ({COLUMNS}) FROM STDIN WITH (FORMAT BINARY)".encode()) as copy:
            copy.set_types(types)
            for row in rows(batch):
                copy.write_row(row)

    return write


def documented_insert(url: str) -> Way:
    """The README's INSERT, as executemany, with ON CONFLICT."""
    connection = psycopg.connect(url)
    register_vector(connection)
    connection.execute("CREATE TABLE inserted (LIKE documents INCLUDING ALL)")
    updates = ", ".join(f"{column} = excluded.{column}" for column in COLUMNS.split(", ")[1:])
    statement = (
        f"INSERT INTO inserted ({COLUMNS}) VALUES (%s, %s, %s, %s, %s, %s, %s, %s) "
        f"ON CONFLICT (point_id) DO UPDATE SET {updates}"
    )

    def write(batch: EmbeddedBatch) -> None:
        with connection.cursor() as cursor:
            cursor.executemany(statement.encode(), rows(batch))
        connection.commit()

    return write


def cpu_of(way: Way, what: Load) -> float:
    """Milliseconds of CPU for 1,000 points, in batches of as many; making them does not count."""
    spent = 0.0
    for batch in _packed(what):
        began = time.process_time()
        way(batch)
        spent += time.process_time() - began
    return spent / what.points * 1e6


def _packed(what: Load) -> Iterator[EmbeddedBatch]:
    packer = PointPacker(1000, None)
    for batch in what.batches():
        yield from packer.add(batch)
    yield from packer.flush()


def pgvector(_folder: Path, what: Load) -> dict[str, Any]:
    with PostgresServer() as server:
        store = open_store(StoreSettings(store="pgvector", url=server.url()))
        store.prepare(what.spec)
        ways = {
            "ragingest": ours(store),
            "pgvector-python, COPY by write_row, no upsert": documented_copy(server.url()),
            "pgvector-python, INSERT by executemany": documented_insert(server.url()),
        }
        figures = compared(ways, what)
        store.close()
    return figures


def client_of(server: QdrantProcess, protocol: str) -> QdrantClient:
    if protocol == "rest":
        return QdrantClient(url=server.url, check_compatibility=False, timeout=60)
    port = int(server.grpc_url.rsplit(":", 1)[1])
    return QdrantClient(
        host="127.0.0.1", grpc_port=port, prefer_grpc=True, check_compatibility=False, timeout=60, https=False
    )


def payload_of(batch: EmbeddedBatch) -> Iterator[dict[str, Any]]:
    for chunk in batch.chunks:
        of = chunk.document
        yield {
            "id": of.id,
            "chunk": chunk.number,
            "chunks": of.chunks,
            "text": chunk.text,
            "digest": of.digest.hex(),
            "metadata": of.metadata,
        }


def ids_of(batch: EmbeddedBatch) -> list[str]:
    return [point_id(chunk.document.id, chunk.number) for chunk in batch.chunks]


def documented_points(client: QdrantClient) -> Way:
    """The tutorial on bulk upload: `upload_points` of PointStruct."""

    def write(batch: EmbeddedBatch) -> None:
        points = [
            models.PointStruct(id=id_, vector=vector, payload=payload)
            for id_, vector, payload in zip(ids_of(batch), batch.dense.tolist(), payload_of(batch), strict=True)
        ]
        client.upload_points("documents", points, batch_size=256, wait=True)

    return write


def documented_collection(client: QdrantClient) -> Way:
    """The client's README: `upload_collection`, which takes the array."""

    def write(batch: EmbeddedBatch) -> None:
        client.upload_collection(
            "documents", batch.dense, list(payload_of(batch)), ids_of(batch), batch_size=256, wait=True
        )

    return write


def documented_upsert(client: QdrantClient) -> Way:
    """The quickstart: `upsert` of PointStruct."""

    def write(batch: EmbeddedBatch) -> None:
        points = [
            models.PointStruct(id=id_, vector=vector, payload=payload)
            for id_, vector, payload in zip(ids_of(batch), batch.dense.tolist(), payload_of(batch), strict=True)
        ]
        client.upsert("documents", points, wait=True)

    return write


def qdrant(protocol: str, what: Load) -> dict[str, Any]:
    with QdrantProcess() as server:
        url = server.url if protocol == "rest" else server.grpc_url
        store = open_store(StoreSettings(store="qdrant", url=url))
        store.prepare(what.spec)
        client = client_of(server, protocol)
        ways = {
            "ragingest": ours(store),
            "qdrant-client, upsert of PointStruct": documented_upsert(client),
            "qdrant-client, upload_points": documented_points(client),
            "qdrant-client, upload_collection of an array": documented_collection(client),
        }
        figures = compared(ways, what)
        client.close()
        store.close()
    return figures


def records_of(batch: EmbeddedBatch) -> list[dict[str, Any]]:
    """What the client's `upsert` takes; it has no use for arrays."""
    return [
        {
            "id": f"{chunk.document.id}#{chunk.number}",
            "values": vector,
            "metadata": {
                "id": chunk.document.id,
                "chunk": chunk.number,
                "chunks": chunk.document.chunks,
                "digest": chunk.document.digest.hex(),
                **chunk.document.metadata,
            },
        }
        for chunk, vector in zip(batch.chunks, batch.dense.tolist(), strict=True)
    ]


def documented_batches(index: Any, size: int) -> Way:
    """The client's guide to bulk ingest: `upsert` with a `batch_size` whose requests fit into 2 MB."""

    def write(batch: EmbeddedBatch) -> None:
        done = index.upsert(vectors=records_of(batch), batch_size=size, show_progress=False)
        assert not done.has_errors

    return write


def pinecone(_folder: Path, what: Load) -> dict[str, Any]:
    config = PineconeConfig(indexes=[IndexConfig(name="documents", dimension=what.dimensions)], only_digests=True)
    with PineconeProcess(config) as server:
        host = server.host("documents")
        store = PineconeStore("documents", host=host, key="pc-test")
        store.prepare(what.spec)
        rest = pinecone_client.Index(host=host, api_key="pc-test")
        grpc = GrpcIndex(host=host, api_key="pc-test", secure=False)
        ways = {
            "ragingest": ours(store),
            "pinecone, Index.upsert(batch_size=100)": documented_batches(rest, 100),
            "pinecone, GrpcIndex.upsert(batch_size=500)": documented_batches(grpc, 500),
        }
        figures = compared(ways, what)
        for client in (rest, grpc, store):
            client.close()
    return figures


def compared(ways: dict[str, Way], what: Load) -> dict[str, Any]:
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            taken[name].append(cpu_of(way, what))
    own = min(taken["ragingest"])
    return {
        **{f"CPU ms for 1,000 points, {name}": median(values) for name, values in taken.items()},
        **{
            f"share of {name}": round(own / min(values), 2) for name, values in taken.items() if name != "ragingest"
        },
    }


STORES: dict[str, Callable[[Path, Load], dict[str, Any]]] = {
    "pgvector": pgvector,
    "pinecone": pinecone,
    "qdrant-rest": lambda _folder, what: qdrant("rest", what),
    "qdrant-grpc": lambda _folder, what: qdrant("grpc", what),
}


def main() -> None:
    name = sys.argv[1]
    what = Load(int(sys.argv[2]) if len(sys.argv) > 2 else 5000, dimensions=768, metadata_bytes=500)
    with scratch() as folder:
        figures = STORES[name](folder, what)
    report(f"store_cpu_{name}", {"points": what.points, "rounds": ROUNDS, **figures})


if __name__ == "__main__":
    main()
