"""Cutting records out of bytes, against ijson, json and bytes.split as models."""

from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import ijson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ragingest.documents import Record
from ragingest.errors import TerminalError
from ragingest.sources import json_array
from ragingest.sources.json_array import ARRAY_NAMES, ElementReader
from ragingest.sources.lines import LineReader

from .pieces import Generated, Pieces, elements, piece_sizes, records_of

scalars = (
    st.none()
    | st.booleans()
    | st.integers(1 - 2**63, 2**63 - 1)  # one less is an overflow to ijson
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | st.sampled_from(['"', "\\", '\\"', "]}", "[{", ",", "\u2028", "\\u0022", "\U0001f600", "\ufeff"])
)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
arrays = st.lists(json_values, max_size=12)
other_keys = st.dictionaries(
    st.text(max_size=6).filter(lambda key: key not in ARRAY_NAMES) | st.just('"]'), json_values, max_size=3
)


@st.composite
def layouts(draw: st.DrawFn) -> dict[str, Any]:
    """Options of json.dumps that change the bytes and not the value."""
    space = st.sampled_from(["", " ", "\n", "\t", " \r\n  "])
    comma = draw(space) + "," + draw(space)
    colon = draw(space) + ":" + draw(space)
    return {
        "indent": draw(st.none() | st.integers(0, 3)),
        "separators": (comma, colon),
        "ensure_ascii": draw(st.booleans()),
    }


def check_spans(records: list[Record], document: bytes) -> None:
    """Each record holds exactly its bytes, and between two of them there is only a comma."""
    at = None
    for record in records:
        end = record.offset + len(record.raw)
        assert document[record.offset : end] == record.raw
        assert record.raw == record.raw.strip()
        if at is not None:
            assert document[at : record.offset].strip() == b","
        at = end


@given(values=arrays, layout=layouts(), sizes=piece_sizes, margin=st.sampled_from([b"", b" ", b"\r\n\t"]))
def test_an_array_at_the_top_is_cut_into_exactly_its_elements(
    values: list[Any], layout: dict[str, Any], sizes: list[int], margin: bytes
) -> None:
    document = margin + json.dumps(values, **layout).encode() + margin
    records, error = elements(document, sizes)
    assert error is None
    assert [record.ordinal for record in records] == list(range(len(values)))
    check_spans(records, document)
    found = [json.loads(record.raw) for record in records]
    assert found == values
    assert found == list(ijson.items(io.BytesIO(document), "item", use_float=True))


@given(
    values=arrays,
    before=other_keys,
    after=other_keys,
    name=st.sampled_from(ARRAY_NAMES),
    layout=layouts(),
    sizes=piece_sizes,
)
def test_an_array_under_a_well_known_name_is_found_whatever_stands_around_it(
    values: list[Any],
    before: dict[str, Any],
    after: dict[str, Any],
    name: str,
    layout: dict[str, Any],
    sizes: list[int],
) -> None:
    around = {key: value for key, value in after.items() if key not in before}
    document = json.dumps({**before, name: values, **around}, **layout).encode()
    records, error = elements(document, sizes)
    assert error is None
    check_spans(records, document)
    found = [json.loads(record.raw) for record in records]
    assert found == values
    assert found == list(ijson.items(io.BytesIO(document), f"{name}.item", use_float=True))


@given(
    values=arrays,
    before=other_keys,
    after=other_keys,
    path=st.lists(st.text(max_size=5), min_size=1, max_size=3).map(tuple),
    layout=layouts(),
    sizes=piece_sizes,
)
def test_a_named_path_leads_to_its_array_and_no_other(
    values: list[Any],
    before: dict[str, Any],
    after: dict[str, Any],
    path: tuple[str, ...],
    layout: dict[str, Any],
    sizes: list[int],
) -> None:
    tree: Any = values
    for key in reversed(path):
        siblings = {k: v for k, v in before.items() if k != key}
        tree = {**siblings, key: tree, **{k: v for k, v in after.items() if k not in siblings and k != key}}
    document = json.dumps(tree, **layout).encode()
    records, error = elements(document, sizes, path)
    assert error is None
    check_spans(records, document)
    assert [json.loads(record.raw) for record in records] == values


