from __future__ import annotations

import base64
import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragingest.checkpoint.rejects import RECORD_LIMIT, RejectsFile, as_line
from ragingest.documents import Fault, Record, Reject
from ragingest.errors import TerminalError
from tests.unit.core.builders import reject


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "job.rejects.jsonl"


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def records(path: Path) -> list[str]:
    return [line["record"] for line in lines(path)]


def add(file: RejectsFile, *raws: bytes) -> None:
    for raw in raws:
        file.append(reject(raw), "corpus.jsonl", "line")


def write_all(file: RejectsFile) -> int:
    return file.write(file.waiting())


# -- lines -------------------------------------------------------------------------------------------


def test_a_line_says_where_what_and_why_and_holds_the_record() -> None:
    refused = Reject("embed", Record(41, 1234, b'{"id": "a"}'), Fault("no_tokens", "nothing to embed"), "a")
    line = as_line(refused, "corpus.jsonl", "line")
    assert line.endswith(b"\n")
    value = json.loads(line)
    assert value.pop("at")
    assert value == {
        "position": {"part": "corpus.jsonl", "line": 42, "offset": 1234},
        "id": "a",
        "stage": "embed",
        "error": "no_tokens",
        "message": "nothing to embed",
        "record": '{"id": "a"}',
    }


@given(st.binary(max_size=50))
def test_a_line_gives_back_the_record_byte_by_byte(raw: bytes) -> None:
    line = as_line(reject(raw), "part", "line")
    assert line.count(b"\n") == 1
    value = json.loads(line)
    assert "cut" not in value
    given_back = value["record"].encode() if "record" in value else base64.b64decode(value["record_base64"])
    assert given_back == raw
    assert ("record" in value) != ("record_base64" in value)


def test_a_record_that_is_no_utf8_is_kept_as_base64() -> None:
    value = json.loads(as_line(reject(b"caf\xe9"), "part", "line"))
    assert base64.b64decode(value["record_base64"]) == b"caf\xe9"
    assert "record" not in value


def test_a_long_record_is_cut_and_says_so() -> None:
    whole = json.loads(as_line(reject(b"x" * RECORD_LIMIT), "part", "line"))
    assert len(whole["record"]) == RECORD_LIMIT
    assert "cut" not in whole
    cut = json.loads(as_line(reject(b"x" * (RECORD_LIMIT + 1)), "part", "line"))
    assert cut["record"] == "x" * RECORD_LIMIT
    assert cut["cut"] is True


@pytest.mark.parametrize("shift", range(4))
def test_a_cut_through_a_character_leaves_the_characters_before_it(shift: int) -> None:
    raw = b"x" * shift + "😀".encode() * (RECORD_LIMIT // 4 + 1)
    value = json.loads(as_line(reject(raw), "part", "line"))
    assert value["record"] == "x" * shift + "😀" * ((RECORD_LIMIT - shift) // 4)
    assert value["cut"] is True


def test_a_cut_record_that_is_no_utf8_keeps_its_bytes() -> None:
    raw = b"caf\xe9 " + b"x" * RECORD_LIMIT
    value = json.loads(as_line(reject(raw), "part", "line"))
    assert base64.b64decode(value["record_base64"]) == raw[:RECORD_LIMIT]
    assert value["cut"] is True


def test_a_record_that_the_source_cut_is_marked_as_cut() -> None:
    value = json.loads(as_line(reject(b"the first part", kind="too_large"), "part", "line"))
    assert (value["record"], value["cut"]) == ("the first part", True)


# -- file --------------------------------------------------------------------------------------------


def test_writing_appends_and_returns_the_length(path: Path) -> None:
    file = RejectsFile(path, 0)
    add(file, b"one", b"two")
    assert write_all(file) == path.stat().st_size
    add(file, b"three")
    assert write_all(file) == path.stat().st_size
    assert records(path) == ["one", "two", "three"]


def test_lines_beyond_the_snapshot_wait_for_the_next_one(path: Path) -> None:
    file = RejectsFile(path, 0)
    add(file, b"one", b"two")
    waiting = file.waiting()
    add(file, b"three")
    file.write(waiting)
    assert records(path) == ["one", "two"]
    assert file.waiting() == 1
    write_all(file)
    assert records(path) == ["one", "two", "three"]


def test_without_rejects_there_is_no_file(path: Path) -> None:
    assert RejectsFile(path, 0).write(0) == 0
    assert not path.exists()


def test_the_file_is_for_its_owner_only(path: Path) -> None:
    file = RejectsFile(path, 0)
    add(file, b"one")
    write_all(file)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_lies_behind_the_length_that_the_checkpoint_knows_is_cut_off(path: Path) -> None:
    first = RejectsFile(path, 0)
    add(first, b"known")
    known = write_all(first)
    add(first, b"not in any checkpoint")
    write_all(first)
    again = RejectsFile(path, known)
    add(again, b"redone")
    assert write_all(again) == path.stat().st_size
    assert records(path) == ["known", "redone"]


def test_it_is_cut_off_even_when_nothing_is_added(path: Path) -> None:
    path.write_bytes(b"left by a crash\n")
    assert RejectsFile(path, 0).write(0) == 0
    assert path.read_bytes() == b""


def test_a_file_that_was_taken_away_starts_anew_without_a_gap(path: Path) -> None:
    first = RejectsFile(path, 0)
    add(first, b"one")
    known = write_all(first)
    path.unlink()
    again = RejectsFile(path, known)
    add(again, b"two")
    assert write_all(again) == path.stat().st_size
    assert records(path) == ["two"]


def test_lines_that_a_full_disk_refused_still_wait(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = RejectsFile(path, 0)
    add(file, b"one")
    length = write_all(file)
    add(file, b"two")
    with monkeypatch.context() as context:
        context.setattr(os, "fsync", _full)
        with pytest.raises(TerminalError, match="No space left") as caught:
            write_all(file)
    assert str(path) in caught.value.message
    assert "free disk space" in caught.value.hint
    assert (file.waiting(), file.written) == (1, length)
    write_all(file)
    assert records(path) == ["one", "two"]


def _full(_handle: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_symbolic_link_in_the_place_of_the_file_is_not_written_through(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("precious")
    path.symlink_to(target)
    file = RejectsFile(path, 0)
    add(file, b"one")
    with pytest.raises(TerminalError, match="cannot be written"):
        write_all(file)
    assert target.read_text() == "precious"
