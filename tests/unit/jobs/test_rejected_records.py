from __future__ import annotations

import base64
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ragingest.checkpoint.rejects import RECORD_LIMIT, Claim, as_line
from ragingest.checkpoint.state import PartState
from ragingest.documents import Fault, Record, Reject
from ragingest.errors import TerminalError
from ragingest.protocols import Source
from ragingest.sources.lines import JSONLines
from ragingest.sources.rejects import RejectedRecords, rejected_places

PART = "corpus.jsonl"


def line(
    ordinal: int, raw: bytes, *, id_: str | None = None, kind: str = "invalid_json", part: str = PART
) -> bytes:
    return as_line(Reject("decode", Record(ordinal, 10 * ordinal, raw), Fault(kind, "why"), id_), part, "line")


def unreachable() -> Source:
    raise TerminalError("there is no file corpus.jsonl")


def make(
    tmp_path: Path,
    lines: list[bytes],
    original: Callable[[], Source] = unreachable,
    parts: list[PartState] | None = None,
    **options: Any,
) -> RejectedRecords:
    path = tmp_path / "job.rejects.jsonl"
    path.write_bytes(b"".join(lines))
    return RejectedRecords(path, path.stat().st_size, parts or [PartState(name=PART, size=1)], original, **options)


def drained(source: RejectedRecords) -> list[tuple[int, Record, Claim]]:
    """(part, record, its line) of all that there is."""
    found = []
    with closing(source):
        while (block := source.read_block()) is not None:
            claims = source.claimed(block.part, block.start)
            assert set(claims) == {record.ordinal for record in block.records}
            found += [(block.part, record, claims[record.ordinal]) for record in block.records]
    return found


# -- from the list -----------------------------------------------------------------------------------


def test_records_come_back_byte_by_byte_at_their_positions(tmp_path: Path) -> None:
    raws = [b"not json", b"caf\xe9", "図書館".encode(), b""]
    source = make(tmp_path, [line(7 * n, raw, id_="x" if n else None) for n, raw in enumerate(raws)])
    found = drained(source)
    assert [(record.ordinal, record.offset, record.raw) for _, record, _ in found] == [
        (7 * n, 70 * n, raw) for n, raw in enumerate(raws)
    ]
    assert [claim for _, _, claim in found] == [Claim(n, "invalid_json", n > 0, "line") for n in range(4)]
    assert source.left == {}


def test_blocks_are_of_one_part_and_bounded(tmp_path: Path) -> None:
    parts = [PartState(name="a"), PartState(name="b")]
    lines = [line(n, b"x" * 200_000, part="a" if n < 15 else "b") for n in range(30)]
    source = make(tmp_path, lines, parts=parts)
    sizes = []
    with closing(source):
        while (block := source.read_block()) is not None:
            assert block.part == (block.start >= 15)
            sizes.append(sum(len(record.raw) for record in block.records))
    assert sum(sizes) == 30 * 200_000
    assert max(sizes) <= (1 << 20) + 200_000


def test_lines_that_are_damaged_or_of_no_part_stay_on_the_list(tmp_path: Path) -> None:
    parts = [PartState(name="a"), PartState(name="b")]
    odd = [b"{\n", b"[]\n", b'{"position": {}, "error": "x"}\n', line(1, b"y", part="c")]
    source = make(tmp_path, [*odd, line(2, b"good", part="b")], parts=parts)
    assert [(part, record.raw, claim.line) for part, record, claim in drained(source)] == [(1, b"good", 4)]
    assert sum(source.left.values()) == 4


def test_the_one_part_of_a_job_that_was_moved_may_have_another_name(tmp_path: Path) -> None:
    assert len(drained(make(tmp_path, [line(1, b"y", part="/elsewhere/corpus.jsonl")]))) == 1


def test_a_position_that_comes_twice_is_tried_once(tmp_path: Path) -> None:
    source = make(tmp_path, [line(1, b"x"), line(1, b"y")])
    assert [record.raw for _, record, _ in drained(source)] == [b"x"]
    assert list(source.left.values()) == [1]


def test_after_a_stop_nothing_more_comes(tmp_path: Path) -> None:
    source = make(tmp_path, [line(n, b"x") for n in range(3000)])
    assert source.read_block() is not None
    source.stop()
    assert source.read_block() is None
    source.close()


def test_the_places_of_a_list_are_told(tmp_path: Path) -> None:
    source = make(tmp_path, [line(3, b"x"), b"{\n", line(9, b"y")])
    assert list(rejected_places(tmp_path / "job.rejects.jsonl", 10_000, [PartState(name=PART)])) == [(0, 3), (0, 9)]
    source.close()


# -- what was cut ------------------------------------------------------------------------------------

LONG = json.dumps({"id": "long", "text": "x" * (RECORD_LIMIT + 10)}).encode()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b"\n".join([b'{"id": "a"}', LONG, b"", b"{", LONG.replace(b"long", b"last")]) + b"\n")
    return path


