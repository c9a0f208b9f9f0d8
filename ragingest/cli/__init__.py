"""The command line: parse, wire, run, exit code."""

from ragingest.cli.app import main

__all__ = ["main"]
