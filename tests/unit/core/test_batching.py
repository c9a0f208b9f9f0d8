from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragingest.batching import (
    PointPacker,
    StreamingBatcher,
    calculate_batch_size,
    pick_rows,
    point_sizes,
    slice_batch,
)
from ragingest.documents import Chunk, EmbeddedBatch
from tests.unit.core.builders import chunk, embedded

sizes = st.lists(st.integers(0, 30), max_size=60)
counts = st.integers(1, 8)
byte_limits = st.none() | st.integers(1, 60)


# -- StreamingBatcher --------------------------------------------------------------------------------


@given(sizes, counts, byte_limits)
def test_batches_hold_every_item_once_in_order_within_the_limits_and_are_filled(
    items: list[int], max_count: int, max_bytes: int | None
) -> None:
    numbered = list(enumerate(items))
    batcher = StreamingBatcher[tuple[int, int]](max_count, max_bytes, lambda item: item[1])
    batches = list(batcher.batch_stream(numbered))
    assert [item for batch in batches for item in batch] == numbered
    _check_packing([[size for _, size in batch] for batch in batches], max_count, max_bytes)


def _check_packing(batches: Sequence[Sequence[int]], max_count: int, max_bytes: int | None) -> None:
    for batch in batches:
        assert 1 <= len(batch) <= max_count
        assert max_bytes is None or sum(batch) <= max_bytes or len(batch) == 1
    for batch, following in pairwise(batches):
        over = max_bytes is not None and sum(batch) + following[0] > max_bytes
        assert len(batch) == max_count or over, "the first item of the next batch had room in this one"


@given(sizes, counts, byte_limits)
def test_a_batcher_never_holds_more_than_one_batch(items: list[int], max_count: int, max_bytes: int | None) -> None:
    batcher = StreamingBatcher[int](max_count, max_bytes, lambda size: size)
    held = 0
    for item in items:
        full = batcher.add(item)
        held += 1 - sum(map(len, full))
        assert all(full)
        assert 0 <= held <= max_count
    assert len(batcher.flush()) == held
    assert batcher.flush() == []


def test_the_stream_is_read_no_further_than_the_batch_needs() -> None:
    taken = []

    def items() -> Any:
        for item in range(100):
            taken.append(item)
            yield item

    batches = StreamingBatcher[int](3).batch_stream(items())
    assert next(batches) == [0, 1, 2]
    assert taken == [0, 1, 2]


def test_the_size_of_an_item_is_asked_once() -> None:
    asked: list[int] = []

    def size(item: int) -> int:
        asked.append(item)
        return 3

    batcher = StreamingBatcher[int](3, 4, size)
    assert list(batcher.batch_stream(range(4))) == [[0], [1], [2], [3]]
    assert asked == [0, 1, 2, 3]


def test_an_item_over_the_byte_limit_travels_alone() -> None:
    batcher = StreamingBatcher[int](10, 5, lambda size: size)
    assert list(batcher.batch_stream([1, 9, 1, 1])) == [[1], [9], [1, 1]]


@pytest.mark.parametrize(("max_count", "max_bytes"), [(0, None), (-1, 5), (1, 0)])
def test_a_batcher_of_nothing_is_refused(max_count: int, max_bytes: int | None) -> None:
    with pytest.raises(ValueError, match="at least one"):
        StreamingBatcher[int](max_count, max_bytes)


# -- PointPacker -------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(0, 30), max_size=12), max_size=10), counts, byte_limits, st.booleans())
def test_upserts_hold_every_point_once_in_order_with_its_own_vectors_and_are_filled(
    groups: list[list[int]], max_points: int, max_bytes: int | None, sparse: bool
) -> None:
    packer = PointPacker(max_points, max_bytes)
    upserts: list[EmbeddedBatch] = []
    chunks: list[Chunk] = []
    for group in groups:
        some = [chunk(size) for size in group]
        upserts += packer.add(encoded(embedded(some, len(chunks), sparse=sparse)))
        chunks += some
    upserts += packer.flush()
    assert packer.flush() == []
    assert [id(one) for upsert in upserts for one in upsert.chunks] == [id(one) for one in chunks]
    _check_packing([[one.size for one in upsert.chunks] for upsert in upserts], max_points, max_bytes)
    assert [point for upsert in upserts for point in upsert.wire or ()] == [bytes(one.size) for one in chunks]
    row = 0
    for upsert in upserts:
        count = len(upsert.chunks)
        assert upsert.dense.shape == (count, 3)
        assert upsert.dense.dtype == np.float32
        assert upsert.dense[:, 0].tolist() == list(range(row, row + count))
        if sparse:
            assert upsert.sparse is not None
            assert list(upsert.sparse) == [{number: 1.0} for number in range(row, row + count)]
        else:
            assert upsert.sparse is None
        row += count


