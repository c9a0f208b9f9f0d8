from __future__ import annotations

import io
import json
import sqlite3
import stat
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ragingest.checkpoint.ledger import Ledger, LedgerRow
from ragingest.checkpoint.manager import CheckpointManager
from ragingest.checkpoint.state import PartState
from ragingest.checkpoint.transfer import export_job, import_job
from ragingest.checkpoint.vectors import PaidVectors
from ragingest.errors import JobLockedError, RagingestError, TerminalError, UsageError
from ragingest.events import Counters
from tests.unit.core.builders import checkpoint

ROW = LedgerRow("a", b"d" * 24, 2, 1, 1, 0, 5)
REJECTS = b'{"stage": "decode"}\n'
DIGEST = b"t" * 16


@pytest.fixture
def here(tmp_path: Path) -> CheckpointManager:
    """A job with something in each of its files."""
    manager = CheckpointManager(tmp_path / "here")
    manager.open_folder()
    state = checkpoint(
        counters=Counters(read=2, stored=1, rejected=1),
        rejects_bytes=len(REJECTS),
        parts=[PartState(name="/corpus.jsonl", size=100), PartState(name="/corpus.jsonl/part", size=1)],
    )
    manager.save(state)
    manager.save(state)
    manager.archive(state)
    manager.save(checkpoint("job2"))
    files = manager.files("job")
    files.rejects.write_bytes(REJECTS + b"behind the checkpoint\n")
    with closing(Ledger(files.ledger)) as ledger:
        ledger.commit([ROW])
    with closing(paid(manager)) as vectors:
        vectors.put([DIGEST], _vector())
    return manager


@pytest.fixture
def there(tmp_path: Path) -> CheckpointManager:
    return CheckpointManager(tmp_path / "there")


def _vector() -> Any:
    import numpy as np

    return np.ones((1, 4), dtype=np.float32)


def paid(manager: CheckpointManager) -> PaidVectors:
    return PaidVectors(manager.files("job").vectors, "model", 4, keep=False)


def exported(manager: CheckpointManager) -> Path:
    path = manager.folder.parent / "job.tar"
    export_job(manager, "job", path)
    return path


def content(manager: CheckpointManager) -> dict[str, bytes]:
    return {
        str(path.relative_to(manager.folder)): path.read_bytes()
        for path in manager.folder.rglob("*")
        if path.is_file()
    }


# -- there and back ----------------------------------------------------------------------------------


def test_all_of_a_job_arrives_and_nothing_of_another(here: CheckpointManager, there: CheckpointManager) -> None:
    imported = import_job(there, exported(here), source="/new/corpus.jsonl", store_path="/new/data")
    assert list(there.jobs()) == ["job"]
    loaded = there.load("job")
    assert loaded is not None
    assert loaded.checkpoint.counters == imported.counters == Counters(read=2, stored=1, rejected=1)
    settings = loaded.checkpoint.settings
    assert (settings.source, settings.store_path) == ("/new/corpus.jsonl", "/new/data")
    assert loaded.checkpoint.fingerprint == settings.fingerprint()
    assert [part.name for part in loaded.checkpoint.parts] == ["/new/corpus.jsonl", "/new/corpus.jsonl/part"]
    files = there.files("job")
    assert files.rejects.read_bytes() == REJECTS
    with closing(Ledger(files.ledger)) as ledger:
        assert ledger.lookup(["a"]) == {"a": ROW[1:]}
    with closing(paid(there)) as vectors:
        assert vectors.get([DIGEST])[DIGEST].tolist() == [1, 1, 1, 1]
    assert [path.name for path in there.archived("job")] == [path.name for path in here.archived("job")]


def test_without_new_places_the_job_keeps_its_own(here: CheckpointManager, there: CheckpointManager) -> None:
    imported = import_job(there, exported(here))
    assert imported.settings == checkpoint().settings