def cut(tmp_path: Path, corpus: Path, limit: int = 1 << 24, **options: Any) -> RejectedRecords:
    part = PartState.of(JSONLines(corpus, limit).parts()[0])
    lines = [
        line(1, LONG, kind=options.pop("kind", "payload"), part=part.name),
        line(3, b"{", part=part.name),
        line(4, LONG.replace(b"long", b"last"), kind="payload", part=part.name),
    ]
    return make(tmp_path, lines, lambda: JSONLines(corpus, limit), [part], **options)


def test_cut_records_are_read_from_the_source_again(tmp_path: Path, corpus: Path) -> None:
    found = drained(cut(tmp_path, corpus))
    assert [(record.ordinal, record.raw, claim.line) for _, record, claim in found] == [
        (3, b"{", 1),
        (1, LONG, 0),
        (4, LONG.replace(b"long", b"last"), 2),
    ]


def test_cut_records_of_a_source_that_has_changed_stay_on_the_list(tmp_path: Path, corpus: Path) -> None:
    source = cut(tmp_path, corpus)
    corpus.write_bytes(b"\n" + corpus.read_bytes())
    assert [record.ordinal for _, record, _ in drained(source)] == [3]
    assert [(why.rpartition(": ")[2], count) for why, count in source.left.items()] == [("it has changed", 2)]


def test_cut_records_of_a_source_that_is_gone_stay_on_the_list(tmp_path: Path, corpus: Path) -> None:
    source = cut(tmp_path, corpus)
    corpus.unlink()
    assert len(drained(source)) == 1
    assert list(source.left.values()) == [2]


def test_what_was_too_large_is_read_again_only_under_a_higher_limit(tmp_path: Path, corpus: Path) -> None:
    kept = cut(tmp_path, corpus, kind="too_large")
    assert [record.ordinal for _, record, _ in drained(kept)] == [3, 4]
    assert kept.left == {"larger than --max-record-bytes still": 1}
    raised = cut(tmp_path, corpus, kind="too_large", limit_raised=True)
    assert [record.ordinal for _, record, _ in drained(raised)] == [3, 1, 4]
    still = cut(tmp_path, corpus, limit=2000, kind="too_large", limit_raised=True)
    assert [record.ordinal for _, record, _ in drained(still)] == [3]
    assert sum(still.left.values()) == 2


# -- from a corrected file ---------------------------------------------------------------------------


def corrected(tmp_path: Path, lines: list[bytes]) -> JSONLines:
    path = tmp_path / "mended.jsonl"
    path.write_bytes(b"".join(line if line.endswith(b"\n") else line + b"\n" for line in lines))
    return JSONLines(path, 1 << 20)


def test_corrected_records_find_their_places_by_id(tmp_path: Path) -> None:
    lines = [line(1, b"?", id_="a"), line(2, b"?", id_="b"), line(3, b"?", id_="a"), line(4, b"?", id_="7")]
    records = [
        b'{"key": "a", "n": 1}',
        b'{"key": 7}',
        b'{"key": "a", "n": 2}',
        b'{"key": "a", "n": 3}',
        b'{"key": "c"}',
    ]
    source = make(tmp_path, lines, corrected=corrected(tmp_path, records), id_field="key")
    assert [(record.ordinal, record.raw, claim.line) for _, record, claim in drained(source)] == [
        (1, records[0], 0),
        (4, records[1], 3),
        (3, records[2], 2),
    ]
    assert [count for why, count in source.left.items() if "not on the list" in why] == [2]


def test_an_edited_copy_of_the_list_finds_its_places_by_position(tmp_path: Path) -> None:
    lines = [line(1, b"{"), line(2, b"\xff"), line(3, LONG, kind="payload")]
    edited = [json.loads(data) for data in lines]
    edited[0]["record"] = '{"id": "a", "text": "mended"}'
    edited[1]["record_base64"] = base64.b64encode(b"mended too").decode()
    copy = corrected(tmp_path, [json.dumps(value).encode() for value in edited])
    source = make(tmp_path, lines, corrected=copy)
    assert [(record.ordinal, record.raw) for _, record, _ in drained(source)] == [
        (1, b'{"id": "a", "text": "mended"}'),
        (2, b"mended too"),
    ]
    assert sum(source.left.values()) == 1


def test_what_is_no_record_or_has_no_id_is_passed_over(tmp_path: Path) -> None:
    lines = [line(1, b"?", id_="True")]
    records = [b"nonsense", b"[1]", b'{"id": null}', b'{"id": true}', b'{"text": "x"}', b"{" * 5000]
    source = make(tmp_path, lines, corrected=corrected(tmp_path, records))
    assert drained(source) == []
    assert sum(source.left.values()) == len(records)
