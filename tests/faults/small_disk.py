"""A real file system of a few kilobytes over a folder, in a mount namespace of its own (Linux).

Only the commands that are started in it see it; it is gone with the process that holds it.
"""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["SmallDisk", "can_mount"]

NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")


@cache
def can_mount() -> bool:
    """Whether this machine lets this user make such a namespace."""
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        return False
    attempt = [*NAMESPACE, "sh", "-c", "mount -t tmpfs -o size=64k tmpfs /tmp"]
    return subprocess.run(attempt, capture_output=True, check=False).returncode == 0


class SmallDisk:
    """`folder` is a disk of `size` (as tmpfs takes it: `200k`) while the `with` block runs."""

    def __init__(self, folder: Path, size: str) -> None:
        self._folder = folder
        self._size = size

    def __enter__(self) -> Self:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        script = f'mount -t tmpfs -o mode=700,size={self._size} tmpfs "$0" && echo ready && cat'
        self._holder = subprocess.Popen(
            [*NAMESPACE, "sh", "-c", script, str(self._folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._holder.communicate()

    def inside(self, cwd: Path) -> tuple[str, ...]:
        """What starts the command behind it in `cwd`, where the disk is seen."""
        enter = ("nsenter", f"--target={self._holder.pid}", "--user", "--mount", "--preserve-credentials")
        return (*enter, "sh", "-c", 'cd "$0" && exec "$@"', str(cwd))

    def change(self, options: str) -> None:
        """Mount it anew: `size=64m`, `ro`, `rw`."""
        mount = ("mount", "-o", f"remount,{options}", str(self._folder))
        subprocess.run([*self.inside(Path("/")), *mount], check=True)

    @property
    def there(self) -> Path:
        """The folder as it is seen from outside, while the disk is there."""
        return Path(f"/proc/{self._holder.pid}/root{self._folder}")

    def take_out(self) -> None:
        """Copy what is on the disk to where the folder is when the disk is gone."""
        shutil.copytree(self.there, self._folder, dirs_exist_ok=True)
