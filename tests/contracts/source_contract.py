"""What every source promises. An adapter's test supplies `encode` and a way to open what it encoded.

SourceContract              everything that delivers records
├── StreamContract          what comes through a pipe: `open_stream`
└── FileContract            what lies in a file: `open_path`, `suffix`
    └── CompressedContract  ... and is compressed
"""

from __future__ import annotations

import json
import os
import random
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pytest

from ragingest.checkpoint.ranges import RangeSet
from ragingest.documents import Record
from ragingest.errors import TerminalError
from ragingest.protocols import PartInfo, Source
from ragingest.sources import streams
from ragingest.sources.streams import StdinStream

from .reading import COMPRESSORS, Reading, decodable, read_all

__all__ = ["CompressedContract", "FileContract", "SourceContract", "StreamContract"]

LIMIT = 2048
KEPT = 1024


class Open(Protocol):
    def __call__(self, document: bytes, limit: int = LIMIT) -> Source: ...


VALUES: list[Any] = [
    {"id": "a", "text": 'quotes " and \\ and { [ ] } , :'},
    {"id": 2, "nested": {"list": [[], {}, [1, {"deep": [[[[[]]]]]}]]}},
    {"id": "ü", "text": "line\u2028separator \u0000 \U0001f600"},
    "a string",
    {},
    [],
    [1, 2, 3],
    17,
    -2.5e-3,
    True,
    False,
    None,
    "",
    {"last": "one"},
]


def many(count: int) -> list[Any]:
    return [{"id": f"r{n}", "text": "word " * (n % 7), "n": [n, {"half": n / 2}]} for n in range(count)]


def decoded(records: list[Record]) -> list[Any]:
    return [json.loads(record.raw) for record in records]


def check_positions(reading: Reading) -> None:
    """Blocks follow each other without gap or overlap, and hold only records of their own."""
    at = 0
    for block in reading.blocks:
        assert block.part == 0
        assert block.start == at
        assert block.end > block.start
        assert all(block.start <= record.ordinal < block.end for record in block.records)
        at = block.end
    ordinals = [record.ordinal for record in reading.records]
    assert ordinals == sorted(set(ordinals))


