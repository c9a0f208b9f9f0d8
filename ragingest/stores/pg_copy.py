"""Points as rows of Postgres' binary COPY format, straight from numpy.

The format: https://www.postgresql.org/docs/current/sql-copy.html#id-1.9.3.55.9.4. Fields are those
of each type's receive function: jsonb has a version byte, vector has int16 dimensions, int16 unused
and big-endian float4s (pgvector, `vector_recv`).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from ragingest.documents import Chunk, EmbeddedBatch, Fault, Vectors, point_id_bytes
from ragingest.errors import RejectedError
from ragingest.stores.metadata import encode_metadata, leaves

__all__ = ["COLUMNS", "copy_body", "encode_rows", "vectors_of"]

COLUMNS = ("point_id", "id", "chunk", "chunks", "text", "digest", "metadata", "dense")

_HEADER = b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0)
_TRAILER = struct.pack("!h", -1)
_START = struct.Struct("!hi16si").pack  # fields, uuid, bytes of the id
_NUMBERS = struct.Struct("!iiiii").pack  # two int4, bytes of the text
_LENGTH = struct.Struct("!i").pack
_JSONB = struct.Struct("!iB").pack
_VECTOR = struct.Struct("!ihh").pack
_JSONB_VERSION = 1
_VECTOR_HEAD = 4
_NUL = "\0"
_NUL_IN_JSON = b"\\u0000"
_WITHOUT_FLOATS = frozenset({str, int, bool, type(None)})
_LARGE_FLOAT = re.compile(rb"[0-9]e[0-9]").search


def encode_rows(batch: EmbeddedBatch, *, drop_text: bool = False) -> list[bytes | Fault]:
    """Each point as a row, or why Postgres cannot keep it."""
    width = batch.dense.shape[1] * 4
    head = _VECTOR(_VECTOR_HEAD + width, batch.dense.shape[1], 0)
    vectors = memoryview(batch.dense.astype(">f4").tobytes())
    rows: list[bytes | Fault] = []
    for number, chunk in enumerate(batch.chunks):
        vector = vectors[number * width : (number + 1) * width]
        try:
            rows.append(b"".join((*_fields(chunk, drop_text=drop_text), head, vector)))
        except RejectedError as error:
            rows.append(Fault(error.kind, str(error)))
    return rows


def copy_body(rows: Sequence[bytes]) -> bytes:
    """What COPY ... FROM STDIN (FORMAT binary) takes."""
    return b"".join((_HEADER, *rows, _TRAILER))


def vectors_of(sent: bytes) -> Vectors:
    """A vector as `vector_send` gives it: shape (d,)."""
    return np.frombuffer(sent, dtype=">f4", offset=_VECTOR_HEAD).astype(np.float32)


def _fields(chunk: Chunk, *, drop_text: bool) -> tuple[bytes, ...]:
    document = chunk.document
    text = "" if drop_text else chunk.text
    for name, value in (("id", document.id), ("text", text)):
        if _NUL in value:
            raise _nul(f"the {name} holds one at character {value.index(_NUL) + 1}")
    metadata = _json(document.metadata)
    id_, body = document.id.encode(), text.encode()
    return (
        _START(len(COLUMNS), 16, point_id_bytes(document.id, chunk.number), len(id_)),
        id_,
        _NUMBERS(4, chunk.number, 4, document.chunks, len(body)),
        body,
        _LENGTH(len(document.digest)),
        document.digest,
        _JSONB(1 + len(metadata), _JSONB_VERSION),
        metadata,
    )


def _json(metadata: Mapping[str, Any]) -> bytes:
    encoded = encode_metadata(metadata)
    if _NUL_IN_JSON in encoded:
        for path, value in leaves(metadata):
            if isinstance(value, str) and _NUL in value:
                raise _nul(f'the metadata "{path}" holds one at character {value.index(_NUL) + 1}')
    # A number of jsonb is a decimal one: 1e22 would come back as an integer, 10000000000000000000000.0 does not.
    if not _WITHOUT_FLOATS.issuperset(map(type, metadata.values())) and _LARGE_FLOAT(encoded):
        return encode_metadata(_written_out(metadata))
    return encoded


def _written_out(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _written_out(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_written_out(inner) for inner in value]
    return msgspec.Raw(f"{value:.1f}".encode()) if isinstance(value, float) and abs(value) >= 1e15 else value


def _nul(where: str) -> RejectedError:
    return RejectedError("nul_character", f"Postgres keeps no NUL characters (U+0000), and {where}")
