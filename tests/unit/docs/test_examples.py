"""The Python of docs/library.md, and the plans of the documents, print what stands below them."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import ragingest
from ragingest.cli.app import app
from tests.unit.docs.reading import ROOT, documents, fenced

PAGE = ROOT / "docs" / "library.md"
EXAMPLES = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


PLANS = [
    (words, printed)
    for path in documents()
    for block in fenced(path)
    if block.language == "console"
    for command, printed in re.findall(r"^\$ ragingest (.+)\n((?:(?!\$ ).*\n)*)", block.text, re.MULTILINE)
    if (words := shlex.split(command))[0] == "plan" or "--dry-run" in words
]
FOLDER = "/srv/corpus"
"""Stands in the documents for the folder in which commands were run."""


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


def test_plans_are_shown_for_both_kinds_of_embedders_and_for_a_dry_run() -> None:
    commands = [" ".join(words) for words, _ in PLANS]
    assert any("--embedder openai" in command for command in commands)
    assert any("--dry-run" in command for command in commands)
    assert any("--embedder" not in command for command in commands)


@pytest.mark.parametrize(("words", "printed"), PLANS, ids=range(len(PLANS)))
def test_a_plan_is_what_the_document_says(
    words: list[str], printed: str, tmp_path: Path, sample_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(sample_data, tmp_path / "sample_data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))  # where a vocabulary is, tokens are counted exactly
    result = CliRunner().invoke(app, words)
    assert result.stdout.replace(str(tmp_path), FOLDER) == printed
