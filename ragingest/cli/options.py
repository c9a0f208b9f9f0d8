"""Options that several commands share, and how they become settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from ragingest.errors import ExitCode
from ragingest.settings import ErrorBudget, MemoryLimit, RunOptions

__all__ = [
    "EXIT_CODES",
    "BatchSize",
    "CheckpointDir",
    "CheckpointInterval",
    "Collection",
    "Concurrency",
    "Json",
    "MaxErrors",
    "MaxMemory",
    "Quiet",
    "StorePath",
    "UpsertSize",
    "GiveUpAfter",
    "KeepEmbeddings",
    "MaxConcurrency",
    "MaxCost",
    "MaxTokens",
    "PricePerMillion",
    "Rpm",
    "Timeout",
    "Tpm",
    "apply_options",
]

EXIT_CODES = "Exit codes: " + "; ".join(f"{int(code)} {code.meaning}" for code in ExitCode) + "."

RUNNING = "How it runs"
API = "Embeddings API"
OUTPUT = "Output"

CheckpointDir = Annotated[
    Path,
    typer.Option(
        "--checkpoint-dir", envvar="RAGINGEST_CHECKPOINT_DIR", help="Folder of the jobs' state.", show_default=True
    ),
]
StorePath = Annotated[
    Path, typer.Option("--store-path", envvar="RAGINGEST_STORE_PATH", help="Folder of the embedded store.")
]
Collection = Annotated[
    str, typer.Option("--collection", "-c", envvar="RAGINGEST_COLLECTION", help="Collection in the store.")
]
Concurrency = Annotated[
    int | None,
    typer.Option(
        envvar="RAGINGEST_CONCURRENCY",
        help="Embedding calls at once. [default: what the embedder advises]",
        rich_help_panel=RUNNING,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        envvar="RAGINGEST_BATCH_SIZE",
        help="Chunks in an embedding call, at most. [default: what the embedder takes]",
        rich_help_panel=RUNNING,
    ),
]
UpsertSize = Annotated[
    int | None,
    typer.Option(
        envvar="RAGINGEST_UPSERT_SIZE",
        help="Points in an upsert, at most. [default: what the store takes]",
        rich_help_panel=RUNNING,
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        envvar="RAGINGEST_MAX_MEMORY",
        help="Pause reading over this: 80% of the machine or container, or 2GiB of this process. [default: 80%]",
        rich_help_panel=RUNNING,
    ),
]
MaxErrors = Annotated[
    str | None,
    typer.Option(
        envvar="RAGINGEST_MAX_ERRORS",
        help="Stop when more records than N, or than N% of at least 100 read, are rejected. [default: 10%]",
        rich_help_panel=RUNNING,
    ),
]
CheckpointInterval = Annotated[
    float | None,
    typer.Option(
        envvar="RAGINGEST_CHECKPOINT_INTERVAL",
        help="Seconds between checkpoints. [default: 2]",
        rich_help_panel=RUNNING,
    ),
]
Rpm = Annotated[
    float | None,
    typer.Option(
        "--rpm",
        envvar="RAGINGEST_RPM",
        help="Requests a minute, at most. [default: what the server says]",
        rich_help_panel=API,
    ),
]
Tpm = Annotated[
    float | None,
    typer.Option(
        "--tpm",
        envvar="RAGINGEST_TPM",
        help="Tokens a minute, at most. [default: what the server says]",
        rich_help_panel=API,
    ),
]
MaxConcurrency = Annotated[
    int | None,
    typer.Option(
        envvar="RAGINGEST_MAX_CONCURRENCY",
        help="Requests at once, at most; how many make sense is found out. [default: 64]",
        rich_help_panel=API,
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(envvar="RAGINGEST_TIMEOUT", help="Seconds for one request. [default: 60]", rich_help_panel=API),
]
GiveUpAfter = Annotated[
    float | None,
    typer.Option(
        envvar="RAGINGEST_GIVE_UP_AFTER",
        help="Stop after so many seconds of failure without a success. [default: 600]",
        rich_help_panel=API,
    ),
]
PricePerMillion = Annotated[
    float | None,
    typer.Option(
        envvar="RAGINGEST_PRICE_PER_MILLION",
        help="Dollars for a million tokens. [default: the list price, if known]",
        rich_help_panel=API,
    ),
]
MaxCost = Annotated[
    float | None,
    typer.Option(
        envvar="RAGINGEST_MAX_COST",
        help="Stop before the request that would make the run cost more dollars.",
        rich_help_panel=API,
    ),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        envvar="RAGINGEST_MAX_TOKENS",
        help="Stop before the request that would make the run use more tokens.",
        rich_help_panel=API,
    ),
]
KeepEmbeddings = Annotated[
    bool | None,
    typer.Option(
        "--keep-embeddings/--no-keep-embeddings",
        envvar="RAGINGEST_KEEP_EMBEDDINGS",
        help="Keep paid vectors on disk for other runs, stores and jobs. [default: until the store has them]",
        rich_help_panel=API,
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", envvar="RAGINGEST_QUIET", help="No progress.", rich_help_panel=OUTPUT)
]
Json = Annotated[
    bool,
    typer.Option("--json", help="One JSON document on stdout, everything else on stderr.", rich_help_panel=OUTPUT),
]


def apply_options(options: RunOptions, **given: Any) -> RunOptions:
    """`options` with those values replaced that are given (not None), as the command line has them.

    Raises:
        UsageError: a value cannot be understood.
    """
    values = {name: value for name, value in given.items() if value is not None}
    if "max_memory" in values:
        values["max_memory"] = MemoryLimit.parse(values["max_memory"])
    if "max_errors" in values:
        values["max_errors"] = ErrorBudget.parse(values["max_errors"])
    return msgspec.structs.replace(options, **values)
