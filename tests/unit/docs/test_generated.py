from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from ragingest.cli.app import app
from ragingest.costs.models import DEFAULT_MODELS, MODELS
from ragingest.embedders import APIS
from ragingest.errors import ExitCode
from tests.unit.docs.reading import ROOT, load_generator

generate = load_generator()


def test_generated_parts_are_current() -> None:
    assert [path.name for path in generate.stale()] == [], f"run {generate.COMMAND}"


def test_the_script_checks_without_writing() -> None:
    before = (ROOT / "docs" / "cli.md").read_bytes()
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (ROOT / "docs" / "cli.md").read_bytes() == before


def test_a_stale_part_is_found_and_renewed(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "ARCHITECTURE.md").write_text("nothing generated\n")
    current = (ROOT / "README.md").read_text(encoding="utf-8")
    stale = current.replace(f"| 5 | {ExitCode.LOCKED.meaning} |\n", "")
    assert stale != current
    (tmp_path / "README.md").write_text(stale, encoding="utf-8")
    assert generate.stale(tmp_path) == [tmp_path / "README.md"]
    assert generate.regenerated(stale) == current


def test_an_undocumented_command_makes_the_page_stale() -> None:
    grown = typer.Typer()
    grown.registered_commands = list(app.registered_commands)

    @grown.command()
    def unheard_of() -> None:
        """Do what nobody has read about."""

    text = generate.commands(grown)
    assert "## ragingest unheard-of" in text
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert generate.regenerated(page, {**generate.SECTIONS, "commands": lambda: text}) != page


def test_every_command_and_option_of_the_command_line_is_on_the_page() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    group: Any = typer.main.get_command(app)
    commands = dict(group.commands)
    for name, command in group.commands.items():
        commands |= {f"{name} {inner}": found for inner, found in getattr(command, "commands", {}).items()}
    assert {f"ragingest {name}" for name in commands} == set(generate.command_names())
    for name, command in commands.items():
        _, _, section = page.partition(f"\n## ragingest {name}\n")
        section = section.partition("\n## ")[0]
        for parameter in command.params:
            for spelling in (*parameter.opts, *parameter.secondary_opts):
                shown = spelling if spelling.startswith("-") else spelling.upper()
                assert shown in section, f"{name}: {shown}"


def test_help_that_names_its_default_is_not_given_another(capsys: pytest.CaptureFixture[str]) -> None:
    assert not [line for line in generate.commands().splitlines() if line.count("[default:") > 1]


def test_the_table_of_models_has_every_model_with_the_embedder_that_reaches_it() -> None:
    named = set(re.findall(r"^\| `([^`]+)` \| `([^`]+)`", generate.models(), re.MULTILINE))
    assert named == {("cohere" if facts.provider == "cohere" else "openai", facts.name) for facts in MODELS}
    for embedder in APIS:
        assert f"| `{embedder}` | `{DEFAULT_MODELS[embedder]}` (default)" in generate.models()


def test_wrong_arguments_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--chek"]) == 2
    assert generate.COMMAND in capsys.readouterr().err


def test_an_unknown_part_is_an_error() -> None:
    with pytest.raises(KeyError):
        generate.regenerated("<!-- generated: nonsense -->\n<!-- end -->")
