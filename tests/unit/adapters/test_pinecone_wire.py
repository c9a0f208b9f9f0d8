"""Ids, metadata and bytes as Pinecone gets them; what reads the bytes here is protobuf itself."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from ragingest.decoding import flattened
from ragingest.documents import EmbeddedBatch, Fault, Vectors
from ragingest.stores.pinecone_wire import (
    MAX_ID_BYTES,
    MAX_METADATA_BYTES,
    RESERVED,
    PointEncoder,
    namespace_field,
    point_id,
    stored_point,
)
from tests.contracts.embedding import chunk, document
from tests.servers.pinecone_messages import MESSAGES

ONE = np.ones((1, 4), dtype=np.float32)

FROZEN = {
    ("handbook-17", 0): "handbook-17#0",
    ("handbook-17", 12): "handbook-17#12",
    ("a", 1): "a#1",
    ("a#1", 0): "a#1#0",
    ("https://example.org/a?b=c", 3): "https://example.org/a?b=c#3",
    ("", 0): "#0",
    ("x" * 510, 0): "x" * 510 + "#0",
    ("x" * 511, 0): "sha256:8f635db74975c62baf2dde0e0739fbe268c25c5d5fa6768d7f232dfc502d12ac#0",
    ("straße", 2): "sha256:787f4770613d3824cbc89b6d5da90a123e41b07b90b45ea3738c216b14616140#2",
    ("two words", 0): "sha256:a03f1d611645eb53ad16c1af546ca0792dc884505bab57ede80f4dad6b911d3a#0",
    ("nul\0", 0): "sha256:cd0798f9e2941f84b9f162a267d0b91de9b3314dbc28cd8185d3f82e09eca76d#0",
    ("sha256:", 7): "sha256:9fd714ce6f63c3b320c944b70e80a5d105fd2f3e2d30ae2fa81370e223f50d07#7",
}
"""Never to be changed: everybody's documents would be stored a second time."""

ids = st.text(st.characters(codec="utf-8"), max_size=40) | st.from_regex(r"[a-c#0-9:]{0,8}", fullmatch=True)
values = (
    st.text(st.characters(codec="utf-8"))
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.sampled_from([2**60, -(2**63), 3 * 2**62])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.lists(st.text(st.characters(codec="utf-8"), max_size=200), max_size=5)
)
keys = st.text(st.characters(codec="utf-8"), max_size=200).filter(lambda key: not key.startswith(("$", RESERVED)))
flat = st.dictionaries(keys, values, max_size=8)
vectors = npst.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 40)),
    elements=st.floats(-3, 3, width=32).filter(lambda x: x != 0),
)


def encoded(metadata: dict[str, Any], text: str = "text", *, drop_text: bool = False) -> bytes | Fault:
    of = document("a", text, {})
    of.metadata = metadata
    (point,) = PointEncoder(drop_text=drop_text).encode(EmbeddedBatch([chunk(of)], ONE))
    return point


def read(points: list[bytes | Fault], namespace: str = "") -> Any:
    """The request as its receiver reads it."""
    assert all(isinstance(point, bytes) for point in points), points
    return MESSAGES["UpsertRequest"].FromString(b"".join([*points, namespace_field(namespace)]))  # type: ignore[list-item]


@pytest.mark.parametrize(("of", "expected"), FROZEN.items())
def test_the_ids_are_these_for_ever(of: tuple[str, int], expected: str) -> None:
    assert point_id(*of) == expected


@given(st.lists(st.tuples(ids, st.integers(0, 2000)), min_size=2, max_size=8, unique=True))
def test_no_two_chunks_share_an_id_and_every_id_is_one_that_pinecone_takes(points: list[tuple[str, int]]) -> None:
    made = [point_id(*point) for point in points]
    assert len(set(made)) == len(points)
    for name in made:
        assert 0 < len(name) <= MAX_ID_BYTES
        assert name.isascii()
        assert name.isprintable()
        assert " " not in name


@given(
    vectors, ids, flat, st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8"), max_size=300)
)
def test_what_is_written_is_what_protobuf_reads_and_what_comes_back_is_what_was(
    dense: Vectors, id_: str, metadata: dict[str, Any], text: str, namespace: str
) -> None:
    of = document(id_, text, metadata, chunks=len(dense))
    batch = EmbeddedBatch([chunk(of, row) for row in range(len(dense))], dense)
    request = read(PointEncoder().encode(batch), namespace)
    assert request.namespace == namespace
    assert len(request.vectors) == len(dense)
    for row, vector in enumerate(request.vectors):
        there = json_format.MessageToDict(vector.metadata)
        point = stored_point(vector.id, vector.values, there)
        assert point.point_id == point_id(id_, row)
        assert (point.id, point.chunk, point.chunks, point.text) == (id_, row, len(dense), text)
        assert point.digest == of.digest.hex()
        assert dict(point.metadata) == metadata
        assert list(map(repr, point.metadata.values())) == [repr(metadata[key]) for key in point.metadata]
        assert point.dense.tobytes() == np.asarray(dense[row]).tobytes()


