"""`ragingest jobs`: what is kept of each job, and what can be done with it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ragingest.checkpoint.holders import holders
from ragingest.checkpoint.manager import CheckpointManager
from ragingest.checkpoint.transfer import export_job, import_job
from ragingest.cli import display
from ragingest.cli import options as opt
from ragingest.errors import ExitCode, TerminalError, UsageError
from ragingest.jobs.repair import repair_job
from ragingest.settings import DEFAULT_CHUNK_OVERLAP, DEFAULT_CHUNK_SIZE

__all__ = ["jobs"]

jobs = typer.Typer(name="jobs")

Job = Annotated[str, typer.Argument(help="Name of the job, as ragingest jobs shows it.")]


@jobs.callback(invoke_without_command=True)
def list_jobs(
    ctx: typer.Context,
    checkpoint_dir: opt.CheckpointDir = Path("checkpoints"),
    json_: opt.Json = False,
) -> None:
    """List the jobs of a checkpoint folder; or delete, move, unlock and repair what is kept of one."""
    if ctx.invoked_subcommand is not None:
        return
    manager = CheckpointManager(checkpoint_dir)
    states = [_state(manager, job) for job in sorted({*manager.jobs(), *manager.leftovers()})]
    display.show_states(states, manager, as_json=json_)


def _state(manager: CheckpointManager, job: str) -> display.JobState:
    size = sum(path.stat().st_size for path in manager.state_files(job))
    try:
        loaded = manager.load(job)
    except TerminalError:
        return display.JobState(job, "unreadable", size)
    if loaded is None:
        return display.JobState(job, "no checkpoint", size)
    checkpoint = loaded.checkpoint
    return display.JobState(
        job,
        display.status_of(checkpoint, manager),
        size,
        checkpoint.run,
        checkpoint.counters.read,
        checkpoint.counters.rejected,
        checkpoint.updated,
        checkpoint.settings.source,
        checkpoint.settings.collection,
    )


@jobs.command()
def rm(
    job: Job,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    checkpoint_dir: opt.CheckpointDir = Path("checkpoints"),
    json_: opt.Json = False,
) -> None:
    """Delete what is kept of a job: checkpoint, ledger, rejects, paid vectors, archive.

    What is in the store stays there. The next run of that name stores everything again.
    """
    manager = CheckpointManager(checkpoint_dir)
    files = [path for path in manager.state_files(job) if path != manager.files(job).lock]
    if not files:
        raise manager.unknown(job)
    with manager.lock(job):
        if not yes:
            _ask(job, files)
        manager.remove(job)
    told = {"job": job, "removed": [str(path) for path in files]}
    display.show_done(f"{job}: removed {len(files)} files; the store is as it was", told, as_json=json_)


def _ask(job: str, files: list[Path]) -> None:
    if not sys.stdin.isatty():
        raise UsageError(f"the job {job} is deleted only when told so", "give --yes")
    for path in files:
        typer.echo(f"  {path} ({display.size(path.stat().st_size)})", err=True)
    typer.confirm(f"Delete these files of the job {job}?", abort=True, err=True)


@jobs.command()
def export(
    job: Job,
    file: Annotated[Path, typer.Argument(help="The archive to write, such as nightly.tar.")],
    checkpoint_dir: opt.CheckpointDir = Path("checkpoints"),
    json_: opt.Json = False,
) -> None:
    """Write what is kept of a job to a tar archive, to be imported on another machine. The store is not in it."""
    manifest = export_job(CheckpointManager(checkpoint_dir), job, file)
    total = sum(member.size for member in manifest.files)
    display.show_done(
        f"{job}: {len(manifest.files)} files, {display.size(total)}, in {file}",
        {"job": job, "file": str(file), "files": [member.name for member in manifest.files]},
        as_json=json_,
    )


@jobs.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="An archive that ragingest jobs export has written.")],
    source: Annotated[str | None, typer.Option(help="Where the source is on this machine.")] = None,
    store_path: Annotated[
        Path | None, typer.Option(help="Where the folder of the embedded store is on this machine.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a job of the same name.")] = False,
    checkpoint_dir: opt.CheckpointDir = Path("checkpoints"),
    json_: opt.Json = False,
) -> None:
    """Take over a job that was exported on another machine; then resume it."""
    where = None if store_path is None else str(store_path)
    checkpoint = import_job(CheckpointManager(checkpoint_dir), file, source=source, store_path=where, force=force)
    job, settings = checkpoint.job, checkpoint.settings
    display.show_done(
        f"{job}: {settings.source} -> {settings.collection} ({settings.store}); go on with: ragingest resume {job}",
        {"job": job, "source": settings.source, "store_path": settings.store_path, "run": checkpoint.run},
        as_json=json_,
    )


@jobs.command()
def unlock(job: Job, checkpoint_dir: opt.CheckpointDir = Path("checkpoints"), json_: opt.Json = False) -> None:
    """Say which process holds the lock of a job, and remove the lock file if none does.

    The kernel releases the lock when its process ends, however it ends. So a lock that is held is
    held by a process that lives: end that one. Exit code 5 if there is one.
    """
    manager = CheckpointManager(checkpoint_dir)
    lock = manager.files(job).lock
    if manager.is_locked(job):
        found = holders(lock)
        if json_:
            display.write_json({"job": job, "locked": True, "holders": [holder._asdict() for holder in found]})
        else:
            told = [f"  {holder}" for holder in found] or ["  by a process that cannot be seen from here"]
            typer.echo("\n".join([f"{job} is locked", *told, "  end that process, or wait for it"]))
        raise typer.Exit(ExitCode.LOCKED)
    if lock.exists():
        with manager.lock(job):
            lock.unlink()
    display.show_done(f"{job} is not locked", {"job": job, "locked": False, "holders": []}, as_json=json_)


@jobs.command()
def repair(
    job: Job,
    source: Annotated[
        str | None,
        typer.Argument(help="As ragingest run was given it, with its options, if no checkpoint is left."),
    ] = None,
    checkpoint_dir: opt.CheckpointDir = Path("checkpoints"),
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
    on_duplicate: opt.WhichDuplicate = "last",
    metadata_keys: opt.MetadataKeys = None,
    drop_text: opt.DropText = False,
    flatten_metadata: opt.FlattenMetadata = False,
    json_: opt.Json = False,
) -> None:
    """Rebuild the checkpoint and the ledger of a job from its store, where they are lost or damaged.

    The next run reads its source from the start and embeds only what the store does not hold.
    """
    given = None
    if source is not None:
        given = opt.job_settings(
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
            on_duplicate=on_duplicate,
            metadata_keys=metadata_keys,
            drop_text=drop_text,
            flatten_metadata=flatten_metadata,
        )
    done = repair_job(CheckpointManager(checkpoint_dir), job, given)
    rest = f"; {done.incomplete:,} incomplete ones are stored again" if done.incomplete else ""
    display.show_done(
        f"{job}: {done.documents:,} documents in {done.points:,} points{rest}; go on with: ragingest resume {job}",
        done._asdict(),
        as_json=json_,
    )
