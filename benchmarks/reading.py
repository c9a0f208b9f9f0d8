"""Reading alone, in MB a second of the decompressed file, against the libraries on their own, by turns in one process.

    python -m benchmarks.reading [RECORDS] [TURNS]

The yardsticks do what a loop over the file does: `msgspec.json.decode` of each line (of `gzip.open` for .gz), and
`ijson.items` with its C backend for one huge document. ragingest reads blocks of records that know their positions and
decodes each (`records`), and makes documents of them: fields checked, digests of text and metadata made (`documents`).
"""

from __future__ import annotations

import gzip
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import ijson
import msgspec

from benchmarks.corpora import passages, write_lines
from benchmarks.measure import Others, Spread, report, scratch
from ragingest.decoding import Decoder
from ragingest.settings import JobSettings
from ragingest.sources import open_source

Count = Callable[[Path], int]


def by_msgspec(path: Path) -> int:
    decode = msgspec.json.Decoder().decode
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
        return sum(1 for line in lines if decode(line))


def by_ijson(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for record in ijson.items(file, "documents.item", use_float=True) if record)


def records(path: Path) -> int:
    decode = msgspec.json.Decoder().decode
    source = open_source(JobSettings(source=str(path)))
    count = 0
    while (block := source.read_block()) is not None:
        for record in block.records:
            decode(record.raw)
            count += 1
    source.close()
    return count


def documents(path: Path) -> int:
    decoder = Decoder()
    source = open_source(JobSettings(source=str(path)))
    count = 0
    while (block := source.read_block()) is not None:
        for record in block.records:
            decoder.decode(record)
            count += 1
    source.close()
    return count


def as_one_document(path: Path, lines: Iterable[bytes]) -> Path:
    with path.open("wb") as file:
        file.write(b'{"name": "corpus", "documents": [\n')
        comma = b""
        for line in lines:
            file.write(comma + line)
            comma = b",\n"
        file.write(b"\n]}\n")
    return path


def compressed(source: Path, path: Path) -> Path:
    with source.open("rb") as file, gzip.open(path, "wb", compresslevel=6) as out:
        while data := file.read(2**20):
            out.write(data)
    return path


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    turns = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    others = Others()
    rows = []
    with scratch() as folder:
        plain = write_lines(folder / "corpus.jsonl", passages(count))
        files: list[tuple[str, Path, str, Count]] = [
            ("JSON Lines", plain, "msgspec", by_msgspec),
            ("JSON Lines, gzip", compressed(plain, folder / "corpus.jsonl.gz"), "gzip and msgspec", by_msgspec),
            ("one JSON document", as_one_document(folder / "corpus.json", passages(count)), "ijson", by_ijson),
        ]
        for what, path, library, yardstick in files:
            size = (plain if path.suffix == ".gz" else path).stat().st_size
            seconds: dict[str, list[float]] = {library: [], "records": [], "documents": []}
            for _ in range(turns):
                for name, work in ((library, yardstick), ("records", records), ("documents", documents)):
                    began = time.process_time()
                    assert work(path) == count
                    seconds[name].append(time.process_time() - began)
            rates = {name: Spread.of([size / 1e6 / each for each in some]) for name, some in seconds.items()}
            ratios = {
                name: Spread.of([alone / ours for alone, ours in zip(seconds[library], seconds[name], strict=True)])
                for name in ("records", "documents")
            }
            rows.append(
                {
                    "file": what,
                    "library": library,
                    "mb": round(size / 1e6, 1),
                    "mb_per_cpu_second": {name: rate._asdict() for name, rate in rates.items()},
                    "ratios": {name: each._asdict() for name, each in ratios.items()},
                }
            )
    report("reading", {"records": count, "turns": turns, "files": rows, "others": others.share()})


if __name__ == "__main__":
    main()