class SourceContract:
    """Everything that delivers records."""

    def encode(self, values: list[Any]) -> bytes:
        """A document, decompressed, that holds these records."""
        raise NotImplementedError

    def open(self, folder: Path, document: bytes, limit: int) -> Source:
        """A source over the document, at its beginning."""
        raise NotImplementedError

    @pytest.fixture
    def opened(self, tmp_path: Path) -> Iterator[Open]:
        """Opens documents, and closes the sources afterwards."""
        sources: list[Source] = []

        def open_(document: bytes, limit: int = LIMIT) -> Source:
            sources.append(self.open(tmp_path, document, limit))
            return sources[-1]

        yield open_
        for source in sources:
            source.close()

    def test_every_record_comes_in_order_and_decodes_to_its_value(self, opened: Open) -> None:
        reading = read_all(opened(self.encode(VALUES)))
        assert reading.error is None
        assert decoded(reading.records) == VALUES
        assert [record.ordinal for record in reading.records] == list(range(len(VALUES)))
        assert all(record.fault is None for record in reading.records)

    def test_blocks_are_contiguous_however_many_there_are(self, opened: Open) -> None:
        values = many(2500)
        reading = read_all(opened(self.encode(values)))
        assert reading.error is None
        assert len(reading.blocks) > 1
        check_positions(reading)
        assert reading.blocks[-1].end == len(values)
        assert decoded(reading.records) == values

    def test_an_offset_is_where_the_record_begins_in_the_decompressed_bytes(self, opened: Open) -> None:
        document = self.encode([*VALUES, *many(1500)])
        for record in read_all(opened(document)).records:
            assert document[record.offset : record.offset + len(record.raw)] == record.raw

    def test_progress_never_goes_back_and_ends_at_the_size(self, opened: Open) -> None:
        source = opened(self.encode(many(2500)))
        progress = [block.progress for block in read_all(source).blocks]
        assert progress == sorted(progress)
        if source.total_bytes is not None:
            assert progress[-1] == source.total_bytes

    @pytest.mark.parametrize("nothing", ["no records", "no bytes"])
    def test_an_empty_source_has_no_block(self, opened: Open, nothing: str) -> None:
        source = opened(self.encode([]) if nothing == "no records" else b"")
        assert source.read_block() is None

    def test_behind_the_end_there_is_nothing_more(self, opened: Open) -> None:
        source = opened(self.encode(VALUES))
        read_all(source)
        assert source.read_block() is None
        assert source.read_block() is None

    @pytest.mark.parametrize("size", [LIMIT + 1, 5 * LIMIT, 1_500_000])
    def test_an_oversize_record_is_one_fault_and_costs_no_other(self, opened: Open, size: int) -> None:
        big = "x" * (size - 2)
        values = ["before", big, {"between": 1}, {"big": big}, "after", big]
        document = self.encode(values)
        records = read_all(opened(document)).records
        assert [record.ordinal for record in records] == list(range(6))
        for record, value in zip(records, values, strict=True):
            if record.ordinal in (1, 3, 5):
                assert record.fault is not None
                assert record.fault.kind == "too_large"
                assert f"{LIMIT:,}" in record.fault.message
                assert len(record.raw) == KEPT
            else:
                assert record.fault is None
                assert json.loads(record.raw) == value
            assert document[record.offset : record.offset + len(record.raw)] == record.raw

    def test_a_record_of_exactly_the_limit_is_whole(self, opened: Open) -> None:
        records = read_all(opened(self.encode(["x" * (LIMIT - 2)]))).records
        assert records[0].fault is None
        assert len(records[0].raw) == LIMIT

    def test_large_records_do_not_pile_up_in_a_block(self, opened: Open) -> None:
        values = [{"text": "x" * 400_000} for _ in range(20)]
        reading = read_all(opened(self.encode(values), 1_000_000))
        assert len(reading.records) == 20
        assert max(sum(len(record.raw) for record in block.records) for block in reading.blocks) < 3_000_000

    def test_utf16_is_refused_with_the_command_that_converts_it(self, opened: Open) -> None:
        document = self.encode(VALUES).decode().encode("utf-16")
        error = read_all(opened(document)).error
        assert error is not None
        assert "UTF-16" in error.message
        assert "iconv" in error.hint

    @pytest.mark.parametrize("suffix", sorted(COMPRESSORS))
    def test_compressed_bytes_without_the_name_are_refused_with_what_to_do(self, opened: Open, suffix: str) -> None:
        error = read_all(opened(COMPRESSORS[suffix](self.encode(VALUES)))).error
        assert error is not None
        assert "compressed" in error.message
        assert suffix in error.hint
        assert "-dc" in error.hint

    def test_a_byte_order_mark_is_no_part_of_the_first_record(self, opened: Open) -> None:
        document = b"\xef\xbb\xbf" + self.encode(VALUES)
        records = read_all(opened(document)).records
        assert decoded(records) == VALUES
        assert all(document[r.offset : r.offset + len(r.raw)] == r.raw for r in records)

    def test_a_lone_byte_order_mark_is_an_empty_source(self, opened: Open) -> None:
        assert opened(b"\xef\xbb\xbf").read_block() is None


