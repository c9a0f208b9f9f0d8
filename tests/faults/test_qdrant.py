"""Runs into a Qdrant server that fails, killed and resumed: everything is in the collection at the end, and once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import pytest

from ragingest.stores.qdrant import QdrantStore
from tests.faults.harness import SMALL_CHUNKS, SMALL_STEPS, Corpus, Workplace, make_corpus
from tests.servers import faults
from tests.servers.qdrant_server import QdrantServer

CORPUS = make_corpus(300, seed=13)


@pytest.fixture
def server(qdrant: QdrantServer) -> Iterator[QdrantServer]:
    qdrant.engine.clear()
    yield qdrant
    qdrant.script(None)


def check_content(url: str, corpus: Corpus) -> None:
    """Each document as its last valid version, all chunks of it, and nothing else."""
    store = QdrantStore(url, "docs", timeout=30)
    store.open()
    chunks: dict[str, dict[int, int]] = defaultdict(dict)
    digests: dict[str, set[str]] = defaultdict(set)
    after = None
    while True:
        page, after = store.scan(after, 1000)
        for point in page:
            chunks[point.id][point.chunk] = point.chunks
            digests[point.id].add(point.digest)
        if after is None:
            break
    store.close()
    assert digests == {id_: {digest.hex()} for id_, digest in corpus.accepted.items()}
    assert all(set(found.values()) == {len(found)} and max(found) == len(found) - 1 for found in chunks.values())


@pytest.mark.parametrize(
    ("protocol", "fault"),
    [
        ("rest", "kill:before:QdrantStore.upsert:7"),
        ("grpc", "kill:after:QdrantStore.upsert:7"),
        ("rest", "kill:after:Ledger.commit:6"),
        ("grpc", "kill:before:QdrantStore.finish:1"),
        ("rest", "kill:before:QdrantStore._wait_until_indexed:1"),
        ("grpc", "kill:after:QdrantStore._wait_until_indexed:1"),
        ("rest", "kill:after:QdrantStore.finish:1"),
    ],
)
def test_killed_and_resumed_it_ends_as_if_nothing_had_been(
    place: Workplace, server: QdrantServer, protocol: str, fault: str
) -> None:
    url = server.url if protocol == "rest" else server.grpc_url
    source = CORPUS.write(place.folder / "source.jsonl")
    where = ("--store", "qdrant", "--url", url, "--collection", "docs", "--bulk")
    place.run("run", source, "--job", "j", *SMALL_CHUNKS, *SMALL_STEPS, *where, code=-9, fault=fault)
    assert server.engine.info("docs").config.hnsw_config.m == (
        16 if "indexed" in fault or "after:QdrantStore.finish" in fault else 0
    )
    kinds = (faults.rate_limited(0.01), faults.status(500), faults.reset_before(), faults.reset_after())
    server.script(faults.odds([(0.07, kind) for kind in kinds], seed=3))
    counters = place.resume().counters
    assert counters["read"] == len(CORPUS.lines)
    assert counters["rejected"] == len(CORPUS.rejected)
    check_content(url, CORPUS)
    assert server.engine.info("docs").config.hnsw_config.m == 16
