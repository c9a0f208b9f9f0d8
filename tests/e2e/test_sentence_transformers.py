"""A model of sentence-transformers, from the command line: downloaded, run, searched, planned."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.command import HANDBOOK, Command, read_lines, stored
from tests.models import MINILM, MINILM_DIMENSIONS, MINILM_TOKENS
from tests.servers.model_hub import serving_model

COUNT = 10
SBERT = ("--embedder", "sentence-transformers")
LONG = "bindery-repair-guide"


def corpus(command: Command) -> Path:
    """Records of the handbook, one of them longer than the model takes."""
    records = read_lines(HANDBOOK)
    long = next(record for record in records if record["id"] == LONG)
    return command.write(
        "corpus.jsonl", [long, *[record for record in records if record["id"] != LONG][: COUNT - 1]]
    )


def test_a_model_is_downloaded_once_and_finds_by_meaning(ragingest: Command) -> None:
    source = corpus(ragingest)
    home = {"HF_HOME": str(ragingest.folder / "hub")}
    with serving_model("example/minilm", MINILM) as url:
        ran = ragingest(
            *("run", source, "--job", "j", *SBERT, "--model", "example/minilm"),
            environment={**home, "HF_ENDPOINT": url},
        )
    # Nothing of the libraries is on the screen: no bar, no warning.
    told, *rest = ran.err.splitlines()
    assert told == "downloading the model example/minilm from Hugging Face"
    assert rest
    assert all(line.startswith(("j: run 1", "100 %")) for line in rest)
    assert f"read {COUNT} = stored {COUNT} + unchanged 0 + duplicate 0 + rejected 0" in ran.out

    points = stored(ragingest.folder, [record["id"] for record in read_lines(source)])
    assert len(points[LONG]) > 1
    assert {point.dense.shape for point in points[LONG]} == {(MINILM_DIMENSIONS,)}
    offline = {**home, "HF_HUB_OFFLINE": "1"}
    # No word of the question is in the text.
    found = ragingest("search", "fixing ripped leaves", "--dense", "-n", "1", "--json", environment=offline)
    assert [hit["id"] for hit in found.document] == [LONG]
    planned = ragingest("plan", source, *SBERT, "--model", "example/minilm", "--json", environment=offline).document
    assert planned["chunks"] == sum(map(len, points.values()))
    assert (planned["dimensions"], planned["tokens_exact"], planned["dollars"]) == (MINILM_DIMENSIONS, True, 0.0)


def test_without_chunking_a_text_over_the_limit_is_rejected_and_planned_so(ragingest: Command) -> None:
    source = corpus(ragingest)
    given = (source, *SBERT, "--model", MINILM, "--no-chunk")
    ran = ragingest.json("run", *given, "--job", "j", "--batch-size", "8", "--device", "cpu", code=1)
    assert (ran.counters["stored"], ran.counters["rejected"]) == (COUNT - 1, 1)
    assert ran.err == ""
    (reject,) = ragingest.rejects("j")
    assert (reject["id"], reject["error"], reject["stage"]) == (LONG, "too_many_tokens", "embed")
    assert f"{MINILM_TOKENS} that" in reject["message"]
    assert ragingest.json("plan", *given, code=1).document["reject_kinds"] == {"too_many_tokens": 1}


def test_a_text_over_the_limit_is_cut_if_wanted_and_stored_whole_and_verified(ragingest: Command) -> None:
    source = corpus(ragingest)
    given = (source, *SBERT, "--model", MINILM, "--no-chunk", "--truncate")
    assert ragingest.json("plan", *given).document["truncated"] == 1
    ran = ragingest.json("run", *given, "--job", "j", "--device", "cpu")
    assert (ran.counters["stored"], ran.counters["chunks"]) == (COUNT, COUNT)
    assert ran.document["counters"]["books"]["truncated"] == 1
    whole = next(record["text"] for record in read_lines(source) if record["id"] == LONG)
    [point] = stored(ragingest.folder, [record["id"] for record in read_lines(source)])[LONG]
    assert point.text == whole
    assert "truncated" in ragingest("stats", "j").out
    assert ragingest("verify", "j", "--vectors").code == 0
    # BM25 is made of all of it, to its end.
    last = next(word for word in reversed(whole.split()) if len(word) > 6 and whole.count(word) == 1)
    found = ragingest("search", last, "--sparse", "-n", str(COUNT), "--json").document
    assert LONG in [hit["id"] for hit in found]