@given(values=arrays, layout=layouts(), sizes=piece_sizes, data=st.data())
def test_reading_goes_on_behind_any_element(
    values: list[Any], layout: dict[str, Any], sizes: list[int], data: st.DataObject
) -> None:
    document = json.dumps({"items": values, "more": [1, {"items": [2]}]}, **layout).encode()
    whole, _ = elements(document, sizes)
    if not whole:
        return
    ordinal = data.draw(st.integers(1, len(whole)))
    last = whole[ordinal - 1]
    closing = last.offset + len(last.raw)
    separator = document.index(b"," if ordinal < len(whole) else b"]", closing)
    offset = separator + 1 if ordinal < len(whole) else separator
    reader = ElementReader(Pieces(document, sizes), "corpus.json", None, 1 << 24)
    reader.locate()
    reader.jump(Pieces(document[offset - 1 :], sizes), ordinal, offset)
    rest: list[Record] = []
    while (block := reader.read_block()) is not None:
        rest += block.records
    assert rest == whole[ordinal:]


@given(values=arrays, layout=layouts(), sizes=piece_sizes, limit=st.integers(1, 40))
def test_an_element_is_over_the_limit_or_whole_whatever_the_pieces(
    values: list[Any], layout: dict[str, Any], sizes: list[int], limit: int
) -> None:
    document = json.dumps(values, **layout).encode()
    whole, _ = elements(document, sizes)
    records, error = elements(document, sizes, limit=limit)
    assert error is None
    assert [(r.ordinal, r.offset) for r in records] == [(r.ordinal, r.offset) for r in whole]
    for record, full in zip(records, whole, strict=True):
        assert (record.fault is not None) == (len(full.raw) > limit)
        assert record.raw == (full.raw[:1024] if record.fault else full.raw)


@given(
    pieces=st.lists(
        st.dictionaries(st.text(max_size=4), json_values, max_size=3).map(lambda value: json.dumps(value).encode())
        | st.sampled_from(
            [
                b'{"a": NaN}',
                b'{"a" 1}',
                b'{"a": [{}, {"b": 1}]}',
                b'{"a": "},{"}',
                b'{"a": "\\"},{"}',
                b"1",
                b'{"\xff": 1}',
            ]
        ),
        max_size=12,
    ),
    joint=st.sampled_from([b",", b", ", b",\n", b"\n , \n"]),
    sizes=piece_sizes,
)
def test_elements_are_cut_the_same_many_at_once_and_one_at_a_time(
    pieces: list[bytes], joint: bytes, sizes: list[int]
) -> None:
    document = b"[" + joint.join(pieces) + b"]"
    at_once, error = elements(document, sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_array, "BORDERS_TRIED", 0)
        one_at_a_time, same_error = elements(document, sizes)
    assert at_once == one_at_a_time
    assert (str(error), [record.raw for record in at_once]) == (str(same_error), pieces)


json_alphabet = st.lists(
    st.sampled_from(
        [
            b"[",
            b"]",
            b"{",
            b"}",
            b",",
            b":",
            b'"',
            b"\\",
            b"1",
            b"-",
            b" ",
            b"\n",
            b"true",
            b'"data"',
            b"\xff",
            b"\0",
        ]
    ),
    max_size=40,
).map(b"".join)


@given(document=st.binary(max_size=60) | json_alphabet | json_alphabet.map(b"[".__add__), sizes=piece_sizes)
@example(document=b"[", sizes=[1])
@example(document=b'{"data":', sizes=[1])
@example(document=b'[12"a,b"]', sizes=[1])
def test_whatever_the_bytes_a_document_ends_in_records_or_in_an_error_of_ours(
    document: bytes, sizes: list[int]
) -> None:
    records, error = elements(document, sizes)
    for record in records:
        assert record.raw
        assert document[record.offset : record.offset + len(record.raw)] == record.raw
    assert error is None or error.hint


@given(document=json_alphabet.map(b"[".__add__), sizes=piece_sizes)
def test_every_document_that_json_takes_is_taken(document: bytes, sizes: list[int]) -> None:
    try:
        values = json.loads(document)
    except ValueError:
        return
    records, error = elements(document, sizes)
    assert error is None
    assert [json.loads(record.raw) for record in records] == values


