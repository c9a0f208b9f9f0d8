"""Where records come from: one file a source. `open_source` is the name table."""

from __future__ import annotations

from pathlib import Path

from ragingest.errors import UsageError
from ragingest.protocols import Source
from ragingest.settings import STDIN, JobSettings
from ragingest.sources.json_array import JSONArray, JSONArrayStdin
from ragingest.sources.lines import JSONLines, JSONLinesStdin
from ragingest.sources.streams import COMPRESSIONS, open_stdin

__all__ = ["open_source"]

_FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json"}


def open_source(settings: JobSettings) -> Source:
    """The source that the settings name, at its beginning.

    Raises:
        UsageError: its format cannot be told.
        TerminalError: it cannot be read.
    """
    limit = settings.max_record_bytes
    if settings.source == STDIN:
        if settings.format == "json":
            return JSONArrayStdin(open_stdin(), settings.json_path, limit)
        return JSONLinesStdin(open_stdin(), limit)
    path = Path(settings.source)
    if _format(path, settings.format) == "json":
        return JSONArray(path, settings.json_path, limit)
    return JSONLines(path, limit)


def _format(path: Path, told: str) -> str:
    if told != "auto":
        return told
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    if suffixes and suffixes[-1] in _FORMATS:
        return _FORMATS[suffixes[-1]]
    if path.is_dir() or not path.exists():
        return "jsonl"
    raise UsageError(
        f"the format of {path} cannot be told from its name",
        f"say --format jsonl or --format json (names that need no flag: {', '.join(_FORMATS)}, "
        f"also with {', '.join(COMPRESSIONS)})",
    )
