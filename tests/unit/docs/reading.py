"""What the documents hold, for the tests of this folder."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from ragingest import errors

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "ragingest"

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_INDENTED = re.compile(r"(?:^    .+\n)+", re.MULTILINE)
_TABLE_ROW = re.compile(r"^\| (.+) \|$", re.MULTILINE)


class Fenced(NamedTuple):
    language: str
    text: str


def documents() -> list[Path]:
    return [
        ROOT / "README.md",
        ROOT / "ARCHITECTURE.md",
        ROOT / "CHANGELOG.md",
        *sorted((ROOT / "docs").glob("*.md")),
    ]


def load_generator() -> ModuleType:
    """docs/generate.py, which is a script and no package."""
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fenced(path: Path) -> list[Fenced]:
    return [Fenced(*found) for found in _FENCE.findall(path.read_text(encoding="utf-8"))]


def first_cells(path: Path, heading: str) -> list[str]:
    """The first cell of every table row under a heading, up to the next heading of any level."""
    text = path.read_text(encoding="utf-8")
    section = re.split(r"^#+ ", text.partition(f"\n{heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    cells = [row.split(" | ")[0] for row in _TABLE_ROW.findall(section)]
    assert cells, f"{path.name} has no table under {heading}"
    return cells


def command_lines(path: Path) -> Iterator[list[str]]:
    """Words of every `ragingest ...` that stands in a block of the document, from the command's name on."""
    text = path.read_text(encoding="utf-8")
    blocks = [block.text for block in fenced(path) if block.language in ("console", "sh", "ini")]
    blocks += _INDENTED.findall(_FENCE.sub("", text))
    for block in blocks:
        for line in block.splitlines():
            found = re.match(r"\s*(?:\$ |ExecStart=)?(?:.*\| )?(?:/\S*/)?ragingest ([a-z-].*)", line)
            if found:
                words = shlex.split(found[1].split(" # ")[0], comments=True)
                yield words[: next((n for n, word in enumerate(words) if word.startswith((">", "2>"))), None)]


def _nodes() -> Iterator[ast.AST]:
    for path in PACKAGE.rglob("*.py"):
        yield from ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def _text(node: ast.AST) -> str:
    """A string of the source, with NUL where a value is put in; empty if it is none."""
    match node:
        case ast.JoinedStr(values=parts):
            return "".join(_text(part) or "\0" for part in parts)
        case ast.Constant(value=str(text)):
            return text
    return ""


def literals() -> set[str]:
    """Every string of the package, with NUL where a value is put in."""
    return {text for node in _nodes() if (text := _text(node))}


def reject_kinds() -> set[str]:
    """The kinds that the package gives to `RejectedError(...)` and `Fault(...)`."""
    given = [
        node.args[0]
        for node in _nodes()
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("RejectedError", "Fault")
        and node.args
    ]
    named = {errors.TOO_LARGE for kind in given if isinstance(kind, ast.Name) and kind.id == "TOO_LARGE"}
    return {_text(kind) for kind in given if isinstance(kind, ast.Constant)} | named
