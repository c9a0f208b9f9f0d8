"""Runs a job under a display, and turns signals into a clean stop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import typer

from ragingest.cli import display
from ragingest.errors import ExitCode
from ragingest.events import Emit, Noticed, Summary

__all__ = ["Supervised", "run_to_exit"]

# The embedder and the store hold the interpreter's lock for milliseconds at a time; the event loop,
# which only hands on work between them, should not wait its default 5 ms for it.
SWITCH_SECONDS = 0.001

_CODES = {signal.SIGINT: ExitCode.SIGINT, signal.SIGTERM: ExitCode.SIGTERM}


class Supervised(Protocol):
    """A run or a copy that is open."""

    def stop(self, stopped_by: ExitCode) -> None:
        """Read no more, finish what is in flight; `stopped_by` becomes the exit code."""
        ...

    def abort(self) -> None:
        """Stop at once; only what the store has confirmed counts."""
        ...

    async def run(self) -> Summary: ...


def run_to_exit(
    start: Callable[[Emit], Supervised],
    *,
    quiet: bool,
    as_json: bool,
    checkpoint_dir: Path,
    command: str = "resume",
) -> None:
    """Open the job, run it, show what it did and the command that goes on, exit with its code."""
    sys.setswitchinterval(SWITCH_SECONDS)
    with display.progress(quiet=quiet) as emit:
        job = start(emit)
        summary = asyncio.run(_supervised(job, emit))
    display.show_summary(summary, as_json=as_json, checkpoint_dir=checkpoint_dir, command=command)
    raise typer.Exit(summary.exit_code)


async def _supervised(job: Supervised, emit: Emit) -> Summary:
    """Run with handlers: the first signal stops reading, the second stops at once, the third does not even save."""
    loop = asyncio.get_running_loop()
    signals = 0

    def handle(number: signal.Signals) -> None:
        nonlocal signals
        signals += 1
        if signals == 1:
            emit(Noticed("stopping: what is in flight is finished (once more stops at once)"))
            job.stop(_CODES[number])
        elif signals == 2:
            emit(Noticed("stopping at once: only what the store has confirmed counts"))
            job.abort()
        else:
            # Whatever hangs: what is on disk is whole at every moment.
            os._exit(_CODES[number])

    for number in _CODES:
        loop.add_signal_handler(number, handle, number)
    return await job.run()
