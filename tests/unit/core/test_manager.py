from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ragingest.checkpoint.manager import CheckpointManager, write_durably
from ragingest.checkpoint.state import decode, encode
from ragingest.errors import JobLockedError, TerminalError, UsageError
from tests.unit.core.builders import checkpoint


@pytest.fixture
def manager(tmp_path: Path) -> CheckpointManager:
    manager = CheckpointManager(tmp_path / "checkpoints")
    manager.open_folder()
    return manager


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)


# -- folder ------------------------------------------------------------------------------------------


def test_the_folder_is_made_for_its_owner_only(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    CheckpointManager(folder).open_folder()
    assert mode(folder) == 0o700
    CheckpointManager(folder).open_folder()


@pytest.mark.parametrize("inside", ["", "below"])
def test_a_file_in_the_place_of_the_folder_is_an_error_that_names_the_flag(tmp_path: Path, inside: str) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(TerminalError, match="is not a folder") as caught:
        CheckpointManager(tmp_path / "taken" / inside).open_folder()
    assert "--checkpoint-dir" in caught.value.hint


def test_a_folder_that_cannot_be_written_is_an_error_that_names_the_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, wanted: False)
    with pytest.raises(TerminalError, match="cannot be written: no permission") as caught:
        CheckpointManager(tmp_path).open_folder()
    assert "--checkpoint-dir" in caught.value.hint


def test_a_folder_that_cannot_be_made_is_an_error_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(TerminalError, match="Read-only file system"):
        CheckpointManager(tmp_path / "new").open_folder()


# -- files -------------------------------------------------------------------------------------------


def test_all_files_of_a_job_lie_in_the_folder_and_bear_its_name(manager: CheckpointManager) -> None:
    files = manager.files("nightly.v2")
    assert {path.parent for path in files} == {manager.folder}
    assert all(path.name.startswith("nightly.v2.") for path in files)
    assert len(set(files)) == len(files)


@pytest.mark.parametrize("name", ["../job", "a/b", "/job", "..", "", "job\n"])
def test_a_name_that_leaves_the_folder_names_no_job(manager: CheckpointManager, name: str) -> None:
    for use in (manager.files, manager.lock, manager.load, manager.is_locked):
        with pytest.raises(UsageError):
            use(name)
    with pytest.raises(UsageError):
        manager.forget(name, ledger=True)
    with pytest.raises(UsageError):
        manager.save(checkpoint(name))


@pytest.mark.parametrize("field", ["checkpoint", "backup", "ledger", "rejects", "lock"])
def test_a_symbolic_link_in_the_place_of_a_file_is_refused(
    manager: CheckpointManager, tmp_path: Path, field: str
) -> None:
    path: Path = getattr(manager.files("job"), field)
    target = tmp_path / "precious"
    target.write_text("precious")
    path.symlink_to(target)
    for use in (manager.files, manager.lock, manager.load):
        with pytest.raises(TerminalError, match="symbolic link"):
            use("job")
    with pytest.raises(TerminalError, match="symbolic link"):
        manager.save(checkpoint())
    assert target.read_text() == "precious"


def test_a_symbolic_link_in_the_place_of_the_temporary_file_is_not_written_through(
    manager: CheckpointManager, tmp_path: Path
) -> None:
    target = tmp_path / "precious"
    target.write_text("precious")
    (manager.folder / "job.json.tmp").symlink_to(target)
    manager.save(checkpoint())
    assert target.read_text() == "precious"
    assert manager.load("job") is not None


# -- save and load -----------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(manager: CheckpointManager) -> None:
    assert manager.load("job") is None
    manager.save(checkpoint(run=3))
    loaded = manager.load("job")
    assert loaded is not None
    assert (loaded.checkpoint.run, loaded.warning) == (3, "")


def test_checkpoints_are_for_their_owner_only_and_leave_nothing_else_behind(manager: CheckpointManager) -> None:
    manager.save(checkpoint(run=1))
    manager.save(checkpoint(run=2))
    files = manager.files("job")
    assert set(manager.folder.iterdir()) == {files.checkpoint, files.backup}
    assert mode(files.checkpoint) == mode(files.backup) == 0o600


