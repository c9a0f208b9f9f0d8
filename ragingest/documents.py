"""What flows through the pipeline: records, documents, chunks, and the blocks that account for them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import numpy as np
import numpy.typing as npt

__all__ = [
    "Block",
    "Chunk",
    "Document",
    "EmbeddedBatch",
    "Fault",
    "Record",
    "SparseVector",
    "SparseVectors",
    "Stored",
    "Vectors",
    "document_digest",
    "point_id",
    "point_id_bytes",
    "text_digest",
]

Vectors = npt.NDArray[np.float32]
"""Dense vectors, shape (n, d), float32: one row a chunk."""

SparseVectors = Sequence[Any]
"""One sparse vector a chunk, in the form that the store's engine takes."""

# Frozen: uuid5(NAMESPACE_DNS, "ragingest"). Another value would store everybody's documents a second time.
POINT_NAMESPACE = UUID("7b119038-1ca6-5884-ac6a-3de205235be8")

TEXT_DIGEST_BYTES = 16
METADATA_DIGEST_BYTES = 8

_encode_sorted = msgspec.json.Encoder(order="sorted").encode
_refuse_wide_integers = msgspec.msgpack.Encoder().encode
_namespace = POINT_NAMESPACE.bytes


class Fault(NamedTuple):
    """Why a record was rejected: a stable `kind`, and the sentence for people."""

    kind: str
    message: str


class Record(msgspec.Struct, frozen=True, gc=False):
    """One item of the source as read, at position (part, ordinal, offset).

    `offset` is the byte at which it starts, counted in the decompressed stream. `fault` is set by
    a source that could not deliver the record; `raw` then holds as much of it as may be kept.
    """

    ordinal: int
    offset: int
    raw: bytes
    fault: Fault | None = None


class Stored(NamedTuple):
    """What the ledger knows of a document: the version that the store confirmed last.

    `digest` is empty where the content in the store is not known to be whole. `run` stored it,
    `seen` read it last, at record `ordinal` of `part`.
    """

    digest: bytes
    chunks: int
    run: int
    seen: int
    part: int
    ordinal: int


@dataclass(slots=True, eq=False)
class Block:
    """Consecutive records [start, end) of one part, and what became of them.

    The confirmation travels with it: the checkpoint moves over a block only when `pending`, the
    documents that the store has not confirmed, is zero.
    """

    part: int
    start: int
    end: int
    end_offset: int
    progress: int = 0
    """Bytes of the file behind this block, compressed if the file is: what a progress bar shows."""
    read: int = 0
    rejects: list[Reject] = field(default_factory=list)
    unchanged: int = 0
    duplicate: int = 0
    stored: int = 0
    chunks: int = 0
    pending: int = 0


NOWHERE = Block(0, 0, 0, 0)
"""The block of a document that is not part of a run."""


class Document(msgspec.Struct, eq=False, gc=False):
    """A valid record. `digest` covers text (first 16 bytes) and metadata (last 8).

    The collector of cycles does not look at documents, chunks and rejects: nothing they hold leads back to them.
    """

    id: str
    text: str
    metadata: dict[str, Any]
    digest: bytes
    record: Record
    block: Block = NOWHERE
    previous: Stored | None = None
    chunks: int = 0
    """Number of chunks, once they are known."""
    pending: int = 0
    """Chunks that the store has not confirmed yet."""
    duplicate: bool = False
    """The id was stored before in this run; the content is newer and wins."""
    revised: bool = False
    """Only its metadata is new: the vectors are those that the store has."""
    fault: tuple[str, Fault] | None = None
    """(stage, fault) of the first chunk that was refused."""


class Chunk(msgspec.Struct, eq=False, gc=False):
    """A piece of a document's text that is embedded on its own.

    `tokens` are the ids that the embedder's own tokenizer made of the text, when the chunker had
    to count them: shape (n,), intp, so that nothing is tokenised twice.
    """

    document: Document
    number: int
    text: str
    size: int
    """UTF-8 bytes of the text, or an upper bound of them."""
    tokens: npt.NDArray[np.intp] | None = None
    digest: bytes | None = None
    """BLAKE2b of the text that is embedded, 16 bytes, once somebody has needed it."""


class SparseVector(NamedTuple):
    """Term numbers and their weights."""

    indices: list[int]
    values: list[float]


@dataclass(slots=True, eq=False)
class EmbeddedBatch:
    """Chunks with their vectors: dense of shape (len(chunks), d), sparse (if any) as many.

    `wire` holds each point as its store will send it, once the store has encoded them.
    """

    chunks: list[Chunk]
    dense: Vectors
    sparse: SparseVectors | None = None
    wire: list[bytes] | None = None


class Reject(msgspec.Struct, eq=False, gc=False):
    """A record that could not be ingested: at which stage, and why."""

    stage: str
    record: Record
    fault: Fault
    id: str | None = None


def document_digest(text: str, metadata: dict[str, Any]) -> bytes:
    """BLAKE2b of the text (16 bytes) followed by one of the metadata as JSON with sorted keys (8 bytes).

    Two digests, so that a change of metadata alone can be told from a change of the text.

    Raises:
        OverflowError: an integer in `metadata` needs more than 64 bits.
        UnicodeEncodeError: a lone surrogate in either.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=TEXT_DIGEST_BYTES).digest()
    encoded = b"{}"
    if metadata:
        # JSON carries integers of any size, stores turn those over 64 bits into floats; MessagePack refuses them.
        _refuse_wide_integers(metadata)
        encoded = _encode_sorted(metadata)
    return digest + hashlib.blake2b(encoded, digest_size=METADATA_DIGEST_BYTES).digest()


def text_digest(chunk: Chunk) -> bytes:
    """BLAKE2b of the chunk's text, 16 bytes: by it vectors are known that were paid for."""
    document = chunk.document
    if chunk.digest is None and chunk.text is document.text:
        chunk.digest = document.digest[:TEXT_DIGEST_BYTES]
    elif chunk.digest is None:
        chunk.digest = hashlib.blake2b(chunk.text.encode(), digest_size=TEXT_DIGEST_BYTES).digest()
    return chunk.digest


def point_id(document_id: str, chunk: int) -> str:
    """The point's id: UUIDv5 (RFC 9562, 5.5) of `document id`, NUL, `chunk number`, as text.

    A pure function of its arguments, so that doing work again overwrites. A NUL keeps ("a", 11)
    and ("a1", 1) apart. Equals `str(uuid.uuid5(POINT_NAMESPACE, f"{document_id}\\0{chunk}"))`, at
    a third of its cost.
    """
    text = point_id_bytes(document_id, chunk).hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def point_id_bytes(document_id: str, chunk: int) -> bytes:
    """The same id as its 16 bytes."""
    name = f"{document_id}\0{chunk}".encode()
    raw = bytearray(hashlib.sha1(_namespace + name, usedforsecurity=False).digest()[:16])
    raw[6] = raw[6] & 0x0F | 0x50
    raw[8] = raw[8] & 0x3F | 0x80
    return bytes(raw)
