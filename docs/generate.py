"""Writes the parts of the documents that are made from the source; with --check, only says which are stale.

python docs/generate.py
python docs/generate.py --check

A generated part stands between `<!-- generated: NAME -->` and `<!-- end -->`, in the README, in
ARCHITECTURE.md or in a file of this folder.
"""

from __future__ import annotations

import enum
import inspect
import re
import sys
import textwrap
import tomllib
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.models import OptionInfo, ParameterInfo

from benchmarks.tables import TABLES
from ragingest.checkpoint import ledger
from ragingest.checkpoint.state import Checkpoint, PartState
from ragingest.cli.app import app as ragingest_app
from ragingest.costs.books import Books
from ragingest.costs.models import DEFAULT_MODELS, MODELS, facts_of
from ragingest.embedders import APIS
from ragingest.errors import ExitCode
from ragingest.events import Counters
from ragingest.reject_kinds import REJECT_KINDS

__all__ = [
    "COMMAND",
    "SECTIONS",
    "command_names",
    "commands",
    "documents",
    "main",
    "options_of",
    "regenerated",
    "stale",
]

ROOT = Path(__file__).parents[1]
COMMAND = "python docs/generate.py"
WIDTH = 100
NAMES_WIDTH = 32
UNBROKEN = "\N{NO-BREAK SPACE}"

