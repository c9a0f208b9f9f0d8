"""Qdrant Edge as a program of one's own would use it: for the yardsticks."""

from __future__ import annotations

import uuid
from pathlib import Path

import qdrant_edge as edge

__all__ = ["DENSE", "NAMESPACE", "SPARSE", "create_shard", "point_id"]

DENSE, SPARSE = "", "bm25"
NAMESPACE = uuid.UUID("6f1c2a52-0d0a-5d26-9f3c-6a1f0d1f7a11")


def create_shard(folder: Path, dimensions: int, *, sparse: bool) -> edge.EdgeShard:
    """An empty shard in `folder`, with cosine distance and without a graph, as ragingest makes it."""
    folder.mkdir(parents=True)
    config = edge.EdgeConfig(
        vectors=edge.EdgeVectorParams(size=dimensions, distance=edge.Distance.Cosine),
        sparse_vectors={SPARSE: edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf)} if sparse else None,
        hnsw_config=edge.HnswIndexConfig(m=0, ef_construct=100, full_scan_threshold=10_000),
    )
    return edge.EdgeShard.create(str(folder), config)


def point_id(document: str) -> str:
    return str(uuid.uuid5(NAMESPACE, document))
