"""JSON Lines: one record a line. A blank line is no record."""

from __future__ import annotations

from pathlib import Path

from ragingest.checkpoint.ranges import RangeSet
from ragingest.documents import Fault, Record
from ragingest.errors import TerminalError
from ragingest.protocols import PartInfo, RecordBlock
from ragingest.sources.streams import (
    ByteStream,
    FileStream,
    StdinStream,
    compression_of,
    identify,
    open_file,
    same_content,
)

__all__ = [
    "BLOCK_RECORDS",
    "BOM",
    "KEPT_OF_OVERSIZE",
    "JSONLines",
    "JSONLinesStdin",
    "LineReader",
    "read_head",
    "reject_encoding",
    "too_large",
]

BLOCK_RECORDS = 1000
KEPT_OF_OVERSIZE = 1024
"""Bytes of a record over the limit that go to the rejects file."""

BOM = b"\xef\xbb\xbf"
HEAD_BYTES = 8


class LineReader:
    """Cuts a stream into lines of at most `limit` bytes; a longer one is passed over, never held whole."""

    def __init__(self, stream: ByteStream, limit: int) -> None:
        self.stream = stream
        self.limit = limit
        self.ordinal = 0
        self.offset = 0
        self.done = RangeSet()
        self._open: list[bytes] = []
        self._open_bytes = 0
        self._ready: list[bytes] = []
        self._next = 0
        self._oversize: dict[int, int] = {}
        self._final_newline = 1
        self._ended = False
        self._stopped = False
        self._broken: TerminalError | None = None

    def stop(self) -> None:
        self._stopped = True

    def read_block(self) -> RecordBlock | None:
        if self._next >= len(self._ready) and not self._fill():
            if self._broken is not None:
                raise self._broken
            return None
        start, offset, limit = self.ordinal, self.offset, self.limit
        first = self._next
        lines = self._ready[first : first + BLOCK_RECORDS]
        self._next += len(lines)
        done = self.done if start < self.done.end else None
        records: list[Record] = []
        for ordinal, line in enumerate(lines, start):
            size = len(line)
            if self._oversize:
                size = self._oversize.get(first + ordinal - start, size)
            if done is None or ordinal not in done:
                if size > limit:
                    records.append(Record(ordinal, offset, line[:KEPT_OF_OVERSIZE], too_large(limit)))
                elif line and not line.isspace():
                    records.append(Record(ordinal, offset, line))
            offset += size + 1
        if self._ended and self._next >= len(self._ready):
            offset -= 1 - self._final_newline
        self.ordinal, self.offset = start + len(lines), offset
        return RecordBlock(0, start, self.ordinal, offset, self.stream.consumed, records)

    def _fill(self) -> bool:
        """Read until there is a whole line, or nothing more."""
        self._ready, self._next, self._oversize = [], 0, {}
        while not self._ready:
            if self._ended:
                return False
            try:
                data = self._begin() if self.offset == 0 and not self._open else self.stream.read()
            except TerminalError as error:
                self._broken, self._ended = error, True
                return False
            if not data:
                self._end()
                continue
            head, newline, tail = data.partition(b"\n")
            self._hold(head)
            if newline:
                lines = [self._take(0)]
                lines += tail.split(b"\n")
                self._hold(lines.pop())
                self._ready = lines
        return True

    def _begin(self) -> bytes:
        """The first bytes of the stream, without the byte order mark."""
        data = read_head(self.stream)
        reject_encoding(data, self.stream)
        if data.startswith(BOM):
            self.offset = len(BOM)
            return data[len(BOM) :] or self.stream.read()
        return data

    def _end(self) -> None:
        self._ended = True
        if self._open_bytes and not self._stopped:
            self._final_newline = 0
            self._ready = [self._take(0)]

    def _hold(self, data: bytes) -> None:
        """Keep the beginning of a line that has not ended yet."""
        if not data:
            return
        if self._open_bytes <= self.limit:
            self._open.append(data)
            if self._open_bytes + len(data) > self.limit:
                self._open = [b"".join(self._open)[:KEPT_OF_OVERSIZE]]
        self._open_bytes += len(data)

    def _take(self, index: int) -> bytes:
        """The line held so far, which becomes the `index`th of those that are ready."""
        line = b"".join(self._open)
        if self._open_bytes > self.limit:
            self._oversize[index] = self._open_bytes
        self._open, self._open_bytes = [], 0
        return line


