from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from ragingest import memory
from ragingest.memory import MemoryReading, SystemGauge, own_anonymous_bytes
from ragingest.settings import MemoryLimit

MIB = 1 << 20


@pytest.fixture
def in_cgroup(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    def put(unified: str, controlled: str = "/") -> None:
        monkeypatch.setattr(memory, "_own_cgroups", lambda: (unified, controlled))

    return put


def cgroup(folder: Path, limit: str, current: int, stat: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(limit + "\n")
    (folder / "memory.current").write_text(f"{current}\n")
    (folder / "memory.stat").write_text(stat)


def test_a_container_with_a_limit_is_measured_by_it(tmp_path: Path) -> None:
    cgroup(tmp_path, str(100 * MIB), 60 * MIB, f"anon 1\nfile 2\ninactive_file {20 * MIB}\nactive_file 3\n")
    reading = SystemGauge(MemoryLimit(share=0.5), tmp_path).read()
    assert reading == MemoryReading(40 * MIB, 50 * MIB, "the container")


def test_the_innermost_group_that_has_a_limit_counts(tmp_path: Path, in_cgroup: Callable[[str, str], None]) -> None:
    in_cgroup("/outer/inner", "/")
    cgroup(tmp_path / "outer" / "inner", "max", 10 * MIB)
    cgroup(tmp_path / "outer", str(200 * MIB), 30 * MIB)
    cgroup(tmp_path, str(400 * MIB), 90 * MIB)
    assert SystemGauge(MemoryLimit(share=1), tmp_path).read() == MemoryReading(30 * MIB, 200 * MIB, "the container")
    cgroup(tmp_path / "outer" / "inner", str(100 * MIB), 10 * MIB)
    assert SystemGauge(MemoryLimit(share=1), tmp_path).read() == MemoryReading(10 * MIB, 100 * MIB, "the container")


def test_a_mount_that_shows_only_the_containers_own_group_is_found(
    tmp_path: Path, in_cgroup: Callable[[str, str], None]
) -> None:
    in_cgroup("/system.slice/container.scope", "/")
    cgroup(tmp_path, str(100 * MIB), 10 * MIB)
    assert SystemGauge(MemoryLimit(share=1), tmp_path).read().where == "the container"


def test_the_first_version_of_cgroups_is_read_too(tmp_path: Path, in_cgroup: Callable[[str, str], None]) -> None:
    in_cgroup("/", "/box")
    folder = tmp_path / "memory" / "box"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text(f"{100 * MIB}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{50 * MIB}\n")
    (folder / "memory.stat").write_text(f"inactive_file 1\ntotal_inactive_file {10 * MIB}\n")
    assert SystemGauge(MemoryLimit(share=1), tmp_path).read() == MemoryReading(40 * MIB, 100 * MIB, "the container")


def test_usage_is_read_anew_each_time(tmp_path: Path) -> None:
    cgroup(tmp_path, str(100 * MIB), 10 * MIB)
    gauge = SystemGauge(MemoryLimit(share=1), tmp_path)
    assert gauge.read().used == 10 * MIB
    (tmp_path / "memory.current").write_text(str(70 * MIB))
    assert gauge.read().used == 70 * MIB


@pytest.mark.parametrize("stat", ["", "inactive_file\n", "inactive_file many\n", "inactive_file 9999999999999\n"])
def test_a_group_without_a_usable_count_of_cache_never_shows_less_than_nothing(tmp_path: Path, stat: str) -> None:
    cgroup(tmp_path, str(100 * MIB), 10 * MIB, stat)
    assert SystemGauge(MemoryLimit(share=1), tmp_path).read().used in (0, 10 * MIB)


@pytest.mark.parametrize("limit", ["max", str(1 << 62), "", "garbage"])
def test_a_group_without_a_limit_below_the_machines_memory_is_the_machine(tmp_path: Path, limit: str) -> None:
    cgroup(tmp_path, limit, 10 * MIB)
    total = psutil.virtual_memory().total
    reading = SystemGauge(MemoryLimit(share=0.5), tmp_path).read()
    assert reading.where == "the machine"
    assert reading.limit == int(0.5 * total)
    assert 0 < reading.used < total


def test_without_cgroups_it_is_the_machine(tmp_path: Path) -> None:
    assert SystemGauge(MemoryLimit(), tmp_path / "missing").read().where == "the machine"


def test_a_limit_in_bytes_is_of_this_process_whatever_the_container_says(tmp_path: Path) -> None:
    cgroup(tmp_path, str(100 * MIB), 99 * MIB)
    reading = SystemGauge(MemoryLimit(share=None, bytes=7 * MIB), tmp_path).read()
    assert (reading.limit, reading.where) == (7 * MIB, "this process")
    assert 0 < reading.used < psutil.virtual_memory().total


def test_the_processes_that_this_one_started_count_as_its_own(tmp_path: Path) -> None:
    gauge = SystemGauge(MemoryLimit(share=None, bytes=MIB), tmp_path, lambda: 1 << 60)
    assert gauge.own_bytes() > 1 << 60
    assert gauge.read().used > 1 << 60


def test_memory_that_this_process_takes_is_counted() -> None:
    before = own_anonymous_bytes()
    # A mapping of its own: the allocator might hand out what earlier tests have given back. The
    # mapping is private, because a shared one does not count as anonymous.
    with mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        held.write(b"x" * (64 * MIB))
        assert own_anonymous_bytes() - before > 32 * MIB
