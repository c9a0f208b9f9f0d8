"""Runs into a Postgres that is harmed, and runs that are: everything is in the table at the end, and once."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator

import pytest

import ragingest
from ragingest import JobSettings, RunOptions
from ragingest.documents import EmbeddedBatch
from ragingest.stores.pgvector import PgvectorStore
from tests.faults.harness import SMALL_CHUNKS, SMALL_STEPS, Corpus, Workplace, make_corpus
from tests.servers.postgres import PostgresServer

CORPUS = make_corpus(600, seed=11)
NAMESPACE = "faults"


@pytest.fixture
def server(postgres: PostgresServer) -> Iterator[PostgresServer]:
    yield postgres
    postgres.execute(f"DROP SCHEMA IF EXISTS {NAMESPACE} CASCADE")


def into(server: PostgresServer) -> tuple[str, ...]:
    return ("--store", "pgvector", "--url", server.url(), "--collection", "docs", "--namespace", NAMESPACE)


def check_content(server: PostgresServer, corpus: Corpus) -> None:
    """Each document as its last valid version, all chunks of it, and nothing else."""
    rows = server.execute(
        f"SELECT id, min(encode(digest, 'hex')), max(encode(digest, 'hex')), count(*), max(chunks), count(DISTINCT chunk) "
        f"FROM {NAMESPACE}.docs GROUP BY id"
    )
    assert {row[0]: bytes.fromhex(row[1]) for row in rows} == corpus.accepted
    assert all(least == most and count == chunks == different for _, least, most, count, chunks, different in rows)


@pytest.mark.parametrize(
    "fault",
    [
        "kill:before:PgvectorStore.upsert:7",
        "kill:after:PgvectorStore.upsert:7",
        "kill:after:Ledger.commit:6",
        "kill:before:PgvectorStore.finish:1",
        "kill:after:PgvectorStore.finish:1",
    ],
)
def test_killed_and_resumed_it_ends_as_if_nothing_had_been(
    place: Workplace, server: PostgresServer, fault: str
) -> None:
    source = CORPUS.write(place.folder / "source.jsonl")
    command: tuple[str, ...] = ("run", str(source), "--job", "j", *SMALL_CHUNKS, *SMALL_STEPS, *into(server))
    place.run(*command, code=-9, fault=fault)
    counters = place.resume().counters
    assert counters["read"] == len(CORPUS.lines)
    assert counters["rejected"] == len(CORPUS.rejected)
    check_content(server, CORPUS)
    assert server.execute(f"SELECT count(*) FROM pg_indexes WHERE schemaname = '{NAMESPACE}'") == [(2,)]


def end_all_connections(server: PostgresServer) -> None:
    server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'ragingest'")


def crash(server: PostgresServer) -> None:
    server.restart("immediate")


@pytest.mark.parametrize("harm", [end_all_connections, PostgresServer.restart, crash])
def test_a_run_outlives_its_server(
    place: Workplace,
    server: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
    harm: Callable[[PostgresServer], None],
) -> None:
    source = CORPUS.write(place.folder / "source.jsonl")
    calls = itertools.count(1)
    upsert = PgvectorStore.upsert

    one_at_a_time = threading.Lock()

    def harmed(store: PgvectorStore, batch: EmbeddedBatch) -> None:
        if next(calls) in (5, 20):
            with one_at_a_time:  # while a server starts, there may be twenty calls
                harm(server)
        upsert(store, batch)

    monkeypatch.setattr(PgvectorStore, "upsert", harmed)
    settings = JobSettings(
        source="", store="pgvector", url=server.url(), collection="docs", namespace=NAMESPACE, embedder="null"
    )
    options = RunOptions(batch_size=16, upsert_size=16, checkpoint_interval=0.05)
    summary = asyncio.run(
        ragingest.ingest(source, job="j", settings=settings, options=options, checkpoint_dir=place.state)
    )
    assert (summary.status, summary.message) == ("completed", "")
    assert summary.counters.upserts_failed > 0
    check_content(server, CORPUS)
