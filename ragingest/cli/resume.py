"""`ragingest resume JOB`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ragingest.checkpoint.manager import CheckpointManager
from ragingest.cli import options as opt
from ragingest.cli.supervise import Supervised, run_to_exit
from ragingest.events import Emit, Noticed
from ragingest.jobs.copying import open_copy
from ragingest.jobs.wiring import Start, checkpoint_of, open_job

__all__ = ["resume"]


def resume(
    job: Annotated[str, typer.Argument(help="Name of the job, as ragingest stats shows it.")],
    checkpoint_dir: opt.CheckpointDir = Path("checkpoints"),
    device: opt.Device = None,
    concurrency: opt.Concurrency = None,
    batch_size: opt.BatchSize = None,
    upsert_size: opt.UpsertSize = None,
    max_memory: opt.MaxMemory = None,
    max_errors: opt.MaxErrors = None,
    checkpoint_interval: opt.CheckpointInterval = None,
    rpm: opt.Rpm = None,
    tpm: opt.Tpm = None,
    max_concurrency: opt.MaxConcurrency = None,
    timeout: opt.Timeout = None,
    give_up_after: opt.GiveUpAfter = None,
    price_per_million: opt.PricePerMillion = None,
    max_cost: opt.MaxCost = None,
    max_tokens: opt.MaxTokens = None,
    wait: opt.Wait = None,
    poll_interval: opt.PollInterval = None,
    spool: opt.Spool = None,
    keep_embeddings: opt.KeepEmbeddings = None,
    delete_missing: opt.DeleteMissing = None,
    max_delete: opt.MaxDelete = None,
    yes: opt.Yes = False,
    quiet: opt.Quiet = False,
    json_: opt.Json = False,
) -> None:
    """Continue a job where it stopped; every setting comes back from its checkpoint.

    A finished job is run again, which stores what is new or has changed.
    """

    def start(emit: Emit) -> Supervised:
        checkpoint = checkpoint_of(CheckpointManager(checkpoint_dir), job, lambda _warning: None)
        options = opt.apply_options(
            checkpoint.options,
            device=device,
            concurrency=concurrency,
            batch_size=batch_size,
            upsert_size=upsert_size,
            max_memory=max_memory,
            max_errors=max_errors,
            checkpoint_interval=checkpoint_interval,
            rpm=rpm,
            tpm=tpm,
            max_concurrency=max_concurrency,
            timeout=timeout,
            give_up_after=give_up_after,
            price_per_million=price_per_million,
            max_cost=max_cost,
            max_tokens=max_tokens,
            wait=wait,
            poll_interval=poll_interval,
            spool=spool,
            keep_embeddings=keep_embeddings,
            delete_missing=delete_missing,
            max_delete=max_delete,
        )
        if checkpoint.finished:
            emit(Noticed(f"the job {job} was finished: looking for what is new or has changed"))
        if checkpoint.settings.format == "store":
            return open_copy(checkpoint.settings, options, checkpoint_dir, job=job, emit=emit)
        return open_job(checkpoint.settings, options, checkpoint_dir, job=job, start=Start(yes=yes), emit=emit)

    run_to_exit(start, quiet=quiet, as_json=json_, checkpoint_dir=checkpoint_dir)
