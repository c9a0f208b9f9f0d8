"""`as_vectors`: whichever way a server writes its vectors, they are the same numbers, or none."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragingest.embedders.http import as_vectors
from ragingest.errors import TransientError

Row = npt.NDArray[np.float32]


def as_base64(row: Row) -> str:
    return json.dumps(base64.b64encode(row.astype("<f4").tobytes()).decode())


def escaped(row: Row) -> str:
    """As encoders of JSON for web pages write it."""
    return as_base64(row).replace("/", "\\/")


def as_numbers(row: Row) -> str:
    return json.dumps(row.tolist())


WAYS = pytest.mark.parametrize("write", [as_base64, escaped, as_numbers])

numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)
matrices = st.integers(1, 20).flatmap(
    lambda width: st.lists(st.lists(numbers, min_size=width, max_size=width), min_size=1, max_size=6)
)


def read(*written: str) -> Row:
    vectors: Row = as_vectors([msgspec.Raw(text.encode()) for text in written], "http://api")
    return vectors


@WAYS
@given(matrix=matrices)
def test_vectors_come_back_bit_by_bit(write: Callable[[Row], str], matrix: list[list[float]]) -> None:
    vectors = np.array(matrix, np.float32)
    found = read(*map(write, vectors))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.uint32), vectors.view(np.uint32))


@given(matrix=matrices, number=st.integers(0, 5), bad=st.sampled_from([np.nan, np.inf, -np.inf]))
def test_what_is_not_finite_is_no_vector(matrix: list[list[float]], number: int, bad: float) -> None:
    vectors = np.array(matrix, np.float32)
    vectors[number % len(vectors), number % vectors.shape[1]] = bad
    with pytest.raises(TransientError, match="NaN or infinity"):
        read(*map(as_base64, vectors))


@WAYS
@pytest.mark.parametrize(
    "other",
    [
        "null",
        '""',
        "[]",
        '"AAA="',
        '"===="',
        '"AA=A"',
        '"AAAAA==="',
        '"AAAA AAA"',
        '"AAAAAAA*"',
        "12345678",
        "{}",
        '"AAAA\\u0041A=="',
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_what_is_not_like_the_others_spoils_the_answer(
    write: Callable[[Row], str], other: str, first: bool
) -> None:
    row = write(np.array([0.1, 0.2], np.float32))
    with pytest.raises(TransientError):
        read(other, row) if first else read(row, other)


@pytest.mark.parametrize("data", [b"\x00" * 3 + b"\x01" * 5, b"\x01" * 7, b"\x01" * 2])
def test_what_is_cut_between_two_numbers_spoils_the_answer(data: bytes) -> None:
    rows = [json.dumps(base64.b64encode(part).decode()) for part in (data, data[:4])]
    with pytest.raises(TransientError):
        read(*rows)
