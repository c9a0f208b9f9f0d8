from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragingest.errors import UsageError
from ragingest.settings import (
    ErrorBudget,
    JobSettings,
    MemoryLimit,
    RunOptions,
    check_job_name,
    default_job_name,
    parse_size,
)

SETTINGS = JobSettings(source="/corpora/handbook.jsonl", store_path="/data")

OTHER: dict[str, Any] = {
    "source": "/corpora/other.jsonl",
    "format": "json",
    "json_path": "a.b",
    "id_field": "key",
    "text_fields": ("title", "text"),
    "metadata_field": "meta",
    "max_record_bytes": 4096,
    "embedder": "null",
    "model": "large",
    "dimensions": 64,
    "base_url": "http://127.0.0.1:8080/v1",
    "chunk": False,
    "chunk_size": 100,
    "chunk_overlap": 1,
    "truncate": True,
    "store": "null",
    "store_path": "/elsewhere",
    "url": "http://localhost:6333",
    "namespace": "v1",
    "drop_text": True,
    "metadata_keys": ("lang", "year"),
    "flatten_metadata": True,
    "on_duplicate": "first",
    "collection": "notes",
}


def changed(**changes: Any) -> JobSettings:
    return msgspec.structs.replace(SETTINGS, **changes)


# -- sizes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("1", 1),
        ("16B", 16),
        ("1k", 1000),
        ("1KB", 1000),
        ("1KiB", 1024),
        ("16MB", 16_000_000),
        ("2GiB", 2 * 1024**3),
        ("2gib", 2 * 1024**3),
        (" 1.5 GB ", 1_500_000_000),
        ("0.5KiB", 512),
        ("3TiB", 3 * 1024**4),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text, "--flag") == size


@pytest.mark.parametrize(
    "text", ["", "MB", "-1", "1.MB", "1,5GB", "2XB", "1e3", "nan", "inf", "1GiBs", "0", "0GB", "9" * 400]
)
def test_what_is_no_size_is_refused_with_the_flag_and_an_example(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_size(text, "--flag")
    assert "--flag" in caught.value.message
    assert "2GiB" in caught.value.hint


@given(st.integers(1, 1 << 50))
def test_a_number_of_bytes_is_itself(size: int) -> None:
    assert parse_size(str(size), "--flag") == size


# -- memory ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "share"), [("80", 0.8), ("80%", 0.8), (" 12.5% ", 0.125), ("100%", 1), ("1", 0.01)]
)
def test_a_memory_limit_may_be_a_share(text: str, share: float) -> None:
    assert MemoryLimit.parse(text) == MemoryLimit(share=share)


def test_a_memory_limit_may_be_bytes_of_the_process() -> None:
    assert MemoryLimit.parse("2GiB") == MemoryLimit(share=None, bytes=2 * 1024**3)


@pytest.mark.parametrize("text", ["0", "0%", "101%", "-5", "nan", "inf%", "many", "", "0GiB", "5GiB%"])
def test_what_is_no_memory_limit_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        MemoryLimit.parse(text)
    assert "--max-memory" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("text", ["80%", "12.5%", "2GiB", "1000B"])
def test_a_memory_limit_that_is_written_down_reads_as_itself(text: str) -> None:
    limit = MemoryLimit.parse(text)
    assert MemoryLimit.parse(str(limit)) == limit


# -- errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["0", "50", " 7 "])
def test_an_error_budget_may_be_a_count(text: str) -> None:
    assert ErrorBudget.parse(text) == ErrorBudget(count=int(text), share=None)


@pytest.mark.parametrize(("text", "share"), [("2.5%", 0.025), ("0%", 0), (" 100% ", 1)])
def test_an_error_budget_may_be_a_share(text: str, share: float) -> None:
    assert ErrorBudget.parse(text) == ErrorBudget(share=share)


@pytest.mark.parametrize("text", ["", "-1", "1.5", "101%", "-1%", "nan%", "many", "%"])
def test_what_is_no_error_budget_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        ErrorBudget.parse(text)
    assert "--max-errors" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("text", ["0", "50", "2.5%", "0%", "100%"])
