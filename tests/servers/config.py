"""The server's settings, and what can be changed while it runs; both can be written as JSON."""

from __future__ import annotations

from typing import Literal

import msgspec

from tests.servers.faults import Fault

__all__ = ["COHERE_SIZES", "BatchOutcome", "Control", "ServerConfig"]

MODELS = {
    "text-embedding-3-small": 1536,
    "text-embedding-3-large": 3072,
    "text-embedding-ada-002": 1536,
    "embed-v4.0": 1536,
    "embed-english-v3.0": 1024,
}

COHERE_TOKENS = {"embed-v4.0": 128_000, "embed-english-v3.0": 512}
COHERE_SIZES = (256, 512, 1024, 1536)
"""What `output_dimension` may be, of embed-v4 and newer."""


class BatchOutcome(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What becomes of a valid batch.

    `done` counts the lines that were processed before it expired or was cancelled (None: half of them);
    `failing` numbers lines, from 0, that end in the error file with `status`.
    """

    end: Literal["completed", "failed", "expired", "cancelled"] = "completed"
    done: int | None = None
    failing: tuple[int, ...] = ()
    status: int = 500


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one server. The defaults are the services' documented limits, and no rate limit."""

    api_key: str | None = "sk-test"
    """The key to be sent; None asks for none."""
    models: dict[str, int] = msgspec.field(default_factory=lambda: dict(MODELS))
    """Dimensions of each model."""
    max_inputs: int = 2048
    max_tokens_per_text: int = 8191
    max_tokens_per_request: int = 300_000
    max_body_bytes: int | None = 32 * 2**20
    deployments: dict[str, str] = msgspec.field(default_factory=lambda: {"my-embeddings": "text-embedding-3-small"})
    """Azure's names of models, under /openai/."""
    cohere_max_texts: int = 96
    cohere_max_tokens: dict[str, int] = msgspec.field(default_factory=lambda: dict(COHERE_TOKENS))
    """Tokens a text of each model; others take `max_tokens_per_text`."""
    tokens_per_ascii_byte: float = 0.27
    tokens_per_other_byte: float = 0.73

    rpm: int | None = None
    tpm: int | None = None
    window: float = 60.0
    """Seconds that `rpm` and `tpm` are counted over: shorten it and tests need not wait a minute."""
    rate_limit_headers: bool = True
    retry_after: bool = True
    """Whether the 429s of the rate limits say how long to wait."""
    latency: float = 0.0
    """Seconds before every answer of the embedding endpoints."""

    poison: str = "POISON"
    """A text with this in it gets the request a 400 that names no text; empty: none does."""
    script: list[Fault | None] | None = None
    odds: list[tuple[float, Fault]] | None = None
    seed: int = 0
    script_endpoint: Literal["embeddings", "files", "batches"] = "embeddings"

    max_file_bytes: int = 200_000_000
    batch_max_requests: int = 50_000
    batch_max_inputs: int = 50_000
    batch_enqueued_tokens: int | None = None
    """Tokens of all batches in progress; one that goes over it fails with `token_limit_exceeded`."""
    polls_per_state: int | None = 1
    """How often each state of a batch is shown before the next; 0: finished when first looked at; None: `advance` only."""
    batch_outcomes: list[BatchOutcome] = []
    """One for each batch created; those after the last complete."""


class Control(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Changes to a running server. What is left out stays as it is; null for a limit takes it away, an empty script the faults."""

    rpm: int | msgspec.UnsetType | None = msgspec.UNSET
    tpm: int | msgspec.UnsetType | None = msgspec.UNSET
    latency: float | None = None
    script: list[Fault | None] | None = None
    odds: list[tuple[float, Fault]] | None = None
    seed: int = 0
    script_endpoint: Literal["embeddings", "files", "batches"] = "embeddings"
    batch_outcomes: list[BatchOutcome] | None = None
    advance: str | None = None
    """Moves the batch with this id one state on; `all` moves all of them."""