def test_strings_of_every_length_of_length_are_framed_right() -> None:
    for size in (0, 1, 125, 126, 127, 128, 129, 16_300, 16_383, 16_384, 30_000):
        request = read(
            [encoded({"k" * size: "v"}), encoded({"key": "v" * size}), encoded({"list": ["v" * size, ""]})]
        )
        first, second, third = (vector.metadata for vector in request.vectors)
        assert first["k" * size] == "v"
        assert second["key"] == "v" * size
        assert list(third["list"]) == ["v" * size, ""]


def test_rows_of_any_memory_layout_are_sent_as_they_are() -> None:
    whole = np.arange(1, 25, dtype=np.float32).reshape(4, 6)
    layouts: list[Any] = [whole[::2, ::2], np.asfortranarray(whole), whole.astype(np.float64), whole.astype(">f4")]
    for dense in layouts:
        batch = EmbeddedBatch([chunk(document(f"d{row}", "x")) for row in range(len(dense))], dense)
        request = read(PointEncoder().encode(batch))
        assert [list(vector.values) for vector in request.vectors] == dense.tolist()


def test_without_the_text_there_is_none() -> None:
    request = read([encoded({"k": "v"}, "the text", drop_text=True)])
    assert "the text" not in str(request)
    assert stored_point("p", [1.0], json_format.MessageToDict(request.vectors[0].metadata)).text == ""


@pytest.mark.parametrize(
    ("metadata", "kind", "says"),
    [
        ({"k": None}, "nested_metadata", "null.*--flatten-metadata"),
        ({"k": {"a": 1}}, "nested_metadata", "object.*--flatten-metadata"),
        ({"k": ["a", 1]}, "nested_metadata", "list.*--flatten-metadata"),
        ({"k": 2**53 + 1}, "inexact_integer", "9007199254740993.*9007199254740992.*--flatten-metadata"),
        ({"k": 2**64 - 1}, "inexact_integer", "--flatten-metadata"),
        ({"k": float("nan")}, "not_finite", "nan"),
        ({"k": float("inf")}, "not_finite", "inf"),
        ({"$k": 1}, "reserved_key", "--metadata-keys"),
        ({RESERVED + "id": "x"}, "reserved_key", "--metadata-keys"),
        ({"k": "x" * MAX_METADATA_BYTES}, "metadata_too_large", "--metadata-keys or --drop-text"),
    ],
)
def test_what_pinecone_cannot_keep_is_named_with_what_would_fit_it(
    metadata: dict[str, Any], kind: str, says: str
) -> None:
    fault = encoded(metadata)
    assert isinstance(fault, Fault)
    assert fault.kind == kind

    assert re.search(says, fault.message), fault.message


@given(
    st.dictionaries(
        keys,
        st.recursive(
            st.none() | values | st.integers(), lambda x: st.lists(x) | st.dictionaries(keys, x), max_leaves=6
        ),
        max_size=4,
    )
)
def test_flattened_metadata_always_fits(metadata: dict[str, Any]) -> None:
    point = encoded(flattened(metadata))
    assert isinstance(point, bytes) or point.kind in ("reserved_key", "metadata_too_large")


@pytest.mark.parametrize("text", ["a", "ü", "\n", "\0", '"', "\U0001f4da", "\u2028"])
def test_the_largest_metadata_is_counted_as_json_to_the_byte(text: str) -> None:
    of = document("a", "", {})

    def size(metadata: dict[str, Any]) -> int:
        own = {
            f"{RESERVED}{name}": value
            for name, value in (("id", "a"), ("chunk", 0), ("chunks", 1), ("digest", of.digest.hex()))
        }
        return len(json.dumps({**own, **metadata}, ensure_ascii=False, separators=(",", ":")).encode())

    each = size({"k": text}) - size({"k": ""})
    count = (MAX_METADATA_BYTES - size({"k": "", "fill": ""})) // each
    fill = "." * (MAX_METADATA_BYTES - size({"k": text * count, "fill": ""}))
    largest = {"k": text * count, "fill": fill}
    assert size(largest) == MAX_METADATA_BYTES
    assert isinstance(encoded(largest, ""), bytes)
    fault = encoded({**largest, "fill": fill + "."}, "")
    assert isinstance(fault, Fault)
    assert f"{MAX_METADATA_BYTES + 1:,}" in fault.message


def test_a_vector_without_direction_is_refused_and_the_others_are_not() -> None:
    dense = np.array([[1, 0], [0, 0], [np.nan, 1], [np.inf, 1], [0, 1e-45]], dtype=np.float32)
    batch = EmbeddedBatch([chunk(document(f"d{row}", "x")) for row in range(5)], dense)
    made = PointEncoder().encode(batch)
    assert [point.kind if isinstance(point, Fault) else "" for point in made] == [
        "",
        "zero_vector",
        "not_finite",
        "not_finite",
        "",
    ]


def test_a_point_of_others_is_read_by_its_own_id() -> None:
    point = stored_point("theirs", [1.0, 2.0], {"text": "x", "n": 3.0})
    assert (point.id, point.chunk, point.chunks, point.text, point.digest) == ("theirs", 0, 1, "", "")
    assert point.metadata == {"text": "x", "n": 3}
    assert stored_point("bare", [1.0], None).metadata == {}
