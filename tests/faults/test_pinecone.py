"""Runs into Pinecone that are killed: everything is in the namespace at the end, and once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ragingest.stores.pinecone_wire import CHUNK, CHUNKS, DIGEST, ID
from tests.e2e.command import Command
from tests.faults.harness import SMALL_CHUNKS, SMALL_STEPS, Corpus, Workplace, make_corpus
from tests.servers.faults import odds, reset_after, status
from tests.servers.pinecone_server import PineconeServer

CORPUS = make_corpus(600, seed=11)
INTO = ("--store", "pinecone", "--index", "docs")


@pytest.fixture
def server() -> Iterator[PineconeServer]:
    with PineconeServer() as server:
        yield server


@pytest.fixture
def place(tmp_path: Path, server: PineconeServer, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    monkeypatch.setenv("PINECONE_API_KEY", "pc-test")
    monkeypatch.setenv("PINECONE_CONTROLLER_HOST", server.url)
    return Workplace(Command(tmp_path))


def check_content(server: PineconeServer, corpus: Corpus) -> None:
    """Each document as its last valid version, all chunks of it, and nothing else."""
    digests: dict[str, set[str]] = {}
    chunks: dict[str, list[float]] = {}
    for stored in server.records("docs").values():
        id_ = stored.metadata[ID]
        digests.setdefault(id_, set()).add(stored.metadata[DIGEST])
        chunks.setdefault(id_, []).append(stored.metadata[CHUNK])
        assert stored.metadata[CHUNK] < stored.metadata[CHUNKS]
    assert digests == {id_: {digest.hex()} for id_, digest in corpus.accepted.items()}
    totals = {stored.metadata[ID]: stored.metadata[CHUNKS] for stored in server.records("docs").values()}
    assert {id_: sorted(numbers) for id_, numbers in chunks.items()} == {
        id_: list(range(int(total))) for id_, total in totals.items()
    }


@pytest.mark.parametrize(
    "fault",
    ["kill:before:PineconeStore.upsert:7", "kill:after:PineconeStore.upsert:7", "kill:after:Ledger.commit:6"],
)
def test_killed_and_resumed_under_faults_it_ends_as_if_nothing_had_been(
    place: Workplace, server: PineconeServer, fault: str
) -> None:
    server.script(odds([(0.1, status(500)), (0.1, reset_after())], seed=1))
    source = CORPUS.write(place.folder / "source.jsonl")
    place.run("run", str(source), "--job", "j", *SMALL_CHUNKS, *SMALL_STEPS, *INTO, code=-9, fault=fault)
    counters = place.resume().counters
    assert counters["read"] == len(CORPUS.lines)
    assert counters["rejected"] == len(CORPUS.rejected)
    check_content(server, CORPUS)
