from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ragingest.checkpoint.holders import holders

_HOLD = "import sys; held = open(sys.argv[1]); print('held', flush=True); sys.stdin.read()"


def test_who_has_a_file_open_is_found_with_its_command_and_without_its_secrets(tmp_path: Path) -> None:
    path = tmp_path / "job.lock"
    path.touch()
    secret = "hunter2"  # noqa: S105  # what must not be told
    command = [
        sys.executable,
        "-c",
        _HOLD,
        str(path),
        f"--api-key={secret}",
        f"http://me:{secret}@localhost/?token={secret}",
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            (holder,) = holders(path)
        finally:
            process.kill()
            process.wait()
    assert holder.pid == process.pid
    assert str(path) in holder.command
    assert secret not in str(holder)
    assert holder.since.endswith("+00:00")
    assert holders(path) == []


def test_this_process_is_found_too(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("w"):
        assert [holder.pid for holder in holders(path)] == [os.getpid()]
