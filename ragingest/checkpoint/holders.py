"""Who has a file open: of a lock file, the process that holds the lock."""

from __future__ import annotations

import re
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import psutil

__all__ = ["Holder", "holders"]

COMMAND_CHARACTERS = 300
_SECRET = re.compile(r"(?i)((?:password|passwd|key|token|secret)[=\s]+|://[^/\s:@]*:)[^\s&@]+")


class Holder(NamedTuple):
    """A process: its command line, and when it was started (UTC, ISO 8601)."""

    pid: int
    command: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} since {self.since}: {self.command}"


def holders(path: Path) -> list[Holder]:
    """The processes that have `path` open, as far as this user, container and machine can see them.

    A lock file is open only in the process that holds the lock: one that does not get it closes it.
    """
    found = []
    wanted = str(path.absolute().resolve())
    for process in psutil.process_iter():
        try:
            if not any(opened.path == wanted for opened in process.open_files()):
                continue
            command = _SECRET.sub(r"\1***", shlex.join(process.cmdline()))
            since = datetime.fromtimestamp(process.create_time(), UTC).isoformat(timespec="seconds")
        except (psutil.Error, OSError):
            continue
        found.append(Holder(process.pid, command[:COMMAND_CHARACTERS], since))
    return found
