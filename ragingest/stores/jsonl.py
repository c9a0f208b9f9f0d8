"""JSON Lines: one point a line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO, Any

import numpy as np
import orjson

from ragingest.protocols import CollectionSpec
from ragingest.stores.files import Row

__all__ = ["JsonLines"]

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE


class JsonLines:
    """Keys: point_id, id, chunk, chunks, text, digest, metadata, vector, and sparse (indices, values) if there is one.

    Numbers of vectors are written with as many digits as float32 needs to come back the same.
    """

    name = "jsonl"
    ending = "jsonl"

    def write(self, file: IO[bytes], spec: CollectionSpec, rows: Iterable[Row]) -> None:
        for row in rows:
            point: dict[str, Any] = {
                "point_id": row.point_id,
                "id": row.id,
                "chunk": row.chunk,
                "chunks": row.chunks,
                "text": row.text,
                "digest": row.digest,
                "metadata": orjson.Fragment(row.metadata),
                "vector": np.frombuffer(row.dense, "<f4").astype(np.float32, copy=False),
            }
            if row.indices is not None and row.weights is not None:
                point["sparse"] = {
                    "indices": np.frombuffer(row.indices, "<u4").astype(np.uint32, copy=False),
                    "values": np.frombuffer(row.weights, "<f4").astype(np.float32, copy=False),
                }
            file.write(orjson.dumps(point, option=_OPTIONS))
