"""What becomes of a document: new, unchanged or duplicate when it is read; stored or rejected at the end. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ragingest.documents import TEXT_DIGEST_BYTES, Block, Document, Reject, Stored
from ragingest.errors import TerminalError
from ragingest.settings import OnDuplicate

__all__ = ["count_outcome", "leftover_points", "same_text", "sort_out"]


def sort_out(
    block: Block,
    documents: Sequence[Document],
    known: Mapping[str, Stored],
    run: int,
    on_duplicate: OnDuplicate = "last",
) -> tuple[list[Document], list[Document]]:
    """(new or changed, unchanged) of a block's documents; the others are counted in the block.

    Of several documents with one id, `on_duplicate` says which is kept. A row that this run wrote for
    another position is one of those; one for this very position means that a crash came between the
    ledger and the checkpoint.

    Raises:
        TerminalError: an id comes twice, and that is to be an error.
    """
    new: list[Document] = []
    unchanged: list[Document] = []
    for document in _one_each(block, documents, on_duplicate):
        before = document.previous = known.get(document.id)
        if before is None:
            new.append(document)
            continue
        here = (block.part, document.record.ordinal)
        there = (before.part, before.ordinal)
        same = before.digest == document.digest
        if before.seen == run and here != there:
            if on_duplicate == "error":
                raise _twice(document.id, before.ordinal, document.record.ordinal)
            if same or (there > here) == (on_duplicate == "last"):
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


def _one_each(block: Block, documents: Sequence[Document], on_duplicate: OnDuplicate) -> Iterable[Document]:
    """One document an id; the others are counted."""
    chosen: dict[str, Document] = {}
    for document in documents:
        earlier = chosen.get(document.id)
        if earlier is not None:
            if on_duplicate == "error":
                raise _twice(document.id, earlier.record.ordinal, document.record.ordinal)
            block.duplicate += 1
        if earlier is None or on_duplicate == "last":
            chosen[document.id] = document
    return chosen.values()


def _twice(id_: str, first: int, second: int) -> TerminalError:
    return TerminalError(
        f"the id {id_!r} comes twice: records {first + 1:,} and {second + 1:,}",
        "mend the source, or choose: --on-duplicate first or last",
    )


def same_text(document: Document) -> bool:
    """Whether the store has this text already, in as many chunks, under other metadata."""
    before = document.previous
    return (
        before is not None
        and before.chunks == document.chunks
        and before.digest[:TEXT_DIGEST_BYTES] == document.digest[:TEXT_DIGEST_BYTES]
    )


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
