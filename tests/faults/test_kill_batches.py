"""SIGKILL before and after every step of a batch: each text is submitted once and stored once, and what is in the
store at the end is what an undisturbed run leaves there."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from ragingest.protocols import StoredPoint
from tests.e2e.command import Command, Result, stored
from tests.faults.harness import SMALL_CHUNKS, Workplace, make_corpus
from tests.servers.config import ServerConfig
from tests.servers.openai_api import EmbeddingsServer

KEY = "sk-test"
DIMENSIONS = 8
BATCH = 20
CORPUS = make_corpus(250, seed=11, padding=4000)
"""Several blocks, so that a pass stores some and leaves others."""

CONFIG = ServerConfig(api_key=KEY)

STEPS = (
    "BatchStates.add",
    "OpenAIBatches.upload",
    "OpenAIBatches.create",
    "OpenAIBatches.status",
    "OpenAIBatches.download",
    "PaidVectors.put",
    "BatchStates.settle",
    "PaidVectors.retain",
    "OpenAIBatches.delete_file",
    "Store.upsert",
    "Ledger.commit",
)
"""Of a batch, in their order. After each kill the next attempt comes to the next step."""


@pytest.fixture
def server() -> Iterator[EmbeddingsServer]:
    with EmbeddingsServer(CONFIG) as server:
        yield server


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def options(server: EmbeddingsServer) -> tuple[str, ...]:
    return (
        *("--job", "j", "--embedder", "openai-batch", "--base-url", server.base_url),
        *("--dimensions", str(DIMENSIONS), "--batch-size", str(BATCH), "--poll-interval", "0.02"),
        *("--checkpoint-interval", "0.05", "--upsert-size", "16", *SMALL_CHUNKS),
    )


Content = Mapping[str, list[tuple[str, str, str, bytes]]]


def content(place: Workplace) -> Content:
    """Of each document its chunks: point, text, digest, vector."""
    points: Mapping[str, list[StoredPoint]] = stored(place.folder, CORPUS.accepted)
    return {id_: [(p.point_id, p.text, p.digest, p.dense.tobytes()) for p in of] for id_, of in points.items()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Content:
    """What a run leaves in the store to which nothing happened."""
    place = Workplace(Command(tmp_path_factory.mktemp("undisturbed")))
    source = CORPUS.write(place.folder / "source.jsonl")
    with pytest.MonkeyPatch.context() as patch, EmbeddingsServer(CONFIG) as server:
        patch.setenv("OPENAI_API_KEY", KEY)
        counters = place.check(CORPUS, place.run("run", source, *options(server), "--json", code=1))
        assert counters["duplicate"] == CORPUS.duplicates > 0
        assert counters["chunks"] > counters["stored"]
        assert server.books.batches_created > 3
        assert set(server.books.batch_times_submitted.values()) == {1}
    return content(place)


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_every_step_nothing_is_submitted_or_stored_twice(
    place: Workplace, server: EmbeddingsServer, undisturbed: Content, when: str
) -> None:
    command: tuple[str | Path, ...] = ("run", CORPUS.write(place.folder / "source.jsonl"), *options(server))
    for step in STEPS:
        place.run(*command, fault=f"kill:{when}:{step}:1", code=-signal.SIGKILL)
        place.check_books()
        command = ("resume", "j")
    check(place, server, undisturbed, place.resume())


@pytest.mark.parametrize("step", ["upload:3", "create:3", "status:9", "download:3"])
def test_killed_between_an_answer_and_what_is_written_of_it_it_asks_before_it_sends_again(
    place: Workplace, server: EmbeddingsServer, undisturbed: Content, step: str
) -> None:
    source = CORPUS.write(place.folder / "source.jsonl")
    place.run("run", source, *options(server), fault=f"kill:after:OpenAIBatches.{step}", code=-signal.SIGKILL)
    check(place, server, undisturbed, place.resume())
    assert server.books.files_uploaded == server.books.batches_created


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_when_all_is_done_it_leaves_nothing_behind_in_the_end(
    place: Workplace, server: EmbeddingsServer, undisturbed: Content, when: str
) -> None:
    source = CORPUS.write(place.folder / "source.jsonl")
    place.run("run", source, *options(server), fault=f"kill:{when}:BatchStates.delete:1", code=-signal.SIGKILL)
    assert place.command.checkpoint("j")["status"] == "completed"
    assert set(server.books.batch_times_submitted.values()) == {1}
    place.check(CORPUS, place.resume())
    assert content(place) == undisturbed
    nothing_is_left(place)


def check(place: Workplace, server: EmbeddingsServer, undisturbed: Content, result: Result) -> None:
    counters = place.check(CORPUS, result)
    assert result.document["run"] == 1
    assert counters["stored"] == len(CORPUS.accepted)
    assert counters["duplicate"] == CORPUS.duplicates
    assert content(place) == undisturbed
    books, told = server.books, result.document["counters"]["books"]
    assert set(books.batch_times_submitted.values()) == set(books.batch_times_answered.values()) == {1}
    assert (told["texts"], told["tokens"]) == (books.batch_texts_answered, books.batch_tokens_answered)
    assert told["batches"] == told["batches_done"] == books.batches_created
    nothing_is_left(place)


def nothing_is_left(place: Workplace) -> None:
    left = {path.name for path in place.state.iterdir()}
    assert left == {"j.json", "j.json.bak", "j.ledger.sqlite", "j.rejects.jsonl", "j.lock", "completed"}