def test_the_backup_is_the_checkpoint_before(manager: CheckpointManager) -> None:
    for run in (1, 2, 3):
        manager.save(checkpoint(run=run))
    files = manager.files("job")
    assert decode(files.checkpoint.read_bytes()).run == 3
    assert decode(files.backup.read_bytes()).run == 2


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xff", b'{"format": 1}'])
def test_a_checkpoint_that_cannot_be_read_falls_back_to_the_one_before_and_says_so(
    manager: CheckpointManager, damage: bytes
) -> None:
    manager.save(checkpoint(run=1))
    manager.save(checkpoint(run=2))
    manager.files("job").checkpoint.write_bytes(damage)
    loaded = manager.load("job")
    assert loaded is not None
    assert loaded.checkpoint.run == 1
    assert str(manager.files("job").checkpoint) in loaded.warning
    assert "the one before" in loaded.warning


def test_a_cut_checkpoint_falls_back_at_every_length(manager: CheckpointManager) -> None:
    manager.save(checkpoint(run=1))
    manager.save(checkpoint(run=2))
    path = manager.files("job").checkpoint
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 37):
        path.write_bytes(whole[:length])
        loaded = manager.load("job")
        assert loaded is not None
        assert loaded.checkpoint.run == 1


def test_a_backup_alone_is_loaded(manager: CheckpointManager) -> None:
    manager.save(checkpoint(run=1))
    manager.save(checkpoint(run=2))
    manager.files("job").checkpoint.unlink()
    loaded = manager.load("job")
    assert loaded is not None
    assert loaded.checkpoint.run == 1


def test_two_checkpoints_that_cannot_be_read_are_an_error_that_names_the_way_out(
    manager: CheckpointManager,
) -> None:
    files = manager.files("job")
    files.checkpoint.write_bytes(b"{")
    files.backup.write_bytes(b"")
    with pytest.raises(TerminalError) as caught:
        manager.load("job")
    assert str(files.checkpoint) in caught.value.message
    assert str(files.backup) in caught.value.message
    assert "--fresh" in caught.value.hint


def test_the_checkpoint_of_another_job_is_not_taken(manager: CheckpointManager) -> None:
    manager.files("job").checkpoint.write_bytes(encode(checkpoint("other")))
    with pytest.raises(TerminalError, match="belongs to the job other"):
        manager.load("job")


def test_a_checkpoint_that_the_system_does_not_give_is_an_error_and_not_a_fallback(
    manager: CheckpointManager,
) -> None:
    manager.files("job").checkpoint.mkdir()
    with pytest.raises(TerminalError, match="cannot be read") as caught:
        manager.load("job")
    assert "permissions" in caught.value.hint


