"""One JSON document that holds an array of records, however large: each element is cut out as bytes.

A full parser (ijson) would build every value, lose all that follows the first malformed one, and
could not say where a record starts. Cutting needs only strings and brackets: a bad element costs
itself, a byte offset makes resuming a seek, and an element over the limit is passed over unheld.

Most elements are cut many at once: if what lies between here and some comma is a list for msgspec, then that comma
stands between two elements, and msgspec has found the borders of all before it. Where it is none, because an element is
malformed or the comma was inside one, regular expressions cut one at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import msgspec

from ragingest.checkpoint.ranges import RangeSet
from ragingest.documents import Record
from ragingest.errors import TerminalError, UsageError
from ragingest.protocols import PartInfo, RecordBlock
from ragingest.sources.lines import (
    BLOCK_RECORDS,
    BOM,
    KEPT_OF_OVERSIZE,
    read_head,
    reject_encoding,
    too_large,
)
from ragingest.sources.streams import ByteStream, StdinStream, compression_of, identify, open_file, same_content

__all__ = ["ARRAY_NAMES", "ElementReader", "JSONArray", "JSONArrayStdin", "parse_json_path"]

ARRAY_NAMES = ("documents", "data", "records", "items")
"""Keys of the top-level object under which an array of records is looked for, in file order."""

BLOCK_BYTES = 1024 * 1024
"""A block ends with the element that reaches this, so that large elements do not pile up."""

BRACES_TRIED = 64
"""Opening braces at the end of the buffer that are tried as the beginning of an element."""

BORDERS_TRIED = 4
"""Of them, those that have the look of one. Each costs a scan of the buffer."""

JOINT_BYTES = 256
"""White space on either side of a comma, at most, between two elements that are cut at once."""

MATCHED_NESTING = 4
"""Levels of brackets that one regular expression passes over; deeper values are walked."""

_STRING_REST = rb"(?:[^\"\\]++|\\.)*+"
_STRING = rb'"' + _STRING_REST + rb'"'


def _content(levels: int) -> bytes:
    """What may stand between brackets: anything balanced, up to so many levels."""
    content = rb"[^\"\[\]{}]++|" + _STRING
    for _ in range(levels):
        content = content + rb"|[\[{](?:" + content + rb")*+[\]}]"
    return rb"(?:" + content + rb")*+"


_SPACE = rb"[ \t\r\n]*+"
_element = re.compile(
    _SPACE + rb"([\[{]" + _content(MATCHED_NESTING - 1) + rb"[\]}])" + _SPACE + rb"([,\]])", re.DOTALL
).match
_balanced = re.compile(_content(MATCHED_NESTING), re.DOTALL).match
_string_rest = re.compile(_STRING_REST, re.DOTALL).match
_space = re.compile(_SPACE).match
_structure = re.compile(rb'["\[\]{}]').search
_scalar = re.compile(rb"[^,\]}\s]*+").match
_cut = msgspec.json.Decoder(list[msgspec.Raw]).decode


class _BreakError(Exception):
    """The document is not JSON from this byte on."""

    def __init__(self, offset: int, why: str) -> None:
        super().__init__(why)
        self.offset = offset


class ElementReader:
    """Finds the array and cuts its elements out of the stream."""

    def __init__(self, stream: ByteStream, name: str, path: Sequence[str] | None, limit: int) -> None:
        self.stream = stream
        self.ordinal = 0
        self.done = RangeSet()
        self._name = name
        self._path = path
        self._limit = limit
        self._buffer = b""
        self._at = 0
        self._ahead: Iterator[tuple[int, int, int]] = iter(())
        """Start and end of elements of the buffer that are cut already, and where the comma behind each ends."""
        self._grown = True
        """Whether the buffer has grown since elements were last cut ahead."""
        self._base = 0
        self._stand = 0
        self._depth = 0
        self._finished = False
        self._stopped = False
        self._broken: TerminalError | None = None

    @property
    def offset(self) -> int:
        """Byte of the (decompressed) document at which reading stands."""
        return self._base + self._at

    def stop(self) -> None:
        self._stopped = True

    def locate(self) -> None:
        """Move behind the opening bracket of the array.

        Raises:
            TerminalError: there is none.
        """
        try:
            self._locate()
        except _BreakError as error:
            if self._stopped:
                return
            raise self._explain(error) from None

    def jump(self, stream: ByteStream, ordinal: int, offset: int) -> None:
        """Go on at `offset`, the end of a block; `stream` is at the byte before it.

        A block ends behind a comma, on the bracket that closes the array, or where the document broke.
        """
        self.stream.close()
        self.stream, self.ordinal = stream, ordinal
        self._buffer, self._at, self._base = b"", 0, offset - 1
        try:
            self._more()
            self._at = min(1, len(self._buffer))
            if self._buffer[:1] != b",":
                follower = self._peek()
                if follower != b"]":
                    raise _no_comma(self.offset, follower)
        except _BreakError as error:
            self._broken = self._explain(error)

    def read_block(self) -> RecordBlock | None:
        if self._broken is not None:
            raise self._broken
        if self._finished or self._stopped:
            return None
        start = self.ordinal
        records: list[Record] = []
        try:
            self._read_elements(records)
        except _BreakError as error:
            if self._stopped:
                return None
            self._broken = self._explain(error)
        except TerminalError as error:
            self._broken = error
        if self.ordinal == start:
            return self.read_block()
        return RecordBlock(0, start, self.ordinal, self._stand, self.stream.consumed, records)

    def _read_elements(self, records: list[Record]) -> None:
        ordinal = self.ordinal
        limit = self._limit
        done = self.done if ordinal < self.done.end else None
        last = ordinal + BLOCK_RECORDS
        full = self.offset + BLOCK_BYTES
        while ordinal < last:
            ahead = self._next_ahead()
            if ahead is not None:
                start, stop, behind = ahead
                if stop - start <= limit:
                    if done is None or ordinal not in done:
                        records.append(Record(ordinal, self._base + start, self._buffer[start:stop]))
                    self._at = behind
                    ordinal += 1
                    self.ordinal = ordinal
                    continue
                self._ahead = iter(())
            match = _element(self._buffer, self._at)
            if match is not None and match.end(1) - match.start(1) <= limit:
                start, stop = match.span(1)
                if done is None or ordinal not in done:
                    records.append(Record(ordinal, self._base + start, self._buffer[start:stop]))
                # Behind a comma; but on a closing bracket, which the next round will see.
                self._at = match.end() if self._buffer[match.end() - 1] == 0x2C else match.end() - 1
            else:
                self._stand = self.offset
                if not self._read_slowly(records, ordinal, done):
                    self._stand = self.offset
                    self._check_tail()
                    self._finished = True
                    return
                if self.offset >= full:
                    last = ordinal
            ordinal += 1
            self.ordinal = ordinal
        self._stand = self.offset

    def _read_slowly(self, records: list[Record], ordinal: int, done: RangeSet | None) -> bool:
        """One element of any kind, reading on as needed; False at the end of the array."""
        head = self._peek()
        if head == b"]":
            return False
        offset = self.offset
        raw, whole = self._value(self._limit)
        ended = self.offset
        broken: TerminalError | None = None
        try:
            follower = self._peek()
        except TerminalError as error:
            follower, broken = b"", error
        if not follower and self.offset == ended and head not in b'"{[':
            raise broken or _BreakError(ended, "the document ends in the middle of a value")
        if done is None or ordinal not in done:
            records.append(Record(ordinal, offset, raw, None if whole else too_large(self._limit)))
        if follower == b",":
            self._at += 1
        elif follower != b"]":
            self.ordinal, self._stand = ordinal + 1, self.offset
            raise broken or _no_comma(self.offset, follower)
        return True

    def _next_ahead(self) -> tuple[int, int, int] | None:
        found = next(self._ahead, None)
        if found is None and self._grown:
            self._ahead = self._cut_ahead()
            found = next(self._ahead, None)
        return found

    def _cut_ahead(self) -> Iterator[tuple[int, int, int]]:
        """Cut all whole elements of the buffer at once, if they are well-formed; the buffer stays until they are taken."""
        self._grown = False
        buffer, at = self._buffer, self._at
        for end in islice(_borders(buffer, at), BORDERS_TRIED):
            try:
                elements = _cut(b"".join((b"[", memoryview(buffer)[at:end], b"]")))
            except (msgspec.DecodeError, RecursionError):
                continue
            for element in elements:
                start = _end(_space(buffer, at))
                stop = start + memoryview(element).nbytes
                at = buffer.find(b",", stop) + 1
                yield start, stop, at
            return

    # -- walking -----------------------------------------------------------------------------------

    def _more(self) -> bool:
        """Read on; drop what lies before the position. False at the end of the document."""
        data = self.stream.read()
        self._base += self._at
        self._buffer = self._buffer[self._at :] + data
        self._at = 0
        self._grown = True
        return bool(data)

    def _peek(self) -> bytes:
        """The next byte that is no white space, without taking it; b"" at the end."""
        while True:
            self._at = _end(_space(self._buffer, self._at))
            if self._at < len(self._buffer):
                return self._buffer[self._at : self._at + 1]
            if not self._more():
                return b""

    def _value(self, limit: int) -> tuple[bytes, bool]:
        """Take one value; its bytes, and whether that is all of them (it is not over `limit`)."""
        kept: list[bytes] = []
        size = 0
        depth = 0
        in_string = False
        mark = self._at
        while True:
            ended = False
            while self._at < len(self._buffer):
                if in_string:
                    self._at = _end(_string_rest(self._buffer, self._at))
                    if self._buffer[self._at : self._at + 1] != b'"':
                        break
                    self._at += 1
                    in_string = False
                    ended = depth == 0
                elif depth == 0 and self._buffer[self._at : self._at + 1] not in (b'"', b"{", b"["):
                    self._at = _end(_scalar(self._buffer, self._at))
                    ended = self._at < len(self._buffer)
                    if not ended:
                        break
                else:
                    if depth:
                        self._at = _end(_balanced(self._buffer, self._at))
                    found = _structure(self._buffer, self._at)
                    if found is None:
                        self._at = len(self._buffer)
                        break
                    self._at = found.end()
                    token = found.group()
                    if token == b'"':
                        in_string = True
                    elif token in b"{[":
                        depth += 1
                    else:
                        depth -= 1
                        ended = depth == 0
                if ended:
                    break
            size += self._at - mark
            if size <= limit:
                kept.append(self._buffer[mark : self._at])
            else:
                start = self._buffer[mark : min(self._at, mark + KEPT_OF_OVERSIZE)]
                kept = [b"".join((*kept, start))[:KEPT_OF_OVERSIZE]]
            if ended:
                break
            scalar = depth == 0 and not in_string
            if not self._more():
                if scalar and size:
                    break
                raise _BreakError(self.offset, "the document ends in the middle of a value")
            mark = self._at
        if not size:
            raise _BreakError(self.offset, f"expected a value, found {_shown(self._peek())}")
        return b"".join(kept), size <= limit

    # -- finding the array -------------------------------------------------------------------------

    def _locate(self) -> None:
        self._buffer = read_head(self.stream)
        reject_encoding(self._buffer, self.stream)
        if self._buffer.startswith(BOM):
            self._at = len(BOM)
        head = self._peek()
        if head == b"":
            return self._end_empty()
        if head == b"[" and not self._path:
            self._at += 1
            return None
        if head != b"{" or self._path == ():
            raise self._no_array("the document holds no array at its top", [])
        self._at += 1
        self._depth = 1
        path = list(self._path) if self._path is not None else None
        keys: list[str] = []
        while True:
            key = self._key()
            if key is None:
                what = " or ".join(ARRAY_NAMES) if self._path is None else ".".join(self._path)
                raise self._no_array(f"no array found under {what}", keys)
            keys.append(key)
            head = self._peek()
            if not head:
                raise _BreakError(self.offset, "the document ends in front of a value")
            if path is None and key in ARRAY_NAMES and head == b"[":
                self._at += 1
                return None
            if path and key == path[0]:
                path.pop(0)
                wanted = b"{" if path else b"["
                if head != wanted:
                    raise self._no_array(
                        f'"{key}" is not {"an object" if path else "an array"} (byte {self.offset:,})', keys
                    )
                self._at += 1
                if not path:
                    return None
                self._depth += 1
                keys = []
                continue
            self._value(0)

    def _key(self) -> str | None:
        """Take the next key and its colon; None (taken) at the end of the object."""
        head = self._peek()
        if head == b",":
            self._at += 1
            head = self._peek()
        if head == b"}":
            self._at += 1
            return None
        if head != b'"':
            raise _BreakError(self.offset, f"expected a key, found {_shown(head)}")
        raw, _ = self._value(self._limit)
        if self._peek() != b":":
            raise _BreakError(self.offset, f"expected a colon, found {_shown(self._peek())}")
        self._at += 1
        try:
            return msgspec.json.decode(raw, type=str)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return raw.decode(errors="replace")

    def _end_empty(self) -> None:
        """An empty document is an empty source, not a broken one."""
        self._finished = True

    def _check_tail(self) -> None:
        """See that the document goes on as JSON behind the array, to its end."""
        self._at += 1
        for _ in range(self._depth):
            while self._key() is not None:
                self._peek()
                self._value(0)
        rest = self._peek()
        if rest:
            raise _BreakError(self.offset, f"the document ends here, but {_shown(rest)} follows")

    def _explain(self, error: _BreakError) -> TerminalError:
        return TerminalError(
            f"{self._name} breaks at byte {error.offset:,}: {error}",
            "every record before that byte is kept; mend the file and run the same command again",
        )

    def _no_array(self, why: str, keys: list[str]) -> TerminalError:
        shown = f" (keys there: {', '.join(keys[:12])})" if keys else ""
        return TerminalError(
            f"{self._name}: {why}{shown}",
            "name the array with --json-path a.b, or, for one record a line, use --format jsonl",
        )


class JSONArray:
    """A .json file, plain or compressed."""

    unit = "element"

    def __init__(self, path: Path, json_path: str | None, max_record_bytes: int) -> None:
        self.name = str(path)
        self.rereads = compression_of(path) is not None
        self._path = path
        self._part = identify(path)
        self.total_bytes = self._part.size
        keys = parse_json_path(json_path)
        self._stream = open_file(path)
        self._reader = ElementReader(self._stream, self.name, keys, max_record_bytes)
        self._located = False

    def parts(self) -> list[PartInfo]:
        return [self._part]

    def matches(self, part: PartInfo) -> bool:
        return part == self._part and same_content(self._path, part, self._part)

    def seek(self, part: int, ordinal: int, offset: int, done: RangeSet) -> None:
        self._reader.done = done
        if ordinal and not self.rereads:
            self._locate()
            self._stream = open_file(self._path, offset - 1)
            self._reader.jump(self._stream, ordinal, offset)

    def read_block(self) -> RecordBlock | None:
        self._locate()
        block = self._reader.read_block()
        if block is None:
            self._stream.check(self._part)
        return block

    def _locate(self) -> None:
        if not self._located:
            self._reader.locate()
            self._located = True

    def stop(self) -> None:
        pass

    def close(self) -> None:
        self._stream.close()


class JSONArrayStdin:
    """A JSON document from standard input; the ledger decides what is done."""

    unit = "element"
    name = "standard input"
    rereads = True
    total_bytes = None

    def __init__(self, stream: StdinStream, json_path: str | None, max_record_bytes: int) -> None:
        self._stream = stream
        self._reader = ElementReader(stream, self.name, parse_json_path(json_path), max_record_bytes)
        self._located = False

    def parts(self) -> list[PartInfo]:
        return [PartInfo("-")]

    def matches(self, part: PartInfo) -> bool:
        return False

    def seek(self, part: int, ordinal: int, offset: int, done: RangeSet) -> None:
        pass

    def read_block(self) -> RecordBlock | None:
        if not self._located:
            self._reader.locate()
            self._located = True
        return self._reader.read_block()

    def stop(self) -> None:
        self._reader.stop()
        self._stream.stop()

    def close(self) -> None:
        self._stream.close()


def parse_json_path(path: str | None) -> tuple[str, ...] | None:
    """`a.b.item` or `a.b`: the keys that lead to the array; `item` alone is an array at the top.

    Raises:
        UsageError: it leads through an array.
    """
    if path is None:
        return None
    keys = tuple(path.split("."))
    if keys[-1] == "item":
        keys = keys[:-1]
    if "item" in keys or "" in keys:
        raise UsageError(
            f"--json-path {path!r} does not name one array", "write the keys that lead to it, as in a.b.item"
        )
    return keys


def _borders(buffer: bytes, start: int) -> Iterator[int]:
    """Ends of what may be whole elements, the last first: behind a brace, where a comma and an opening brace follow."""
    opening = len(buffer)
    for _ in range(BRACES_TRIED):
        opening = buffer.rfind(b"{", start, opening)
        if opening < 0:
            return
        comma = buffer.rfind(b",", max(start, opening - JOINT_BYTES), opening)
        closing = buffer.rfind(b"}", max(start, comma - JOINT_BYTES), max(start, comma))
        if start < closing < comma and buffer[closing + 1 : opening].translate(None, b" \t\r\n") == b",":
            yield closing + 1


def _end(match: re.Match[bytes] | None) -> int:
    assert match is not None  # the patterns it is used with match the empty string
    return match.end()


def _no_comma(offset: int, follower: bytes) -> _BreakError:
    return _BreakError(offset, f"expected a comma or ], found {_shown(follower)}")


def _shown(byte: bytes) -> str:
    return repr(byte.decode("latin-1")) if byte else "the end of the document"
