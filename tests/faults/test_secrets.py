"""Keys and passwords appear in no file, no message and no list of processes, whatever happens; state stays where it is."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

import ragingest
from ragingest import JobSettings, RunOptions
from ragingest.settings import ErrorBudget, StoreSettings
from tests.api.running import MODEL
from tests.e2e.command import Command
from tests.faults import test_postgres
from tests.faults.harness import SMALL_CHUNKS, SMALL_STEPS, Workplace, finish, make_corpus
from tests.servers.config import ServerConfig
from tests.servers.openai_api import EmbeddingsServer
from tests.servers.postgres import PASSWORD_USER, PostgresServer
from tests.servers.qdrant_server import QdrantConfig, QdrantServer

SECRET = "sk-SECRET-0123456789"  # noqa: S105  # what must be found nowhere
PASSWORD = "secret"  # noqa: S105  # of `PASSWORD_USER`
KEYS = (
    "OPENAI_API_KEY",
    "AZURE_OPENAI_API_KEY",
    "COHERE_API_KEY",
    "QDRANT_API_KEY",
    "PINECONE_API_KEY",
    "PGPASSWORD",
)
CORPUS = make_corpus(60, seed=51)
PATIENCE = ("--timeout", "2", "--give-up-after", "0.5")


class Echo:
    """A server that answers everything with one status, and repeats what it was sent in every place of an error."""

    def __init__(self, status: int) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                sent = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode(errors="replace")
                said = f"I was sent {self.headers} {sent}"[:600]
                error = {"message": said, "code": "x", "type": "y", "error": said}
                body = json.dumps({"error": error, "status": {"error": said}, "message": said}).encode()
                self.send_response(status, "No")
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_PUT = do_PATCH = do_DELETE = do_CONNECT = do_GET  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.place = f"127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Echo:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    for name in KEYS:
        monkeypatch.setenv(name, SECRET)
    CORPUS.write(tmp_path / "source.jsonl")
    return Workplace(Command(tmp_path))


@pytest.fixture
def visible(place: Workplace) -> Workplace:
    """The same, where each process has a command line of its own; a forked one has that of another."""
    return Workplace(replace(place.command, start=subprocess.Popen))


def run(*more: str) -> tuple[str, ...]:
    return ("run", "source.jsonl", "--job", "j", "--max-errors", "100%", *SMALL_CHUNKS, *SMALL_STEPS, *more)


def look_for(place: Workplace, *told: bytes, secret: str = SECRET) -> None:
    """In what was told, and in every file."""
    for output in told:
        assert b"Traceback" not in output, output
        assert secret.encode() not in output, output
    for path in place.folder.rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path


STATUSES = [400, 401, 404, 429, 500, 200]

TARGETS = {
    "openai": {"embedder": "openai", "base_url": "http://{}/v1"},
    "batch": {"embedder": "openai-batch", "base_url": "http://{}/v1"},
    "cohere": {"embedder": "cohere", "base_url": "http://{}"},
    "qdrant": {"store": "qdrant", "url": "http://{}"},
    "qdrant grpc": {"store": "qdrant", "url": "grpc://{}"},
    "pinecone": {"store": "pinecone", "collection": "docs"},
    "pinecone host": {"store": "pinecone", "collection": "docs", "url": "http://{}"},
}


@pytest.mark.parametrize("target", TARGETS)
def test_a_server_that_repeats_the_key_is_not_repeated(
    place: Workplace, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    for status in STATUSES:
        with Echo(status) as server:
            monkeypatch.setenv("PINECONE_CONTROLLER_HOST", f"http://{server.place}")
            values = {name: value.format(server.place) for name, value in TARGETS[target].items()}
            look_for(place, ended(place, f"j{status}", values).encode())


def ended(place: Workplace, job: str, values: dict[str, str]) -> str:
    """What ends a run with these settings, within this process."""
    settings = msgspec.convert({"source": "", "embedder": "null", **values}, JobSettings)
    options = RunOptions(
        timeout=2, give_up_after=0.3, wait=False, checkpoint_interval=0.05, max_errors=ErrorBudget(share=1.0)
    )
    source = place.folder / "source.jsonl"
    work = ragingest.ingest(source, job=job, settings=settings, options=options, checkpoint_dir=place.state)
    try:
        summary = asyncio.run(work)
    except ragingest.RagingestError as error:
        # All that a traceback would show, in words of its own.
        return "".join(traceback.format_exception(error)).replace("Traceback", "") + error.hint
    return f"{summary}"


def test_what_commands_tell_of_a_run_that_failed(place: Workplace) -> None:
    with Echo(401) as server:
        embedder = ("--embedder", "openai", "--model", MODEL, "--base-url", f"http://{server.place}/v1")
        told = [*place.start(*run(*embedder, *PATIENCE), "--json").communicate()]
        assert b"answered 401" in told[0]
        assert b"***" in told[0]
        for command in (
            ("stats", "j", "--json"),
            ("jobs", "--json"),
            ("failures", "--report", "report.html"),
            ("jobs", "export", "j", "j.tar"),
            ("resume", "j", *PATIENCE),
            ("search", "x", *embedder),
        ):
            told += place.start(*command).communicate()
        look_for(place, *told)


@pytest.fixture
def servers(qdrant_with_key: QdrantServer) -> Iterator[tuple[EmbeddingsServer, QdrantServer]]:
    with EmbeddingsServer(ServerConfig(api_key=SECRET)) as server:
        yield server, qdrant_with_key


@pytest.fixture(scope="module")
def qdrant_with_key() -> Iterator[QdrantServer]:
    with QdrantServer(QdrantConfig(api_key=SECRET)) as server:
        yield server


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_a_run_that_goes_well_leaves_no_key_and_no_process_shows_one(
    visible: Workplace, servers: tuple[EmbeddingsServer, QdrantServer], protocol: str
) -> None:
    openai, qdrant = servers
    url = qdrant.url if protocol == "rest" else qdrant.grpc_url
    where = ("--store", "qdrant", "--url", url, "--collection", protocol)
    process = visible.start(
        *run("--embedder", "openai", "--model", MODEL, "--base-url", openai.base_url, *where), "--json"
    )
    told = []
    while process.poll() is None:
        told += command_lines(process.pid)
    result = finish(process, 0)
    assert len(told) > 1
    look_for(visible, result.out.encode(), result.err.encode(), *told)


def test_the_process_of_the_embedded_store_is_not_started_with_a_key(visible: Workplace) -> None:
    process = visible.start(*run(), fault=visible.with_gate(2))
    with visible.gate(process):
        told = command_lines(process.pid)
        assert len(told) == 2
    result = finish(process, 0)
    look_for(visible, result.out.encode(), result.err.encode(), *told)


def command_lines(pid: int) -> list[bytes]:
    """Those of a process and its descendants, as everybody on the machine sees them."""
    with suppress(psutil.Error):  # it is ending
        process = psutil.Process(pid)
        return [" ".join(one.cmdline()).encode() for one in (process, *process.children(recursive=True))]
    return []


@pytest.mark.parametrize(("password", "code"), [(PASSWORD, 0), (f"{PASSWORD}-wrong", 4)])
def test_the_password_of_postgres(
    place: Workplace, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, password: str, code: int
) -> None:
    monkeypatch.setenv("PGPASSWORD", password)
    url = postgres.url(user=PASSWORD_USER)
    where = ("--store", "pgvector", "--url", url, "--collection", "docs", "--namespace", test_postgres.NAMESPACE)
    postgres.execute(f"DROP SCHEMA IF EXISTS {test_postgres.NAMESPACE} CASCADE")
    result = place.run(*run(*where, "--embedder", "null"), code=code)
    postgres.execute(f"DROP SCHEMA IF EXISTS {test_postgres.NAMESPACE} CASCADE")
    assert password not in result.out + result.err
    assert (
        password not in (place.state / "j.json").read_text() if code == 0 else not (place.state / "j.json").exists()
    )


@pytest.mark.parametrize("status", [None, 407, 502])
def test_the_password_of_a_proxy(place: Workplace, monkeypatch: pytest.MonkeyPatch, status: int | None) -> None:
    with Echo(status or 500) as server:
        proxy = server.place if status else "127.0.0.1:1"
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://me:{SECRET}@{proxy}")
        monkeypatch.setenv("no_proxy", "")
        for number, values in enumerate(
            (
                {"embedder": "openai", "base_url": "http://api.invalid/v1"},
                {"embedder": "openai", "base_url": "https://api.invalid/v1"},
                {"store": "qdrant", "url": "http://qdrant.invalid:6333"},
                {"store": "qdrant", "url": "grpc://qdrant.invalid:6334"},
            )
        ):
            look_for(place, ended(place, f"j{number}", values).encode())


@pytest.mark.parametrize("how", ["flag", "variable", "file"])
def test_a_key_in_a_url_is_refused_and_not_repeated(place: Workplace, how: str) -> None:
    url = f"http://me:{SECRET}@127.0.0.1:6333"
    given = ("--url", url) if how == "flag" else ()
    if how == "variable":
        place = Workplace(place.command, ("env", f"RAGINGEST_URL={url}"))
    if how == "file":
        (place.folder / "ragingest.toml").write_text(f"url = {json.dumps(url)}\n")
    result = place.run(*run("--store", "qdrant", *given), code=2)
    assert "--url holds a password or key" in result.err
    assert SECRET not in result.out + result.err
    assert not place.state.exists() or not list(place.state.iterdir())


@pytest.mark.parametrize("end", ["", "/docs", "/docs?api-key=x", ":x/docs", "/?"])
def test_a_key_in_the_address_of_a_collection_is_refused_and_not_repeated(end: str) -> None:
    for there in (
        f"qdrant:http://me:{SECRET}@127.0.0.1:6333{end}",
        f"qdrant:http://127.0.0.1{end}?api-key={SECRET}/d",
    ):
        with pytest.raises(ragingest.UsageError) as caught:
            StoreSettings.parse(there)
        assert SECRET not in f"{caught.value} {caught.value.hint}"


def test_a_key_that_is_no_setting_is_named_without_its_value(place: Workplace) -> None:
    (place.folder / "ragingest.toml").write_text(f'api-key = "{SECRET}"\n')
    result = place.run(*run(), code=2)
    assert "api-key" in result.err
    assert SECRET not in result.out + result.err


def test_no_state_file_is_written_through_a_link(
    place: Workplace, servers: tuple[EmbeddingsServer, QdrantServer]
) -> None:
    openai, _ = servers
    embedder = ("--embedder", "openai", "--model", MODEL, "--base-url", openai.base_url)
    place.run(*run(*embedder), fault="kill:after:Store.upsert:2", code=-9)
    victims = place.folder / "victims"
    victims.mkdir()
    kept = [path for path in place.state.iterdir() if path.is_file()]
    assert {path.name.removeprefix("j.").partition(".")[0] for path in kept} >= {
        "json",
        "ledger",
        "vectors",
        "lock",
    }
    for path in [*kept, place.state / "j.rejects.jsonl", place.state / "j.batches.sqlite"]:
        victim = victims / path.name
        data = path.read_bytes() if path.exists() else b"precious"
        victim.write_bytes(data)
        path.unlink(missing_ok=True)
        path.symlink_to(victim)
        process = place.start("resume", "j", *PATIENCE)
        _, err = process.communicate()
        assert b"Traceback" not in err
        assert process.returncode == 4, (path, err)
        assert victim.read_bytes() == data, path
        assert path.is_symlink()
        path.unlink()
        if data != b"precious":
            path.write_bytes(data)
            path.chmod(0o600)
    place.run("resume", "j")
