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
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import psutil

__all__ = [
    "RAGINGEST",
    "Cores",
    "Others",
    "Spread",
    "Taken",
    "anonymous_bytes",
    "median",
    "ragingest",
    "report",
    "run",
    "scratch",
]

RAGINGEST = [sys.executable, "-m", "ragingest"]
SAMPLE_SECONDS = 0.05
SHOWN = 400
RESULTS = Path(__file__).parent / "results"


class Taken(NamedTuple):
    """Seconds, seconds of CPU (user and system, children included), peak RssAnon of all processes in bytes.

    `ended` is when it was over, by `time.monotonic`, which all processes of a machine share.
    """

    wall: float
    cpu: float
    peak: int
    stdout: str
    code: int
    ended: float


class Cores(NamedTuple):
    """Which CPUs the servers get and which the client: one each, as far as there are two."""

    server: frozenset[int]
    client: frozenset[int]

    @classmethod
    def of_machine(cls) -> Self:
        allowed = sorted(os.sched_getaffinity(0))
        return cls(frozenset(allowed[-1:]), frozenset(allowed[:1]))


class Spread(NamedTuple):
    """Of what was measured several times."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        return cls(*(float(f"{value:.4g}") for value in (statistics.median(values), min(values), max(values))))


class Others:
    """How much of the machine was busy with what has nothing to do with the measurement."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._busy = _busy_seconds()
        self._own = _own_seconds()

    def share(self) -> float:
        """Of all CPUs' time since the start, servers that still run counted to the others."""
        seconds = (time.monotonic() - self._began) * (os.cpu_count() or 1)
        return round(max(0.0, _busy_seconds() - self._busy - (_own_seconds() - self._own)) / max(seconds, 1e-9), 2)


def run(command: Sequence[str], cwd: Path, *, cpus: Collection[int] = ()) -> Taken:
    """Run a command to its end, on `cpus` if any are given.

    Raises:
        SystemExit: it failed; 1, which tells of rejects, is no failure.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=errors, text=True)
        if cpus:
            os.sched_setaffinity(process.pid, cpus)
        peak = 0
        ended = threading.Event()

        def sample() -> None:
            nonlocal peak
            while not ended.wait(SAMPLE_SECONDS):
                peak = max(peak, anonymous_bytes(process.pid))

        sampler = threading.Thread(target=sample)
        sampler.start()
        stdout, _ = process.communicate()
        wall, moment = time.perf_counter() - began, time.monotonic()
        ended.set()
        sampler.join()
        if process.returncode not in (0, 1):
            errors.seek(0)
            raise SystemExit(f"{' '.join(command)} failed ({process.returncode}): {errors.read()}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Taken(wall, cpu, peak, stdout, process.returncode, moment)


def anonymous_bytes(pid: int) -> int:
    """RssAnon of a process and its descendants."""
    total = 0
    todo = [pid]
    while todo:
        folder = Path(f"/proc/{todo.pop()}")
        try:
            status = (folder / "status").read_text()
            todo += [int(child) for file in folder.glob("task/*/children") for child in file.read_text().split()]
        except OSError:
            continue
        for line in status.splitlines():
            if line.startswith("RssAnon:"):
                total += int(line.split()[1]) * 1024
    return total


def ragingest(cwd: Path, *arguments: str, cpus: Collection[int] = ()) -> tuple[Taken, dict[str, Any]]:
    """Run the command with --json; what it took, and its summary."""
    taken = run([*RAGINGEST, *arguments, "--json", "--quiet"], cwd, cpus=cpus)
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
        print(f"{key}: {value}" if isinstance(value, str | int | float) else f"{key}: {str(value)[:SHOWN]}")


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.system + times.nice + times.irq + times.softirq)


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