def test_an_error_budget_that_is_written_down_reads_as_itself(text: str) -> None:
    budget = ErrorBudget.parse(text)
    assert ErrorBudget.parse(str(budget)) == budget


def test_a_count_is_exceeded_by_one_more_from_the_first_record_on() -> None:
    budget = ErrorBudget.parse("3")
    assert not budget.exceeded(3, 3)
    assert budget.exceeded(4, 4)
    assert ErrorBudget.parse("0").exceeded(1, 1)


def test_a_share_is_judged_once_a_hundred_records_are_read() -> None:
    budget = ErrorBudget()
    assert not budget.exceeded(99, 99)
    assert not budget.exceeded(10, 100)
    assert budget.exceeded(11, 100)
    assert not budget.exceeded(100, 1000)
    assert budget.exceeded(101, 1000)


def test_the_whole_corpus_may_be_refused_where_the_user_says_so() -> None:
    assert not ErrorBudget.parse("100%").exceeded(1000, 1000)


# -- names of jobs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nightly", "a", "7", "a.b-c_D", "x" * 100, "a..b"])
def test_a_job_name_of_letters_digits_and_marks_is_taken(name: str) -> None:
    assert check_job_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".hidden",
        "-flag",
        "_a",
        "../up",
        "a/b",
        "/etc/passwd",
        "a\\b",
        "a\0b",
        "a b",
        "a\n",
        "é",
        "x" * 101,
        "~",
        "a:b",
        "a%2fb",
    ],
)
def test_a_job_name_that_could_leave_its_folder_or_hide_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        check_job_name(name)


@given(st.text(max_size=30))
def test_a_job_name_that_is_taken_is_a_plain_file_name(name: str) -> None:
    try:
        check_job_name(name)
    except UsageError:
        return
    assert Path(name).name == name
    assert name.isascii()
    assert not name.startswith((".", "-"))


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=60))
def test_the_default_job_name_is_a_job_name_whatever_the_source_is_called(source: str) -> None:
    name = default_job_name(changed(source=source, collection="c" * 100))
    assert check_job_name(name) == name


def test_the_same_command_finds_the_same_job() -> None:
    assert default_job_name(SETTINGS) == "handbook-documents-ef4ab9"
    assert default_job_name(changed(chunk_size=100, embedder="null")) == default_job_name(SETTINGS)


def test_another_source_store_or_collection_is_another_job() -> None:
    several = [
        SETTINGS,
        changed(source="/elsewhere/handbook.jsonl"),
        changed(source="/corpora/handbook.json"),
        changed(store="null"),
        changed(store_path="/elsewhere"),
        changed(collection="notes"),
        changed(url="http://localhost:6333"),
        changed(namespace="v1"),
        changed(source="-"),
    ]
    assert len({default_job_name(settings) for settings in several}) == len(several)


def test_a_job_from_standard_input_says_so() -> None:
    assert default_job_name(changed(source="-")).startswith("stdin-documents-")


@pytest.mark.parametrize(
    "url",
    [
        "http://ann:sesame@host/v1",
        "https://r.openai.azure.com/openai/deployments/d?api-version=2024-10-21&api-key=sesame",
        "https://host/v1?subscription-key=sesame",
        "https://host/v1?access_token=sesame",
    ],
)
def test_a_base_url_that_tells_a_secret_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(UsageError, match="--base-url holds") as caught:
        changed(base_url=url).check()
    assert "sesame" not in caught.value.message + caught.value.hint


