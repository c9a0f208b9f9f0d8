"""`ragingest run SOURCE`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ragingest.cli import options as opt
from ragingest.cli.supervise import run_to_exit
from ragingest.embedders import EMBEDDERS
from ragingest.errors import UsageError
from ragingest.library import absolute
from ragingest.settings import (
    DEFAULT_CHUNK_OVERLAP,
    DEFAULT_CHUNK_SIZE,
    JobSettings,
    RunOptions,
    check_job_name,
    parse_size,
)
from ragingest.stores import STORES
from ragingest.wiring import open_job

__all__ = ["run"]

FIELDS = "Records"
CHUNKS = "Embedding"
STORE = "Store"
JOB = "Job"


def run(
    source: Annotated[
        str,
        typer.Argument(
            help="A .jsonl, .ndjson or .json file, also .gz, .bz2, .xz or .zst, or - for standard input."
        ),
    ],
    job: Annotated[
        str | None,
        typer.Option(
            "--job",
            "-j",
            envvar="RAGINGEST_JOB",
            help="Name of the job. [default: made from source, store and collection]",
            rich_help_panel=JOB,
        ),
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Start over: forget what the job has done.", rich_help_panel=JOB),
    ] = False,
    checkpoint_dir: opt.CheckpointDir = Path("checkpoints"),
    format_: Annotated[
        Literal["auto", "jsonl", "json"],
        typer.Option("--format", help="auto goes by the file's name.", rich_help_panel=FIELDS),
    ] = "auto",
    json_path: Annotated[
        str | None,
        typer.Option(
            help="Where the array of records is in a .json document: a.b.item. "
            "[default: the top, or documents, data, records, items]",
            rich_help_panel=FIELDS,
        ),
    ] = None,
    id_field: Annotated[str, typer.Option(help="Key of the id.", rich_help_panel=FIELDS)] = "id",
    text_field: Annotated[
        list[str] | None,
        typer.Option(help="Key of the text; several are joined. [default: text]", rich_help_panel=FIELDS),
    ] = None,
    metadata_field: Annotated[
        str | None,
        typer.Option(
            help="Key of the metadata object. [default: every other key, an object under metadata unfolded]",
            rich_help_panel=FIELDS,
        ),
    ] = None,
    max_record_bytes: Annotated[
        str, typer.Option(help="Reject records larger than this, unread.", rich_help_panel=FIELDS)
    ] = "16MiB",
    embedder: Annotated[
        str,
        typer.Option(envvar="RAGINGEST_EMBEDDER", help=f"One of {', '.join(EMBEDDERS)}.", rich_help_panel=CHUNKS),
    ] = "wordllama",
    model: Annotated[
        str | None,
        typer.Option(
            envvar="RAGINGEST_MODEL",
            help="Model of an embeddings API. [default: its usual one]",
            rich_help_panel=CHUNKS,
        ),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(
            envvar="RAGINGEST_BASE_URL",
            help="Of an API that speaks OpenAI's: vLLM, TEI, Infinity, Ollama, Azure. The key comes from OPENAI_API_KEY.",
            rich_help_panel=CHUNKS,
        ),
    ] = None,
    dimensions: Annotated[
        int | None,
        typer.Option(help="Numbers in a vector. [default: the embedder's]", rich_help_panel=CHUNKS),
    ] = None,
    chunk: Annotated[
        bool, typer.Option("--chunk/--no-chunk", help="Split long documents.", rich_help_panel=CHUNKS)
    ] = True,
    chunk_size: Annotated[
        int, typer.Option(help="Tokens of the embedder in a chunk, at most.", rich_help_panel=CHUNKS)
    ] = DEFAULT_CHUNK_SIZE,
    chunk_overlap: Annotated[
        int, typer.Option(help="Tokens that neighbours share, at most.", rich_help_panel=CHUNKS)
    ] = DEFAULT_CHUNK_OVERLAP,
    store: Annotated[
        str, typer.Option(envvar="RAGINGEST_STORE", help=f"One of {', '.join(STORES)}.", rich_help_panel=STORE)
    ] = "qdrant-edge",
    collection: opt.Collection = "documents",
    store_path: opt.StorePath = Path("ragingest_data"),
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
    keep_embeddings: opt.KeepEmbeddings = None,
    quiet: opt.Quiet = False,
    json_: opt.Json = False,
) -> None:
    """Embed every record of SOURCE and store it; continue the job if it is unfinished.

    Running a finished job again stores what is new or has changed.
    """
    if dimensions is not None and dimensions < 1:
        raise UsageError(f"--dimensions {dimensions} is too small", "give at least 1")
    settings = absolute(
        JobSettings(
            source=source,
            format=format_,
            json_path=json_path,
            id_field=id_field,
            text_fields=tuple(text_field or ["text"]),
            metadata_field=metadata_field,
            max_record_bytes=parse_size(max_record_bytes, "--max-record-bytes"),
            embedder=embedder,
            model=model,
            base_url=base_url,
            dimensions=dimensions,
            chunk=chunk,
            chunk_size=chunk_size,
            chunk_overlap=chunk_overlap,
            store=store,
            store_path=str(store_path),
            collection=collection,
        )
    )
    options = opt.apply_options(
        RunOptions(),
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
        keep_embeddings=keep_embeddings,
    )
    if job is not None:
        check_job_name(job)
    run_to_exit(
        lambda emit: open_job(settings, options, checkpoint_dir, job=job, fresh=fresh, emit=emit),
        quiet=quiet,
        as_json=json_,
        checkpoint_dir=checkpoint_dir,
    )
