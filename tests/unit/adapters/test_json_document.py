from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ragingest.checkpoint.ranges import RangeSet
from ragingest.documents import Record
from ragingest.errors import TerminalError, UsageError
from ragingest.protocols import RecordBlock
from ragingest.sources.json_array import JSONArray, parse_json_path

from .pieces import elements

LIMIT = 1 << 20


def values_of(records: list[Record]) -> list[object]:
    return [json.loads(record.raw) for record in records]


def read_file(
    path: Path, json_path: str | None = None, position: tuple[int, int] | None = None
) -> tuple[list[RecordBlock], list[Record], TerminalError | None]:
    source = JSONArray(path, json_path, LIMIT)
    blocks: list[RecordBlock] = []
    error = None
    try:
        if position is not None:
            source.seek(0, *position, RangeSet([(0, position[0])]))
        while (block := source.read_block()) is not None:
            blocks.append(block)
    except TerminalError as raised:
        error = raised
    finally:
        source.close()
    return blocks, [record for block in blocks for record in block.records], error


DOCUMENTS = [
    '[{"id": 1, "text": "a, ]} b"}, {"id": 2, "n": [1, {"x": []}]}, "three", 44, {"id": 5}]',
    '{"v": {"data": [0]}, "data": [{"id": 1} , {"id": [2]}, 33, "four"], "more": {"data": [{"id": 9}]}, "z": 1}\n',
    '{"items": [[[[[[["deep"]]]]]], [[[[[["er"]]]]]]]}',
    "[]",
    '{"documents": []}',
]


@pytest.mark.parametrize("text", DOCUMENTS)
def test_cut_at_any_byte_all_complete_elements_are_kept_and_the_byte_is_named(text: str) -> None:
    document = text.encode()
    whole, error = elements(document)
    assert error is None
    for cut in range(1, len(document.rstrip())):
        for sizes in ([1 << 18], [3]):
            records, error = elements(document[:cut], sizes)
            assert records == [r for r in whole if r.offset + len(r.raw) + (r.raw[:1] not in b'"{[') <= cut]
            assert error is not None
            assert error.hint
            named = re.search(r"breaks at byte ([\d,]+)", error.message)
            assert named is not None
            assert int(named[1].replace(",", "")) <= cut


@pytest.mark.parametrize("text", DOCUMENTS)
def test_going_on_in_a_cut_document_meets_the_same_break_and_no_new_record(tmp_path: Path, text: str) -> None:
    document = text.encode()
    path = tmp_path / "cut.json"
    for cut in range(1, len(document)):
        path.write_bytes(document[:cut])
        blocks, _, error = read_file(path)
        if not blocks:
            continue
        again, records, repeated = read_file(path, position=(blocks[-1].end, blocks[-1].end_offset))
        assert (again, records) == ([], [])
        assert (repeated is None) == (error is None)


@pytest.mark.parametrize("text", DOCUMENTS[:3])
def test_going_on_behind_the_last_element_ends_at_once(tmp_path: Path, text: str) -> None:
    path = tmp_path / "whole.json"
    path.write_text(text)
    blocks, _, _ = read_file(path)
    assert read_file(path, position=(blocks[-1].end, blocks[-1].end_offset)) == ([], [], None)


@pytest.mark.parametrize(
    ("text", "kept", "byte", "why"),
    [
        ('[{"a": 1}] x', 1, 11, "'x' follows"),
        ('[{"a": 1}]\n{"b": 2}', 1, 11, "'{' follows"),
        ('[{"a": 1}]\0\0\0', 1, 10, "follows"),
        ('{"data": [1, 2], "rest": }', 2, 25, "expected a value"),
        ('{"data": [1, 2] "rest" 3}', 2, 23, "expected a colon"),
        ('{"data": [1, 2], rest: 3}', 2, 17, "expected a key"),
        ('{"data": [1, 2]', 2, 15, "expected a key"),
        ('[{"a": 1} {"b": 2}]', 1, 10, "expected a comma"),
        ('[{"a": 1}, , {"b": 2}]', 1, 11, "expected a value"),
        ('[{"a": 1}}, {"b": 2}]', 1, 9, "expected a comma"),
        ('[{"a": 1}\0\0\0', 1, 9, "expected a comma"),
    ],
)
def test_what_comes_behind_or_between_elements_breaks_the_document_at_that_byte(
    tmp_path: Path, text: str, kept: int, byte: int, why: str
) -> None:
    path = tmp_path / "garbage.json"
    path.write_bytes(text.encode())
    blocks, records, error = read_file(path)
    assert len(records) == kept
    assert error is not None
    assert f"breaks at byte {byte:,}" in error.message
    assert why in error.message
    again, more, repeated = read_file(path, position=(blocks[-1].end, blocks[-1].end_offset))
    assert (again, more) == ([], [])
    assert repeated is not None
    assert f"byte {byte:,}" in repeated.message


