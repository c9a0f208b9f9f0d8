"""`ragingest verify JOB`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from ragingest.checkpoint.manager import CheckpointManager
from ragingest.cli import display
from ragingest.cli import options as opt
from ragingest.cli.supervise import run_to_exit
from ragingest.errors import UsageError
from ragingest.jobs.verifying import Watch, verify_job
from ragingest.jobs.wiring import Start, checkpoint_of, open_job

__all__ = ["verify"]


def verify(
    job: Annotated[str, typer.Argument(help="Name of the job, as ragingest stats shows it.")],
    checkpoint_dir: opt.CheckpointDir = Path("checkpoints"),
    sample: Annotated[
        int | None, typer.Option(help=r"Compare so many documents, chosen at random. \[default: all]")
    ] = None,
    vectors: Annotated[
        bool, typer.Option("--vectors", help="Embed the stored texts again, and compare; not through an API.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Run the job again for what is missing or altered, and only that.")
    ] = False,
    quiet: opt.Quiet = False,
    json_: opt.Json = False,
) -> None:
    """Compare what a job says it stored with what is in the store: by id, by digest, by number.

    Exits with 1 if something is missing, altered or foreign, and with the code of the run that repairs it.
    """
    if sample is not None and sample < 1:
        raise UsageError(f"--sample {sample} is too small", "give at least 1")
    manager = CheckpointManager(checkpoint_dir)
    checkpoint = checkpoint_of(manager, job, display.show_warning)
    with _progress(quiet) as watch:
        found = verify_job(manager, checkpoint, sample=sample, vectors=vectors, repair=repair, watch=watch)
    if not (repair and found.affected):
        display.show_verification(found, as_json=json_)
        raise typer.Exit(found.exit_code)
    display.show_verification(found, as_json=False, to_stderr=True)
    run_to_exit(
        lambda emit: open_job(
            checkpoint.settings, checkpoint.options, checkpoint_dir, job=job, start=Start(full=True), emit=emit
        ),
        quiet=quiet,
        as_json=json_,
        checkpoint_dir=checkpoint_dir,
    )


@contextmanager
def _progress(quiet: bool) -> Iterator[Watch]:
    """A bar on stderr, if somebody is looking."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("comparing {task.completed:,.0f} documents"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    ) as bar:
        task = bar.add_task("comparing", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
