"""Texts to vectors and token counts: deterministic, cheap, and known to tests and server alike.

A vector repeats a tile of 48 floats made from the text's digest. 48 floats are 192 bytes, a multiple of
three, so the base64 of a vector is the base64 of its tile repeated: a vector of 1,536 dimensions costs
one digest and a few copies.
"""

from __future__ import annotations

import binascii
import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["TokenCounter", "as_base64", "as_json", "digest_of", "hash_of", "vector_of"]

TILE = 48
_KEY = 16
_ASCII = bytes(range(128))


def hash_of(text: str) -> bytes:
    """The 48 bytes that a text's vector is made of; the first 16 name it in the books."""
    return hashlib.blake2b(text.encode(), digest_size=TILE).digest()


def key_of(text_hash: bytes) -> str:
    return text_hash[:_KEY].hex()


def digest_of(text: str) -> str:
    """The name of a text in the books."""
    return key_of(hash_of(text))


def vector_of(text: str, dimensions: int) -> npt.NDArray[np.float32]:
    """The vector that the server answers for a text: of length 1, finite, another for every other text."""
    vector: npt.NDArray[np.float32] = np.resize(_tiles([hash_of(text)], dimensions)[0], dimensions)
    return vector


def as_base64(hashes: Sequence[bytes], dimensions: int) -> list[bytes]:
    """Each vector as base64 of its little-endian float32 bytes."""
    tiles = _tiles(hashes, dimensions)
    whole, rest = divmod(dimensions, TILE)
    encoded = binascii.b2a_base64(tiles.tobytes(), newline=False)
    width = TILE * 4 // 3 * 4
    rows = [encoded[at : at + width] * whole for at in range(0, len(encoded), width)]
    if rest:
        tails = np.ascontiguousarray(tiles[:, :rest])
        rows = [
            row + binascii.b2a_base64(tail.tobytes(), newline=False) for row, tail in zip(rows, tails, strict=True)
        ]
    return rows


def as_json(hashes: Sequence[bytes], dimensions: int) -> list[bytes]:
    """Each vector as a JSON array; its numbers read back as the same float32."""
    whole, rest = divmod(dimensions, TILE)
    rows: list[bytes] = []
    for tile in _tiles(hashes, dimensions):
        numbers = [repr(number).encode() for number in tile.tolist()]
        parts = [b",".join(numbers)] * whole
        if rest:
            parts.append(b",".join(numbers[:rest]))
        rows.append(b"[" + b",".join(parts) + b"]")
    return rows


class TokenCounter:
    """A stand-in for a tokenizer: so many tokens a byte, rounded up, never more than the text has bytes."""

    def __init__(self, ascii_ratio: float, other_ratio: float) -> None:
        if not (0 < ascii_ratio <= 1 and 0 < other_ratio <= 1):
            raise ValueError("a byte is more than zero tokens and at most one")
        # In millionths, so that the count is exact and the same everywhere.
        self._ascii = round(ascii_ratio * 1_000_000)
        self._other = round(other_ratio * 1_000_000)

    def count(self, text: str) -> int:
        if text.isascii():
            return -(-len(text) * self._ascii // 1_000_000)
        raw = text.encode()
        other = len(raw.translate(None, _ASCII))
        return -(-((len(raw) - other) * self._ascii + other * self._other) // 1_000_000)


def _tiles(hashes: Sequence[bytes], dimensions: int) -> npt.NDArray[np.float32]:
    if dimensions < 1:
        raise ValueError("a vector has at least one dimension")
    # Odd whole numbers: never zero, and their squares add up exactly in any order.
    numbers = np.frombuffer(b"".join(hashes), dtype=np.uint8).reshape(-1, TILE).astype(np.int64) * 2 - 255
    squares = numbers * numbers
    whole, rest = divmod(dimensions, TILE)
    lengths = np.sqrt(whole * squares.sum(axis=1) + squares[:, :rest].sum(axis=1))
    tiles: npt.NDArray[np.float32] = (numbers / lengths[:, None]).astype("<f4")
    return tiles
