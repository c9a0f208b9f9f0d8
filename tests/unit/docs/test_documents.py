from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ragingest.checkpoint.state import Checkpoint, PartState
from ragingest.cli.app import app
from ragingest.costs.books import Books
from ragingest.documents import POINT_NAMESPACE, point_id
from ragingest.errors import ExitCode
from ragingest.events import Counters
from ragingest.settings import JobSettings, RunOptions
from ragingest.version import __version__
from tests.unit.docs.reading import (
    ROOT,
    command_lines,
    documents,
    fenced,
    first_cells,
    literals,
    load_generator,
    reject_kinds,
)

generate = load_generator()
ARCHITECTURE = ROOT / "ARCHITECTURE.md"
DOCUMENTS = [pytest.param(path, id=path.name) for path in documents()]


def _names(cells: list[str]) -> set[str]:
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


@pytest.mark.parametrize("path", DOCUMENTS)
def test_every_command_that_is_shown_exists_with_its_options(path: Path) -> None:
    for words in command_lines(path):
        command = f"ragingest {words[0]}"
        if command == "ragingest --install-completion":
            continue
        if (inner := " ".join((command, *words[1:2]))) in generate.command_names():
            command = inner
        assert command in generate.command_names(), " ".join(words)
        options = {word.partition("=")[0] for word in words[1:] if re.match(r"--?[a-z]", word)}
        assert options <= generate.options_of(command), " ".join(words)


def test_commands_are_found_in_the_documents() -> None:
    shown = {words[0] for path in documents() for words in command_lines(path)}
    assert {"run", "resume", "plan", "stats", "search"} <= shown


@pytest.mark.parametrize("path", DOCUMENTS)
def test_every_exit_code_that_is_named_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    named = {
        int(code) for codes in re.findall(r"[Ee]xit code (\d+(?: or \d+)*)", text) for code in codes.split(" or ")
    }
    assert named <= set(map(int, ExitCode))


def test_the_example_of_cron_treats_every_exit_code() -> None:
    script = next(block.text for block in fenced(ROOT / "docs" / "resuming.md") if block.language == "sh")
    cases = {
        int(code) for found in re.findall(r"^    ([\d |]+)\)", script, re.MULTILINE) for code in found.split("|")
    }
    assert "    *)" in script
    assert cases <= set(map(int, ExitCode))


@pytest.mark.parametrize("path", DOCUMENTS)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), target
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in anchors, target


def test_the_readme_links_every_document() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [path.name for path in documents() if path.name != "README.md" and f"{path.name})" not in readme]
    assert missing == []


def test_targets_of_make_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = {
        target
        for path in documents()
        for target in re.findall(r"`?make ([a-z]+)\b", path.read_text(encoding="utf-8"))
    }
    shown = named & {"demo", "test", "lint", "format", "clean"}
    assert {"demo", "test"} <= shown
    for target in shown:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_kind_of_reject_is_explained_and_no_other() -> None:
    kinds = _names(first_cells(ROOT / "docs" / "rejects.md", "## Kinds"))
    assert kinds == reject_kinds()


def _stands_in(message: str, strings: set[str]) -> bool:
    """Whether the parts of a message, between its …, come in this order in one string of the source."""
    parts = [part.strip() for part in message.split("…") if part.strip()]
    assert sum(map(len, parts)) > 12, message
    pattern = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
    return any(pattern.search(text) for text in strings)


def test_messages_that_are_explained_stand_in_the_source() -> None:
    strings = literals()
    page = ROOT / "docs" / "troubleshooting.md"
    headings = ("## Starting", "## Reading", "## Embedding through an API", "## Storing", "## Checkpoints")
    messages = {name for heading in headings for name in _names(first_cells(page, heading))}
    assert len(messages) > 30
    assert [message for message in sorted(messages) if not _stands_in(message, strings)] == []


def test_a_message_that_nobody_writes_is_found_out() -> None:
    strings = literals()
    assert _stands_in("the job … is being worked on by another process", strings)
    assert not _stands_in("the job … is being worked upon by another process", strings)


def test_the_example_of_a_checkpoint_has_the_fields_of_one() -> None:
    example: dict[str, Any] = json.loads(
        next(block.text for block in fenced(ARCHITECTURE) if block.language == "json")
    )
    parts: list[dict[str, Any]] = example["parts"]
    assert list(example) == list(Checkpoint.__struct_fields__)
    assert list(parts[0]) == list(PartState.__struct_fields__)
    assert example["settings"].keys() == set(JobSettings.__struct_fields__)
    assert example["options"].keys() == set(RunOptions.__struct_fields__)
    assert example["counters"].keys() == set(Counters.__struct_fields__)
    assert example["counters"]["books"].keys() == set(Books.__struct_fields__)


def test_every_field_of_a_checkpoint_is_explained_and_no_other() -> None:
    text = ARCHITECTURE.read_text(encoding="utf-8")
    tables = re.findall(r"^\| field(?: of a part)? \|.*?\n\n", text, re.DOTALL | re.MULTILINE)
    explained = [
        _names([row.split(" | ")[0] for row in re.findall(r"^\| (.+) \|$", table, re.MULTILINE)])
        for table in tables
    ]
    assert explained == [set(Checkpoint.__struct_fields__), set(PartState.__struct_fields__)]


def test_the_rule_of_point_ids_is_the_documented_one() -> None:
    text = ARCHITECTURE.read_text(encoding="utf-8")
    assert str(POINT_NAMESPACE) in text
    found = re.search(r'`\("([\w-]+)", (\d+)\)` is `([0-9a-f-]{36})`', text)
    assert found is not None
    assert point_id(found[1], int(found[2])) == found[3]


def test_the_example_of_a_configuration_file_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = next(block.text for block in fenced(ROOT / "docs" / "configuration.md") if block.language == "toml")
    values = tomllib.loads(example)
    assert {"run", "search"} <= values.keys()
    here = example.replace(values["checkpoint-dir"], str(tmp_path / "state"))
    (tmp_path / "ragingest.toml").write_text(here, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["stats"])
    assert result.exit_code == 0, result.output


def test_the_changelog_names_this_version() -> None:
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
