"""The source of the jobs in this folder, and one more checkpoint of it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import msgspec

from ragingest.checkpoint import state
from tests.e2e.command import NO_WORK, Command
from tests.faults.harness import Corpus

__all__ = ["CORPUS", "DONE", "STATES", "add", "checkpoints", "moved", "write_source"]

STATES = Path(__file__).parent
HOME = "/srv/corpus"
"""Where the jobs say that they ran."""

DONE = 34
"""Records of the first block; the run stopped behind it, since two of them are rejected."""

CORPUS = Corpus(
    [
        '{"id": "none"}'
        if n in (5, 20)
        else json.dumps({"id": f"doc-{n}", "text": f"Record {n} tells of shelf {n % 7}.", "pad": "." * 8000})
        for n in range(60)
    ]
)


def write_source(path: Path) -> None:
    """The corpus as a file that looks as if nobody had touched it since."""
    CORPUS.write(path)
    os.utime(path, ns=(1_700_000_000_000_000_000,) * 2)


def moved(data: bytes, before: str, after: str, **changes: object) -> bytes:
    """A checkpoint with other paths and the fields that it has."""
    fields = msgspec.json.decode(data.replace(json.dumps(before)[1:-1].encode(), json.dumps(after)[1:-1].encode()))
    fields |= changes
    fields["checksum"] = state._checksum(fields)
    return msgspec.json.format(msgspec.json.encode(fields), indent=1) + b"\n"


def checkpoints(number: int = state.FORMAT) -> list[Path]:
    """Those of a format, oldest first."""
    return sorted((STATES / f"format_{number}").glob("*.json"))


def add() -> None:
    """Stop a job half-way as the others were, and keep its checkpoint."""
    kept = STATES / f"format_{state.FORMAT}"
    with tempfile.TemporaryDirectory() as folder:
        command = Command(Path(folder))
        write_source(command.folder / "source.jsonl")
        command("run", "source.jsonl", "--job", "j", *NO_WORK, "--max-errors", "1", "--quiet", code=3)
        made = command.folder / "checkpoints"
        if not kept.exists():
            kept.mkdir()
            shutil.copy(made / "j.ledger.sqlite", kept)
            rejects = (made / "j.rejects.jsonl").read_bytes()
            (kept / "j.rejects.jsonl").write_bytes(rejects.replace(folder.encode(), HOME.encode()))
        length = (kept / "j.rejects.jsonl").stat().st_size
        data = moved((made / "j.json").read_bytes(), folder, HOME, rejects_bytes=length)
    (kept / f"{len(checkpoints()) + 1:02}.json").write_bytes(data)
