"""Run a command and see what it took: wall time, CPU of it and its children, peak anonymous memory."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil

__all__ = ["RAGINGEST", "Taken", "median", "report", "ragingest", "run", "scratch"]

RAGINGEST = [sys.executable, "-m", "ragingest"]
SAMPLE_SECONDS = 0.05
RESULTS = Path(__file__).parent / "results"


class Taken(NamedTuple):
    """Seconds, seconds of CPU (user and system, children included), peak RssAnon of all processes in bytes."""

    wall: float
    cpu: float
    peak: int
    stdout: str
    code: int


def run(command: Sequence[str], cwd: Path) -> Taken:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak = 0
    ended = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not ended.wait(SAMPLE_SECONDS):
            peak = max(peak, anonymous_bytes(process.pid))

    sampler = threading.Thread(target=sample)
    sampler.start()
    stdout, stderr = process.communicate()
    wall = time.perf_counter() - began
    ended.set()
    sampler.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(command)} failed ({process.returncode}): {stderr}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Taken(wall, cpu, peak, stdout, process.returncode)


def anonymous_bytes(pid: int) -> int:
    """RssAnon of a process and its descendants."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    total = 0
    for member in family:
        try:
            status = Path(f"/proc/{member.pid}/status").read_text()
        except OSError:
            continue
        for line in status.splitlines():
            if line.startswith("RssAnon:"):
                total += int(line.split()[1]) * 1024
    return total


def ragingest(cwd: Path, *arguments: str) -> tuple[Taken, dict[str, Any]]:
    """Run the command with --json; what it took, and its summary."""
    taken = run([*RAGINGEST, *arguments, "--json", "--quiet"], cwd)
    summary: dict[str, Any] = json.loads(taken.stdout)
    return taken, summary


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ragingest-bench-") as folder:
        yield Path(folder)


def median(values: Sequence[float]) -> str:
    """Median and, in brackets, lowest and highest."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def report(name: str, figures: dict[str, Any]) -> None:
    """Print the figures, and keep them as JSON."""
    RESULTS.mkdir(exist_ok=True)
    figures = {"benchmark": name, "cores": os.cpu_count(), "python": sys.version.split()[0], **figures}
    (RESULTS / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")
    for key, value in figures.items():
        print(f"{key}: {value}")
