"""Metadata as JSON, without the losses that JSON would hide."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from ragingest.errors import RejectedError

__all__ = ["Leaf", "encode_metadata", "leaves"]

_encode = msgspec.json.Encoder().encode


class Leaf(NamedTuple):
    """A value inside metadata that holds no others, or a key; `path` leads there, for people."""

    path: str
    value: Any


def leaves(value: object, path: str = "") -> Iterator[Leaf]:
    """Every key and every value that is no object and no list."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield Leaf(path or "a key", key)
            yield from leaves(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from leaves(inner, f"{path}[{number}]")
    else:
        yield Leaf(path, value)


def encode_metadata(metadata: Mapping[str, Any]) -> bytes:
    """Metadata as compact JSON in UTF-8.

    Raises:
        RejectedError: a number is not finite (JSON has none such: it would become null), or a value
            is none that JSON knows.
    """
    try:
        encoded = _encode(metadata)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise RejectedError("payload", f"the metadata cannot be written as JSON: {error}") from None
    if b"null" in encoded:
        for leaf in leaves(metadata):
            if isinstance(leaf.value, float) and not math.isfinite(leaf.value):
                raise RejectedError(
                    "not_finite", f'the metadata "{leaf.path}" is {leaf.value}, which no store keeps'
                )
    return encoded
