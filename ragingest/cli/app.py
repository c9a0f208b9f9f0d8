"""The application: its commands, its configuration file, and how errors leave it."""

from __future__ import annotations

import errno
import os
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ragingest.cli import display
from ragingest.cli.copy import copy
from ragingest.cli.failures import failures
from ragingest.cli.jobs import jobs
from ragingest.cli.options import EXIT_CODES
from ragingest.cli.plan import plan
from ragingest.cli.resume import resume
from ragingest.cli.retry import retry
from ragingest.cli.run import run
from ragingest.cli.search import search
from ragingest.cli.stats import stats
from ragingest.cli.verify import verify
from ragingest.errors import ExitCode, RagingestError, TerminalError, UsageError
from ragingest.version import __version__

__all__ = ["app", "main"]

CONFIG_FILE = "ragingest.toml"

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})

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
app.command()(plan)
app.command()(stats)
app.command()(failures)
app.command(epilog=EXIT_CODES)(retry)
app.add_typer(jobs)
app.command()(search)
app.command(epilog=EXIT_CODES)(verify)
app.command(epilog=EXIT_CODES)(copy)


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
    commands = dict(_commands(ctx.command))
    options = {name: _option_names(command.params) for name, command in commands.items()}
    ctx.default_map = _nested(_configuration(Path(CONFIG_FILE), options))


def _commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(full name, command) of every command; of a group itself too, for it may have options of its own."""
    for name, command in group.commands.items():
        yield prefix + name, command
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix}{name} ")


def _nested(defaults: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """As click wants them: those of `jobs rm` under `rm` among those of `jobs`."""
    nested: dict[str, Any] = {}
    for name, values in defaults.items():
        level = nested
        for part in name.split():
            level = level.setdefault(part, {})
        level.update(values)
    return nested


def _option_names(parameters: Iterable[Any]) -> dict[str, str]:
    """Every option as the file spells it, without dashes in front, to the name of its parameter."""
    return {
        spelling[2:]: parameter.name
        for parameter in parameters
        for spelling in parameter.opts
        if spelling.startswith("--")
    }


def _configuration(path: Path, options: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Defaults of the commands' options: top-level keys for all of them, `[run]` and so on for one.

    Args:
        path: the file, which may be missing.
        options: of each command, its options' names and those of their parameters.

    Raises:
        UsageError: the file is no TOML, or names what does not exist.
    """
    try:
        with path.open("rb") as file:
            found = tomllib.load(file)
    except FileNotFoundError:
        return {}
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", "mend it, or move it away") from None
    common = {_option(key): value for key, value in found.items() if not isinstance(value, dict)}
    own = dict(_tables(found))
    if unknown := own.keys() - options.keys():
        raise UsageError(f"{path} has a table for no command: {', '.join(sorted(unknown))}", "remove it")
    if unknown := common.keys() - {name for names in options.values() for name in names}:
        raise UsageError(
            f"{path} sets what is no option: {', '.join(sorted(unknown))}", "write them as on the command line"
        )
    defaults = {}
    for command, names in options.items():
        table = {_option(key): value for key, value in own.get(command, {}).items()}
        if unknown := table.keys() - names.keys():
            raise UsageError(
                f"{path} sets what is no option of {command}: {', '.join(sorted(unknown))}",
                "write them as on the command line",
            )
        defaults[command] = {names[option]: value for option, value in (common | table).items() if option in names}
    return defaults


def _tables(found: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(full name of a command, what its table sets) of `[run]`, `[jobs.rm]` and so on."""
    for name, table in found.items():
        if isinstance(table, dict):
            yield prefix + name, {key: value for key, value in table.items() if not isinstance(value, dict)}
            yield from _tables(table, f"{prefix}{name} ")


def _option(key: str) -> str:
    return key.replace("_", "-")


def main() -> None:
    """Run the command line; every error of ours ends in its own exit code and one or two lines."""
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except RagingestError as error:
        display.show_error(error, as_json="--json" in sys.argv)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(ExitCode.SIGINT)
    except BrokenPipeError:
        _close_stdout()
        sys.exit(ExitCode.OK)
    except OSError as error:
        # Everything else that writes has explained itself where it failed.
        if error.errno not in _NO_ROOM or error.filename is not None:
            raise
        _close_stdout()
        told = f"the output cannot be written: {error.strerror}"
        display.show_error(TerminalError(told, "free disk space; what is done is done"), as_json=False)
        sys.exit(ExitCode.FAILED)


def _close_stdout() -> None:
    """Let nothing more be written, at the very end either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