def test_a_malformed_element_costs_itself_and_no_other() -> None:
    records, error = elements(b'[{"a": 1}, {"b": tru}, {"c" 3}, {"d": [}], nonsense, {"e": 5}]')
    assert error is None
    assert [record.raw for record in records] == [
        b'{"a": 1}',
        b'{"b": tru}',
        b'{"c" 3}',
        b'{"d": [}]',
        b"nonsense",
        b'{"e": 5}',
    ]


def test_the_first_array_under_a_well_known_name_is_taken() -> None:
    records, _ = elements(b'{"items": {"data": [1]}, "records": 2, "data": [3], "documents": [4]}')
    assert values_of(records) == [3]


def test_an_escaped_key_is_the_same_key() -> None:
    records, error = elements(b'{"docu\\u006dents": [1]}')
    assert error is None
    assert values_of(records) == [1]


@pytest.mark.parametrize(
    ("text", "json_path", "shown"),
    [
        ('{"first": [1], "second": 2}', None, ["documents", "first, second"]),
        ('{"documents": {"x": [1]}, "y": 1}', None, ["documents, y"]),
        ('{"first": [1], "second": 2}', "third", ["third", "first, second"]),
        ('{"a": {"x": 1, "y": [2]}}', "a.b", ["a.b", "x, y"]),
        ('{"a": [1]}', "a.b", ['"a" is not an object', "byte 6"]),
        ('{"a": {"b": {"c": 1}}}', "a.b.item", ['"b" is not an array', "byte 12"]),
        ('{"a": 1}', "item", ["no array at its top"]),
        ('"text"', None, ["no array at its top"]),
        ("17", None, ["no array at its top"]),
        ('{"id": 1}\n{"id": 2}\n', None, ["no array", "id"]),
    ],
)
def test_without_the_array_the_error_lists_the_keys_that_there_are(
    text: str, json_path: str | None, shown: list[str]
) -> None:
    records, error = elements(text.encode(), path=parse_json_path(json_path))
    assert records == []
    assert error is not None
    for words in shown:
        assert words in error.message
    assert "--json-path" in error.hint
    assert "--format jsonl" in error.hint


@pytest.mark.parametrize(
    ("given", "keys"),
    [
        (None, None),
        ("item", ()),
        ("a", ("a",)),
        ("a.b", ("a", "b")),
        ("a.b.item", ("a", "b")),
        ("ü.x y", ("ü", "x y")),
    ],
)
def test_a_path_is_the_keys_with_or_without_item(given: str | None, keys: tuple[str, ...] | None) -> None:
    assert parse_json_path(given) == keys


@pytest.mark.parametrize("given", ["", ".", "a..b", "a.", "a.item.b", "item.item", ".a"])
def test_a_path_through_an_array_or_without_keys_is_refused(tmp_path: Path, given: str) -> None:
    path = tmp_path / "corpus.json"
    path.write_text("[]")
    with pytest.raises(UsageError, match="--json-path") as caught:
        JSONArray(path, given, LIMIT)
    assert "a.b.item" in caught.value.hint


def test_the_path_item_takes_the_array_at_the_top() -> None:
    records, error = elements(b"[1, 2]", path=())
    assert error is None
    assert values_of(records) == [1, 2]
