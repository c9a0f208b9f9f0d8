"""Apache Parquet: one point a row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import IO, Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ragingest.protocols import CollectionSpec
from ragingest.stores.files import Row

__all__ = ["Parquet", "schema_of"]

GROUP_BYTES = 64_000_000
GROUP_ROWS = 50_000
"""A row group is closed when it holds as much; readers take in one at a time."""
SPARSE = pa.struct([("indices", pa.list_(pa.uint32())), ("values", pa.list_(pa.float32()))])


class Parquet:
    """Columns as `schema_of` says; metadata is a string of JSON. Compressed by zstd."""

    name = "parquet"
    ending = "parquet"

    def write(self, file: IO[bytes], spec: CollectionSpec, rows: Iterable[Row]) -> None:
        schema = schema_of(spec)
        with pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=False) as writer:
            group: list[Row] = []
            size = 0
            for row in rows:
                group.append(row)
                size += len(row.text) + len(row.metadata) + len(row.dense) + 2 * len(row.indices or b"")
                if size >= GROUP_BYTES or len(group) >= GROUP_ROWS:
                    writer.write_batch(_batch(group, schema))
                    group, size = [], 0
            if group:
                writer.write_batch(_batch(group, schema))


def schema_of(spec: CollectionSpec) -> Any:
    """The Arrow schema; its metadata holds the collection's specification as JSON."""
    columns = [
        pa.field("point_id", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("chunk", pa.int32(), nullable=False),
        pa.field("chunks", pa.int32(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("digest", pa.string(), nullable=False),
        pa.field("metadata", pa.string(), nullable=False),
        pa.field("vector", pa.list_(pa.float32(), spec.dimensions), nullable=False),
    ]
    if spec.sparse:
        columns.append(pa.field("sparse", SPARSE))
    return pa.schema(columns, {"ragingest": msgspec.json.encode(spec)})


def _batch(rows: Sequence[Row], schema: Any) -> Any:
    columns = dict(zip(Row._fields, zip(*rows, strict=True), strict=True))
    arrays = [
        pa.array(columns[name], schema.field(name).type)
        for name in ("point_id", "id", "chunk", "chunks", "text", "digest", "metadata")
    ]
    vector = schema.field("vector").type
    arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(_floats(columns["dense"])), type=vector))
    if "sparse" in schema.names:
        indices = [terms or b"" for terms in columns["indices"]]
        offsets = np.cumsum([0, *(len(terms) // 4 for terms in indices)], dtype=np.int32)
        terms = np.frombuffer(b"".join(indices), "<u4").astype(np.uint32, copy=False)
        weights = _floats([values or b"" for values in columns["weights"]])
        lists = [pa.ListArray.from_arrays(offsets, pa.array(values)) for values in (terms, weights)]
        arrays.append(pa.StructArray.from_arrays(lists, fields=list(SPARSE)))
    return pa.record_batch(arrays, schema=schema)


def _floats(parts: Sequence[bytes]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.frombuffer(b"".join(parts), "<f4").astype(np.float32, copy=False)
