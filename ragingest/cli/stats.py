"""`ragingest stats [JOB]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ragingest.checkpoint.manager import CheckpointManager
from ragingest.cli import display
from ragingest.cli import options as opt
from ragingest.errors import TerminalError
from ragingest.jobs.wiring import checkpoint_of

__all__ = ["stats"]


def stats(
    job: Annotated[str | None, typer.Argument(help="One job in full; without it, a table of all.")] = None,
    checkpoint_dir: opt.CheckpointDir = Path("checkpoints"),
    json_: opt.Json = False,
) -> None:
    """Show what each job did: status, records by outcome, rate, time, rejects."""
    manager = CheckpointManager(checkpoint_dir)
    if job is not None:
        display.show_job(checkpoint_of(manager, job, display.show_warning), manager, as_json=json_)
        return
    checkpoints = []
    for name in manager.jobs():
        try:
            checkpoints.append(checkpoint_of(manager, name, display.show_warning))
        except TerminalError as error:
            display.show_error(error, as_json=False)
    display.show_jobs(checkpoints, manager, as_json=json_)
