"""Rejected records as a source: those of a rejects file, or what somebody made of them."""

from __future__ import annotations

import base64
import sqlite3
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ragingest.checkpoint.ranges import RangeSet
from ragingest.checkpoint.rejects import Claim, reject_lines
from ragingest.checkpoint.state import PartState
from ragingest.documents import Record
from ragingest.errors import RagingestError
from ragingest.protocols import PartInfo, RecordBlock, Source

__all__ = ["RejectedRecords", "rejected_places"]

BLOCK_RECORDS = 1000
BLOCK_BYTES = 1 << 20

_INDEX = """
CREATE TABLE rejects (
    line INTEGER PRIMARY KEY, part INTEGER, ordinal INTEGER, offset INTEGER, unit TEXT, kind TEXT, id TEXT, taken INTEGER
)
"""


class _Line(msgspec.Struct):
    """A line of a rejects file."""

    position: dict[str, Any]
    error: str
    id: str | None = None
    cut: bool = False
    record: str | None = None
    record_base64: str | None = None

    @property
    def raw(self) -> bytes:
        if self.record is not None:
            return self.record.encode()
        return base64.b64decode(self.record_base64 or "", validate=False)


class _Place(NamedTuple):
    """Where a rejected record stood, and the line that says so."""

    part: int
    ordinal: int
    offset: int
    claim: Claim


_decode = msgspec.json.Decoder(_Line).decode
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode

_Found = Iterator[tuple[_Place, bytes]]


def rejected_places(path: Path, length: int, parts: list[PartState]) -> Iterator[tuple[int, int]]:
    """(part, ordinal) of every record on a list of rejects."""
    numbers = _numbers(parts)
    for data in reject_lines(path, length):
        if found := _placed(0, data, numbers):
            yield found[0].part, found[0].ordinal


def _numbers(parts: list[PartState]) -> dict[str, int]:
    return {part.name: number for number, part in enumerate(parts)}


def _placed(number: int, data: bytes, parts: Mapping[str, int]) -> tuple[_Place, _Line] | None:
    """A line, and where its record stood, unless it is none: `parts` has the number of each part."""
    try:
        line = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    position = line.position
    unit = next((key for key in position if key not in ("part", "offset")), "")
    # A job that was imported has its part under another name.
    part = parts.get(str(position.get("part")), 0 if len(parts) == 1 else None)
    ordinal, offset = position.get(unit), position.get("offset")
    if part is None or not isinstance(ordinal, int) or not isinstance(offset, int) or ordinal < 1:
        return None
    return _Place(part, ordinal - 1, offset, Claim(number, line.error, line.id is not None, unit)), line


