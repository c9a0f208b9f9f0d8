"""SIGKILL before and after every step of a paid vector's way: what was bought is in the store at the end, once, and no
more is bought again than was in flight."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.api.running import KEY, MODEL
from tests.faults.harness import SMALL_CHUNKS, Workplace, make_corpus
from tests.servers.config import ServerConfig
from tests.servers.openai_api import EmbeddingsServer

CORPUS = make_corpus(400, seed=71, padding=4000)
"""Several blocks, so that some are stored when others are bought."""

BATCH = 10
STEPS = (
    "PaidVectors.put:1",
    "Store.upsert:2",
    "Ledger.commit:3",
    "PaidVectors.drop:2",
    "KnownTexts.note:1",
    "PaidVectors.sync:1",
    "CheckpointManager.save:2",
    "CheckpointManager.forget_vectors:1",
)
"""After each kill the next attempt comes to the next step."""

IN_FLIGHT = 4 * BATCH
"""Texts whose answer no attempt may have kept: two requests on the wire, and two whose answer is being read."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddingsServer]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with EmbeddingsServer(ServerConfig(api_key=KEY)) as server:
        yield server


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_every_step_little_is_bought_twice_and_nothing_lost(
    place: Workplace, server: EmbeddingsServer, when: str
) -> None:
    source = CORPUS.write(place.folder / "source.jsonl")
    embedder = ("--embedder", "openai", "--model", MODEL, "--dimensions", "8", "--base-url", server.base_url)
    command: tuple[str, ...] = (
        *("run", str(source), "--job", "j", *embedder, *SMALL_CHUNKS, "--max-concurrency", "2"),
        *("--batch-size", str(BATCH), "--upsert-size", str(BATCH), "--checkpoint-interval", "0.05"),
    )
    for step in STEPS:
        place.run(*command, fault=f"kill:{when}:{step}", code=-signal.SIGKILL)
        place.check_books()
        command = ("resume", "j")
    assert place.command.checkpoint("j")["status"] == "completed"
    counters = place.check(CORPUS, place.resume())
    assert counters["read"] == len(CORPUS.lines)
    bought, different = server.books.texts_answered, len(server.books.times_answered)
    assert bought - different <= len(STEPS) * IN_FLIGHT
    assert not list(place.state.glob("j.vectors.*"))
