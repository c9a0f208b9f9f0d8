from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragingest import BatchProcessor
from ragingest.checkpoint.manager import CheckpointManager
from ragingest.checkpoint.state import Checkpoint
from ragingest.errors import JobLockedError, TerminalError, UsageError


class Work:
    """A function that remembers what it saw, and fails for the documents named in `bad`."""

    def __init__(self, *bad: object) -> None:
        self.bad = bad
        self.calls: list[list[Any]] = []
        self.done: list[Any] = []

    def __call__(self, batch: list[Any]) -> None:
        self.calls.append(list(batch))
        if any(document in self.bad for document in batch):
            raise ValueError("a bad document")
        self.done += batch


def last(folder: Path, job: str = "job") -> Checkpoint:
    loaded = CheckpointManager(folder).load(job)
    assert loaded is not None
    assert loaded.warning == ""
    return loaded.checkpoint


def documents(count: int, version: int = 1) -> list[dict[str, Any]]:
    return [{"id": number, "version": version} for number in range(count)]


def test_every_document_is_processed_once_in_batches(tmp_path: Path) -> None:
    work = Work()
    result = BatchProcessor(batch_size=4, checkpoint_dir=tmp_path).process(range(10), work, "job")
    assert result == {"processed": 10, "failed": 0, "resumed": False}
    assert work.calls == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    counters = last(tmp_path).counters
    assert (counters.read, counters.stored) == (10, 10)
    assert last(tmp_path).finished


def test_nothing_is_processed_where_there_is_nothing(tmp_path: Path) -> None:
    work = Work()
    result = BatchProcessor(checkpoint_dir=tmp_path).process([], work, "job")
    assert result == {"processed": 0, "failed": 0, "resumed": False}
    assert work.calls == []


def test_a_second_call_does_only_what_is_new(tmp_path: Path) -> None:
    processor = BatchProcessor(batch_size=3, checkpoint_dir=tmp_path)
    processor.process(documents(5), Work(), "job")
    work = Work()
    result = processor.process(documents(7), work, "job")
    assert result == {"processed": 7, "failed": 0, "resumed": True}
    assert work.done == documents(7)[5:]
    assert last(tmp_path).run == 2


def test_jobs_do_not_know_each_other(tmp_path: Path) -> None:
    processor = BatchProcessor(checkpoint_dir=tmp_path)
    processor.process([1], Work(), "one")
    work = Work()
    assert processor.process([1], work, "two") == {"processed": 1, "failed": 0, "resumed": False}
    assert work.done == [1]


def test_a_changed_document_is_done_again(tmp_path: Path) -> None:
    processor = BatchProcessor(checkpoint_dir=tmp_path)
    processor.process(documents(3), Work(), "job")
    work = Work()
    changed = [*documents(2), {"id": 2, "version": 2}]
    assert processor.process(changed, work, "job") == {"processed": 3, "failed": 0, "resumed": True}
    assert work.done == [{"id": 2, "version": 2}]


def test_the_order_of_keys_is_no_change(tmp_path: Path) -> None:
    processor = BatchProcessor(checkpoint_dir=tmp_path)
    processor.process([{"id": 1, "a": 1, "b": 2}], Work(), "job")
    work = Work()
    processor.process([{"b": 2, "a": 1, "id": 1}], work, "job")
    assert work.calls == []


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_a_failing_document_costs_itself_and_is_tried_again(tmp_path: Path, batch_size: int) -> None:
    processor = BatchProcessor(batch_size=batch_size, checkpoint_dir=tmp_path)
    work = Work(3, 7)
    assert processor.process(range(10), work, "job") == {"processed": 8, "failed": 2, "resumed": False}
    assert sorted(work.done) == [0, 1, 2, 4, 5, 6, 8, 9]
    counters = last(tmp_path).counters
    assert (counters.read, counters.stored, counters.rejected) == (10, 8, 2)
    assert last(tmp_path).reject_kinds == {"ValueError": 2}
    again = Work()
    assert processor.process(range(10), again, "job") == {"processed": 10, "failed": 0, "resumed": True}
    assert sorted(again.done) == [3, 7]


def test_ten_thousand_documents_of_a_generator_are_done_and_skipped(tmp_path: Path) -> None:
    def many() -> Iterator[dict[str, Any]]:
        for number in range(10_000):
            yield {"id": f"document {number}", "text": "text"}

    processor = BatchProcessor(batch_size=500, checkpoint_interval=5, checkpoint_dir=tmp_path)
    assert processor.process(many(), Work(), "job") == {"processed": 10_000, "failed": 0, "resumed": False}
    work = Work()
    assert processor.process(many(), work, "job") == {"processed": 10_000, "failed": 0, "resumed": True}
    assert work.calls == []
    assert last(tmp_path).counters.unchanged == 10_000