class RejectedRecords:
    """The records of a rejects file at the positions that they had, read once.

    What the file holds only the beginning of is read from the source again, if that is still what it
    was. With `corrected`, records come from there: by their id, or, where it is a rejects file that
    was edited, by their position. A record that cannot be tried stays on the list, and `left` says why.

    Args:
        path, length: the rejects file, and how much of it counts.
        parts: those of the run.
        original: opens the source of the job.
        limit_raised: whether records that were too large may be taken now.
        id_field: key of the id in corrected records.
    """

    unit = "reject"
    rereads = False

    def __init__(
        self,
        path: Path,
        length: int,
        parts: list[PartState],
        original: Callable[[], Source],
        *,
        limit_raised: bool = False,
        corrected: Source | None = None,
        id_field: str = "id",
    ) -> None:
        self.name = str(path) if corrected is None else corrected.name
        self.total_bytes = length if corrected is None else corrected.total_bytes
        self.left: Counter[str] = Counter()
        self._path = path
        self._length = length
        self._parts = parts
        self._numbers = _numbers(parts)
        self._original = original
        self._limit_raised = limit_raised
        self._corrected = corrected
        self._id_field = id_field
        self._claims: dict[tuple[int, int], dict[int, Claim]] = {}
        self._cut: dict[tuple[int, int], Claim] = {}
        self._read = 0
        self._stopped = False
        self._blocks = self._all_blocks()

    # -- the protocol ------------------------------------------------------------------------------

    def parts(self) -> list[PartInfo]:
        return [part.info() for part in self._parts]

    def matches(self, part: PartInfo) -> bool:
        return True

    def seek(self, part: int, ordinal: int, offset: int, done: RangeSet) -> None:
        pass

    def read_block(self) -> RecordBlock | None:
        return None if self._stopped else next(self._blocks, None)

    def stop(self) -> None:
        self._stopped = True
        if self._corrected is not None:
            self._corrected.stop()

    def close(self) -> None:
        self._blocks.close()
        if self._corrected is not None:
            self._corrected.close()

    def claimed(self, part: int, start: int) -> Mapping[int, Claim]:
        """The lines of the records of a block that `read_block` returned: by ordinal. Once a block."""
        return self._claims.pop((part, start))

    # -- blocks ------------------------------------------------------------------------------------

    def _all_blocks(self) -> Generator[RecordBlock, None, None]:
        yield from self._in_blocks(self._listed() if self._corrected is None else self._matched(self._corrected))
        if self._cut:
            yield from self._in_blocks(self._read_again())

    def _in_blocks(self, found: Iterable[tuple[_Place, bytes]]) -> Iterator[RecordBlock]:
        """Some records of one part at a time; each position once."""
        records: dict[int, Record] = {}
        claims: dict[int, Claim] = {}
        part = size = 0
        for place, raw in found:
            if records and (place.part != part or len(records) == BLOCK_RECORDS or size >= BLOCK_BYTES):
                yield self._block(part, records, claims)
                records, claims, size = {}, {}, 0
            if place.ordinal in records:
                self.left["a position that comes twice"] += 1
                continue
            part = place.part
            records[place.ordinal] = Record(place.ordinal, place.offset, raw)
            claims[place.ordinal] = place.claim
            size += len(raw)
        if records:
            yield self._block(part, records, claims)

    def _block(self, part: int, records: Mapping[int, Record], claims: dict[int, Claim]) -> RecordBlock:
        start = next(iter(records))
        self._claims[part, start] = claims
        return RecordBlock(part, start, start + 1, 0, self._read, list(records.values()))

    # -- from the rejects file ---------------------------------------------------------------------

    def _lines(self) -> Iterator[tuple[_Place, _Line]]:
        """Every line that can be read, with its place."""
        for number, data in enumerate(reject_lines(self._path, self._length)):
            self._read += len(data)
            if found := _placed(number, data, self._numbers):
                yield found
            else:
                self.left["a line of the rejects file that cannot be read"] += 1

    def _listed(self) -> _Found:
        for place, line in self._lines():
            if not line.cut:
                yield place, line.raw
            elif line.error == "too_large" and not self._limit_raised:
                self.left["larger than --max-record-bytes still"] += 1
            else:
                self._cut[place.part, place.ordinal] = place.claim

    def _read_again(self) -> _Found:
        """Those of which the rejects file holds the beginning only."""
        try:
            source = self._original()
        except RagingestError as error:
            self._left_cut(error.message)
            return
        with closing(source):
            if not all(source.matches(part.info()) for part in self._parts):
                self._left_cut("it has changed")
                return
            for part in range(len(self._parts)):
                source.seek(part, 0, 0, self._all_but_cut(part))
            while self._cut and not self._stopped and (block := source.read_block()) is not None:
                for record in block.records:
                    claim = self._cut.pop((block.part, record.ordinal), None)
                    if claim is not None and record.fault is not None:
                        self.left["larger than --max-record-bytes still"] += 1
                    elif claim is not None:
                        yield _Place(block.part, record.ordinal, record.offset, claim), record.raw

    def _all_but_cut(self, part: int) -> RangeSet:
        done = RangeSet()
        end = 0
        for ordinal in sorted(ordinal for its, ordinal in self._cut if its == part):
            done.add(end, ordinal)
            end = ordinal + 1
        done.add(end, 1 << 62)
        return done

    def _left_cut(self, why: str) -> None:
        self.left[f"cut in the rejects file, and the source cannot be read again: {why}"] += len(self._cut)
        self._cut.clear()

    # -- from a corrected file ---------------------------------------------------------------------

    def _matched(self, corrected: Source) -> _Found:
        """The records of `corrected` that are on the list; of several with one id, in order."""
        with closing(sqlite3.connect("", isolation_level=None, check_same_thread=False)) as index:
            index.execute(_INDEX)
            index.execute("BEGIN")
            index.executemany(
                "INSERT INTO rejects VALUES (?, ?, ?, ?, ?, ?, ?, 0)",
                (
                    (p.claim.line, p.part, p.ordinal, p.offset, p.claim.unit, p.claim.kind, line.id)
                    for p, line in self._lines()
                ),
            )
            index.execute("CREATE INDEX ids ON rejects (id, line)")
            index.execute("CREATE INDEX places ON rejects (part, ordinal)")
            while (block := corrected.read_block()) is not None:
                self._read = block.progress
                for record in block.records:
                    if record.fault is not None:
                        self.left[f"in {corrected.name}: {record.fault.message}"] += 1
                        continue
                    raw, where = self._wanted(record.raw)
                    place = self._take(index, where) if where else None
                    if place is None:
                        self.left[f"in {corrected.name}, but not on the list of rejects"] += 1
                    else:
                        yield place, raw

    def _wanted(self, raw: bytes) -> tuple[bytes, tuple[str, tuple[Any, ...]] | None]:
        """The corrected record, and how to find it on the list."""
        try:
            fields = _decode_object(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return raw, None
        if "position" in fields and ("record" in fields or "record_base64" in fields):
            found = _placed(0, raw, self._numbers)
            if found is None or found[1].cut:
                return raw, None
            place, line = found
            return line.raw, ("part = ? AND ordinal = ?", (place.part, place.ordinal))
        given = fields.get(self._id_field)
        if isinstance(given, bool) or not isinstance(given, str | int | float):
            return raw, None
        return raw, ("id = ?", (str(given),))

    @staticmethod
    def _take(index: sqlite3.Connection, where: tuple[str, tuple[Any, ...]]) -> _Place | None:
        condition, values = where
        row = index.execute(
            f"UPDATE rejects SET taken = 1 WHERE line = (SELECT min(line) FROM rejects WHERE {condition} AND NOT taken) "
            "RETURNING line, part, ordinal, offset, unit, kind, id",
            values,
        ).fetchone()
        if row is None:
            return None
        line, part, ordinal, offset, unit, kind, id_ = row
        return _Place(part, ordinal, offset, Claim(line, kind, id_ is not None, unit))
