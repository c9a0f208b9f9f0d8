"""No command lets the name of a job lead out of the checkpoint folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from ragingest.checkpoint.manager import CheckpointManager
from ragingest.cli.app import app
from ragingest.errors import TerminalError, UsageError

COMMANDS = [
    ("failures",),
    ("stats",),
    ("resume",),
    ("retry",),
    ("jobs", "rm", "--yes"),
    ("jobs", "unlock"),
    ("jobs", "repair"),
    ("jobs", "export"),
]
OUTSIDE = ["../d", "d/../d", "/etc/passwd", "d\n", "", ".", "..", "d/", "d\0", "-d.json/x"]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_name_that_is_none_is_refused_and_nothing_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (tmp_path / "d.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for name in OUTSIDE:
        result = CliRunner().invoke(app, [*command, "--", name, *(["d.tar"] if command[-1] == "export" else [])])
        assert isinstance(result.exception, UsageError), (name, result.output)
        assert "is not a job name" in result.exception.message
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["checkpoints", "d.json"]


@given(st.text(max_size=120))
def test_the_files_of_any_name_that_is_taken_lie_in_the_folder(name: str) -> None:
    folder = Path("/nowhere/checkpoints")
    try:
        files = CheckpointManager(folder).files(name)
    except UsageError:
        return
    assert {path.parent for path in files} == {folder}
    assert all(path.name.startswith(name + ".") for path in files)


@pytest.mark.parametrize(
    "end", ["json", "json.bak", "ledger.sqlite", "ledger.sqlite-wal", "rejects.jsonl", "lock", "vectors"]
)
def test_no_state_file_is_followed_if_it_is_a_link(tmp_path: Path, end: str) -> None:
    manager = CheckpointManager(tmp_path / "checkpoints")
    manager.open_folder()
    outside = tmp_path / "outside"
    outside.write_text("untouched")
    (manager.folder / f"job.{end}").symlink_to(outside)
    for use in (manager.files, manager.load, manager.lock, manager.state_files, manager.remove):
        with pytest.raises(TerminalError, match="symbolic link"):
            use("job")
    assert outside.read_text() == "untouched"