def test_the_generator_is_read_no_further_than_the_batch_that_is_worked_on(tmp_path: Path) -> None:
    taken = 0

    def many() -> Iterator[int]:
        nonlocal taken
        for number in range(20):
            taken += 1
            yield number

    seen: list[int] = []
    BatchProcessor(batch_size=4, checkpoint_dir=tmp_path).process(many(), lambda batch: seen.append(taken), "job")
    assert seen == [4, 8, 12, 16, 20]


@settings(max_examples=20)  # each syncs files
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), max_size=25), st.integers(1, 7), st.integers(0, 5))
def test_every_document_read_has_one_outcome_and_the_last_version_wins(
    versions: list[tuple[int, int]], batch_size: int, bad: int
) -> None:
    some = [{"id": id_, "version": version} for id_, version in versions]
    work = Work(*({"id": bad, "version": version} for version in range(3)))
    with TemporaryDirectory() as folder:
        processor = BatchProcessor(batch_size, checkpoint_dir=folder)
        for _ in range(2):
            processor.process(some, work, "job")
            counters = last(Path(folder)).counters
            assert counters.read == len(some)
            assert counters.balanced
    final = {document["id"]: document for document in work.done}
    assert final == {document["id"]: document for document in some if document["id"] != bad}


# -- errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt(), TerminalError("the service is gone"), SystemExit()])
@pytest.mark.parametrize("at", range(6))
def test_what_was_done_before_an_interruption_is_kept_wherever_it_comes(
    tmp_path: Path, error: BaseException, at: int
) -> None:
    processor = BatchProcessor(batch_size=4, checkpoint_interval=1, checkpoint_dir=tmp_path)
    processor.process(documents(2), Work(), "job")
    first = Work({"id": 5, "version": 1})

    def work(batch: list[Any]) -> None:
        if len(first.calls) == at:
            raise error
        first(batch)

    with pytest.raises(type(error)):
        processor.process([*documents(12), *documents(2, version=2)], work, "job")
    stopped = last(tmp_path)
    assert stopped.status == "interrupted"
    assert stopped.counters.balanced
    rest = Work()
    result = processor.process(documents(12), rest, "job")
    assert result == {"processed": 12, "failed": 0, "resumed": True}
    assert {document["id"] for document in first.done}.isdisjoint(document["id"] for document in rest.done)


def test_an_iterable_that_breaks_keeps_what_came_before_and_says_so(tmp_path: Path) -> None:
    def broken() -> Iterator[int]:
        yield from range(5)
        raise OSError("the disk went away")

    work = Work()
    processor = BatchProcessor(batch_size=2, checkpoint_dir=tmp_path)
    with pytest.raises(OSError, match="went away"):
        processor.process(broken(), work, "job")
    assert work.done == [0, 1, 2, 3]
    assert last(tmp_path).status == "interrupted"
    assert last(tmp_path).counters.read == 4
    rest = Work()
    assert processor.process(range(6), rest, "job") == {"processed": 6, "failed": 0, "resumed": True}
    assert rest.done == [4, 5]


def test_a_document_that_cannot_be_recognised_is_a_type_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        BatchProcessor(checkpoint_dir=tmp_path).process([1, object()], Work(), "job")
    assert last(tmp_path).status == "interrupted"


def test_a_job_that_is_worked_on_is_not_started_twice(tmp_path: Path) -> None:
    processor = BatchProcessor(checkpoint_dir=tmp_path)

    def again(_batch: list[int]) -> None:
        processor.process([2], Work(), "job")

    with pytest.raises(JobLockedError):
        processor.process([1], again, "job")
    assert processor.process([1], Work(), "job")["processed"] == 1


@pytest.mark.parametrize("job", ["../job", "a/b", ""])
def test_a_job_id_cannot_leave_the_folder(tmp_path: Path, job: str) -> None:
    with pytest.raises(UsageError):
        BatchProcessor(checkpoint_dir=tmp_path / "checkpoints").process([1], Work(), job)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"checkpoint_interval": 0}])
def test_sizes_of_nothing_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        BatchProcessor(**wrong)  # type: ignore[arg-type]


def test_a_checkpoint_is_saved_every_so_many_batches(tmp_path: Path) -> None:
    reads: list[int] = []

    def look(_batch: list[int]) -> None:
        loaded = CheckpointManager(tmp_path).load("job")
        reads.append(loaded.checkpoint.counters.read if loaded else 0)

    BatchProcessor(batch_size=2, checkpoint_interval=3, checkpoint_dir=tmp_path).process(range(16), look, "job")
    assert reads == [0, 0, 0, 6, 6, 6, 12, 12]


def test_the_checkpoint_of_a_job_is_json_beside_the_others(tmp_path: Path) -> None:
    BatchProcessor(checkpoint_dir=tmp_path).process([1, 2], Work(), "job")
    assert json.loads((tmp_path / "job.json").read_bytes())["counters"]["stored"] == 2
    assert list(CheckpointManager(tmp_path).jobs()) == ["job"]
