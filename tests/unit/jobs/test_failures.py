from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragingest.checkpoint.manager import CheckpointManager
from ragingest.errors import UsageError
from ragingest.events import Counters
from ragingest.jobs.failures import EXAMPLES, MAX_GROUPS, OTHER, UNLISTED, all_failures, failures_of, pattern_of
from ragingest.reject_kinds import REJECT_KINDS
from tests.unit.core.builders import checkpoint


@pytest.fixture
def manager(tmp_path: Path) -> CheckpointManager:
    made = CheckpointManager(tmp_path)
    made.open_folder()
    return made


def line(number: int, message: str, **fields: Any) -> bytes:
    position = {"part": "corpus.jsonl", "line": number, "offset": 10 * number}
    known = {"position": position, "id": f"doc-{number}", "stage": "decode", "error": "invalid_text"}
    return json.dumps({**known, "message": message, "at": "2026-01-02T03:04:05+00:00", **fields}).encode() + b"\n"


def saved(manager: CheckpointManager, lines: list[bytes], read: int = 100, **changes: Any) -> None:
    """A job with these rejects, read to its end."""
    data = b"".join(lines)
    manager.files("job").rejects.write_bytes(data)
    counters = Counters(read=read, stored=read - len(lines), rejected=len(lines))
    manager.save(checkpoint(**{"counters": counters, "rejects_bytes": len(data), "status": "completed", **changes}))


# -- patterns ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "pattern"),
    [
        ('"text" is a number, not a string', '"…" is a number, not a string'),
        ("not valid JSON: Expecting value at character 1,234", "not valid JSON: Expecting value at character N"),
        (
            "byte 7 of the record is not UTF-8 (invalid start byte)",
            "byte N of the record is not UTF-8 (invalid start byte)",
        ),
        ("no document 1b671a64-40d5-491e-99b0-da01ff1f3341 here", "no document … here"),
        ("request req_8f3a: it's refused, isn't it", "request …: it's refused, isn't it"),
        ("the key 'a b' and 'c' of `d e`", 'the key "…" and "…" of "…"'),
        ("a number is too large for a 64-bit float", "a number is too large for a 64-bit float"),
        ("HTTP 400 from https://api.example.com/v1/embeddings", "HTTP 400 from …"),
    ],
)
def test_a_pattern_is_the_message_without_what_differs_from_record_to_record(message: str, pattern: str) -> None:
    assert pattern_of(message) == pattern


@given(st.text(max_size=2000))
def test_any_message_has_a_pattern_of_bounded_length(message: str) -> None:
    assert len(pattern_of(message)) <= 300


@given(st.integers(0, 10**9), st.text(alphabet=st.characters(exclude_characters='"\\'), max_size=40))
def test_numbers_and_quoted_texts_make_no_difference(number: int, text: str) -> None:
    assert pattern_of(f'"{text}" has {number:,} bytes') == '"…" has N bytes'


# -- groups ------------------------------------------------------------------------------------------


def test_rejects_are_grouped_with_count_share_time_examples_and_advice(manager: CheckpointManager) -> None:
    lines = [line(n, f'"field{n}" is a number, not a string') for n in range(5)]
    lines += [
        line(7, "late", stage="upsert", error="payload", at="2026-01-03T00:00:00+00:00"),
        line(8, "late", stage="upsert", error="payload", at="2026-01-01T00:00:00+00:00", id=None),
    ]
    saved(manager, lines)
    found = failures_of(manager, "job")
    assert (found.read, found.rejected, found.unreadable, found.any) == (100, 7, 0, True)
    assert found.rejects == str(manager.files("job").rejects)
    many, two = found.groups
    assert (many.stage, many.error, many.pattern, many.count, many.share) == (
        *("decode", "invalid_text", '"…" is a number, not a string', 5, 0.05),
    )
    assert many.advice == REJECT_KINDS["invalid_text"].advice
    assert len(many.examples) == EXAMPLES
    assert many.examples[0].position == {"part": "corpus.jsonl", "line": 0, "offset": 0}
    assert (many.examples[0].id, many.examples[0].message) == ("doc-0", '"field0" is a number, not a string')
    assert (two.first, two.last, two.count) == ("2026-01-01T00:00:00+00:00", "2026-01-03T00:00:00+00:00", 2)


