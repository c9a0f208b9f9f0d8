from __future__ import annotations

import base64

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.servers.vectors import TokenCounter, as_base64, as_json, digest_of, hash_of, vector_of

texts = st.text(st.characters(exclude_categories=["Cs"]))
dimensions = st.integers(1, 200)


@given(texts, dimensions)
def test_a_vector_is_finite_and_of_length_one(text: str, size: int) -> None:
    vector = vector_of(text, size)
    assert vector.shape == (size,)
    assert vector.dtype == np.float32
    assert np.isfinite(vector).all()
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


@given(st.lists(texts, min_size=1, max_size=5), dimensions)
def test_what_is_written_out_is_the_vector_bit_by_bit(many: list[str], size: int) -> None:
    hashes = [hash_of(text) for text in many]
    for text, encoded, array in zip(many, as_base64(hashes, size), as_json(hashes, size), strict=True):
        expected = vector_of(text, size).tobytes()
        assert base64.b64decode(encoded, validate=True) == expected
        assert np.array(msgspec.json.decode(array), dtype=np.float32).tobytes() == expected


def test_other_texts_have_other_vectors_and_other_names() -> None:
    many = [f"text {number}" for number in range(500)]
    assert len({vector_of(text, 16).tobytes() for text in many}) == 500
    assert len({digest_of(text) for text in many}) == 500


def test_fewer_dimensions_are_the_first_ones_made_longer() -> None:
    long, short = vector_of("a text", 100), vector_of("a text", 70)
    np.testing.assert_allclose(long[:70] / np.linalg.norm(long[:70]), short, rtol=1e-6)


def test_a_vector_has_at_least_one_dimension() -> None:
    with pytest.raises(ValueError, match="at least one dimension"):
        vector_of("a text", 0)


@given(texts, st.floats(0.01, 1), st.floats(0.01, 1))
def test_tokens_are_never_more_than_bytes(text: str, ascii_ratio: float, other_ratio: float) -> None:
    counted = TokenCounter(ascii_ratio, other_ratio).count(text)
    assert (counted == 0) == (text == "")
    assert counted <= len(text.encode())


@pytest.mark.parametrize(("text", "tokens"), [("a" * 100, 27), ("a" * 101, 28), ("日本", 6), ("aé", 3), ("", 0)])
def test_tokens_are_bytes_times_the_ratio_rounded_up(text: str, tokens: int) -> None:
    assert TokenCounter(0.27, 0.97).count(text) == tokens


@pytest.mark.parametrize("ratio", [0.0, 1.01, -1.0])
def test_a_ratio_over_one_token_a_byte_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="at most one"):
        TokenCounter(0.27, ratio)