class StreamContract(SourceContract):
    """What comes through a pipe."""

    @pytest.fixture(autouse=True)
    def _pipes(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setattr(streams, "STDIN_POLL_SECONDS", 0.01)
        self._handles: list[int] = []
        self._writers: list[threading.Thread] = []
        yield
        for handle in self._handles:
            os.close(handle)
        for writer in self._writers:
            writer.join(10)

    def open_stream(self, stream: StdinStream, limit: int) -> Source:
        raise NotImplementedError

    def open(self, folder: Path, document: bytes, limit: int) -> Source:
        source, write_end = self.open_pipe(limit)

        def write() -> None:
            rest = memoryview(document)
            with suppress(BrokenPipeError):  # a source that has seen enough closes its end
                while rest:
                    rest = rest[os.write(write_end, rest) :]
            os.close(write_end)

        self._writers.append(threading.Thread(target=write))
        self._writers[-1].start()
        return source

    def open_pipe(self, limit: int = LIMIT) -> tuple[Source, int]:
        """A source at the read end of a pipe, and the write end."""
        read_end, write_end = os.pipe()
        self._handles.append(read_end)
        return self.open_stream(StdinStream(read_end), limit), write_end

    def test_its_positions_are_never_trusted(self, opened: Open) -> None:
        source = opened(self.encode(VALUES))
        assert source.rereads
        assert source.total_bytes is None
        parts = source.parts()
        assert [part.size for part in parts] == [None]
        assert not source.matches(parts[0])
        assert not source.matches(PartInfo("-"))

    @pytest.mark.parametrize("share", [0.0, 0.03, 0.1, 0.5, 0.95])
    def test_a_stop_ends_a_read_that_waits(self, share: float) -> None:
        document = self.encode(VALUES)
        written = document[: int(share * len(document))]
        waits = threading.Event()

        class Watched(StdinStream):
            def read(self) -> bytes:
                if self.consumed == len(written):
                    waits.set()
                return super().read()

        read_end, write_end = os.pipe()
        self._handles += [read_end, write_end]
        os.write(write_end, written)
        source = self.open_stream(Watched(read_end), LIMIT)
        ended: list[Reading] = []
        reader = threading.Thread(target=lambda: ended.append(read_all(source)), daemon=True)
        reader.start()
        assert waits.wait(10)
        source.stop()
        reader.join(10)
        assert not reader.is_alive()
        assert ended[0].error is None
        assert decoded(ended[0].records) == VALUES[: len(ended[0].records)]

    def test_nothing_is_read_after_a_stop(self) -> None:
        source, write_end = self.open_pipe()
        self._handles.append(write_end)
        os.write(write_end, self.encode(VALUES))
        source.stop()
        assert source.read_block() is None

    def test_a_mark_that_comes_byte_by_byte_is_still_one(self) -> None:
        document = b"\xef\xbb\xbf" + self.encode(VALUES)
        source, write_end = self.open_pipe()
        read_end = self._handles[-1]
        os.write(write_end, document[:1])
        pieces = [document[3:], document[2:3], document[1:2]]

        class Trickle(StdinStream):
            """Puts the next piece into the pipe when the one before has been read."""

            def read(self) -> bytes:
                data = super().read()
                if pieces:
                    os.write(write_end, pieces.pop())
                    if not pieces:
                        os.close(write_end)
                return data

        source = self.open_stream(Trickle(read_end), LIMIT)
        assert decoded(read_all(source).records) == VALUES


class FileContract(SourceContract):
    """What lies in a file."""

    suffix: ClassVar[str]
    grows: ClassVar[bool] = False
    """Whether appending leaves the positions of what was there as they are."""

    def open_path(self, path: Path, limit: int) -> Source:
        raise NotImplementedError

    def pack(self, document: bytes) -> bytes:
        """The file's bytes."""
        return document

    def open(self, folder: Path, document: bytes, limit: int) -> Source:
        path = folder / f"corpus{self.suffix}"
        path.write_bytes(self.pack(document))
        return self.open_path(path, limit)

    def reopened(self, tmp_path: Path) -> Source:
        return self.open_path(tmp_path / f"corpus{self.suffix}", LIMIT)

    # -- going on ----------------------------------------------------------------------------------

    def test_reading_goes_on_at_the_end_of_any_block(self, opened: Open, tmp_path: Path) -> None:
        first = read_all(opened(self.encode(many(2500))))
        assert len(first.blocks) > 1
        for block in first.blocks:
            source = self.reopened(tmp_path)
            source.seek(0, block.end, block.end_offset, RangeSet([(0, block.end)]))
            rest = read_all(source)
            source.close()
            assert rest.error is None
            assert rest.records == first.records[block.end :]
            if rest.blocks and not source.rereads:
                assert rest.blocks[0].start == block.end
            if rest.blocks:
                assert rest.blocks[-1].end == 2500

    def test_what_is_done_is_passed_over(self, opened: Open, tmp_path: Path) -> None:
        first = read_all(opened(self.encode(many(2500))))
        block = first.blocks[0]
        done = RangeSet([(0, block.end), (block.end + 1, block.end + 3), (2000, 2400), (2499, 2500)])
        source = self.reopened(tmp_path)
        source.seek(0, block.end, block.end_offset, done)
        rest = read_all(source)
        source.close()
        assert rest.records == [record for record in first.records if record.ordinal not in done]
        assert rest.blocks[-1].end == 2500

    def test_seeking_to_the_beginning_reads_everything(self, opened: Open) -> None:
        source = opened(self.encode(VALUES))
        source.seek(0, 0, 0, RangeSet())
        assert decoded(read_all(source).records) == VALUES

    def test_a_stop_leaves_the_reading_without_error(self, opened: Open) -> None:
        source = opened(self.encode(many(2500)))
        source.read_block()
        source.stop()
        assert read_all(source).error is None

    # -- is it the same file? ----------------------------------------------------------------------

    def test_parts_say_name_size_and_time(self, opened: Open, tmp_path: Path) -> None:
        source = opened(self.encode(VALUES))
        path = tmp_path / f"corpus{self.suffix}"
        (part,) = source.parts()
        assert part.name == str(path)
        assert part.size == source.total_bytes == path.stat().st_size
        assert part.mtime_ns == path.stat().st_mtime_ns

    def changed(self, opened: Open, tmp_path: Path, change: Callable[[Path], None], document: bytes) -> bool:
        """Whether the positions hold after `change`; its time is moved unless it sets one."""
        (part,) = opened(document).parts()
        path = tmp_path / f"corpus{self.suffix}"
        change(path)
        source = self.open_path(path, LIMIT)
        matches = source.matches(part)
        source.close()
        return matches

    def test_a_file_that_is_written_over_while_it_is_read_breaks_at_its_end(
        self, opened: Open, tmp_path: Path
    ) -> None:
        source = opened(self.encode(many(2500)))
        assert source.read_block() is not None
        path = tmp_path / f"corpus{self.suffix}"
        before = path.stat()
        path.write_bytes(path.read_bytes())
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
        error = read_all(source).error
        assert isinstance(error, TerminalError)
        assert "was changed while it was read" in error.message

    def test_a_file_that_is_replaced_while_it_is_read_is_read_to_its_end(
        self, opened: Open, tmp_path: Path
    ) -> None:
        source = opened(self.encode(many(2500)))
        assert source.read_block() is not None
        other = tmp_path / "other"
        other.write_bytes(b"something else")
        other.replace(tmp_path / f"corpus{self.suffix}")
        assert read_all(source).error is None

    def test_an_unchanged_file_matches(self, opened: Open, tmp_path: Path) -> None:
        assert self.changed(opened, tmp_path, lambda path: None, self.encode(VALUES))

    def test_a_file_with_another_time_does_not_match(self, opened: Open, tmp_path: Path) -> None:
        def touch(path: Path) -> None:
            os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))

        assert not self.changed(opened, tmp_path, touch, self.encode(VALUES))

    @pytest.mark.parametrize("values", [["other"], list(reversed(VALUES)), [*many(30), *VALUES]])
    def test_a_rewritten_file_does_not_match(self, opened: Open, tmp_path: Path, values: list[Any]) -> None:
        def rewrite(path: Path) -> None:
            before = path.stat().st_mtime_ns
            path.write_bytes(self.pack(self.encode(values)))
            os.utime(path, ns=(before, before))

        assert not self.changed(opened, tmp_path, rewrite, self.encode(VALUES))

    def test_a_shorter_file_does_not_match(self, opened: Open, tmp_path: Path) -> None:
        def truncate(path: Path) -> None:
            os.truncate(path, path.stat().st_size // 2)

        assert not self.changed(opened, tmp_path, truncate, self.encode(VALUES))

    def test_a_file_that_grew_matches_where_positions_stay(self, opened: Open, tmp_path: Path) -> None:
        def append(path: Path) -> None:
            with path.open("ab") as file:
                file.write(self.pack(self.encode(["more"])))

        assert self.changed(opened, tmp_path, append, self.encode(VALUES)) == self.grows

    def test_another_file_does_not_match(self, opened: Open, tmp_path: Path) -> None:
        source = opened(self.encode(VALUES))
        (part,) = source.parts()
        assert not source.matches(part._replace(name=part.name + "x"))
        assert not source.matches(PartInfo("-"))

    # -- what cannot be read -----------------------------------------------------------------------

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(TerminalError, match=r"there is no file .*missing") as caught:
            self.open_path(tmp_path / f"missing{self.suffix}", LIMIT)
        assert caught.value.hint

    def test_a_folder_is_no_file(self, tmp_path: Path) -> None:
        folder = tmp_path / f"folder{self.suffix}"
        folder.mkdir()
        with pytest.raises(TerminalError, match="is a folder") as caught:
            self.open_path(folder, LIMIT)
        assert caught.value.hint

    def test_a_pipe_with_a_name_is_to_be_read_as_standard_input(self, tmp_path: Path) -> None:
        path = tmp_path / f"pipe{self.suffix}"
        os.mkfifo(path)
        with pytest.raises(TerminalError, match="no regular file") as caught:
            self.open_path(path, LIMIT)
        assert "standard input" in caught.value.hint

    def test_a_file_without_rights_says_so(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / f"secret{self.suffix}"
        path.write_bytes(self.pack(self.encode(VALUES)))

        def refuse(*args: object, **options: object) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, "open", refuse)
        with pytest.raises(TerminalError, match="Permission denied") as caught:
            self.open_path(path, LIMIT)
        assert "permission" in caught.value.hint


class CompressedContract(FileContract):
    """What lies in a compressed file; `suffix` ends with that of the compression."""

    @property
    def compression(self) -> str:
        return Path(self.suffix).suffix

    def pack(self, document: bytes) -> bytes:
        return COMPRESSORS[self.compression](document)

    def complete(self, reading: Reading, size: int) -> list[Record]:
        """The records of an undamaged reading that are known to be whole after `size` bytes."""
        raise NotImplementedError

    def read_cut(self, path: Path, data: bytes) -> Reading:
        path.write_bytes(data)
        source = self.open_path(path, LIMIT)
        try:
            return read_all(source)
        finally:
            source.close()

    def test_it_is_read_again_to_go_on(self, opened: Open) -> None:
        assert opened(self.encode(VALUES)).rereads

    def check_cut(self, whole: Reading, packed: bytes, length: int, path: Path) -> None:
        reading = self.read_cut(path, packed[:length])
        assert reading.error is not None
        assert re.search(rf"byte {length:,} ", reading.error.message)
        assert reading.error.hint
        check_positions(reading)
        size = len(decodable(self.compression, packed[:length]))
        assert reading.records == self.complete(whole, size)

    def test_cut_anywhere_it_keeps_all_that_came_before(self, opened: Open, tmp_path: Path) -> None:
        document = self.encode([*VALUES, *many(20)])
        whole = read_all(opened(document))
        packed = self.pack(document)
        for length in range(1, len(packed)):
            self.check_cut(whole, packed, length, tmp_path / f"cut{self.suffix}")

    def test_a_large_file_cut_anywhere_keeps_all_that_came_before(self, opened: Open, tmp_path: Path) -> None:
        noise = random.Random(7)  # noqa: S311  # no secret
        document = self.encode([{"text": noise.randbytes(700).hex()} for _ in range(400)])
        whole = read_all(opened(document))
        packed = self.pack(document)
        for length in sorted(noise.sample(range(1, len(packed)), 12)):
            self.check_cut(whole, packed, length, tmp_path / f"cut{self.suffix}")

    def test_changed_bytes_end_in_an_error_of_ours_or_in_none(self, opened: Open, tmp_path: Path) -> None:
        document = self.encode([*VALUES, *many(20)])
        packed = self.pack(document)
        path = tmp_path / f"flipped{self.suffix}"
        for at in range(len(packed)):
            flipped = bytearray(packed)
            flipped[at] ^= (0x01, 0x80, 0xFF)[at % 3]
            reading = self.read_cut(path, bytes(flipped))
            check_positions(reading)
            assert reading.error is None or reading.error.hint

    def test_a_damaged_place_costs_little_of_what_came_before(self, opened: Open, tmp_path: Path) -> None:
        noise = random.Random(7)  # noqa: S311  # no secret
        document = self.encode([{"text": noise.randbytes(200).hex()} for _ in range(2000)])
        whole = read_all(opened(document))
        packed = self.pack(document)
        at = int(len(packed) * 0.8)
        damaged = packed[:at] + b"\xff" * 64 + packed[at + 64 :]
        reading = self.read_cut(tmp_path / f"damaged{self.suffix}", damaged)
        assert reading.error is not None
        size = len(decodable(self.compression, packed[:at]))
        sure = self.complete(whole, size - streams.STEP_BYTES)
        assert len(sure) > 500
        assert reading.records[: len(sure)] == sure

    def test_members_one_after_the_other_are_one_document(self, tmp_path: Path) -> None:
        document = self.encode(many(2500))
        third = len(document) // 3
        members = [self.pack(part) for part in (document[:third], document[third:-third], b"", document[-third:])]
        assert decoded(self.read_cut(tmp_path / f"two{self.suffix}", b"".join(members)).records) == many(2500)

    @pytest.mark.parametrize("zeros", [4, 1000, 3 * 256 * 1024])
    def test_zeros_between_and_behind_members_are_padding(self, tmp_path: Path, zeros: int) -> None:
        document = self.encode(many(50))
        middle = len(document) // 2
        padding = b"\0" * zeros
        packed = self.pack(document[:middle]) + padding + self.pack(document[middle:]) + padding
        reading = self.read_cut(tmp_path / f"padded{self.suffix}", packed)
        assert reading.error is None
        assert decoded(reading.records) == many(50)

    def test_garbage_behind_the_last_member_is_an_error_and_costs_no_record(self, tmp_path: Path) -> None:
        packed = self.pack(self.encode(VALUES)) + b"garbage behind it"
        reading = self.read_cut(tmp_path / f"garbage{self.suffix}", packed)
        assert decoded(reading.records) == VALUES
        assert reading.error is not None

    def test_a_bomb_unfolds_a_little_at_a_time(self, tmp_path: Path) -> None:
        path = tmp_path / f"bomb{self.suffix}"
        path.write_bytes(self.pack(b" " * 40_000_000))
        assert path.stat().st_size < 50_000
        stream = streams.open_file(path)
        sizes = []
        while data := stream.read():
            sizes.append(len(data))
        stream.close()
        assert sum(sizes) == 40_000_000
        assert max(sizes) <= 1_500_000

    def test_a_name_without_the_compression_is_an_error(self, tmp_path: Path) -> None:
        reading = self.read_cut(tmp_path / f"plain{self.suffix}", self.encode(VALUES))
        assert reading.error is not None
        assert not reading.records
