"""Corpora of any length, made on the spot."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

__all__ = ["repeated", "short_records"]


def short_records(path: Path, count: int) -> Path:
    """`count` records of some 100 bytes."""
    with path.open("w") as file:
        for number in range(count):
            text = f"Record number {number} tells a short story about nothing in particular."
            file.write(json.dumps({"id": f"doc-{number:08}", "text": text, "metadata": {"n": number % 97}}) + "\n")
    return path


def repeated(source: Path, path: Path, times: int) -> Path:
    """The records of `source` (.jsonl, .jsonl.gz) `times` over, each time under other ids and another last word."""
    with gzip.open(source, "rb") if source.suffix == ".gz" else source.open("rb") as file:
        records = [json.loads(line) for line in file]
    with path.open("w") as out:
        for turn in range(times):
            for record in records:
                changed = {**record, "id": f"{turn}:{record['id']}", "text": f"{record['text']} {turn}"}
                out.write(json.dumps(changed, ensure_ascii=False) + "\n")
    return path
