"""What becomes of a document: new, unchanged or duplicate when it is read; stored or rejected at the end. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ragingest.documents import Block, Document, Reject, Stored

__all__ = ["count_outcome", "leftover_points", "sort_out"]


def sort_out(
    block: Block, documents: Iterable[Document], known: Mapping[str, Stored], run: int
) -> tuple[list[Document], list[Document]]:
    """(new or changed, unchanged) of `documents`; the others are counted in the block.

    A row that this run wrote for a later position belongs to a newer version of the same id; one for
    this very position means that a crash came between the ledger and the checkpoint.
    """
    new: list[Document] = []
    unchanged: list[Document] = []
    for document in documents:
        before = document.previous = known.get(document.id)
        if before is None:
            new.append(document)
            continue
        here = (block.part, document.record.ordinal)
        there = (before.part, before.ordinal)
        same = before.digest == document.digest
        if before.seen == run and here != there:
            if same or there > here:
                block.duplicate += 1
            else:
                document.duplicate = True
                new.append(document)
        elif not same:
            new.append(document)
        elif before.run == run:
            block.stored += 1
            block.chunks += before.chunks
        else:
            block.unchanged += 1
            unchanged.append(document)
    return new, unchanged


def leftover_points(stored: Iterable[Document], removed: Iterable[Document]) -> list[tuple[str, int]]:
    """Points that are in the store and no longer belong there."""
    points = []
    for document in stored:
        if document.previous is not None:
            points += [(document.id, number) for number in range(document.chunks, document.previous.chunks)]
    for document in removed:
        before = document.previous.chunks if document.previous is not None else 0
        points += [(document.id, number) for number in range(max(document.chunks, before))]
    return points


def count_outcome(block: Block, document: Document) -> None:
    if document.fault is not None:
        block.rejects.append(Reject(document.fault[0], document.record, document.fault[1], document.id))
        return
    block.chunks += document.chunks
    if document.duplicate:
        block.duplicate += 1
    else:
        block.stored += 1