def test_only_its_owner_may_read_the_archive_and_what_comes_from_it(
    here: CheckpointManager, there: CheckpointManager
) -> None:
    path = exported(here)
    import_job(there, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for file in there.folder.rglob("*"):
        assert stat.S_IMODE(file.stat().st_mode) == (0o700 if file.is_dir() else 0o600), file


def test_what_the_ledger_has_only_in_its_log_is_exported(here: CheckpointManager, there: CheckpointManager) -> None:
    with closing(Ledger(here.files("job").ledger)) as ledger:
        ledger.commit([ROW._replace(id="b")])
        assert here.files("job").ledger.with_name("job.ledger.sqlite-wal").stat().st_size > 0
        path = exported(here)
    import_job(there, path)
    with closing(Ledger(there.files("job").ledger)) as ledger:
        assert ledger.count() == 2


def test_an_export_leaves_the_job_as_it_was_and_nothing_beside_the_archive(here: CheckpointManager) -> None:
    before = content(here)
    path = exported(here)
    after = {name: data for name, data in content(here).items() if not name.endswith(("-wal", "-shm", ".lock"))}
    assert after == {name: data for name, data in before.items() if not name.endswith(("-wal", "-shm", ".lock"))}
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["here", "job.tar"]


# -- refusals ----------------------------------------------------------------------------------------


def test_a_job_that_is_worked_on_is_neither_exported_nor_replaced(
    here: CheckpointManager, there: CheckpointManager
) -> None:
    path = exported(here)
    import_job(there, path)
    with here.lock("job"), pytest.raises(JobLockedError):
        exported(here)
    with there.lock("job"), pytest.raises(JobLockedError):
        import_job(there, path, force=True)


def test_a_job_of_the_same_name_is_replaced_only_when_told_so(
    here: CheckpointManager, there: CheckpointManager
) -> None:
    path = exported(here)
    there.open_folder()
    there.save(checkpoint(run=9))
    with closing(Ledger(there.files("job").ledger)) as ledger:
        ledger.commit([ROW._replace(id="old")])
    before = content(there)
    with pytest.raises(UsageError, match="already") as caught:
        import_job(there, path)
    assert "--force" in caught.value.hint
    assert {name: data for name, data in content(there).items() if not name.endswith(".lock")} == before
    import_job(there, path, force=True)
    with closing(Ledger(there.files("job").ledger)) as ledger:
        assert set(ledger.lookup(["a", "old"])) == {"a"}


def test_a_damaged_ledger_is_not_exported(here: CheckpointManager) -> None:
    path = here.files("job").ledger
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(TerminalError, match="damaged") as caught:
        exported(here)
    assert "jobs repair" in caught.value.hint
    assert not (here.folder.parent / "job.tar").exists()


def test_a_job_that_is_not_there_is_wrong_usage(there: CheckpointManager, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no job"):
        export_job(there, "job", tmp_path / "job.tar")
    with pytest.raises(TerminalError, match=r"missing\.tar"):
        import_job(there, tmp_path / "missing.tar")


# -- archives of others ------------------------------------------------------------------------------


def rewritten(path: Path, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], Any]) -> Path:
    """The archive with its members changed."""
    with tarfile.open(path) as archive:
        members = [(entry, (archive.extractfile(entry) or io.BytesIO()).read()) for entry in archive]
    change(members)
    with tarfile.open(path, "w") as archive:
        for entry, data in members:
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def manifest(members: list[tuple[tarfile.TarInfo, bytes]], change: Callable[[dict[str, Any]], Any]) -> None:
    told = json.loads(members[0][1])
    change(told)
    members[0] = (members[0][0], json.dumps(told).encode())