def test_a_base_url_may_have_a_query() -> None:
    changed(base_url="https://r.openai.azure.com/openai/deployments/d?api-version=2024-10-21").check()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("localhost", "is no URL"),
        ("http://", "is no URL"),
        ("http://[::1", "is no URL"),
        ("postgresql://ann:sesame@db/docs", "holds a password"),
        ("postgresql://db/docs?password=sesame", "holds a password"),
        ("https://db.example?api_key=sesame", "holds a password"),
        ("https://sesame@db.example", "holds a password"),
        ("http://ann:sesame@db.example:0", "is no URL"),
        ("http://ann:ses/ame@[db", "is no URL"),
    ],
)
def test_a_url_that_is_none_or_tells_a_secret_is_refused(url: str, told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        changed(url=url).check()
    assert "sesame" not in caught.value.message
    assert "ses/ame" not in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("url", ["http://localhost:6333", "https://db.example/prefix", "postgresql:///docs"])
def test_a_url_without_secrets_is_taken(url: str) -> None:
    changed(url=url).check()


# -- settings ----------------------------------------------------------------------------------------


def test_the_cases_name_every_setting() -> None:
    assert OTHER.keys() == set(JobSettings.__struct_fields__)


@pytest.mark.parametrize("name", [name for name in OTHER if name != "max_record_bytes"])
def test_a_setting_that_shapes_points_changes_the_fingerprint_and_is_named(name: str) -> None:
    other = changed(**{name: OTHER[name]})
    assert other.fingerprint() != SETTINGS.fingerprint()
    ((flag, old, new),) = other.changes(SETTINGS)
    assert flag
    assert (old, new) == (msgspec.to_builtins(getattr(SETTINGS, name)), msgspec.to_builtins(OTHER[name]))


def test_a_setting_that_shapes_no_points_may_change() -> None:
    other = changed(max_record_bytes=4096)
    assert other.fingerprint() == SETTINGS.fingerprint()
    assert other.changes(SETTINGS) == []


def test_changes_are_named_as_the_flags_that_make_them() -> None:
    other = changed(source="/x", text_fields=("a",), chunk=False, chunk_size=9)
    assert [flag for flag, _, _ in other.changes(SETTINGS)] == [
        "SOURCE",
        "--text-field",
        "--chunk/--no-chunk",
        "--chunk-size",
    ]


def test_equal_settings_have_equal_fingerprints_and_no_changes() -> None:
    again = msgspec.json.decode(msgspec.json.encode(SETTINGS), type=JobSettings)
    assert again.fingerprint() == SETTINGS.fingerprint()
    assert again.changes(SETTINGS) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"text_fields": ()},
        {"text_fields": ("",)},
        {"text_fields": ("id",)},
        {"chunk_size": 7, "chunk_overlap": 0},
        {"chunk_size": 64, "chunk_overlap": 64},
        {"chunk_overlap": -1},
        {"truncate": True},
        {"max_record_bytes": 1023},
        {"collection": "../other"},
        {"collection": ""},
        {"source": "/corpora/\udcff.jsonl"},
    ],
)
def test_settings_that_cannot_work_are_refused_with_what_to_do(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        changed(**wrong).check()
    assert caught.value.hint
    caught.value.message.encode()


def test_the_defaults_can_work() -> None:
    SETTINGS.check()
    RunOptions().check()


@pytest.mark.parametrize(
    ("wrong", "flag"),
    [
        ({"concurrency": 0}, "--concurrency"),
        ({"device": "tpu"}, "--device"),
        ({"device": "cuda:x"}, "--device"),
        ({"batch_size": 0}, "--batch-size"),
        ({"upsert_size": -1}, "--upsert-size"),
        ({"checkpoint_interval": 0}, "--checkpoint-interval"),
        ({"checkpoint_interval": 3601}, "--checkpoint-interval"),
        ({"checkpoint_interval": float("nan")}, "--checkpoint-interval"),
    ],
)
def test_run_options_that_cannot_work_are_refused_by_their_flag(wrong: dict[str, Any], flag: str) -> None:
    with pytest.raises(UsageError, match=flag):
        RunOptions(**wrong).check()


@pytest.mark.parametrize(
    "given", [{"rpm": 0.5}, {"tpm": 0.5}, {"rpm": -1.0}, {"max_concurrency": 0}, {"max_cost": 0.0}]
)
def test_budgets_that_nothing_fits_into_are_refused(given: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="--"):
        RunOptions(**given).check()  # type: ignore[arg-type]  # one of several fields
