"""Bad input is the normal case: the reason is right, no good record is lost, memory stays flat, nothing raises."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragingest.decoding import Decoder
from ragingest.errors import RejectedError, TerminalError
from ragingest.protocols import Source
from ragingest.settings import JobSettings
from ragingest.sources import open_source
from tests.e2e.command import NO_WORK, Command

from .bad_inputs import FILES, GOOD, RECORDS, BadFile, BadRecord, wrapped

LIMIT = 1_500_000


def outcomes(path: Path) -> tuple[list[str], list[str], str]:
    """Ids of the documents, kinds of the rejects, and the error that ended the file, if one did."""
    ids: list[str] = []
    kinds: list[str] = []
    error = ""
    decoder = Decoder()
    source: Source | None = None
    try:
        source = open_source(JobSettings(source=str(path), max_record_bytes=LIMIT))
        while (block := source.read_block()) is not None:
            for record in block.records:
                try:
                    ids.append(decoder.decode(record).id)
                except RejectedError as rejected:
                    kinds.append(rejected.kind if str(rejected) else "no reason")
    except TerminalError as ended:
        error = ended.message if ended.hint else "no hint"
    finally:
        if source is not None:
            source.close()
    return ids, kinds, error


def test_the_corpus_is_large_and_its_cases_differ() -> None:
    files = sum(len(list(wrapped(bad))) for bad in RECORDS) + len(FILES)
    assert len({bad.name for bad in RECORDS}) == len(RECORDS)
    assert len(RECORDS) + len(FILES) > 180
    assert files > 500


@pytest.mark.parametrize("bad", RECORDS, ids=lambda bad: bad.name)
def test_a_bad_record_costs_itself_and_its_reason_is_right(bad: BadRecord, tmp_path: Path) -> None:
    for name, content in wrapped(bad):
        path = tmp_path / name
        path.write_bytes(content)
        ids, kinds, error = outcomes(path)
        assert (name, error) == (name, "")
        if bad.kind == GOOD:
            assert (name, kinds, len(ids)) == (name, [], 3)
        else:
            assert (name, ids) == (name, ["first", "last"])
            assert len(kinds) == 1
            assert (name, kinds[0] in bad.kind.split("|"), kinds[0]) == (name, True, kinds[0])


@pytest.mark.parametrize("bad", FILES, ids=lambda bad: bad.name)
def test_of_a_bad_file_all_that_is_good_is_read_and_its_end_is_explained(bad: BadFile, tmp_path: Path) -> None:
    path = tmp_path / bad.name
    path.write_bytes(bad.data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ids, kinds, error = outcomes(path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert (tuple(ids), tuple(kinds)) == (bad.ids, bad.kinds)
    assert bool(error) == bool(bad.error), error
    assert any(word in error for word in bad.error.split("|")), error
    assert grown < 64 * 1024, "kilobytes"


@given(st.lists(st.sampled_from([bad for bad in RECORDS if len(bad.raw) < 5000]), max_size=12))
def test_any_mixture_of_bad_records_leaves_the_good_ones(
    tmp_path_factory: pytest.TempPathFactory, mixture: list[BadRecord]
) -> None:
    path = tmp_path_factory.mktemp("mixed") / "mixed.jsonl"
    path.write_bytes(b"\n".join(bad.raw for bad in mixture))
    ids, kinds, error = outcomes(path)
    assert error == ""
    assert len(ids) == sum(bad.kind == GOOD for bad in mixture)
    expected = [bad.kind for bad in mixture if bad.kind != GOOD]
    assert all(kind in one.split("|") for kind, one in zip(kinds, expected, strict=True))


@given(st.binary(max_size=300))
def test_any_bytes_end_in_records_or_in_a_sentence(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    for name in ("any.jsonl", "any.json", "any.jsonl.gz", "any.json.zst"):
        path = folder / name
        path.write_bytes(data)
        outcomes(path)


def test_the_command_takes_the_whole_corpus_at_once(tmp_path: Path) -> None:
    command = Command(tmp_path)
    (tmp_path / "all\nof it.jsonl").write_bytes(b"\n".join(bad.raw for bad in RECORDS))
    done = command.json(
        *("run", "all\nof it.jsonl", "--job", "j", "--max-record-bytes", str(LIMIT), "--max-errors", "100%"),
        *NO_WORK,
        code=1,
    )
    good = sum(bad.kind == GOOD for bad in RECORDS)
    counters = done.counters
    assert counters["read"] == len(RECORDS)
    assert counters["stored"] + counters["duplicate"] == good
    rejects = command.rejects("j")
    assert len(rejects) == len(RECORDS) - good
    for line in rejects:
        bad = RECORDS[line["position"]["line"] - 1]
        assert (bad.name, line["error"] in bad.kind.split("|")) == (bad.name, True)
