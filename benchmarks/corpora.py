"""Corpora of any length, made on the spot."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

__all__ = ["PASSAGE_CHARACTERS", "passages", "repeated", "short_records", "write_lines"]

HANDBOOK = Path(__file__).parents[1] / "sample_data" / "library_handbook.jsonl"
PASSAGE_CHARACTERS = 622


def short_records(path: Path, count: int) -> Path:
    """`count` records of some 100 bytes."""
    with path.open("w") as file:
        for number in range(count):
            text = f"Record number {number} tells a short story about nothing in particular."
            file.write(json.dumps({"id": f"doc-{number:08}", "text": text, "metadata": {"n": number % 97}}) + "\n")
    return path


def passages(count: int, seed: int = 1) -> Iterator[bytes]:
    """`count` records as JSON, each a text of 622 characters: sentences of the sample corpus in another order each time."""
    dice = random.Random(seed)  # noqa: S311  # not for secrets
    with HANDBOOK.open() as file:
        texts = [json.loads(line)["text"] for line in file]
    sentences = sorted({sentence for text in texts for sentence in re.split(r"(?<=[.!?])\s+", text)})
    for number in range(count):
        text = f"{number}."
        while len(text) < PASSAGE_CHARACTERS:
            text += f" {dice.choice(sentences)}"
        text = text[: PASSAGE_CHARACTERS - 1] + "."
        record = {
            "id": f"doc-{number:08}",
            "text": text,
            "metadata": {"section": f"s{number % 97}", "page": number},
        }
        yield json.dumps(record, ensure_ascii=False).encode()


def write_lines(path: Path, records: Iterator[bytes]) -> Path:
    """One record a line."""
    with path.open("wb") as file:
        file.writelines(record + b"\n" for record in records)
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