def encoded(batch: EmbeddedBatch) -> EmbeddedBatch:
    """As a store encodes it whose points have as many bytes as their chunks."""
    batch.wire = [bytes(one.size) for one in batch.chunks]
    return batch


def test_a_packer_that_learns_of_a_smaller_limit_keeps_it() -> None:
    packer = PointPacker(100, 1000)
    packer.shrink(20)
    packer.shrink(500)
    upserts = [*packer.add(encoded(embedded([chunk(10) for _ in range(5)]))), *packer.flush()]
    assert [len(upsert.chunks) for upsert in upserts] == [2, 2, 1]


def test_picked_rows_keep_their_vectors() -> None:
    batch = encoded(embedded([chunk(1), chunk(2), chunk(3)], sparse=True))
    picked = pick_rows(batch, [0, 2])
    assert picked.chunks == [batch.chunks[0], batch.chunks[2]]
    assert picked.dense[:, 0].tolist() == [0, 2]
    assert picked.sparse == [{0: 1.0}, {2: 1.0}]
    assert picked.wire == [bytes(1), bytes(3)]
    assert pick_rows(batch, []).dense.shape == (0, 3)


def test_a_batch_that_fits_exactly_passes_through_without_a_copy() -> None:
    batch = embedded([chunk(), chunk()])
    assert PointPacker(2, None).add(batch) == [batch]
    assert PointPacker(2, sum(point_sizes(batch))).add(batch) == [batch]


def test_an_open_upsert_is_given_out_whole_on_flush() -> None:
    packer = PointPacker(5, None)
    assert packer.add(embedded([chunk(), chunk()])) == []
    assert packer.add(embedded([chunk()], 2)) == []
    (rest,) = packer.flush()
    assert rest.dense[:, 0].tolist() == [0, 1, 2]


@given(st.integers(0, 6), st.integers(0, 6))
def test_a_slice_is_a_view_of_its_rows(start: int, length: int) -> None:
    batch = embedded([chunk() for _ in range(12)], sparse=True)
    part = slice_batch(batch, start, start + length)
    assert part.chunks == batch.chunks[start : start + length]
    assert np.array_equal(part.dense, batch.dense[start : start + length])
    assert part.sparse == [{number: 1.0} for number in range(start, start + length)]
    assert part.dense.base is batch.dense or part.dense.base is batch.dense.base


# -- calculate_batch_size ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dimensions", "metadata", "expected"), [(386, 0, 1000), (768, 500, 559), (1536, 2000, 245)]
)
def test_the_plan_is_the_published_table(dimensions: int, metadata: int, expected: int) -> None:
    assert calculate_batch_size(dimensions, metadata) == expected


@given(
    st.integers(1, 10_000),
    st.floats(0, 1e6),
    st.floats(0.001, 100),
    st.floats(0.01, 1),
    st.floats(0.125, 40),
    st.floats(0, 1e4),
    st.integers(1, 5000),
)
def test_the_plan_fills_the_request_and_never_exceeds_it(
    dimensions: int,
    metadata: float,
    megabytes: float,
    margin: float,
    per_dimension: float,
    overhead: float,
    most: int,
) -> None:
    size = calculate_batch_size(
        dimensions,
        metadata,
        megabytes,
        margin,
        bytes_per_dimension=per_dimension,
        overhead_bytes=overhead,
        max_count=most,
    )
    record_bytes = dimensions * per_dimension + metadata + overhead
    budget = megabytes * 1e6 * margin
    assert 1 <= size <= most
    assert size == 1 or size * record_bytes <= budget * (1 + 1e-9)
    assert size == most or (size + 1) * record_bytes > budget * (1 - 1e-9)


def test_a_record_larger_than_a_request_is_planned_as_one() -> None:
    assert calculate_batch_size(1_000_000) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"embedding_dim": 0},
        {"embedding_dim": -1},
        {"avg_metadata_bytes": -1},
        {"max_request_mb": 0},
        {"max_request_mb": -2.0},
        {"safety_margin": 0},
        {"safety_margin": 1.01},
        {"safety_margin": math.nan},
        {"max_count": 0},
        {"bytes_per_dimension": 0},
        {"bytes_per_dimension": -4},
        {"overhead_bytes": -1},
        {"avg_metadata_bytes": math.nan},
    ],
)
def test_a_plan_from_numbers_that_make_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"embedding_dim": 8, "avg_metadata_bytes": 0} | wrong
    with pytest.raises(ValueError):
        calculate_batch_size(**arguments)
