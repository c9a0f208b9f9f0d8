"""The contract of sources, on every source there is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from ragingest.documents import Record
from ragingest.protocols import Source
from ragingest.sources.json_array import JSONArray, JSONArrayStdin
from ragingest.sources.lines import JSONLines, JSONLinesStdin
from ragingest.sources.streams import StdinStream

from .reading import Reading
from .source_contract import CompressedContract, FileContract, StreamContract


class Lines:
    def encode(self, values: list[Any]) -> bytes:
        return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values).encode()

    def open_path(self, path: Path, limit: int) -> Source:
        return JSONLines(path, limit)

    def open_stream(self, stream: StdinStream, limit: int) -> Source:
        return JSONLinesStdin(stream, limit)

    def complete(self, reading: Reading, size: int) -> list[Record]:
        """A line is known to be whole once its newline was read."""
        return [record for record in reading.records if record.offset + len(record.raw) + 1 <= size]


class Array:
    json_path: ClassVar[str | None] = None
    head: ClassVar[str] = ""
    tail: ClassVar[str] = "\n"

    def encode(self, values: list[Any]) -> bytes:
        elements = [json.dumps(value, indent=n % 3 or None, ensure_ascii=False) for n, value in enumerate(values)]
        return (self.head + "[" + " ,\n ".join(elements) + "\n]" + self.tail).encode()

    def open_path(self, path: Path, limit: int) -> Source:
        return JSONArray(path, self.json_path, limit)

    def open_stream(self, stream: StdinStream, limit: int) -> Source:
        return JSONArrayStdin(stream, self.json_path, limit)

    def complete(self, reading: Reading, size: int) -> list[Record]:
        """An element is known to be whole at its closing mark; a number or word once something follows."""
        return [
            record
            for record in reading.records
            if record.offset + len(record.raw) + (record.raw[:1] not in b'"{[') <= size
        ]


class TestJSONLines(Lines, FileContract):
    suffix = ".jsonl"
    grows = True


class TestJSONLinesGzip(Lines, CompressedContract):
    suffix = ".jsonl.gz"


class TestJSONLinesBzip2(Lines, CompressedContract):
    suffix = ".jsonl.bz2"


class TestJSONLinesXz(Lines, CompressedContract):
    suffix = ".ndjson.xz"


class TestJSONLinesZstd(Lines, CompressedContract):
    suffix = ".jsonl.zst"


class TestJSONLinesStdin(Lines, StreamContract):
    pass


class TestJSONArrayAtTheTop(Array, FileContract):
    suffix = ".json"


class TestJSONArrayUnderDocuments(Array, FileContract):
    suffix = ".json"
    head = '{"version": {"data": [1, {"documents": 2}]}, "documents": '
    tail = ', "data": [{"other": true}]}\n'


class TestJSONArrayUnderPath(Array, FileContract):
    suffix = ".json"
    json_path = "a.b.item"
    head = '{"documents": [1, 2], "b": [3], "a": {"c": "]}", "b": '
    tail = ', "d": {"b": [4]}}, "data": []}'


class TestJSONArrayGzip(Array, CompressedContract):
    suffix = ".json.gz"


class TestJSONArrayBzip2(Array, CompressedContract):
    suffix = ".json.bz2"


class TestJSONArrayXz(Array, CompressedContract):
    suffix = ".json.xz"


class TestJSONArrayZstd(Array, CompressedContract):
    suffix = ".json.zst"
    head = '{"items": '
    tail = "}"


class TestJSONArrayStdin(Array, StreamContract):
    pass


class TestJSONArrayUnderPathStdin(Array, StreamContract):
    json_path = "a.b"
    head = '{"a": {"b": '
    tail = "}}"