class JSONLines:
    """A .jsonl file, plain or compressed."""

    unit = "line"

    def __init__(self, path: Path, max_record_bytes: int) -> None:
        self.name = str(path)
        self.rereads = compression_of(path) is not None
        self._path = path
        self._limit = max_record_bytes
        self._part = identify(path)
        self.total_bytes = self._part.size
        self._stream: FileStream | None = None
        self._reader: LineReader | None = None

    def parts(self) -> list[PartInfo]:
        return [self._part]

    def matches(self, part: PartInfo) -> bool:
        return same_content(self._path, part, self._part)

    def seek(self, part: int, ordinal: int, offset: int, done: RangeSet) -> None:
        if self.rereads:
            ordinal = offset = 0
        self._stream = open_file(self._path, offset)
        self._reader = LineReader(self._stream, self._limit)
        self._reader.ordinal, self._reader.offset, self._reader.done = ordinal, offset, done

    def read_block(self) -> RecordBlock | None:
        if self._reader is None:
            self.seek(0, 0, 0, RangeSet())
        assert self._reader is not None
        assert self._stream is not None
        block = self._reader.read_block()
        if block is None:
            self._stream.check(self._part)
        return block

    def stop(self) -> None:
        pass

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()


class JSONLinesStdin:
    """JSON Lines from standard input. Positions mean nothing to the next run: the ledger decides."""

    unit = "line"
    name = "standard input"
    rereads = True
    total_bytes = None

    def __init__(self, stream: StdinStream, max_record_bytes: int) -> None:
        self._stream = stream
        self._reader = LineReader(stream, max_record_bytes)

    def parts(self) -> list[PartInfo]:
        return [PartInfo("-")]

    def matches(self, part: PartInfo) -> bool:
        return False

    def seek(self, part: int, ordinal: int, offset: int, done: RangeSet) -> None:
        pass

    def read_block(self) -> RecordBlock | None:
        return self._reader.read_block()

    def stop(self) -> None:
        self._reader.stop()
        self._stream.stop()

    def close(self) -> None:
        self._stream.close()


def too_large(limit: int) -> Fault:
    return Fault("too_large", f"the record is larger than {limit:,} bytes (--max-record-bytes)")


def read_head(stream: ByteStream) -> bytes:
    """Enough of the stream to tell its encoding, or its first line if that is shorter."""
    head = data = stream.read()
    while data and len(head) < HEAD_BYTES and b"\n" not in head:
        data = stream.read()
        head += data
    return head


def reject_encoding(head: bytes, stream: ByteStream) -> None:
    """Recognise what is not UTF-8 text at all by its first bytes.

    Raises:
        TerminalError: says what it is and how to convert it.
    """
    for magic, what, hint in _FOREIGN:
        if head.startswith(magic):
            stream.close()
            raise TerminalError(f"the source is {what}, not UTF-8 JSON", hint)


_UTF16 = "convert it: iconv -f UTF-16 -t UTF-8 FILE"
_FOREIGN = [
    (b"\xff\xfe\0\0", "UTF-32 text", "convert it: iconv -f UTF-32 -t UTF-8 FILE"),
    (b"\xff\xfe", "UTF-16 text", _UTF16),
    (b"\xfe\xff", "UTF-16 text", _UTF16),
    (b"\x1f\x8b", "compressed by gzip", "name it .gz, or pipe it through gzip -dc"),
    (b"BZh", "compressed by bzip2", "name it .bz2, or pipe it through bzip2 -dc"),
    (b"\xfd7zXZ\x00", "compressed by xz", "name it .xz, or pipe it through xz -dc"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "name it .zst, or pipe it through zstd -dc"),
    (b"PK\x03\x04", "a zip archive", "unpack it first"),
    (b"PAR1", "a Parquet file", "convert it to JSON Lines first"),
]