def test_a_full_disk_leaves_the_old_checkpoint_and_its_backup_whole(
    manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager.save(checkpoint(run=1))
    manager.save(checkpoint(run=2))
    files = manager.files("job")
    before = files.checkpoint.read_bytes(), files.backup.read_bytes()
    with monkeypatch.context() as context:
        fill_the_disk(context)
        with pytest.raises(TerminalError, match="No space left") as caught:
            manager.save(checkpoint(run=3))
    assert "free disk space" in caught.value.hint
    assert (files.checkpoint.read_bytes(), files.backup.read_bytes()) == before
    assert set(manager.folder.iterdir()) == {files.checkpoint, files.backup}
    manager.save(checkpoint(run=3))
    assert decode(files.checkpoint.read_bytes()).run == 3


def test_a_folder_that_was_taken_away_is_an_error_on_saving(manager: CheckpointManager) -> None:
    manager.folder.rmdir()
    with pytest.raises(TerminalError, match="cannot be written"):
        manager.save(checkpoint())


@pytest.mark.parametrize(
    ("step", "survived"), [("fsync", 0), ("link", 0), ("replace", 0), ("replace", 1), ("fsync", 1)]
)
def test_a_death_at_any_step_of_saving_leaves_a_checkpoint_that_loads(
    manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch, step: str, survived: int
) -> None:
    class Death(BaseException):
        pass

    holder = Path if step == "replace" else os
    real = getattr(holder, step)
    calls = 0

    def die(*args: object) -> object:
        nonlocal calls
        calls += 1
        if calls > survived:
            raise Death
        return real(*args)

    manager.save(checkpoint(run=1))
    manager.save(checkpoint(run=2))
    with monkeypatch.context() as context:
        context.setattr(holder, step, die)
        with pytest.raises(Death):
            manager.save(checkpoint(run=3))
    loaded = manager.load("job")
    assert loaded is not None
    assert loaded.warning == ""
    assert loaded.checkpoint.run in (2, 3)
    manager.save(checkpoint(run=4))
    again = manager.load("job")
    assert again is not None
    assert again.checkpoint.run == 4


def test_a_file_is_written_out_before_it_takes_the_old_ones_place_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def recording_fsync(handle: int) -> None:
        steps.append("fsync folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "fsync file")
        fsync(handle)

    def recording_replace(path: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(Path, "replace", recording_replace)
    write_durably(tmp_path / "file", b"data")
    assert steps == ["fsync file", "rename", "fsync folder"]
    assert (tmp_path / "file").read_bytes() == b"data"


# -- lock --------------------------------------------------------------------------------------------


def test_a_job_is_locked_once(manager: CheckpointManager) -> None:
    assert not manager.is_locked("job")
    lock = manager.lock("job")
    with pytest.raises(JobLockedError) as caught:
        CheckpointManager(manager.folder).lock("job")
    assert "job" in caught.value.message
    assert "--job" in caught.value.hint
    assert manager.is_locked("job")
    manager.lock("another").release()
    lock.release()
    assert not manager.is_locked("job")
    manager.lock("job").release()


def test_the_lock_file_is_for_its_owner_only(manager: CheckpointManager) -> None:
    with manager.lock("job"):
        assert mode(manager.files("job").lock) == 0o600


_HOLD = """
import sys
from pathlib import Path
from ragingest.checkpoint.manager import CheckpointManager
lock = CheckpointManager(Path(sys.argv[1])).lock("job")
print("held", flush=True)
sys.stdin.read()
"""


def test_a_lock_holds_against_other_processes_and_ends_with_a_killed_one(manager: CheckpointManager) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(manager.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            assert manager.is_locked("job")
            with pytest.raises(JobLockedError):
                manager.lock("job")
        finally:
            holder.kill()
            holder.wait()
    assert not manager.is_locked("job")
    manager.lock("job").release()


def test_a_lock_in_a_folder_that_is_not_there_is_an_error_for_people(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(TerminalError, match="cannot be written"):
        CheckpointManager(tmp_path / "taken").lock("job")


# -- jobs, archive, forget ---------------------------------------------------------------------------


def test_jobs_are_those_that_have_a_checkpoint_in_order(manager: CheckpointManager) -> None:
    assert list(manager.jobs()) == []
    for job in ("nightly", "a.b", "archive"):
        manager.save(checkpoint(job))
        manager.save(checkpoint(job))
        manager.lock(job).release()
    manager.archive(checkpoint("nightly"))
    (manager.folder / "notes.txt").write_text("")
    (manager.folder / ".hidden.json").write_text("")
    (manager.folder / "no job.json").write_text("")
    (manager.folder / "folder.json").mkdir()
    assert list(manager.jobs()) == ["a.b", "archive", "nightly"]


def test_a_folder_that_is_not_there_has_no_jobs(tmp_path: Path) -> None:
    assert list(CheckpointManager(tmp_path / "missing").jobs()) == []


def test_every_finished_run_keeps_its_checkpoint(manager: CheckpointManager) -> None:
    for run in (1, 2):
        manager.archive(checkpoint(run=run, status="completed"))
    folder = manager.folder / "completed"
    assert mode(folder) == 0o700
    kept = sorted(folder.iterdir())
    assert [path.name for path in kept] == ["job_20250102T030406_1.json", "job_20250102T030406_2.json"]
    assert [decode(path.read_bytes()).run for path in kept] == [1, 2]
    assert {mode(path) for path in kept} == {0o600}


def test_an_archive_that_cannot_be_written_is_an_error_for_people(manager: CheckpointManager) -> None:
    (manager.folder / "completed").write_text("a file")
    with pytest.raises(TerminalError, match="cannot be written"):
        manager.archive(checkpoint())


@pytest.mark.parametrize("ledger", [True, False])
def test_forgetting_a_job_keeps_its_ledger_unless_told(manager: CheckpointManager, ledger: bool) -> None:
    manager.save(checkpoint())
    manager.save(checkpoint())
    manager.save(checkpoint("job2"))
    files = manager.files("job")
    files.rejects.write_text("{}\n")
    kept = {files.ledger, *(files.ledger.with_name(files.ledger.name + end) for end in ("-wal", "-shm"))}
    for path in kept:
        path.write_bytes(b"")
    manager.forget("job", ledger=ledger)
    left = {path for path in manager.folder.iterdir() if path.name.startswith("job.")}
    assert left == (set() if ledger else kept)
    assert manager.load("job2") is not None
    manager.forget("job", ledger=True)
