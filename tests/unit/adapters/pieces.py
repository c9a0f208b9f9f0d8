"""A stream of bytes that comes in pieces of given sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle

from hypothesis import strategies as st

from ragingest.checkpoint.ranges import RangeSet
from ragingest.documents import Record
from ragingest.errors import TerminalError
from ragingest.protocols import RecordBlock
from ragingest.sources.json_array import ElementReader
from ragingest.sources.lines import LineReader

__all__ = ["Pieces", "elements", "piece_sizes", "records_of"]

piece_sizes = st.one_of(
    st.just([1]),
    st.just([1 << 20]),
    st.lists(st.integers(1, 40), min_size=1, max_size=8),
)


class Pieces:
    """`ByteStream` over bytes; the sizes are used in turn. A reader that asks on and on is stopped."""

    def __init__(self, data: bytes, sizes: Sequence[int]) -> None:
        self._rest = memoryview(data)
        self._sizes = cycle(sizes)
        self._reads_left = 2 * len(data) + 1000
        self.consumed = 0

    def read(self) -> bytes:
        self._reads_left -= 1
        assert self._reads_left, "the reader does not end"
        size = next(self._sizes)
        piece, self._rest = self._rest[:size], self._rest[size:]
        self.consumed += len(piece)
        return bytes(piece)

    def close(self) -> None:
        pass


class Generated:
    """`ByteStream` over pieces that are made as they are read."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self.consumed = 0

    def read(self) -> bytes:
        piece = next(self._pieces, b"")
        self.consumed += len(piece)
        return piece

    def close(self) -> None:
        pass


def records_of(reader: LineReader | ElementReader) -> tuple[list[RecordBlock], list[Record], TerminalError | None]:
    """Blocks, records and error of a reader that stands at its first record."""
    blocks: list[RecordBlock] = []
    error = None
    try:
        while (block := reader.read_block()) is not None:
            assert block.end > block.start
            assert block.start == (blocks[-1].end if blocks else 0)
            blocks.append(block)
    except TerminalError as raised:
        error = raised
    return blocks, [record for block in blocks for record in block.records], error


def elements(
    document: bytes,
    sizes: Sequence[int] = (1 << 18,),
    path: tuple[str, ...] | None = None,
    limit: int = 1 << 24,
    done: RangeSet | None = None,
) -> tuple[list[Record], TerminalError | None]:
    """Records and error of a JSON document, read in pieces."""
    reader = ElementReader(Pieces(document, sizes), "corpus.json", path, limit)
    reader.done = done or RangeSet()
    try:
        reader.locate()
    except TerminalError as error:
        return [], error
    _, records, raised = records_of(reader)
    return records, raised
