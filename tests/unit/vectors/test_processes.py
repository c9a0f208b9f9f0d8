from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ragingest.checkpoint.vectors import PaidVectors
from tests.unit.vectors import worker
from tests.unit.vectors.support import MODEL, digests, found, put

ROOT = Path(__file__).parents[3]


def started(path: Path, name: str, use: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", worker.__name__, str(path), name, use],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )


def killed(process: subprocess.Popen[bytes], lines: int) -> dict[str, set[int]]:
    """Kill it once it has said so much; everything that it said, by kind."""
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(lines)]
    process.send_signal(signal.SIGKILL)
    said += process.stdout.readlines()
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    words = [line.decode().split() for line in said]
    return {kind: {int(batch) for what, batch in words if what == kind} for kind in ("put", "dropping", "dropped")}


def there(paid: PaidVectors, name: str, batch: int) -> int:
    return len(found(paid, worker.texts(name, batch)))


@pytest.mark.parametrize("lines", [1, 60, 333])
def test_a_killed_job_finds_all_that_it_had_put_and_not_dropped(tmp_path: Path, lines: int) -> None:
    said = killed(started(tmp_path / "job.vectors", "a", "spool"), lines)
    paid = PaidVectors(tmp_path / "job.vectors", MODEL, worker.DIMENSIONS, keep=False)
    for batch in said["put"] - said["dropping"]:
        assert there(paid, "a", batch) == worker.BATCH
    for batch in said["dropped"]:
        assert there(paid, "a", batch) == 0
    assert paid.damaged <= 1
    assert paid.warning == ""
    paid.close()


def test_a_job_killed_again_and_again_loses_nothing(tmp_path: Path) -> None:
    waiting: set[str] = set()
    for life in range(3):
        said = killed(started(tmp_path / "job.vectors", f"{life}", "spool"), 40 + life)
        waiting |= {
            f"{life} {batch} {number}" for batch in said["put"] - said["dropping"] for number in range(1, 30, 2)
        }
    paid = PaidVectors(tmp_path / "job.vectors", MODEL, worker.DIMENSIONS, keep=False)
    keys = digests(sorted(waiting))
    assert keys
    assert found(paid, keys) == set(keys)
    paid.close()


def test_processes_share_a_cache_and_one_that_is_killed_harms_no_other(tmp_path: Path) -> None:
    names = ("a", "b")
    processes = [started(tmp_path / "all.vectors", name, "cache") for name in names]
    mine = PaidVectors(tmp_path / "all.vectors", MODEL, worker.DIMENSIONS, keep=True)
    own = digests(f"own {number}" for number in range(60))
    for start in range(0, 60, 10):
        put(mine, own[start : start + 10])
    said = [killed(process, 50) for process in processes]
    assert found(mine, own) == set(own)
    for name, lines in zip(names, said, strict=True):
        for batch in lines["put"]:
            assert there(mine, name, batch) == worker.BATCH
    assert mine.damaged <= len(names)
    assert mine.warning == ""
    mine.close()
