"""`ragingest copy --from STORE --to STORE`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from ragingest.cli import options as opt
from ragingest.cli.supervise import run_to_exit
from ragingest.jobs.copying import open_copy
from ragingest.settings import JobSettings, RunOptions, StoreSettings, check_job_name

__all__ = ["copy"]


def copy(
    origin: Annotated[
        str,
        typer.Option(
            "--from",
            help="The collection to read: STORE:PLACE/COLLECTION#NAMESPACE, as in qdrant-edge:ragingest_data/documents.",
        ),
    ],
    target: Annotated[
        str,
        typer.Option("--to", help="The collection to write: qdrant:http://localhost:6333/docs, pinecone:docs#v1."),
    ],
    job: Annotated[
        str | None,
        typer.Option("--job", "-j", envvar="RAGINGEST_JOB", help=r"Name of the job. \[default: made from both]"),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over.")] = False,
    checkpoint_dir: opt.CheckpointDir = Path("checkpoints"),
    drop_text: opt.DropText = False,
    upsert_size: opt.UpsertSize = None,
    bulk: opt.Bulk = None,
    on_disk: opt.OnDisk = None,
    quantization: opt.Quantization = None,
    index_metadata: opt.IndexMetadata = None,
    timeout: opt.Timeout = None,
    give_up_after: opt.GiveUpAfter = None,
    checkpoint_interval: opt.CheckpointInterval = None,
    quiet: opt.Quiet = False,
    json_: opt.Json = False,
) -> None:
    """Copy a collection into another store: its vectors are read, not embedded again. Resumable.

    Nobody should write to the collection meanwhile. What is in the target already stays there.
    """
    settings = JobSettings(
        **{**msgspec.structs.asdict(StoreSettings.parse(target)), "drop_text": drop_text},
        source=str(StoreSettings.parse(origin)),
        format="store",
    )
    options = opt.apply_options(
        RunOptions(),
        upsert_size=upsert_size,
        bulk=bulk,
        on_disk=on_disk,
        quantization=quantization,
        index_metadata=index_metadata,
        timeout=timeout,
        give_up_after=give_up_after,
        checkpoint_interval=checkpoint_interval,
    )
    if job is not None:
        check_job_name(job)
    run_to_exit(
        lambda emit: open_copy(settings, options, checkpoint_dir, job=job, fresh=fresh, emit=emit),
        quiet=quiet,
        as_json=json_,
        checkpoint_dir=checkpoint_dir,
    )
