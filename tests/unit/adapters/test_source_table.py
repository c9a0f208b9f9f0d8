from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from ragingest.errors import TerminalError, UsageError
from ragingest.settings import JobSettings
from ragingest.sources import open_source
from ragingest.sources.json_array import JSONArray, JSONArrayStdin
from ragingest.sources.lines import JSONLines, JSONLinesStdin


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jsonl", JSONLines),
        ("a.ndjson", JSONLines),
        ("a.JSONL.GZ", JSONLines),
        ("a.b.ndjson.zst", JSONLines),
        ("a.json", JSONArray),
        ("a.json.bz2", JSONArray),
        ("a.jsonl.json.xz", JSONArray),
    ],
)
def test_the_name_tells_the_format(tmp_path: Path, name: str, kind: type) -> None:
    (tmp_path / name).write_bytes(b"")
    source = open_source(JobSettings(source=str(tmp_path / name)))
    assert isinstance(source, kind)
    source.close()


def test_a_flag_tells_the_format_before_the_name(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"")
    source = open_source(JobSettings(source=str(path), format="jsonl"))
    assert isinstance(source, JSONLines)
    source.close()


@pytest.mark.parametrize("name", ["a.csv", "a", "a.txt.gz", "a.gz"])
def test_an_unknown_format_is_asked_for(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UsageError, match="format") as caught:
        open_source(JobSettings(source=str(tmp_path / name)))
    assert "--format jsonl" in caught.value.hint


def test_a_missing_file_or_a_folder_is_named_before_its_format(tmp_path: Path) -> None:
    with pytest.raises(TerminalError, match="there is no file"):
        open_source(JobSettings(source=str(tmp_path / "missing.csv")))
    with pytest.raises(TerminalError, match="is a folder"):
        open_source(JobSettings(source=str(tmp_path)))


@pytest.mark.parametrize(
    ("told", "kind"), [("auto", JSONLinesStdin), ("jsonl", JSONLinesStdin), ("json", JSONArrayStdin)]
)
def test_standard_input_is_lines_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, told: str, kind: type
) -> None:
    read_end, write_end = os.pipe()
    os.close(write_end)
    with io.FileIO(read_end) as pipe:
        monkeypatch.setattr(sys, "stdin", pipe)
        source = open_source(JobSettings(source="-", format=told))  # type: ignore[arg-type]  # parametrised
        assert isinstance(source, kind)
        assert source.read_block() is None
        source.close()
