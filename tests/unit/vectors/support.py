"""Texts, the vectors that a model would make of them, and disks that fail."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import numpy.typing as npt

from ragingest.checkpoint.vectors import PaidVectors

MODEL = "some-model"
BLOCK = 4096
HEADER = 24


def digest(text: int | str) -> bytes:
    return hashlib.blake2b(str(text).encode(), digest_size=16).digest()


def digests(texts: Iterable[int | str]) -> list[bytes]:
    return [digest(text) for text in texts]


def vectors(keys: Sequence[bytes], dimensions: int) -> npt.NDArray[np.float32]:
    """Any bits, NaN and infinities too: what is kept is bytes."""
    rows = [hashlib.shake_128(key).digest(4 * dimensions) for key in keys]
    return np.frombuffer(b"".join(rows), np.float32).reshape(len(keys), dimensions)


def put(paid: PaidVectors, keys: Sequence[bytes]) -> None:
    paid.put(keys, vectors(keys, paid.dimensions))


def found(paid: PaidVectors, keys: Sequence[bytes]) -> set[bytes]:
    """Those of `keys` that are there; each with the vector that was put, to the bit."""
    answer = paid.get(keys)
    for key, vector in answer.items():
        assert key in keys
        assert vector.shape == (paid.dimensions,)
        assert vector.tobytes() == vectors([key], paid.dimensions).tobytes()
    return set(answer)


def record_bytes(dimensions: int) -> int:
    return HEADER + 4 * dimensions


def flip(path: Path, position: int, bits: int = 0xFF) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ bits]))


class KilledError(BaseException):
    """The process died here."""


@contextmanager
def dies_after(budget: int) -> Iterator[None]:
    """The process is killed once so many bytes were written to record files."""
    with _writes(budget, KilledError()):
        yield


@contextmanager
def full_after(budget: int) -> Iterator[None]:
    """The disk is full once so many bytes were written to record files; the last write before is short."""
    with _writes(budget, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))):
        yield


@contextmanager
def _writes(budget: int, failure: BaseException) -> Iterator[None]:
    real = os.pwrite

    def pwrite(handle: int, data: bytes | memoryview, offset: int) -> int:
        nonlocal budget
        length = min(len(data), budget)
        if length == 0:
            raise failure
        budget -= length
        return real(handle, memoryview(data)[:length], offset)

    with mock.patch.object(os, "pwrite", pwrite):
        yield
