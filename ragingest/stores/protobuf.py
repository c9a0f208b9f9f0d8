"""Protobuf's wire format, as far as requests are put together around the bytes of numpy arrays.

A message is a run of fields in any order. A field that holds text, bytes or a message is tag, length, content; its tag
is 8 * number + 2 (protobuf.dev/programming-guides/encoding).
"""

from __future__ import annotations

from functools import lru_cache

__all__ = ["field", "head_of", "key_of", "varint"]

_SHORT = [bytes((n,)) for n in range(128)] + [bytes((n & 127 | 128, n >> 7)) for n in range(128, 16_384)]


def varint(number: int) -> bytes:
    """An unsigned integer of at most 64 bits, seven a byte."""
    if number < 16_384:
        return _SHORT[number]
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def head_of(number: int, length: int) -> bytes:
    """What a field of so many bytes begins with."""
    return varint(number << 3 | 2) + varint(length)


def field(number: int, *parts: bytes | memoryview) -> bytes:
    """A field of text, bytes or a message, in pieces."""
    return b"".join((head_of(number, sum(map(len, parts))), *parts))


@lru_cache(4096)
def key_of(key: str) -> bytes:
    """What an entry of a map from strings to messages begins with, up to the length of its value."""
    name = key.encode()
    return b"\n%b%b\x12" % (varint(len(name)), name)
