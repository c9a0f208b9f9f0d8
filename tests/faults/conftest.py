from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.command import Command
from tests.faults.harness import Workplace


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace(Command(tmp_path))
