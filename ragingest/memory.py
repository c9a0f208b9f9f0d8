"""How much memory is in use, and how much there is: of this process, of its container, of the machine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import psutil

from ragingest.settings import MemoryLimit

__all__ = ["MemoryGauge", "MemoryReading", "SystemGauge", "own_anonymous_bytes"]

CGROUP = Path("/sys/fs/cgroup")


class MemoryReading(NamedTuple):
    """Bytes in use, bytes at which reading pauses, and whose memory that is."""

    used: int
    limit: int
    where: str


class MemoryGauge(Protocol):
    def read(self) -> MemoryReading: ...

    def own_bytes(self) -> int:
        """Anonymous memory of this process and those it started."""
        ...


class SystemGauge:
    """Memory of the container (cgroup v2 or v1) if it has a limit, else of the machine; or of this process.

    A cgroup's page cache that can be dropped (`inactive_file`) does not count as used.
    """

    def __init__(self, limit: MemoryLimit, cgroup: Path = CGROUP, children: Callable[[], int] = lambda: 0) -> None:
        self._limit = limit
        self._children = children
        self._container = _container(cgroup)

    def own_bytes(self) -> int:
        return own_anonymous_bytes() + self._children()

    def read(self) -> MemoryReading:
        if self._limit.bytes is not None:
            return MemoryReading(self.own_bytes(), self._limit.bytes, "this process")
        share = self._limit.share or 1.0
        machine = psutil.virtual_memory()
        if self._container is not None:
            limit, used = self._container()
            if limit < machine.total:
                return MemoryReading(used, int(share * limit), "the container")
        return MemoryReading(machine.total - machine.available, int(share * machine.total), "the machine")


def _container(root: Path) -> Callable[[], tuple[int, int]] | None:
    """A function that reads (limit, used) of the innermost limited cgroup of this process, if any."""
    unified, memory = _own_cgroups()
    for folder in _upwards(root, unified):
        if (limit := _number(folder / "memory.max")) is not None:
            return partial(_usage, limit, folder, "memory.current", "inactive_file")
    for folder in _upwards(root / "memory", memory):
        if (limit := _number(folder / "memory.limit_in_bytes")) is not None:
            return partial(_usage, limit, folder, "memory.usage_in_bytes", "total_inactive_file")
    return None


def _own_cgroups() -> tuple[str, str]:
    unified = memory = "/"
    try:
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                unified = path
            elif "memory" in controllers.split(","):
                memory = path
    except (OSError, ValueError):
        pass
    return unified, memory


def _upwards(root: Path, path: str) -> list[Path]:
    """The cgroup's folder and those above it; inside a container the mount may show only its own."""
    folder = root / path.strip("/")
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(root))]


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _usage(limit: int, folder: Path, file: str, droppable: str) -> tuple[int, int]:
    """(limit, bytes in use that cannot be dropped) of a cgroup."""
    used = _number(folder / file) or 0
    try:
        for line in (folder / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == droppable:
                return limit, max(0, used - int(value))
    except (OSError, ValueError):
        pass
    return limit, used


def own_anonymous_bytes() -> int:
    """This process's memory without mapped files, which the kernel can drop: RssAnon on Linux, else RSS."""
    try:
        with open("/proc/self/status", "rb") as file:
            for line in file:
                if line.startswith(b"RssAnon:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return int(psutil.Process().memory_info().rss)
