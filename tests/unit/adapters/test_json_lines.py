from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path

import pytest

from ragingest.checkpoint.ranges import RangeSet
from ragingest.documents import Record
from ragingest.sources.lines import JSONLines, LineReader

from .pieces import Pieces, records_of


def lines_of(document: bytes, limit: int = 1 << 20) -> list[Record]:
    _, records, error = records_of(LineReader(Pieces(document, [1 << 18]), limit))
    assert error is None
    return records


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "corpus.jsonl"


def sources(path: Path) -> Generator[JSONLines, None, None]:
    """The source before and after what the test does between two calls of next()."""
    while True:
        source = JSONLines(path, 1 << 20)
        yield source
        source.close()


def test_carriage_returns_before_newlines_are_white_space() -> None:
    records = lines_of(b'{"id": 1}\r\n\r\n{"id": 2}\r\n')
    assert [json.loads(record.raw) for record in records] == [{"id": 1}, {"id": 2}]
    assert [(record.ordinal, record.offset) for record in records] == [(0, 0), (2, 13)]


def test_a_lone_carriage_return_does_not_end_a_line() -> None:
    assert [record.raw for record in lines_of(b'{"id":\r1}\n2\r3\n')] == [b'{"id":\r1}', b"2\r3"]


def test_a_line_separator_inside_a_string_does_not_end_a_line() -> None:
    document = '{"id": "a\u2028b\u2029c\u0085d"}\n{"id": 2}\n'.encode()
    assert [json.loads(record.raw)["id"] for record in lines_of(document)] == ["a\u2028b\u2029c\u0085d", 2]


def test_a_blank_line_has_a_position_and_no_record() -> None:
    assert [(record.ordinal, record.offset) for record in lines_of(b"\n1\n \t \n\n2")] == [(1, 1), (4, 8)]


def test_a_file_of_blank_lines_counts_them_and_has_no_record() -> None:
    blocks, records, error = records_of(LineReader(Pieces(b"\n" * 2500, [1 << 18]), 1 << 20))
    assert (records, error) == ([], None)
    assert [(block.start, block.end, block.end_offset) for block in blocks] == [
        (0, 1000, 1000),
        (1000, 2000, 2000),
        (2000, 2500, 2500),
    ]


def test_a_cut_last_line_is_a_record_for_the_decoder_to_refuse() -> None:
    records = lines_of(b'{"id": 1}\n{"id"')
    assert [record.raw for record in records] == [b'{"id": 1}', b'{"id"']
    assert records[1].fault is None


def test_cut_at_any_byte_all_lines_before_are_whole() -> None:
    document = "".join(json.dumps({"id": n, "text": "ü" * n}) + "\n" for n in range(6)).encode()
    for cut in range(len(document) + 1):
        expected = [line for line in document[:cut].split(b"\n") if line]
        assert [record.raw for record in lines_of(document[:cut])] == expected


def test_what_was_appended_is_read_from_where_the_file_ended(path: Path) -> None:
    path.write_bytes(b'{"id": 1}\n')
    source = sources(path)
    first = next(source)
    block = first.read_block()
    assert block is not None
    with path.open("ab") as file:
        file.write(b'{"id": 2}\n')
    second = next(source)
    assert second.matches(first.parts()[0])
    second.seek(0, block.end, block.end_offset, RangeSet([(0, 1)]))
    more = second.read_block()
    assert more is not None
    assert more.records == [Record(1, 10, b'{"id": 2}')]
    source.close()
    second.close()


def test_a_file_whose_last_line_went_on_does_not_match(path: Path) -> None:
    path.write_bytes(b'{"id": 1}\n{"id": 2')
    source = sources(path)
    (part,) = next(source).parts()
    with path.open("ab") as file:
        file.write(b'3}\n{"id": 4}\n')
    assert not next(source).matches(part)
    source.close()


def test_an_empty_file_that_grew_matches(path: Path) -> None:
    path.write_bytes(b"")
    source = sources(path)
    (part,) = next(source).parts()
    path.write_bytes(b'{"id": 1}\n')
    assert next(source).matches(part)
    source.close()


@pytest.mark.parametrize("size", [70_000, 200_000])
def test_a_grown_file_whose_old_part_changed_at_its_head_or_tail_does_not_match(path: Path, size: int) -> None:
    document = (b"x" * 99 + b"\n") * (size // 100)
    for at in (0, len(document) - 2):
        path.write_bytes(document)
        source = sources(path)
        (part,) = next(source).parts()
        path.write_bytes(document[:at] + b"y" + document[at + 1 :] + b"more\n")
        assert not next(source).matches(part)
        source.close()


def test_only_the_first_bytes_of_a_file_are_taken_for_a_mark() -> None:
    assert [record.raw for record in lines_of(b"1\n\xef\xbb\xbf2\n\xff\xfe3\n")] == [
        b"1",
        b"\xef\xbb\xbf2",
        b"\xff\xfe3",
    ]


@pytest.mark.parametrize(
    ("head", "what", "hint"),
    [
        (b"PK\x03\x04rest", "zip", "unpack"),
        (b"PAR1rest", "Parquet", "convert"),
        (b"\xfe\xff\0{", "UTF-16", "iconv"),
    ],
)
def test_what_is_no_text_is_named(path: Path, head: bytes, what: str, hint: str) -> None:
    for sizes in ([1 << 18], [1]):
        _, records, error = records_of(LineReader(Pieces(head, sizes), 1 << 20))
        assert records == []
        assert error is not None
        assert what in error.message
        assert hint in error.hint
