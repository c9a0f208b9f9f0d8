"""What tests of sources share: reading one to its end, and the four compressions."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable
from typing import NamedTuple

import zstandard

from ragingest.documents import Record
from ragingest.errors import TerminalError
from ragingest.protocols import RecordBlock, Source

__all__ = ["COMPRESSORS", "Reading", "decodable", "read_all"]

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": lambda data: gzip.compress(data, 6, mtime=0),
    ".bz2": lambda data: bz2.compress(data, 1),
    ".xz": lzma.compress,
    ".zst": lambda data: zstandard.ZstdCompressor(write_checksum=True).compress(data),
}


def decodable(suffix: str, cut: bytes) -> bytes:
    """What the compression's own library makes of the beginning of a file."""
    match suffix:
        case ".gz":
            return zlib.decompressobj(wbits=31).decompress(cut)
        case ".bz2":
            return bz2.BZ2Decompressor().decompress(cut)
        case ".xz":
            return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(cut)
        case _:
            return zstandard.ZstdDecompressor().decompressobj().decompress(cut)


class Reading(NamedTuple):
    """All blocks of a source, their records, and the error that ended it, if one did."""

    blocks: list[RecordBlock]
    records: list[Record]
    error: TerminalError | None


def read_all(source: Source) -> Reading:
    blocks: list[RecordBlock] = []
    error = None
    try:
        while (block := source.read_block()) is not None:
            blocks.append(block)
    except TerminalError as raised:
        error = raised
    return Reading(blocks, [record for block in blocks for record in block.records], error)
