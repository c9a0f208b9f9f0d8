from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.command import Command


@pytest.fixture
def ragingest(tmp_path: Path) -> Command:
    """The real command, in a folder of its own."""
    return Command(tmp_path)