def test_lines_of_older_versions_without_a_time_are_read(manager: CheckpointManager) -> None:
    old = b'{"position": {"part": "p", "line": 1, "offset": 0}, "id": null, "stage": "decode", "error": "x", "message": "m"}\n'
    saved(manager, [old])
    (group,) = failures_of(manager, "job").groups
    assert (group.first, group.last, group.count) == (None, None, 1)


def test_what_lies_behind_the_checkpoint_is_not_counted(manager: CheckpointManager) -> None:
    saved(manager, [line(1, "counted")])
    with manager.files("job").rejects.open("ab") as file:
        file.write(line(2, "done again"))
    (group,) = failures_of(manager, "job").groups
    assert group.pattern == "counted"


def test_damaged_lines_are_counted_and_hide_no_other(manager: CheckpointManager) -> None:
    saved(manager, [b"\xff\xfe\n", line(1, "good"), b'{"stage": 7}\n', b"[]\n", b"\n", line(2, "good")[:-20]])
    found = failures_of(manager, "job")
    assert found.unreadable == 5
    assert [group.count for group in found.groups] == [1]


def test_without_a_rejects_file_the_kinds_of_the_checkpoint_are_told(manager: CheckpointManager) -> None:
    saved(manager, [line(1, "a")], reject_kinds={"invalid_text": 1})
    manager.files("job").rejects.unlink()
    (group,) = failures_of(manager, "job").groups
    assert (group.error, group.pattern, group.count) == ("invalid_text", UNLISTED, 1)


def test_groups_are_bounded_and_nothing_is_lost_from_the_count(manager: CheckpointManager) -> None:
    lines = [line(n, "a" * (n % 250) + "b" * (n // 250), error=f"kind{n % 1000}") for n in range(3000)]
    saved(manager, lines, read=3000)
    found = failures_of(manager, "job")
    assert len(found.groups) <= 2 * MAX_GROUPS + 1
    assert sum(group.count for group in found.groups) == 3000
    assert any(group.pattern == OTHER for group in found.groups)


def test_memory_does_not_grow_with_the_number_of_rejects(manager: CheckpointManager) -> None:
    peaks = []
    for count in (500, 5000):
        saved(manager, [line(n, f"number {n}", record="x" * 2000) for n in range(count)], read=count)
        tracemalloc.start()
        found = failures_of(manager, "job")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert [group.count for group in found.groups] == [count]
    assert peaks[1] < 2 * peaks[0]


# -- jobs --------------------------------------------------------------------------------------------


def test_a_job_that_failed_as_a_whole_says_why_and_what_to_do(manager: CheckpointManager) -> None:
    manager.save(checkpoint(status="failed", message="the disk is full", hint="free some space"))
    found = failures_of(manager, "job")
    assert (found.any, found.status, found.message, found.hint) == (
        True,
        "failed",
        "the disk is full",
        "free some space",
    )


def test_a_run_without_a_process_was_killed(manager: CheckpointManager) -> None:
    manager.save(checkpoint(status="running"))
    with manager.lock("job"):
        assert not failures_of(manager, "job").any
    found = failures_of(manager, "job")
    assert (found.any, found.status) == (True, "killed")
    assert "ragingest resume job" in found.hint


@pytest.mark.parametrize("status", ["completed", "interrupted"])
def test_a_run_that_ended_well_or_was_stopped_by_its_user_has_not_failed(
    manager: CheckpointManager, status: str
) -> None:
    manager.save(checkpoint(status=status))
    assert not failures_of(manager, "job").any


def test_all_jobs_are_told_also_those_that_cannot_be_read(manager: CheckpointManager) -> None:
    manager.save(checkpoint("good", status="completed"))
    (manager.folder / "bad.json").write_text("{")
    bad, good = all_failures(manager)
    assert (bad.job, bad.status, bad.any, good.any) == ("bad", "unreadable", True, False)
    assert "bad.json" in bad.message


def test_a_job_that_is_not_there_is_wrong_usage(manager: CheckpointManager) -> None:
    manager.save(checkpoint("other"))
    with pytest.raises(UsageError, match="there is no job job") as caught:
        failures_of(manager, "job")
    assert "other" in caught.value.hint


def test_a_rejects_file_that_is_a_link_is_not_followed(manager: CheckpointManager) -> None:
    saved(manager, [line(1, "secret")])
    path = manager.files("job").rejects
    path.rename(manager.folder / "elsewhere")
    path.symlink_to(manager.folder / "elsewhere")
    found = failures_of(manager, "job")
    assert (found.status, found.groups) == ("unreadable", [])
    assert "symbolic link" in found.message
