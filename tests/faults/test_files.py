"""Runs into files that are killed: at the end the file holds everything, and once."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tests.faults.harness import SMALL_CHUNKS, SMALL_STEPS, Workplace, make_corpus

CORPUS = make_corpus(600, seed=13)


@pytest.mark.parametrize(
    "fault",
    [
        "kill:before:FileStore.upsert:7",
        "kill:after:FileStore.upsert:7",
        "kill:after:FileStore.flush:1",
        "kill:before:FileStore.finish:1",
        "kill:after:FileStore.finish:1",
    ],
)
def test_killed_and_resumed_the_file_is_whole(place: Workplace, fault: str) -> None:
    source = CORPUS.write(place.folder / "source.jsonl")
    command = ("run", source, "--job", "j", "--store", "jsonl", "--store-path", "out", *SMALL_CHUNKS, *SMALL_STEPS)
    place.run(*map(str, command), code=-9, fault=fault)
    counters = place.resume().counters
    assert counters["read"] == len(CORPUS.lines)
    points = [json.loads(line) for line in (place.folder / "out/documents/points.jsonl").read_bytes().splitlines()]
    assert {point["id"]: bytes.fromhex(point["digest"]) for point in points} == CORPUS.accepted
    assert max(Counter((point["id"], point["chunk"]) for point in points).values()) == 1
    chunks = Counter(point["id"] for point in points)
    assert all(chunks[point["id"]] == point["chunks"] for point in points)
