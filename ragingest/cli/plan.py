"""`ragingest plan SOURCE`, which is also `ragingest run SOURCE --dry-run`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from ragingest.cli import options as opt
from ragingest.jobs.planning import Plan, PlanOptions, Watch, make_plan
from ragingest.settings import DEFAULT_CHUNK_OVERLAP, DEFAULT_CHUNK_SIZE, JobSettings, RunOptions

__all__ = ["plan", "plan_to_exit"]


def plan(
    source: opt.Source,
    sample: Annotated[
        int | None,
        typer.Option("--sample", help="Read only so many records (some more of a compressed file) and scale up."),
    ] = None,
    format_: opt.Format = "auto",
    json_path: opt.JsonPath = None,
    id_field: opt.IdField = "id",
    text_field: opt.TextField = None,
    metadata_field: opt.MetadataField = None,
    max_record_bytes: opt.MaxRecordBytes = "16MiB",
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
    throughput: Annotated[
        float | None,
        typer.Option(help="Texts that the embedder takes a second, for the time.", rich_help_panel=opt.EMBEDDING),
    ] = None,
    rpm: opt.Rpm = None,
    tpm: opt.Tpm = None,
    price_per_million: opt.PricePerMillion = None,
    batch_size: opt.BatchSize = None,
    upsert_size: opt.UpsertSize = None,
    quiet: opt.Quiet = False,
    json_: opt.Json = False,
) -> None:
    """Say what a run over SOURCE would read, send, store and cost. Sends nothing, writes nothing.

    Exits with 1 if there are records that would be rejected. No key is needed.
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
    )
    options = opt.apply_options(
        RunOptions(),
        rpm=rpm,
        tpm=tpm,
        price_per_million=price_per_million,
        batch_size=batch_size,
        upsert_size=upsert_size,
    )
    plan_to_exit(
        settings, PlanOptions(run=options, sample=sample, throughput=throughput), quiet=quiet, as_json=json_
    )


def plan_to_exit(settings: JobSettings, options: PlanOptions, *, quiet: bool, as_json: bool) -> None:
    """Plan, show the plan on stdout, exit with its code."""
    with _progress(quiet) as watch:
        result = make_plan(settings, options, watch)
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(result), indent=1).decode() + "\n")
    else:
        for line in describe(result):
            typer.echo(line)
    raise typer.Exit(result.exit_code)


@contextmanager
def _progress(quiet: bool) -> Iterator[Watch]:
    """A bar on stderr, if somebody is looking."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("reading {task.fields[records]:,} records"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    ) as bar:
        task = bar.add_task("reading", total=None, records=0)
        yield lambda read, total, records: bar.update(task, completed=read, total=total, records=records)


def describe(plan: Plan) -> Iterator[str]:
    """The plan in lines for people."""
    dimensions = "unknown" if plan.dimensions is None else f"{plan.dimensions:,}"
    yield f"plan: {plan.source} -> {plan.store}, {plan.embedder} {plan.model}, {dimensions} dimensions"
    about = "" if plan.read_share == 1 else "about "
    sample = "" if plan.read_share == 1 else f" ({plan.read:,} read{_share(plan.read_share)})"
    yield f"  records    {about}{plan.records:,}{sample}"
    kinds = sorted(plan.reject_kinds.items(), key=lambda item: (-item[1], item[0]))
    rejects = ": " + ", ".join(f"{count:,} {kind}" for kind, count in kinds) if kinds else ""
    yield f"  rejected   {about}{plan.rejected:,}{rejects}"
    yield f"  documents  {about}{plan.documents:,} in {plan.chunks:,} chunks, {_size(plan.text_bytes)} of text"
    if plan.truncated:
        yield f"  truncated  {about}{plan.truncated:,} texts, to what {plan.model} takes"
    tokens = f"{plan.tokens:,}" if plan.tokens_exact else f"about {plan.tokens:,} (at most {plan.tokens_at_most:,})"
    yield f"  tokens     {tokens}"
    most = f" (at most {plan.requests_at_most:,})" if plan.requests_at_most > plan.requests else ""
    yield f"  requests   {plan.requests:,}{most}{_batches(plan)}"
    yield f"  cost       {_cost(plan)}"
    if plan.upserts is None or plan.points_per_upsert is None or plan.bytes_per_upsert is None:
        yield "  upserts    unknown: give --dimensions"
    else:
        size = f"{plan.points_per_upsert:,} points or {_size(plan.bytes_per_upsert)}"
        yield f"  upserts    {plan.upserts:,} of up to {size}"
    if plan.batches is not None:
        yield "  time       within a day of each batch's creation"
    elif plan.seconds_at_best is None:
        yield "  time       unknown: give --rpm and --tpm, or --throughput"
    else:
        yield f"  time       {_duration(plan.seconds_at_best)} at best, for {plan.bounded_by}"
    if plan.disk_bytes is None or plan.vector_bytes is None:
        yield "  disk       unknown: give --dimensions"
    else:
        parts = (plan.vector_bytes, plan.payload_bytes, plan.ledger_bytes)
        vectors, payload, ledger = map(_size, parts)
        yield f"  disk       {_size(plan.disk_bytes)}: vectors {vectors}, documents {payload}, ledger {ledger}"
    for note in plan.notes:
        yield f"  note: {note}"


def _share(share: float | None) -> str:
    return "" if share is None else f", {100 * share:.2g} % of the source"


def _batches(plan: Plan) -> str:
    if plan.batches is None or plan.batch_file_bytes is None:
        return ""
    return (
        f" in {plan.batches:,} batch{'' if plan.batches == 1 else 'es'}, {_size(plan.batch_file_bytes)} to upload"
    )


def _cost(plan: Plan) -> str:
    if plan.dollars is None:
        return "unknown: give --price-per-million"
    cost = _money(plan.dollars)
    if plan.dollars_at_most is not None and plan.dollars_at_most > plan.dollars:
        cost = f"about {cost} (at most {_money(plan.dollars_at_most)})"
    batch = "" if plan.batch_dollars is None else f", {_money(plan.batch_dollars)} through the batch API"
    return f"{cost} at {_money(plan.price_per_million or 0)} a million tokens{batch}"


def _money(dollars: float) -> str:
    return f"${dollars:,.2f}" if dollars >= 1 or dollars == 0 else f"${dollars:.3g}"


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:,.1f} GB"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"