_SECTION = re.compile(
    r"(?P<begin><!-- generated: (?P<name>[a-z-]+) -->\n)(?P<body>.*?)(?P<end><!-- end -->)", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Parameter:
    """An argument or option of a command, as its function declares it."""

    name: str
    info: ParameterInfo
    hint: Any
    default: Any

    @property
    def is_option(self) -> bool:
        return isinstance(self.info, OptionInfo)

    @property
    def _declared(self) -> list[str]:
        """What stands in `typer.Option("--job", "-j")`, whose first place Typer calls the default."""
        first = self.info.default
        return [*([first] if isinstance(first, str) else []), *(self.info.param_decls or ())]

    @property
    def spellings(self) -> list[str]:
        """Long names first: `--job`, `-j`; both sides of `--chunk/--no-chunk`."""
        declared = [part for spelling in self._declared for part in spelling.split("/")]
        return sorted(
            declared or ["--" + self.name.strip("_").replace("_", "-")], key=lambda spelling: spelling[:2] != "--"
        )

    @property
    def variable(self) -> str | None:
        found = self.info.envvar
        return found if found is None or isinstance(found, str) else ", ".join(found)

    def title(self) -> str:
        if not self.is_option:
            return self.name.upper() if self.default is inspect.Parameter.empty else f"[{self.name.upper()}]"
        switch = " / " if any("/" in spelling for spelling in self._declared) else ", "
        return " ".join(filter(None, (switch.join(self.spellings), _placeholder(self.hint))))

    def text(self) -> str:
        """The help, with default and variable where it does not name them itself."""
        parts = [(self.info.help or "").replace(r"\[", "[")]
        if "[default:" not in parts[0] and (shown := self._shown_default()):
            parts.append(f"[default: {shown}]")
        if self.variable:
            parts.append(f"[variable:{UNBROKEN}{self.variable}]")
        return " ".join(filter(None, parts))

    def _shown_default(self) -> str:
        if self.default is inspect.Parameter.empty or self.default in (None, False, ()):
            return ""
        if self.default is True:
            return self.spellings[0]
        return str(self.default.value if isinstance(self.default, enum.Enum) else self.default)


def _placeholder(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin is Literal:
        return "|".join(map(str, typing.get_args(hint)))
    if origin in (types.UnionType, typing.Union):
        return _placeholder(next(part for part in typing.get_args(hint) if part is not types.NoneType))
    if origin in (list, tuple):
        return _placeholder(typing.get_args(hint)[0]) + " ..."
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "|".join(str(member.value) for member in hint)
    return {bool: "", int: "NUMBER", float: "NUMBER", Path: "PATH"}.get(hint, "TEXT")


def _parameters(function: Callable[..., Any]) -> list[Parameter]:
    hints = typing.get_type_hints(function, include_extras=True)
    found = []
    for name, parameter in inspect.signature(function).parameters.items():
        hint = hints[name]
        if typing.get_origin(hint) is not Annotated:
            continue  # the context
        inner, *extras = typing.get_args(hint)
        info = next((extra for extra in extras if isinstance(extra, ParameterInfo)), None)
        if info is not None and not info.hidden:
            found.append(Parameter(name, info, inner, parameter.default))
    return found


def _walk(app: typer.Typer, prefix: str = "ragingest") -> Iterator[tuple[str, Callable[..., Any]]]:
    """(full name, function) of every command, those of sub-applications included."""
    for command in app.registered_commands:
        if command.callback is not None and not command.hidden:
            name = command.name or command.callback.__name__.replace("_", "-")
            yield f"{prefix} {name}", command.callback
    for group in app.registered_groups:
        if group.typer_instance is not None:
            name = f"{prefix} {group.name or group.typer_instance.info.name}"
            callback = group.typer_instance.registered_callback
            if callback is not None and callback.invoke_without_command is True and callback.callback is not None:
                yield name, callback.callback
            yield from _walk(group.typer_instance, name)


def command_names(app: typer.Typer = ragingest_app) -> list[str]:
    """Every command by its full name, in the order of the help."""
    return [name for name, _ in _walk(app)]


def options_of(command: str, app: typer.Typer = ragingest_app) -> set[str]:
    """Every spelling of every option of a command."""
    function = dict(_walk(app))[command]
    given = {spelling for p in _parameters(function) if p.is_option for spelling in p.spellings}
    return given | {"--help", "-h"}


def _usage(name: str, parameters: list[Parameter]) -> str:
    arguments = [parameter.title() for parameter in parameters if not parameter.is_option]
    return " ".join(["Usage:", name, "[OPTIONS]", *arguments])


def _entries(parameters: list[tuple[str, str]]) -> list[str]:
    lines = []
    for title, text in parameters:
        beside = len(title) + 4 <= NAMES_WIDTH
        indent = " " * NAMES_WIDTH
        first = f"  {title}".ljust(NAMES_WIDTH) if beside else indent
        if not beside:
            lines.append(f"  {title}")
        lines += textwrap.wrap(
            text,
            WIDTH,
            initial_indent=first,
            subsequent_indent=indent,
            break_on_hyphens=False,
            break_long_words=False,
        ) or [first.rstrip()]
    return [line.replace(UNBROKEN, " ") for line in lines]


def _command_help(name: str, function: Callable[..., Any]) -> str:
    parameters = _parameters(function)
    lines = [_usage(name, parameters), ""]
    for paragraph in inspect.cleandoc(function.__doc__ or "").split("\n\n"):
        lines += [*textwrap.wrap(paragraph, WIDTH), ""]
    panels: dict[str, list[tuple[str, str]]] = {}
    for parameter in parameters:
        panel = getattr(parameter.info, "rich_help_panel", None)
        panel = panel if isinstance(panel, str) else "Options" if parameter.is_option else "Arguments"
        panels.setdefault(panel, []).append((parameter.title(), parameter.text()))
    panels.setdefault("Options", []).append(("--help, -h", "Show the help and exit."))
    for panel, entries in panels.items():
        lines += [f"{panel}:", *_entries(entries), ""]
    return "\n".join(lines).rstrip()


def commands(app: typer.Typer = ragingest_app) -> str:
    """A heading and the help of every command."""
    blocks = []
    for name, function in _walk(app):
        blocks.append(f"## {name}\n\n```text\n{_command_help(name, function)}\n```\n")
    return "\n" + "\n".join(blocks) + "\n"


def exit_codes() -> str:
    """The table of exit codes."""
    rows = "".join(f"| {int(code)} | {code.meaning} |\n" for code in ExitCode)
    return f"\n| code | meaning |\n| --- | --- |\n{rows}\n"


def variables() -> str:
    """The table of environment variables, and which commands read them."""
    rows: dict[str, tuple[str, list[str]]] = {}
    for name, function in _walk(ragingest_app):
        for parameter in _parameters(function):
            if parameter.variable:
                rows.setdefault(parameter.variable, (parameter.spellings[0], []))[1].append(name.partition(" ")[2])
    lines = [
        f"| `{variable}` | `{option}` | {', '.join(readers)} |\n"
        for variable, (option, readers) in sorted(rows.items())
    ]
    return f"\n| variable | option | commands |\n| --- | --- | --- |\n{''.join(lines)}\n"


def layers() -> str:
    """The layers as the import linter checks them."""
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found: Mapping[str, Any] = next(
        contract for contract in configuration["tool"]["importlinter"]["contracts"] if contract["type"] == "layers"
    )
    lines = [re.sub(r"\bragingest\.", "", layer) for layer in found["layers"]]
    return "\n```text\n" + "\n".join(lines) + "\n```\n\n"


def checkpoint_fields() -> str:
    """The names of all fields of a checkpoint."""
    rows = "".join(
        f"| {what} | {', '.join(f'`{name}`' for name in struct.__struct_fields__)} |\n"
        for what, struct in (
            ("checkpoint", Checkpoint),
            ("part", PartState),
            ("counters", Counters),
            ("books", Books),
        )
    )
    return f"\n| of | fields |\n| --- | --- |\n{rows}\n"


def ledger_schema() -> str:
    """The tables of the ledger."""
    return f"\n```sql\n{ledger._SCHEMA.strip()}\n```\n\n"


def models() -> str:
    """The models of which limits and prices are known, by the embedder that reaches them."""
    rows = []
    for embedder, facts in ((embedder, facts) for embedder in APIS for facts in MODELS):
        if facts_of(embedder, facts.name) != facts:
            continue
        default = " (default)" if facts.name == DEFAULT_MODELS[embedder] else ""
        request = "not limited" if facts.max_request_tokens is None else f"{facts.max_request_tokens:,}"
        price = "unknown" if facts.price_per_million is None else f"${facts.price_per_million:.2f}"
        rows.append(
            f"| `{embedder}` | `{facts.name}`{default} | {facts.choices} | {facts.max_inputs:,} | "
            f"{facts.max_input_tokens:,} | {request} | {price} | <{facts.source}>, {facts.date} |\n"
        )
    head = "| embedder | model | dimensions | texts a request | tokens a text | tokens a request | price of a million tokens | read at |"
    return f"\n{head}\n| --- | --- | --- | --- | --- | --- | --- | --- |\n{''.join(rows)}\n"


def reject_kinds() -> str:
    """The table of the kinds of rejects."""
    rows = "".join(
        f"| `{name}` | {kind.stages} | {kind.cause} | {kind.advice} |\n" for name, kind in REJECT_KINDS.items()
    )
    return f"\n| kind | stage | cause | what to do |\n| --- | --- | --- | --- |\n{rows}\n"


SECTIONS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "exit-codes": exit_codes,
    "variables": variables,
    "layers": layers,
    "checkpoint-fields": checkpoint_fields,
    "ledger-schema": ledger_schema,
    "models": models,
    "reject-kinds": reject_kinds,
    **TABLES,
}


def documents(root: Path = ROOT) -> list[Path]:
    return [root / "README.md", root / "ARCHITECTURE.md", *sorted((root / "docs").glob("*.md"))]


def regenerated(text: str, sections: Mapping[str, Callable[[], str]] = SECTIONS) -> str:
    """`text` with its generated parts as the source has them now.

    Raises:
        KeyError: a part has a name that is not known.
    """
    return _SECTION.sub(lambda found: found["begin"] + sections[found["name"]]() + found["end"], text)


def stale(root: Path = ROOT) -> list[Path]:
    """The documents that would change."""
    return [path for path in documents(root) if regenerated(text := path.read_text(encoding="utf-8")) != text]


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        sys.stderr.write(f"usage: {COMMAND} [--check]\n")
        return 2
    changed = stale()
    for path in changed:
        sys.stderr.write(f"{'stale' if arguments else 'written'}: {path.relative_to(ROOT)}\n")
        if not arguments:
            path.write_text(regenerated(path.read_text(encoding="utf-8")), encoding="utf-8")
    if arguments and changed:
        sys.stderr.write(f"run {COMMAND}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
