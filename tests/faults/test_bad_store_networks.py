"""Between ragingest and its stores: latency, resets, connections that die in silence, a narrow line, no name, no TLS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from tests.e2e.command import Command
from tests.faults import test_pinecone, test_postgres, test_qdrant
from tests.faults.harness import Corpus, Workplace, make_corpus
from tests.faults.test_bad_networks import FINE, free_port, self_signed
from tests.servers.fault_proxy import CUT, HALF_OPEN, REFUSED, FaultProxy, Weather
from tests.servers.pinecone_server import IndexConfig, PineconeConfig, PineconeServer
from tests.servers.postgres import PostgresServer
from tests.servers.qdrant_server import QdrantServer

__all__ = ["self_signed"]

CORPUS = make_corpus(160, seed=31)
DIMENSIONS = 8
STEPS = (
    *("--job", "j", "--embedder", "null", "--dimensions", str(DIMENSIONS), "--max-errors", "100%"),
    *("--batch-size", "8", "--upsert-size", "8", "--checkpoint-interval", "0.05"),
)
DEAD = Weather(dead_after=600)


@dataclass(frozen=True)
class Target:
    """A server, and how a command reaches it at another address."""

    address: str | Path
    arguments: Callable[[str], tuple[str, ...]]
    check: Callable[[Corpus], None]

    def through(self, proxy: FaultProxy) -> tuple[str, ...]:
        return self.arguments(proxy.url.removeprefix("http://"))


def qdrant_target(server: QdrantServer, scheme: str) -> Target:
    server.engine.clear()
    server.script(None)
    address = server.url if scheme.startswith("http") else server.grpc_url
    return Target(
        address,
        lambda place: ("--store", "qdrant", "--url", f"{scheme}://{place}", "--collection", "docs"),
        lambda corpus: test_qdrant.check_content(address, corpus),
    )


def postgres_target(server: PostgresServer, options: str = "") -> Target:
    server.execute(f"DROP SCHEMA IF EXISTS {test_postgres.NAMESPACE} CASCADE")
    where = ("--store", "pgvector", "--collection", "docs", "--namespace", test_postgres.NAMESPACE)
    return Target(
        server.folder / ".s.PGSQL.5432",
        lambda place: (*where, "--url", f"postgresql://postgres@{place}/postgres{options}"),
        lambda corpus: test_postgres.check_content(server, corpus),
    )


def pinecone_target(server: PineconeServer) -> Target:
    return Target(
        server.host("docs"),
        lambda place: ("--store", "pinecone", "--index", "docs", "--url", f"http://{place}"),
        lambda corpus: test_pinecone.check_content(server, corpus),
    )


@pytest.fixture(params=["qdrant rest", "qdrant grpc", "postgres", "pinecone"])
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    kind = request.param
    if kind == "pinecone":
        monkeypatch.setenv("PINECONE_API_KEY", "pc-test")
        config = PineconeConfig(indexes=[IndexConfig(name="docs", dimension=DIMENSIONS)])
        with PineconeServer(config) as server:
            yield pinecone_target(server)
    elif kind == "postgres":
        yield postgres_target(request.getfixturevalue("postgres"))
    else:
        yield qdrant_target(request.getfixturevalue("qdrant"), "http" if "rest" in kind else "grpc")


@pytest.mark.parametrize(
    "weather",
    [
        [Weather(latency=0.02, bandwidth=100_000, upload=100_000)],
        [CUT, FINE, REFUSED, CUT, REFUSED, CUT, FINE],
        [DEAD, DEAD, FINE, HALF_OPEN, FINE],
    ],
    ids=["slow and narrow", "cut", "dead"],
)
def test_through_a_bad_network_everything_arrives_once(
    place: Workplace, target: Target, weather: list[Weather]
) -> None:
    source = CORPUS.write(place.folder / "source.jsonl")
    with FaultProxy(target.address, weather) as proxy:
        result = place.run("run", source, *STEPS, *target.through(proxy), "--timeout", "1", "--json", code=1)
    assert result.counters["read"] == len(CORPUS.lines)
    assert result.counters["rejected"] == len(CORPUS.rejected)
    place.check_rejects(CORPUS)
    target.check(CORPUS)


def test_ten_kilobytes_a_second_are_slow_and_no_fault(place: Workplace, target: Target) -> None:
    few = Corpus(CORPUS.lines[:50])
    source = few.write(place.folder / "source.jsonl")
    with FaultProxy(target.address, [Weather(bandwidth=10_000, upload=10_000)]) as proxy:
        result = place.run("run", source, *STEPS, *target.through(proxy), "--json", code=1)
    assert result.counters["upserts_failed"] == 0
    target.check(few)


def test_a_store_that_falls_silent_is_given_up_in_time_and_taken_up_again(place: Workplace, target: Target) -> None:
    source = CORPUS.write(place.folder / "source.jsonl")
    mended = False

    def weather() -> Iterator[Weather]:
        yield DEAD
        while not mended:
            yield HALF_OPEN
        yield FINE

    with FaultProxy(target.address, weather()) as proxy:
        run = ("run", str(source), *STEPS, *target.through(proxy), "--json")
        failed = place.run(*run, "--timeout", "0.5", "--give-up-after", "1", code=4)
        assert proxy.url.removeprefix("http://") in failed.err or "Postgres at 127.0.0.1" in failed.err
        assert "resume" in failed.err or "check the server, and try again" in failed.err
        mended = True
        result = place.run(*run, code=1)
    place.check_rejects(CORPUS)
    assert result.counters["read"] == len(CORPUS.lines)
    target.check(CORPUS)


@pytest.mark.parametrize("where", ["no-such-host.invalid:6333", "127.0.0.1:{free}"], ids=["no name", "nobody"])
def test_an_address_where_nobody_is_ends_the_run_with_a_sentence(
    place: Workplace, target: Target, where: str
) -> None:
    source = CORPUS.write(place.folder / "source.jsonl")
    where = where.format(free=free_port())
    arguments = target.arguments(where)
    failed = place.run("run", source, *STEPS, *arguments, "--timeout", "2", "--give-up-after", "0.5", code=4)
    assert where.partition(":")[0] in failed.err
    assert "check the server, and try again" in failed.err
    assert failed.err.count("ragingest: ") == 1


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_a_qdrant_whose_certificate_nobody_vouches_for_ends_the_run_at_once(
    place: Workplace, qdrant: QdrantServer, self_signed: tuple[Path, Path], scheme: str
) -> None:
    target = qdrant_target(qdrant, scheme)
    source = CORPUS.write(place.folder / "source.jsonl")
    with FaultProxy(target.address, tls=self_signed) as proxy:
        run = ("run", str(source), *STEPS, *target.through(proxy), "--json")
        failed = place.run(*run, code=4)
        assert "over TLS" in failed.err
        assert "CERTIFICATE_VERIFY_FAILED" in failed.err
        assert "SSL_CERT_FILE" in failed.err
        name = "SSL_CERT_FILE" if scheme == "https" else "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"
        trusting = Workplace(Command(place.folder), ("env", f"{name}={self_signed[0]}"))
        trusting.run(*run, code=1)
    target.check(CORPUS)


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_a_qdrant_that_speaks_no_tls_ends_the_run_at_once(
    place: Workplace, qdrant: QdrantServer, scheme: str
) -> None:
    target = qdrant_target(qdrant, scheme)
    address = str(target.address).partition("://")[2]
    source = CORPUS.write(place.folder / "source.jsonl")
    failed = place.run("run", source, *STEPS, *target.arguments(address), code=4)
    assert "over TLS" in failed.err
    assert "https or http" in failed.err


def test_a_postgres_without_tls_ends_the_run_at_once(place: Workplace, postgres: PostgresServer) -> None:
    target = postgres_target(postgres, "?sslmode=require")
    source = CORPUS.write(place.folder / "source.jsonl")
    with FaultProxy(target.address) as proxy:
        failed = place.run("run", source, *STEPS, *target.through(proxy), code=4)
    assert "over TLS" in failed.err
    assert "check sslmode" in failed.err


def test_a_postgres_whose_certificate_nobody_vouches_for_ends_the_run_at_once(
    place: Workplace, postgres: PostgresServer, self_signed: tuple[Path, Path], tmp_path: Path
) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    source = CORPUS.write(place.folder / "source.jsonl")
    for authority, code in ((other, 4), (self_signed[0], 1)):
        target = postgres_target(postgres, f"?sslmode=verify-full&sslrootcert={authority}")
        with FaultProxy(target.address, tls=self_signed, asked=True) as proxy:
            told = place.run("run", source, *STEPS, *target.through(proxy), "--fresh", code=code)
            assert ("certificate verify failed" in told.err) == (code == 4)
    target.check(CORPUS)
