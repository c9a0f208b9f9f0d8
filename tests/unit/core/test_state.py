from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragingest.checkpoint import state
from ragingest.checkpoint.ranges import RangeSet
from ragingest.checkpoint.state import FORMAT, Checkpoint, CheckpointError, PartState, decode, encode
from ragingest.events import Counters
from ragingest.protocols import PartInfo
from ragingest.settings import ErrorBudget, JobSettings, MemoryLimit, RunOptions
from tests.unit.core.builders import checkpoint

natural = st.integers(0, 2**53)
names = st.text(max_size=12)
positions = st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**6)), max_size=6).map(
    lambda pairs: [(start, end) for start, end in RangeSet((start, start + length) for start, length in pairs)]
)
parts = st.builds(
    PartState,
    name=names,
    size=st.none() | natural,
    mtime_ns=st.none() | natural,
    digest=names,
    done=positions,
    ordinal=natural,
    offset=natural,
)


@st.composite
def balanced_counters(draw: st.DrawFn) -> Counters:
    stored, unchanged, duplicate, rejected = (draw(st.integers(0, 2**50)) for _ in range(4))
    return Counters(
        read=stored + unchanged + duplicate + rejected,
        stored=stored,
        unchanged=unchanged,
        duplicate=duplicate,
        rejected=rejected,
        chunks=draw(natural),
        embedded=draw(natural),
    )


checkpoints = st.builds(
    Checkpoint,
    ragingest=names,
    job=names,
    run=natural,
    status=st.sampled_from(["running", "interrupted", "completed", "failed"]),
    started=names,
    updated=names,
    attempts=natural,
    seconds=st.floats(0, 1e9),
    boot=names,
    settings=st.builds(
        JobSettings,
        source=names,
        json_path=st.none() | names,
        text_fields=st.lists(names, max_size=3).map(tuple),
        dimensions=st.none() | natural,
        chunk=st.booleans(),
    ),
    fingerprint=names,
    options=st.builds(
        RunOptions,
        concurrency=st.none() | natural,
        max_memory=st.builds(MemoryLimit, share=st.none() | st.floats(0, 1), bytes=st.none() | natural),
        max_errors=st.builds(ErrorBudget, count=st.none() | natural),
        checkpoint_interval=st.floats(0.001, 3600),
    ),
    parts=st.lists(parts, max_size=3),
    counters=balanced_counters(),
    reject_kinds=st.dictionaries(names, natural, max_size=3),
    rejects_bytes=natural,
    message=names,
)


def sample() -> Checkpoint:
    return checkpoint(
        parts=[
            PartState(name="corpus.jsonl", size=70_000, digest="d", done=[(0, 40), (44, 50)], ordinal=40, offset=9)
        ],
        counters=Counters(read=46, stored=40, unchanged=3, duplicate=2, rejected=1, chunks=41),
        reject_kinds={"empty_text": 1},
        seconds=1.25,
        message="é",
    )


def unsigned(value: Checkpoint) -> Checkpoint:
    return msgspec.structs.replace(value, checksum="")


@given(checkpoints)
def test_a_checkpoint_survives_being_a_file(before: Checkpoint) -> None:
    assert unsigned(decode(encode(before))) == before


@given(checkpoints)
def test_what_is_read_can_be_written_and_is_the_same_bytes(before: Checkpoint) -> None:
    data = encode(before)
    assert encode(decode(data)) == data


def test_a_checkpoint_is_json_that_people_can_read() -> None:
    data = encode(sample())
    assert data.count(b"\n") > 20
    value = json.loads(data)
    assert value["parts"][0]["done"] == [[0, 40], [44, 50]]
    assert value["counters"]["read"] == 46
    assert value["message"] == "é"


def test_a_checkpoint_that_is_cut_at_any_byte_is_refused() -> None:
    data = encode(sample())
    body = data.rstrip()
    for length in range(len(body)):
        with pytest.raises(CheckpointError):
            decode(data[:length])
    assert decode(body) == decode(data)


def test_a_checkpoint_with_a_flipped_bit_is_refused_or_means_the_same() -> None:
    data = encode(sample())
    whole = decode(data)
    refused = 0
    for position in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            try:
                value = decode(bytes(damaged))
            except CheckpointError:
                refused += 1
            else:
                assert value == whole
    assert refused > 6 * len(data)


@given(st.binary(max_size=60))
def test_any_bytes_are_refused_and_nothing_else_happens(data: bytes) -> None:
    with pytest.raises(CheckpointError):
        decode(data)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"null", b"\xff", b"[" * 100_000, b"9" * 5000])
def test_what_is_no_checkpoint_is_refused_with_a_reason(data: bytes) -> None:
    with pytest.raises(CheckpointError) as caught:
        decode(data)
    assert str(caught.value)


def test_a_checkpoint_of_another_format_is_refused_and_both_formats_are_named() -> None:
    data = encode(checkpoint(format=FORMAT + 1))
    with pytest.raises(CheckpointError, match=f"its format is {FORMAT + 1}; this version reads {FORMAT}"):
        decode(data)


def test_a_checkpoint_of_another_format_is_told_from_a_damaged_one_whatever_else_it_holds() -> None:
    data = json.dumps({"format": FORMAT + 1, "jobs": []}).encode()
    with pytest.raises(CheckpointError, match=f"its format is {FORMAT + 1}"):
        decode(data)


@pytest.mark.parametrize("outcome", ["read", "stored", "unchanged", "duplicate", "rejected"])
def test_a_checkpoint_whose_counters_do_not_add_up_is_refused(outcome: str) -> None:
    counters = Counters()
    setattr(counters, outcome, 1)
    with pytest.raises(CheckpointError, match="do not add up"):
        decode(encode(checkpoint(counters=counters)))


@pytest.mark.parametrize("done", [[(5, 4)], [(-1, 4)]])
def test_a_checkpoint_with_positions_that_are_no_ranges_is_refused(done: Any) -> None:
    with pytest.raises(CheckpointError, match="not a range"):
        decode(encode(checkpoint(parts=[PartState(name="a", done=done)])))


def test_a_checkpoint_of_a_version_that_knew_fewer_fields_is_read() -> None:
    fields = msgspec.json.decode(encode(sample()))
    del fields["message"], fields["counters"]["deleted"], fields["options"]["upsert_size"]
    fields["checksum"] = state._checksum(fields)
    before = msgspec.structs.replace(sample(), message="")
    assert unsigned(decode(msgspec.json.encode(fields))) == before


def test_an_edited_checkpoint_is_refused() -> None:
    data = encode(sample()).replace(b'"ordinal": 40', b'"ordinal": 41')
    with pytest.raises(CheckpointError, match="checksum"):
        decode(data)


def test_only_a_completed_checkpoint_is_finished() -> None:
    assert [checkpoint(status=status).finished for status in ("running", "interrupted", "failed", "completed")] == [
        False,
        False,
        False,
        True,
    ]


def test_a_part_keeps_what_identifies_it() -> None:
    info = PartInfo("corpus.jsonl", 100, 7, "digest")
    part = PartState.of(info)
    assert part.info() == info
    assert (part.done, part.ordinal, part.offset) == ([], 0, 0)
    assert PartState(name="a", done=[(0, 3), (3, 5)]).ranges() == RangeSet([(0, 5)])
