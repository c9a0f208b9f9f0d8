from __future__ import annotations

import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragingest.documents import POINT_NAMESPACE, document_digest, point_id

ids = st.text(min_size=1, max_size=40)
numbers = st.integers(min_value=0, max_value=1 << 40)
metadata = st.dictionaries(
    st.text(max_size=5),
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.text(max_size=5)),
    max_size=5,
)


def test_the_namespace_is_the_uuid5_of_the_project_name() -> None:
    assert uuid.uuid5(uuid.NAMESPACE_DNS, "ragingest") == POINT_NAMESPACE


@given(ids, numbers)
def test_a_point_id_is_the_uuid5_of_id_and_chunk_number(document_id: str, chunk: int) -> None:
    assert point_id(document_id, chunk) == str(uuid.uuid5(POINT_NAMESPACE, f"{document_id}\0{chunk}"))


@pytest.mark.parametrize(
    ("document_id", "chunk", "expected"),
    [
        ("a", 0, "caaeaa9b-4d46-5578-8cbc-5626a42566b1"),
        ("a", 11, "dbd9dff7-904b-5f17-9fe4-f4265c6d9e25"),
        ("a1", 1, "b5a655c2-59a6-5995-a485-315260b14be7"),
        ("Überschrift/7", 3, "72a97f34-1cd2-5655-9793-8aaeb0f333c8"),
        ("x" * 512, 0, "73cb8421-79fe-55d8-8373-a86101122b5e"),
    ],
)
def test_point_ids_never_change(document_id: str, chunk: int, expected: str) -> None:
    assert point_id(document_id, chunk) == expected


@given(st.lists(st.tuples(st.text("a1\0", min_size=1, max_size=4), st.integers(0, 111)), unique=True))
def test_different_chunks_of_different_documents_have_different_point_ids(pairs: list[tuple[str, int]]) -> None:
    assert len({point_id(*pair) for pair in pairs}) == len(pairs)


@given(st.text(max_size=20), metadata, metadata)
def test_a_change_of_metadata_alone_touches_only_the_last_eight_bytes(
    text: str, before: dict[str, Any], after: dict[str, Any]
) -> None:
    old, new = document_digest(text, before), document_digest(text, after)
    assert len(old) == len(new) == 24
    assert old[:16] == new[:16]
    # As JSON tells true from 1, so does the digest.
    assert (old[16:] == new[16:]) == (repr(sorted(before.items())) == repr(sorted(after.items())))


@given(st.text(max_size=20), st.text(max_size=20), metadata)
def test_a_change_of_the_text_alone_touches_only_the_first_sixteen_bytes(
    before: str, after: str, fields: dict[str, Any]
) -> None:
    old, new = document_digest(before, fields), document_digest(after, fields)
    assert old[16:] == new[16:]
    assert (old[:16] == new[:16]) == (before == after)


@given(metadata)
def test_the_order_of_keys_does_not_matter_at_any_depth(fields: dict[str, Any]) -> None:
    turned = dict(reversed(fields.items()))
    assert document_digest("text", fields) == document_digest("text", turned)
    assert document_digest("text", {"in": [fields]}) == document_digest("text", {"in": [turned]})


def test_digests_never_change() -> None:
    assert document_digest("text", {}).hex() == "d732c6be860e019351f99173fa6ae61201e7b720ff566d53"
    assert (
        document_digest("text", {"b": 1, "a": [None, "é"]}).hex()
        == "d732c6be860e019351f99173fa6ae612521d575b55d6e116"
    )


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**100])
def test_an_integer_that_no_store_keeps_exactly_has_no_digest(number: int) -> None:
    with pytest.raises(OverflowError):
        document_digest("text", {"deep": [{"n": number}]})


@pytest.mark.parametrize("number", [2**64 - 1, -(2**63)])
def test_integers_of_64_bits_have_a_digest(number: int) -> None:
    assert len(document_digest("text", {"n": number})) == 24


def test_half_of_a_surrogate_pair_has_no_digest() -> None:
    with pytest.raises(UnicodeEncodeError):
        document_digest("\ud800", {})
    with pytest.raises(UnicodeEncodeError):
        document_digest("text", {"a": "\ud800"})