@given(values=st.lists(json_values, min_size=1, max_size=5), layout=layouts(), sizes=piece_sizes, data=st.data())
def test_a_cut_document_keeps_every_complete_element(
    values: list[Any], layout: dict[str, Any], sizes: list[int], data: st.DataObject
) -> None:
    document = json.dumps({"before": [1], "data": values, "after": {"x": [2]}}, **layout).encode()
    whole, _ = elements(document, sizes)
    cut = data.draw(st.integers(1, len(document) - 1))
    records, error = elements(document[:cut], sizes)
    assert error is not None
    complete = [r for r in whole if r.offset + len(r.raw) + (r.raw[:1] not in b'"{[') <= cut]
    assert records == complete


# -- lines -----------------------------------------------------------------------------------------

line_bytes = st.lists(
    st.sampled_from([b"{}", b"\n", b"\n\n", b"\r\n", b"\r", b" ", b"\t", b'{"a": 1}', b"x", b"\xff", b"\0"]),
    max_size=30,
).map(b"".join)


def expected_lines(document: bytes) -> list[tuple[int, int, bytes]]:
    """(ordinal, offset, line) of every line that is not blank."""
    found = []
    offset = 0
    for ordinal, line in enumerate(document.split(b"\n")):
        if line.strip(b" \t\n\r\x0b\x0c"):
            found.append((ordinal, offset, line))
        offset += len(line) + 1
    return found


@given(document=line_bytes, sizes=piece_sizes)
@example(document=b"a\n\n", sizes=[1])
def test_lines_are_exactly_those_between_newlines(document: bytes, sizes: list[int]) -> None:
    blocks, records, error = records_of(LineReader(Pieces(document, sizes), 1 << 20))
    assert error is None
    assert [(r.ordinal, r.offset, r.raw) for r in records] == expected_lines(document)
    if document:
        assert blocks[-1].end_offset == len(document)
        assert blocks[-1].end == document.count(b"\n") + (not document.endswith(b"\n"))


@given(document=line_bytes, sizes=piece_sizes, limit=st.integers(1, 12))
def test_a_line_is_over_the_limit_or_whole_whatever_the_pieces(
    document: bytes, sizes: list[int], limit: int
) -> None:
    blocks, records, error = records_of(LineReader(Pieces(document, sizes), limit))
    assert error is None
    lines = document.split(b"\n")
    offsets = {r.ordinal: r.offset for r in records}
    assert offsets.keys() == {n for n, line in enumerate(lines) if len(line) > limit or line.strip(b" \t\r\n")}
    for record in records:
        assert record.offset == sum(len(line) + 1 for line in lines[: record.ordinal])
        assert (record.fault is not None) == (len(lines[record.ordinal]) > limit)
        assert record.raw
        assert lines[record.ordinal].startswith(record.raw)
        assert record.fault is not None or record.raw == lines[record.ordinal]
    if document:
        assert blocks[-1].end_offset == len(document)


@given(document=line_bytes, sizes=piece_sizes)
def test_reading_lines_goes_on_at_the_end_of_any_block(document: bytes, sizes: list[int]) -> None:
    blocks, records, _ = records_of(LineReader(Pieces(document, sizes), 1 << 20))
    for block in blocks:
        reader = LineReader(Pieces(document[block.end_offset :], sizes), 1 << 20)
        reader.ordinal, reader.offset = block.end, block.end_offset
        rest: list[Record] = []
        while (more := reader.read_block()) is not None:
            rest += more.records
        assert rest == [record for record in records if record.ordinal >= block.end]


@given(document=st.binary(max_size=80), sizes=piece_sizes)
def test_whatever_the_bytes_lines_end_in_records_or_in_an_error_of_ours(document: bytes, sizes: list[int]) -> None:
    _, records, error = records_of(LineReader(Pieces(document, sizes), 1 << 20))
    assert error is None or error.hint
    assert all(document[r.offset : r.offset + len(r.raw)] == r.raw for r in records)


