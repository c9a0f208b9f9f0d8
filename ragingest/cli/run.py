"""`ragingest run SOURCE`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ragingest.cli import options as opt
from ragingest.cli.plan import plan_to_exit
from ragingest.cli.supervise import run_to_exit
from ragingest.jobs.planning import PlanOptions
from ragingest.jobs.wiring import Start, open_job
from ragingest.settings import DEFAULT_CHUNK_OVERLAP, DEFAULT_CHUNK_SIZE, RunOptions, check_job_name

__all__ = ["run"]

JOB = "Job"


def run(
    source: opt.Source,
    job: Annotated[
        str | None,
        typer.Option(
            "--job",
            "-j",
            envvar="RAGINGEST_JOB",
            help=r"Name of the job. \[default: made from source, store and collection]",
            rich_help_panel=JOB,
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over: forget what the job has done.", rich_help_panel=JOB)
    ] = False,
    reembed: Annotated[
        bool,
        typer.Option(
            "--reembed",
            help="Store every document again in place, also under another model or chunking.",
            rich_help_panel=JOB,
        ),
    ] = False,
    full: Annotated[
        bool,
        typer.Option("--full", help="Read the whole source, even if it was only appended to.", rich_help_panel=JOB),
    ] = False,
    delete_missing: opt.DeleteMissing = None,
    max_delete: opt.MaxDelete = None,
    yes: opt.Yes = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only say what it would do, as ragingest plan.", rich_help_panel=JOB),
    ] = False,
    checkpoint_dir: opt.CheckpointDir = Path("checkpoints"),
    format_: opt.Format = "auto",
    json_path: opt.JsonPath = None,
    id_field: opt.IdField = "id",
    text_field: opt.TextField = None,
    metadata_field: opt.MetadataField = None,
    max_record_bytes: opt.MaxRecordBytes = "16MiB",
    on_duplicate: opt.WhichDuplicate = "last",
    embedder: opt.Embedder = "wordllama",
    model: opt.Model = None,
    base_url: opt.BaseUrl = None,
    dimensions: opt.Dimensions = None,
    chunk: opt.SplitLong = True,
    chunk_size: opt.ChunkSize = DEFAULT_CHUNK_SIZE,
    chunk_overlap: opt.ChunkOverlap = DEFAULT_CHUNK_OVERLAP,
    truncate: opt.Truncate = False,
    store: opt.Store = "qdrant-edge",
    collection: opt.Collection = "documents",
    store_path: opt.StorePath = Path("ragingest_data"),
    url: opt.Url = None,
    namespace: opt.Namespace = None,
    metadata_keys: opt.MetadataKeys = None,
    drop_text: opt.DropText = False,
    flatten_metadata: opt.FlattenMetadata = False,
    bulk: opt.Bulk = None,
    on_disk: opt.OnDisk = None,
    quantization: opt.Quantization = None,
    index_metadata: opt.IndexMetadata = None,
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
    quiet: opt.Quiet = False,
    json_: opt.Json = False,
) -> None:
    """Embed every record of SOURCE and store it; continue the job if it is unfinished.

    Running a finished job again stores what is new or has changed.
    """
    settings = opt.job_settings(
        source=source,
        format=format_,
        json_path=json_path,
        id_field=id_field,
        text_field=text_field,
        metadata_field=metadata_field,
        max_record_bytes=max_record_bytes,
        embedder=embedder,
        model=model,
        base_url=base_url,
        dimensions=dimensions,
        chunk=chunk,
        chunk_size=chunk_size,
        chunk_overlap=chunk_overlap,
        truncate=truncate,
        store=store,
        store_path=str(store_path),
        url=url,
        collection=collection,
        namespace=namespace,
        metadata_keys=metadata_keys,
        drop_text=drop_text,
        flatten_metadata=flatten_metadata,
        on_duplicate=on_duplicate,
    )
    options = opt.apply_options(
        RunOptions(),
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
        bulk=bulk,
        on_disk=on_disk,
        quantization=quantization,
        index_metadata=index_metadata,
        delete_missing=delete_missing,
        max_delete=max_delete,
    )
    start = Start(fresh=fresh, reembed=reembed, full=full, yes=yes)
    if job is not None:
        check_job_name(job)
    if dry_run:
        plan_to_exit(settings, PlanOptions(run=options), quiet=quiet, as_json=json_)
    run_to_exit(
        lambda emit: open_job(settings, options, checkpoint_dir, job=job, start=start, emit=emit),
        quiet=quiet,
        as_json=json_,
        checkpoint_dir=checkpoint_dir,
    )
