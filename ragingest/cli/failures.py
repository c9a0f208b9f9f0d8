"""`ragingest failures [JOB]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from ragingest.checkpoint.manager import CheckpointManager
from ragingest.cli import display
from ragingest.cli import options as opt
from ragingest.cli.report import as_html, as_text
from ragingest.errors import ExitCode, TerminalError
from ragingest.jobs.failures import all_failures, failures_of

__all__ = ["failures"]


def failures(
    job: Annotated[str | None, typer.Argument(help="One job; without it, all jobs of the folder.")] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Write the same as one HTML page, to be sent or looked at.", metavar="FILE.html"),
    ] = None,
    checkpoint_dir: opt.CheckpointDir = Path("checkpoints"),
    json_: opt.Json = False,
) -> None:
    """Show what went wrong, grouped by pattern, and what to do about it.

    Ends with exit code 1 if anything did, else with 0.
    """
    manager = CheckpointManager(checkpoint_dir)
    found = all_failures(manager) if job is None else [failures_of(manager, job)]
    if report is not None:
        _write(report, as_html(found))
    if json_:
        display.write_json(msgspec.to_builtins(found if job is None else found[0]))
    else:
        typer.echo(as_text(found))
    raise typer.Exit(ExitCode.REJECTS if any(one.any for one in found) else ExitCode.OK)


def _write(path: Path, page: str) -> None:
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise TerminalError(f"{path} cannot be written: {error.strerror}", "give another --report") from None
