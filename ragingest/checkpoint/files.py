"""State files, opened so that no symbolic link leads out of their folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

__all__ = ["create_state", "open_state", "read_state", "sync_folder"]


def open_state(path: Path) -> BinaryIO:
    """Open a state file to read it; never through a symbolic link.

    Raises:
        OSError: it is missing, a link, or cannot be read.
    """
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")


def read_state(path: Path) -> bytes:
    """All of a state file, as `open_state` opens it."""
    with open_state(path) as file:
        return file.read()


def create_state(path: Path) -> BinaryIO:
    """Make a file for its owner only, instead of one that may be there."""
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def sync_folder(folder: Path) -> None:
    """Make what was created and renamed in a folder survive a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
