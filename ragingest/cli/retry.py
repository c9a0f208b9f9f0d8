"""`ragingest retry JOB`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from ragingest.checkpoint.manager import CheckpointManager
from ragingest.cli import display
from ragingest.cli import options as opt
from ragingest.cli.supervise import Supervised, run_to_exit
from ragingest.errors import UsageError
from ragingest.events import Emit
from ragingest.jobs.wiring import Retry, Start, checkpoint_of, open_job
from ragingest.settings import parse_size

__all__ = ["retry"]


def retry(
    job: Annotated[str, typer.Argument(help="Name of the job, as ragingest stats shows it.")],
    corrected: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Take the records from this file: with the ids of rejected ones, or an edited copy of the rejects file.",
        ),
    ] = None,
    max_record_bytes: Annotated[
        str | None, typer.Option(help=r"Take records up to this size. \[default: as the run did]")
    ] = None,
    checkpoint_dir: opt.CheckpointDir = Path("checkpoints"),
    concurrency: opt.Concurrency = None,
    batch_size: opt.BatchSize = None,
    upsert_size: opt.UpsertSize = None,
    max_memory: opt.MaxMemory = None,
    checkpoint_interval: opt.CheckpointInterval = None,
    rpm: opt.Rpm = None,
    tpm: opt.Tpm = None,
    max_concurrency: opt.MaxConcurrency = None,
    timeout: opt.Timeout = None,
    give_up_after: opt.GiveUpAfter = None,
    price_per_million: opt.PricePerMillion = None,
    max_cost: opt.MaxCost = None,
    max_tokens: opt.MaxTokens = None,
    spool: opt.Spool = None,
    keep_embeddings: opt.KeepEmbeddings = None,
    quiet: opt.Quiet = False,
    json_: opt.Json = False,
) -> None:
    """Try only the rejected records of a finished job again; those that are stored now leave the list.

    One that is rejected again stays, with its new reason. Counters and exit code are those of the job.
    """
    checkpoint = checkpoint_of(CheckpointManager(checkpoint_dir), job, display.show_warning)
    settings = checkpoint.settings
    if settings.format == "store":
        raise UsageError(f"the job {job} is a copy", f"copy again what is missing: ragingest resume {job}")
    if max_record_bytes is not None:
        limit = parse_size(max_record_bytes, "--max-record-bytes")
        settings = msgspec.structs.replace(settings, max_record_bytes=limit)
    options = opt.apply_options(
        checkpoint.options,
        concurrency=concurrency,
        batch_size=batch_size,
        upsert_size=upsert_size,
        max_memory=max_memory,
        checkpoint_interval=checkpoint_interval,
        rpm=rpm,
        tpm=tpm,
        max_concurrency=max_concurrency,
        timeout=timeout,
        give_up_after=give_up_after,
        price_per_million=price_per_million,
        max_cost=max_cost,
        max_tokens=max_tokens,
        spool=spool,
        keep_embeddings=keep_embeddings,
    )

    def start(emit: Emit) -> Supervised:
        again = Start(retry=Retry(corrected))
        return open_job(settings, options, checkpoint_dir, job=job, start=again, emit=emit)

    run_to_exit(start, quiet=quiet, as_json=json_, checkpoint_dir=checkpoint_dir, command="retry")
