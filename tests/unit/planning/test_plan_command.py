from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from ragingest.cli.plan import plan
from tests.unit.planning.texts import prose, write_records

app = typer.Typer()
app.command()(plan)


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "no-vocabulary"))
    return write_records(tmp_path / "corpus.jsonl", [prose(40, seed) for seed in range(100)])


def test_json_is_one_document_and_nothing_else(corpus: Path) -> None:
    result = CliRunner().invoke(app, [str(corpus), "--embedder", "openai", "--json"])
    assert result.exit_code == 0
    assert result.stderr == ""
    plan = json.loads(result.stdout)
    assert (plan["records"], plan["chunks"], plan["requests"], plan["exit_code"]) == (100, 100, 1, 0)
    assert plan["model"] == "text-embedding-3-small"


def test_without_json_the_plan_is_told_in_lines(corpus: Path) -> None:
    arguments = [str(corpus), "--embedder", "openai", "--rpm", "60", "--tpm", "1000000"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    names = [line.split()[0] for line in result.stdout.splitlines()[1:] if not line.startswith("  note")]
    wanted = ["records", "rejected", "documents", "tokens", "requests", "cost", "upserts", "time", "disk"]
    assert names == wanted
    assert "$0.02 a million tokens" in result.stdout
    assert "through the batch API" in result.stdout


def test_what_is_unknown_is_called_so_with_the_flag_that_tells_it(corpus: Path) -> None:
    result = CliRunner().invoke(app, [str(corpus), "--embedder", "openai", "--model", "model-of-tomorrow"])
    for flag in ("--price-per-million", "--dimensions", "--rpm"):
        assert f"unknown: give {flag}" in result.stdout


def test_rejects_end_in_exit_code_1_and_are_told_by_reason(sample_data: Path) -> None:
    result = CliRunner().invoke(app, [str(sample_data / "dirty.jsonl"), "--embedder", "openai"])
    assert result.exit_code == 1
    assert "rejected   21: 5 invalid_id, " in result.stdout


def test_numbers_of_a_sample_are_called_estimates(corpus: Path) -> None:
    result = CliRunner().invoke(app, [str(corpus), "--embedder", "null", "--sample", "50"])
    assert result.exit_code == 0
    assert "(50 read, 50 % of the source)" in result.stdout
    assert "about" in result.stdout


def test_a_number_that_makes_no_sense_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [str(tmp_path / "missing.jsonl"), "--embedder", "openai", "--sample", "0"])
    assert "--sample" in str(result.exception)
