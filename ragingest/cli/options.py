"""Options that several commands share, and how they become settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    "apply_options",
]

EXIT_CODES = "Exit codes: " + "; ".join(f"{int(code)} {code.meaning}" for code in ExitCode) + "."

RUNNING = "How it runs"
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
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", envvar="RAGINGEST_QUIET", help="No progress.", rich_help_panel=OUTPUT)
]
Json = Annotated[
    bool,
    typer.Option("--json", help="One JSON document on stdout, everything else on stderr.", rich_help_panel=OUTPUT),
]


def apply_options(
    options: RunOptions,
    *,
    concurrency: int | None,
    batch_size: int | None,
    upsert_size: int | None,
    max_memory: str | None,
    max_errors: str | None,
    checkpoint_interval: float | None,
) -> RunOptions:
    """`options` with those values replaced that are given.

    Raises:
        UsageError: a value cannot be understood.
    """
    given = {
        "concurrency": concurrency,
        "batch_size": batch_size,
        "upsert_size": upsert_size,
        "max_memory": MemoryLimit.parse(max_memory) if max_memory is not None else None,
        "max_errors": ErrorBudget.parse(max_errors) if max_errors is not None else None,
        "checkpoint_interval": checkpoint_interval,
    }
    return msgspec.structs.replace(options, **{name: value for name, value in given.items() if value is not None})
