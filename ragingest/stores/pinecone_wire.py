"""Points as Pinecone keeps them: ids, flat metadata, and the protobuf of an upsert, written from the array.

The messages are those of Pinecone's db_data.proto (2025-10) and of google/protobuf/struct.proto:

    UpsertRequest  1 vectors (Vector, repeated)   2 namespace
    Vector         1 id   2 values (packed float32)   3 metadata (Struct)
    Struct         1 fields (map of string to Value)
    Value          2 number (double)   3 string   4 bool   6 list (of Values, field 1)
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np

from ragingest.documents import Chunk, EmbeddedBatch, Fault, Vectors
from ragingest.errors import RejectedError
from ragingest.protocols import StoredPoint
from ragingest.stores.protobuf import key_of, varint

__all__ = [
    "MAX_ID_BYTES",
    "MAX_METADATA_BYTES",
    "RESERVED",
    "PointEncoder",
    "namespace_field",
    "original",
    "point_id",
    "stored_point",
]

MAX_ID_BYTES = 512
MAX_METADATA_BYTES = 40_960

RESERVED = "ragingest_"
"""What the names of our own metadata keys begin with, and those of users must not."""

ID, CHUNK, CHUNKS, DIGEST, TEXT, FLOATS = (
    RESERVED + name for name in ("id", "chunk", "chunks", "digest", "text", "floats")
)

HASHED = "sha256:"
_READABLE = re.compile(r"[!-~]*").fullmatch

# One byte of a string is at most six in JSON (\u0000), and no other value is more than six times as long there.
_SURELY_SMALL = MAX_METADATA_BYTES // 6

_LEAVE_OUT = "keep only others with --metadata-keys"
_FLATTEN = "give --flatten-metadata, or leave it out with --metadata-keys"

_double = struct.Struct("<d").pack
_json = msgspec.json.Encoder().encode


def point_id(document_id: str, chunk: int) -> str:
    """`document#chunk`, or `sha256:<hex digest of the document id>#chunk` where that would be no id of Pinecone's.

    That is: over 512 bytes, or other characters than the visible ones of ASCII (`!` to `~`; a fetch takes no
    spaces). A document id that itself begins with `sha256:` is hashed too. The number stands behind the last `#`,
    so no two chunks share an id. Frozen: another mapping would store everybody's documents a second time.
    """
    name = f"{document_id}#{chunk}"
    if len(name) <= MAX_ID_BYTES and _READABLE(name) and not name.startswith(HASHED):
        return name
    return f"{HASHED}{hashlib.sha256(document_id.encode()).hexdigest()}#{chunk}"


class PointEncoder:
    """Makes of each point the bytes of its field in an `UpsertRequest`, tag and length included.

    Safe in several threads.
    """

    def __init__(self, *, drop_text: bool = False) -> None:
        self._drop_text = drop_text

    def encode(self, batch: EmbeddedBatch) -> list[bytes | Fault]:
        """One entry a point: its bytes, or why Pinecone can never keep it."""
        rows = np.ascontiguousarray(batch.dense, dtype="<f4")
        usable = np.isfinite(rows).all(axis=1) & rows.any(axis=1)
        width = rows.shape[1] * 4
        head = b"\x12" + varint(width)
        values = memoryview(rows.tobytes())
        points: list[bytes | Fault] = []
        for row, chunk in enumerate(batch.chunks):
            if not usable[row]:
                points.append(_unusable(rows[row]))
                continue
            try:
                metadata = self._metadata(chunk)
            except RejectedError as error:
                points.append(Fault(error.kind, str(error)))
                continue
            name = point_id(chunk.document.id, chunk.number).encode()
            point = b"".join(
                (
                    b"\n",
                    varint(len(name)),
                    name,
                    head,
                    values[row * width : (row + 1) * width],
                    b"\x1a",
                    varint(len(metadata)),
                    metadata,
                )
            )
            points.append(b"\n%b%b" % (varint(len(point)), point))
        return points

    def _metadata(self, chunk: Chunk) -> bytes:
        document = chunk.document
        text = "" if self._drop_text else chunk.text
        own = [
            _string(ID, document.id),
            _small_number(CHUNK, chunk.number),
            _small_number(CHUNKS, document.chunks),
            _string(DIGEST, document.digest.hex()),
        ]
        if text:
            own.append(_string(TEXT, text))
        if document.metadata:
            own.extend(_fields(document.metadata))
        encoded = b"".join(own)
        if len(encoded) > _SURELY_SMALL:
            _check_size(chunk, text)
        return encoded


def namespace_field(namespace: str) -> bytes:
    """The namespace's field of an `UpsertRequest`; nothing for the default one."""
    name = namespace.encode()
    return b"\x12%b%b" % (varint(len(name)), name) if name else b""


def stored_point(point: str, values: Sequence[float] | Vectors, metadata: Mapping[str, Any] | None) -> StoredPoint:
    """A point read back. One that others have stored is document and chunk 0 by its own id, without a digest."""
    metadata = metadata or {}
    return StoredPoint(
        point,
        str(metadata.get(ID, point)),
        int(metadata.get(CHUNK, 0)),
        int(metadata.get(CHUNKS, 1)),
        str(metadata.get(TEXT, "")),
        str(metadata.get(DIGEST, "")),
        original(metadata),
        np.asarray(values, dtype=np.float32),
    )


