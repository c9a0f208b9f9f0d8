"""The real command into a real Postgres."""

from __future__ import annotations

import pytest

from tests.e2e.command import HANDBOOK, SAMPLE_DATA, Command
from tests.servers.postgres import PostgresServer

TEXT = "when is the old tannery open"


@pytest.fixture
def into(postgres: PostgresServer) -> tuple[str, ...]:
    return ("--store", "pgvector", "--url", postgres.url(), "--collection", "handbook", "--namespace", "end to end")


def test_run_again_search_verify(ragingest: Command, into: tuple[str, ...], postgres: PostgresServer) -> None:
    first = ragingest.json("run", HANDBOOK, "--job", "j", *into, "--bulk", "--index-metadata", "section")
    assert (first.counters["stored"], first.document["store"]) == (237, "pgvector")
    assert postgres.execute('SELECT count(*), count(DISTINCT id) FROM "end to end".handbook') == [(258, 237)]
    again = ragingest.json("run", HANDBOOK, "--job", "j", *into)
    assert (again.counters["unchanged"], again.counters["embedded"]) == (237, 0)

    found = ragingest("search", TEXT, *into, "--json").document
    assert any("Tannery" in hit["text"] for hit in found)
    section = found[0]["metadata"]["section"]
    filtered = ragingest("search", TEXT, *into, "--filter", f"section={section}", "--json").document
    assert {hit["metadata"]["section"] for hit in filtered} == {section}
    assert "sparse" in ragingest("search", TEXT, *into, "--sparse", code=2).said

    assert ragingest.json("verify", "j").document["missing"] == 0
    postgres.execute("""DELETE FROM "end to end".handbook WHERE id LIKE 'hours-%'""")
    ragingest("verify", "j", "--repair", "--quiet")
    assert postgres.execute('SELECT count(*) FROM "end to end".handbook') == [(258,)]
    postgres.execute('DROP SCHEMA "end to end" CASCADE')


def test_what_postgres_cannot_keep_is_a_reject_and_a_plan_knows_it(
    ragingest: Command, into: tuple[str, ...]
) -> None:
    source = ragingest.write("nul.jsonl", [{"id": "a", "text": "fine"}, {"id": "b", "text": "nul \0"}])
    plan = ragingest("plan", source, *into, "--json", code=1).document
    assert plan["reject_kinds"] == {"nul_character": 1}
    result = ragingest.json("run", source, "--job", "j", *into, code=1)
    assert (result.counters["stored"], result.counters["rejected"]) == (1, 1)
    assert ragingest.rejects("j")[0]["error"] == "nul_character"


def test_what_the_store_cannot_do_is_said_before_the_run(ragingest: Command, into: tuple[str, ...]) -> None:
    said = ragingest("run", HANDBOOK, *into, "--quantization", "scalar", code=2).said
    assert "--quantization" in said
    assert (
        "--quantization" in ragingest("run", HANDBOOK, *into, "--quantization", "scalar", "--dry-run", code=2).said
    )
    lacking = "keeps no sparse vectors"
    assert lacking in str(ragingest("plan", HANDBOOK, *into, "--json").document["notes"])
    assert lacking in ragingest("run", HANDBOOK, "--job", "j", *into).err
    assert lacking not in ragingest("resume", "j").err
    assert "--url" in ragingest("run", HANDBOOK, "--store", "pgvector", code=2).said
    assert (
        "environment"
        in ragingest("run", HANDBOOK, "--store", "pgvector", "--url", "postgresql://me:pw@h/d", code=2).said
    )


def test_dimensions_that_do_not_fit_name_both_sides(ragingest: Command, into: tuple[str, ...]) -> None:
    ragingest("run", HANDBOOK, "--job", "j", *into, "--quiet")
    said = ragingest("run", SAMPLE_DATA / "dirty.jsonl", "--job", "k", *into, "--embedder", "null", code=4).said
    assert "256" in said
    assert "8-dimensional" in said
