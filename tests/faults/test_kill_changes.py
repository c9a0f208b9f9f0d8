"""SIGKILL while a changed source is brought in: metadata, texts, disappeared documents, other settings."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from tests.e2e.command import Command, opened, stored
from tests.faults.harness import SMALL_CHUNKS, SMALL_STEPS, Workplace

RUN = ("--job", "j", *SMALL_STEPS)
LONG = " ".join(f"Sentence number {n} speaks of shelf {n % 7}." for n in range(80))


def version(number: int) -> list[dict[str, Any]]:
    """200 documents: of the second version 40 have another text, 40 other metadata, and 40 are gone."""
    documents = []
    for n in range(200):
        if number == 2 and n % 5 == 0:
            continue
        text = LONG[: 900 + n] if n % 20 == 7 else f"document {n} tells of {n * n}"
        if number == 2 and n % 5 == 1:
            text = f"{text[: len(text) // 2]} anew"
        documents.append({"id": f"d{n}", "text": text, "year": 1900 + n + (number == 2 and n % 5 == 2)})
    return documents


def write(place: Workplace, documents: list[dict[str, Any]]) -> None:
    (place.folder / "source.jsonl").write_text("".join(json.dumps(one) + "\n" for one in documents))


def content(place: Workplace) -> dict[str, list[tuple[str, str, str, Any]]]:
    """Everything in the collection."""
    with opened(place.folder) as store:
        page, after = store.scan(None, 10_000)
        assert after is None
    points = stored(place.folder, [point.id for point in page])
    return {
        id_: [(point.text, point.digest, str(point.metadata), point.sparse) for point in some]
        for id_, some in points.items()
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[str, str, str, Any]]]:
    place = Workplace(Command(tmp_path_factory.mktemp("undisturbed")))
    write(place, version(2))
    place.run("run", "source.jsonl", *RUN, *SMALL_CHUNKS)
    return content(place)


SEAMS = [
    "kill:before:Store.fetch:1",
    "kill:after:Store.fetch:1",
    "kill:after:Store.upsert:2",
    "kill:before:Ledger.commit:2",
    "kill:after:Ledger.commit:3",
    "kill:before:Store.delete:1",
    "kill:after:Store.delete:1",
    "kill:before:Store.finish:1",  # all that disappeared is deleted
    "kill:after:CheckpointManager.archive:1",
]


@pytest.mark.parametrize("fault", SEAMS)
def test_killed_at_any_step_of_an_update_it_ends_as_if_nothing_had_been(
    place: Workplace, undisturbed: dict[str, list[tuple[str, str, str, Any]]], fault: str
) -> None:
    write(place, version(1))
    place.run("run", "source.jsonl", *RUN, *SMALL_CHUNKS)
    write(place, version(2))
    update = ("run", "source.jsonl", *RUN, *SMALL_CHUNKS, "--delete-missing")
    place.run(*update, fault=fault, code=-signal.SIGKILL)
    place.check_books()
    place.run(*update)
    assert content(place) == undisturbed
    place.run("verify", "j")


@pytest.mark.parametrize(
    "fault",
    [
        "kill:after:Ledger.distrust_all:1",
        "kill:after:CheckpointManager.save:1",
        "kill:before:Ledger.commit:5",
    ],
)
def test_killed_while_everything_is_stored_anew_it_goes_on_with_that(
    place: Workplace, undisturbed: dict[str, list[tuple[str, str, str, Any]]], fault: str
) -> None:
    write(place, version(2))
    place.run("run", "source.jsonl", *RUN, "--chunk-size", "200", "--chunk-overlap", "20")
    anew = ("run", "source.jsonl", *RUN, *SMALL_CHUNKS)
    place.run(*anew, "--reembed", fault=fault, code=-signal.SIGKILL)
    if place.command.checkpoint("j")["settings"]["chunk_size"] == 200:
        place.run(*anew, "--reembed")
    else:
        place.run("resume", "j")
    assert content(place) == undisturbed
    place.run("verify", "j", "--vectors")
