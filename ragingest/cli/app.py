"""The application: its commands, its configuration file, and how errors leave it."""

from __future__ import annotations

import os
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from ragingest.cli import display
from ragingest.cli.options import EXIT_CODES
from ragingest.cli.resume import resume
from ragingest.cli.run import run
from ragingest.cli.search import search
from ragingest.cli.stats import stats
from ragingest.errors import ExitCode, RagingestError, UsageError
from ragingest.version import __version__

__all__ = ["app", "main"]

CONFIG_FILE = "ragingest.toml"

app = typer.Typer(
    name="ragingest",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXIT_CODES,
)
app.command(epilog=EXIT_CODES)(run)
app.command(epilog=EXIT_CODES)(resume)
app.command()(stats)
app.command()(search)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ragingest {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    ctx: typer.Context,
    version: Annotated[  # noqa: ARG001  # its callback has acted already
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """The bulk loader for vector databases: every record of a corpus, embedded and stored, once.

    Settings come from flags, then RAGINGEST_* variables, then ragingest.toml in the current folder.
    """
    ctx.default_map = _configuration(Path(CONFIG_FILE), set(ctx.command.list_commands(ctx)))  # type: ignore[attr-defined]  # a group


def _configuration(path: Path, commands: set[str]) -> dict[str, Any]:
    """Defaults of the commands' options: top-level keys for all of them, `[run]` and so on for one.

    Raises:
        UsageError: the file is no TOML.
    """
    try:
        with path.open("rb") as file:
            found = tomllib.load(file)
    except FileNotFoundError:
        return {}
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", "mend it, or move it away") from None
    common = {_parameter(key): value for key, value in found.items() if not isinstance(value, dict)}
    own = {name: table for name, table in found.items() if isinstance(table, dict)}
    if unknown := own.keys() - commands:
        raise UsageError(f"{path} has a table for no command: {', '.join(unknown)}", "remove it")
    return {name: common | {_parameter(k): v for k, v in own.get(name, {}).items()} for name in commands}


def _parameter(key: str) -> str:
    return key.replace("-", "_")


def main() -> None:
    """Run the command line; every error of ours ends in its own exit code and one or two lines."""
    try:
        app()
    except RagingestError as error:
        display.show_error(error, as_json="--json" in sys.argv)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(ExitCode.SIGINT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitCode.OK)
