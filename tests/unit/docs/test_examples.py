"""The Python of docs/library.md runs and prints what stands below it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ragingest
from tests.unit.docs.reading import ROOT, fenced

PAGE = ROOT / "docs" / "library.md"
EXAMPLES = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_every_example_says_what_it_prints() -> None:
    assert len(EXAMPLES) == sum(block.language == "python" for block in fenced(PAGE)) > 3


@pytest.mark.parametrize(("code", "printed"), EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_prints_what_the_page_says(code: str, printed: str, tmp_path: Path, sample_data: Path) -> None:
    shutil.copy(sample_data / "library_handbook.jsonl", tmp_path)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == (printed, "")


def test_names_that_the_page_imports_are_public() -> None:
    text = PAGE.read_text(encoding="utf-8")
    imported = {name for names in re.findall(r"from ragingest import (.+)", text) for name in names.split(", ")}
    used = set(re.findall(r"\bragingest\.([A-Za-z]\w+)", "".join(code for code, _ in EXAMPLES)))
    assert imported
    assert imported | used <= set(ragingest.__all__)