def original(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The user's metadata as it was, with integers that came back as floats."""
    floats = metadata.get(FLOATS, ())
    return {
        key: int(value) if type(value) is float and value.is_integer() and key not in floats else value
        for key, value in metadata.items()
        if not key.startswith(RESERVED)
    }


def _fields(metadata: Mapping[str, Any]) -> list[bytes]:
    fields = []
    floats = False
    for key, value in metadata.items():
        if key.startswith(("$", RESERVED)):
            raise RejectedError(
                "reserved_key",
                f'the metadata key "{key}" begins with {key[0] if key[0] == "$" else RESERVED}, '
                f"which Pinecone or ragingest keeps for itself: rename it, or {_LEAVE_OUT}",
            )
        kind = type(value)
        if kind is str:
            fields.append(_string(key, value))
        elif kind is bool:
            fields.append(_boolean(key, value))
        elif kind is int:
            if int(number := float(value)) != value:
                raise RejectedError(
                    "inexact_integer",
                    f'the metadata "{key}" is {value}, and Pinecone keeps numbers as 64-bit floats, in which it '
                    f"would be {number:.0f}: to keep it as text, give --flatten-metadata, or {_LEAVE_OUT}",
                )
            fields.append(_number(key, number))
        elif kind is float:
            if not math.isfinite(value):
                raise RejectedError("not_finite", f'the metadata "{key}" is {value}, which no store keeps')
            floats = True
            fields.append(_number(key, value))
        elif kind is list and all(type(item) is str for item in value):
            fields.append(_strings(key, value))
        else:
            raise RejectedError(
                "nested_metadata",
                f'the metadata "{key}" is {_described(value)}, and Pinecone keeps strings, numbers, booleans and '
                f"lists of strings: {_FLATTEN}",
            )
    if floats and (whole := _whole_floats(metadata)):
        fields.append(_strings(FLOATS, whole))
    return fields


def _whole_floats(metadata: Mapping[str, Any]) -> list[str]:
    """Keys whose floats are whole numbers: kept beside them, so that 2.0 comes back as such and not as 2."""
    return [key for key, value in metadata.items() if type(value) is float and value.is_integer()]


def _check_size(chunk: Chunk, text: str) -> None:
    """Pinecone counts the metadata as JSON, text and all."""
    document = chunk.document
    own: dict[str, Any] = {
        ID: document.id,
        CHUNK: chunk.number,
        CHUNKS: document.chunks,
        DIGEST: document.digest.hex(),
    }
    if text:
        own[TEXT] = text
    if whole := _whole_floats(document.metadata):
        own[FLOATS] = whole
    size = len(_json({**own, **document.metadata}))
    if size > MAX_METADATA_BYTES:
        of_text = f", {len(_json(text)):,} of them text" if text else ""
        options = "--metadata-keys or --drop-text" if text else "--metadata-keys"
        raise RejectedError(
            "metadata_too_large",
            f"its metadata takes {size:,} bytes{of_text}, and Pinecone keeps {MAX_METADATA_BYTES:,} a record: "
            f"leave some out with {options}",
        )


def _unusable(vector: Vectors) -> Fault:
    if np.isfinite(vector).all():
        return Fault("zero_vector", "its vector is zero, which has no direction to be searched by")
    return Fault("not_finite", "its vector holds NaN or infinity")


def _described(value: object) -> str:
    match value:
        case None:
            return "null"
        case dict():
            return "an object"
        case list():
            return "a list that holds other things than strings"
        case _:
            return f"of the type {type(value).__name__}"


# -- protobuf ------------------------------------------------------------------------------------------


@lru_cache(4096)
def _number_head(key: str) -> bytes:
    return b"\n%b%b\x09\x11" % (varint(len(key_of(key)) + 10), key_of(key))


@lru_cache(4096)
def _boolean(key: str, value: bool) -> bytes:
    return b"\n%b%b\x02\x20%c" % (varint(len(key_of(key)) + 3), key_of(key), value)


def _number(key: str, number: float) -> bytes:
    return _number_head(key) + _double(number)


@lru_cache(4096)
def _small_number(key: str, number: int) -> bytes:
    return _number(key, number)


def _string(key: str, text: str) -> bytes:
    return _entry(key_of(key), b"\x1a", text.encode())


def _strings(key: str, texts: Sequence[str]) -> bytes:
    items = []
    for text in texts:
        encoded = text.encode()
        length = varint(len(encoded))
        items.append(b"\n%b\x1a%b%b" % (varint(1 + len(length) + len(encoded)), length, encoded))
    return _entry(key_of(key), b"\x32", b"".join(items))


def _entry(head: bytes, tag: bytes, content: bytes) -> bytes:
    """An entry whose value has one field of that tag, with a length of its own."""
    length = varint(len(content))
    size = 1 + len(length) + len(content)
    sized = varint(size)
    return b"\n%b%b%b%b%b%b" % (varint(len(head) + len(sized) + size), head, sized, tag, length, content)