# -- extremes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("brackets", [(b"[", b"]"), (b'{"a":', b"}")])
@pytest.mark.parametrize("size", [997, 1 << 20])
def test_nesting_of_any_depth_is_cut_in_one_piece(brackets: tuple[bytes, bytes], size: int) -> None:
    levels = 100_000
    deep = brackets[0] * levels + b"1" + brackets[1] * levels
    records, error = elements(b"[0, " + deep + b', {"after": 1}]', [size])
    assert error is None
    assert [record.raw for record in records] == [b"0", deep, b'{"after": 1}']


@pytest.mark.parametrize("text", ['"', "\\", '\\"', "\\\\", '\\\\"', "\u2028", "\u00e9\\u00e9"])
def test_a_string_may_be_split_at_every_byte(text: str) -> None:
    values = [text, {"a": text, text: [text]}, "end"]
    document = json.dumps(values, ensure_ascii=False).encode()
    for first in range(1, len(document)):
        records, error = elements(document, [first, 1 << 20])
        assert error is None
        assert [json.loads(record.raw) for record in records] == values


def huge(before: bytes, unit: bytes, count: int, after: bytes) -> Iterator[bytes]:
    yield before
    for _ in range(count):
        yield unit
    yield after


def peak_of(reader: LineReader | ElementReader) -> tuple[list[Record], int]:
    """The records, and how many bytes were allocated at once at the most."""
    records: list[Record] = []
    tracemalloc.start()
    try:
        while (block := reader.read_block()) is not None:
            records += block.records
        return records, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


MEGABYTE = 1 << 20


@pytest.mark.parametrize("unit", [b"x" * 200_000, b'", "' * 50_000, b'",[{"a":1}],"' * 16_000])
def test_an_element_over_the_limit_is_never_held(unit: bytes) -> None:
    count = 20 * MEGABYTE // len(unit)
    reader = ElementReader(Generated(huge(b'[1, ["', unit, count, b'"], 2]')), "corpus.json", None, MEGABYTE)
    reader.locate()
    records, peak = peak_of(reader)
    assert [record.fault is None for record in records] == [True, False, True]
    assert records[2].offset == len(b'[1, ["') + count * len(unit) + len(b'"], ')
    assert peak < 5 * MEGABYTE


def test_a_value_in_front_of_the_array_is_never_held() -> None:
    pieces = huge(b'{"other": ["', b"x" * 200_000, 100, b'"], "data": [7]}')
    reader = ElementReader(Generated(pieces), "corpus.json", None, 1 << 24)
    tracemalloc.start()
    try:
        reader.locate()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * MEGABYTE
    assert [record.raw for record in records_of(reader)[1]] == [b"7"]


def test_a_line_over_the_limit_is_never_held() -> None:
    pieces = huge(b"1\n", b"x" * 200_000, 100, b"\n2\n")
    records, peak = peak_of(LineReader(Generated(pieces), MEGABYTE))
    assert [record.fault is None for record in records] == [True, False, True]
    assert records[2].offset == 2 + 20_000_000 + 1
    assert peak < 5 * MEGABYTE


def test_a_blank_line_over_the_limit_is_a_fault_however_it_comes() -> None:
    document = b" " * 3000 + b'{"id": 1}\n'
    for sizes in ([1 << 20], [100]):
        _, records, _ = records_of(LineReader(Pieces(document, sizes), 2048))
        assert [record.fault is not None for record in records] == [True]


def test_a_stream_that_breaks_ends_the_reading_behind_its_last_whole_record() -> None:
    class Breaking(Pieces):
        def read(self) -> bytes:
            data = super().read()
            if not data:
                raise TerminalError("it broke", "mend it")
            return data

    lines = LineReader(Breaking(b'{"a": 1}\n{"b": 2}\n{"c"', [5]), 1 << 20)
    _, records, error = records_of(lines)
    assert [record.raw for record in records] == [b'{"a": 1}', b'{"b": 2}']
    assert error is not None
    array = ElementReader(Breaking(b'[{"a": 1}, {"b": 2}', [5]), "corpus.json", None, 1 << 20)
    array.locate()
    _, records, error = records_of(array)
    assert [record.raw for record in records] == [b'{"a": 1}', b'{"b": 2}']
    assert error is not None