def _named(name: str) -> Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]:
    """The last member, under another name in the archive and in its manifest."""

    def change(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        members[-1][0].name = name
        manifest(members, lambda told: told["files"][-1].update(name=name))

    return change


def _typed(kind: bytes) -> Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]:
    def change(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        entry = members[-1][0]
        entry.type, entry.linkname = kind, "/etc/passwd"

    return change


BAD: dict[str, Callable[[list[tuple[tarfile.TarInfo, bytes]]], Any]] = {
    "path upwards": _named("../evil"),
    "absolute path": _named("/tmp/evil"),  # noqa: S108  # not written
    "folder": _named("a/rejects.jsonl"),
    "another name": _named("notes.txt"),
    "newline": _named("rejects.jsonl\n"),
    "symbolic link": _typed(tarfile.SYMTYPE),
    "hard link": _typed(tarfile.LNKTYPE),
    "device": _typed(tarfile.CHRTYPE),
    "fifo": _typed(tarfile.FIFOTYPE),
    "directory": _typed(tarfile.DIRTYPE),
    "job outside": lambda members: manifest(members, lambda told: told.update(job="../evil")),
    "job of another name": lambda members: manifest(members, lambda told: told.update(job="other")),
    "other format": lambda members: manifest(members, lambda told: told.update(format=2)),
    "no format": lambda members: manifest(members, lambda told: told.pop("format")),
    "other digest": lambda members: manifest(members, lambda told: told["files"][-1].update(digest="00")),
    "twice the same": lambda members: manifest(members, lambda told: told["files"].append(told["files"][-1])),
    "no checkpoint": lambda members: manifest(members, lambda told: told["files"].remove(told["files"][0])),
    "no manifest": lambda members: members.pop(0),
    "manifest not first": lambda members: members.reverse(),
    "more than the manifest says": lambda members: members.append((tarfile.TarInfo("x"), b"")),
    "less than the manifest says": lambda members: members.pop(),
    "shorter member": lambda members: members.__setitem__(1, (members[1][0], members[1][1][:-1])),
    "empty": lambda members: members.clear(),
}


@pytest.mark.parametrize("change", [pytest.param(change, id=name) for name, change in BAD.items()])
def test_an_archive_that_is_not_as_we_write_it_changes_nothing(
    here: CheckpointManager, there: CheckpointManager, change: Callable[..., Any]
) -> None:
    path = rewritten(exported(here), change)
    outside = set(there.folder.parent.iterdir())
    with pytest.raises(UsageError):
        import_job(there, path, force=True)
    assert {name for name in content(there) if not name.endswith(".lock")} == set()
    assert set(there.folder.parent.iterdir()) <= outside | {there.folder}


@pytest.mark.parametrize(
    "sql",
    ["CREATE VIEW v AS SELECT 1", "CREATE TRIGGER t AFTER INSERT ON documents BEGIN DELETE FROM documents; END"],
)
def test_a_ledger_with_code_in_it_is_refused(here: CheckpointManager, there: CheckpointManager, sql: str) -> None:
    with closing(sqlite3.connect(here.files("job").ledger)) as database:
        database.execute(sql)
    with pytest.raises(UsageError, match="more than tables"):
        import_job(there, exported(here))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.6])
def test_a_cut_archive_changes_nothing(here: CheckpointManager, there: CheckpointManager, share: float) -> None:
    path = exported(here)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size) // 512 * 512 or 1])
    with pytest.raises(RagingestError):
        import_job(there, path)
    assert {name for name in content(there) if not name.endswith(".lock")} == set()


def test_a_flipped_bit_changes_nothing(here: CheckpointManager, there: CheckpointManager) -> None:
    whole = exported(here).read_bytes()
    path = here.folder.parent / "flipped.tar"
    refused = 0
    for at in range(600, len(whole), 4999):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        try:
            import_job(there, path, force=True)
        except UsageError:
            refused += 1
            continue
        # It hit the padding between members.
        assert there.load("job") is not None
    assert refused > 0


def test_the_archive_folder_is_not_followed_if_it_is_a_link(
    here: CheckpointManager, there: CheckpointManager, tmp_path: Path
) -> None:
    path = exported(here)
    there.open_folder()
    (tmp_path / "outside").mkdir()
    (there.folder / "completed").symlink_to(tmp_path / "outside")
    with pytest.raises(TerminalError, match="symbolic link"):
        import_job(there, path)
    assert list((tmp_path / "outside").iterdir()) == []
