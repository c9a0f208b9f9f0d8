"""What is put together byte by byte is read back by the client's own classes as it was meant."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from qdrant_client import grpc, models
from qdrant_client.conversions.conversion import GrpcToRest

from ragingest.documents import EmbeddedBatch, Fault, point_id
from ragingest.stores.qdrant_errors import ServerErrors
from ragingest.stores.qdrant_grpc import GrpcUpserts
from ragingest.stores.qdrant_rest import RestUpserts
from tests.contracts.embedding import chunk, document
from tests.contracts.store_contract import Sparse

ERRORS = ServerErrors("url", "docs", "")
GRPC = GrpcUpserts("localhost:1", False, "döcs", "", 1, ERRORS)
REST = RestUpserts("http://localhost:1", "docs", "", 1, 1, ERRORS)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
INT64 = st.integers(-(2**63), 2**63 - 1)
VALUES = st.recursive(
    st.none() | st.booleans() | INT64 | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
TERMS = st.dictionaries(st.integers(0, 2**32 - 1), FLOATS, max_size=5)


@st.composite
def batches(draw: st.DrawFn) -> EmbeddedBatch:
    """Points of any content, with sparse vectors or without; the same document may be there twice."""
    size, count = draw(st.integers(1, 40)), draw(st.integers(1, 4))
    documents = [
        document(draw(TEXT), draw(TEXT), draw(st.dictionaries(TEXT, VALUES, max_size=5))) for _ in range(2)
    ]
    chunks = [
        chunk(documents[draw(st.integers(0, 1))], draw(st.integers(0, 2**40)), draw(TEXT)) for _ in range(count)
    ]
    dense = np.array(draw(st.lists(st.lists(FLOATS, min_size=size, max_size=size), min_size=count, max_size=count)))
    sparse = None
    if draw(st.booleans()):
        sparse = [
            Sparse(list(terms), list(terms.values()))
            for terms in draw(st.lists(TERMS, min_size=count, max_size=count))
        ]
    return EmbeddedBatch(chunks, dense.astype(np.float32), sparse)


def over_grpc(batch: EmbeddedBatch, *, drop_text: bool = False) -> Sequence[models.PointStruct]:
    wire = [point for point in GRPC.encode(batch, drop_text=drop_text) if isinstance(point, bytes)]
    message = grpc.UpsertPoints.FromString(GRPC._head + b"".join(wire))
    assert message.collection_name == "döcs"
    assert message.wait
    assert message.ordering.type == grpc.WriteOrderingType.Medium
    # As many bytes as protobuf itself would need: nothing is hidden in fields that nobody knows.
    assert message.ByteSize() == len(GRPC._head) + sum(map(len, wire))
    return [GrpcToRest.convert_point_struct(point) for point in message.points]


def over_rest(batch: EmbeddedBatch, *, drop_text: bool = False) -> Sequence[models.PointStruct]:
    wire = [point for point in REST.encode(batch, drop_text=drop_text) if isinstance(point, bytes)]
    body = b'{"points":[' + b"".join(wire)[1:] + b"]}"
    return models.PointsList.model_validate_json(body).points


@pytest.mark.parametrize("read_back", [over_grpc, over_rest])
@given(batch=batches(), drop_text=st.booleans())
def test_a_point_is_read_as_it_was_written(read_back: Any, batch: EmbeddedBatch, drop_text: bool) -> None:
    points = read_back(batch, drop_text=drop_text)
    assert len(points) == len(batch.chunks)
    for row, (point, of) in enumerate(zip(points, batch.chunks, strict=True)):
        assert str(point.id) == point_id(of.document.id, of.number)
        assert point.payload == {
            "id": of.document.id,
            "chunk": of.number,
            "chunks": of.document.chunks,
            "text": "" if drop_text else of.text,
            "digest": of.document.digest.hex(),
            "metadata": of.document.metadata,
        }
        assert kinds(point.payload["metadata"]) == kinds(of.document.metadata)
        vector = point.vector
        if batch.sparse is not None:
            assert vector.keys() == {"", "bm25"}
            terms = batch.sparse[row]
            assert list(vector["bm25"].indices) == terms.indices
            assert np.array_equal(np.array(vector["bm25"].values, np.float32), np.array(terms.values, np.float32))
            vector = vector[""]
        assert np.array_equal(np.array(vector, dtype=np.float32), batch.dense[row])


def kinds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: kinds(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [kinds(inner) for inner in value]
    return type(value)


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_vectors_of_any_memory_layout_are_sent_by_value(protocol: str) -> None:
    read_back = over_grpc if protocol == "grpc" else over_rest
    wide = np.arange(24, dtype=np.float32).reshape(3, 8)
    for dense in (wide[:, ::2], wide.T[:3], wide.astype(">f4"), np.asfortranarray(wide), wide[::-1]):
        batch = EmbeddedBatch([chunk(document("a", "text")) for _ in dense], dense)
        assert np.array_equal(np.array([point.vector for point in read_back(batch)]), dense)


UNFIT = [math.nan, math.inf, [1, {"deep": -math.inf}], {"x": object()}]


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
@pytest.mark.parametrize("value", UNFIT, ids=["NaN", "infinity", "deep", "object"])
def test_what_cannot_be_written_costs_its_point_only(protocol: str, value: Any) -> None:
    upserts: GrpcUpserts | RestUpserts = GRPC if protocol == "grpc" else REST
    documents = [document("a", "text"), document("b", "text"), document("c", "text")]
    documents[1].metadata["key"] = value
    batch = EmbeddedBatch([chunk(of) for of in documents], np.ones((3, 4), dtype=np.float32))
    encoded = upserts.encode(batch, drop_text=False)
    assert [type(point) for point in encoded] == [bytes, Fault, bytes]
    assert isinstance(encoded[1], Fault)
    assert "key" in encoded[1].message or isinstance(value, dict)


def test_an_integer_that_only_json_carries_is_refused_over_grpc_with_a_way_out() -> None:
    batch = EmbeddedBatch(
        [chunk(document("a", "text", {"list": [1, {"deep": 2**63}]}))], np.ones((1, 4), dtype=np.float32)
    )
    [fault] = GRPC.encode(batch, drop_text=False)
    assert isinstance(fault, Fault)
    assert fault.kind == "integer_too_large"
    assert "list[1].deep" in fault.message
    assert "http://" in fault.message
    assert over_rest(batch)[0].payload is not None
