"""The same runs and searches from Python."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from ragingest.embedders.bm25 import BM25
from ragingest.embedding import embed_query
from ragingest.errors import UsageError
from ragingest.events import Emit, Summary
from ragingest.protocols import Hit, Query, SearchMode
from ragingest.settings import STDIN, JobSettings, RunOptions
from ragingest.wiring import open_job

__all__ = ["absolute", "ingest", "search"]


async def ingest(
    source: str | Path,
    *,
    job: str | None = None,
    settings: JobSettings | None = None,
    options: RunOptions | None = None,
    checkpoint_dir: str | Path = "checkpoints",
    fresh: bool = False,
    on_event: Emit = lambda _event: None,
) -> Summary:
    """Run a job as `ragingest run SOURCE` does: a new one, or an unfinished one to its end.

    Args:
        source: a file, or `-` for standard input.
        job: its name; made from source, store and collection if it is None.
        settings: what the job is; `source` replaces the one in it.
        options: how it runs.
        checkpoint_dir: where its state is kept.
        fresh: start over.
        on_event: is called with every event, on the event loop: it must return soon.

    Returns:
        What the run did. A failure while it ran stands there too (`status`, `message`, `hint`).

    Raises:
        RagingestError: the run could not begin.
    """
    chosen = msgspec.structs.replace(settings or JobSettings(source=""), source=str(source))
    run = await asyncio.to_thread(
        open_job,
        absolute(chosen),
        options or RunOptions(),
        Path(checkpoint_dir),
        job=job,
        fresh=fresh,
        emit=on_event,
    )
    return await run.run()


def absolute(settings: JobSettings) -> JobSettings:
    """The same settings with absolute paths, so that they mean the same from every folder."""
    source = settings.source if settings.source == STDIN else str(Path(settings.source).absolute())
    return msgspec.structs.replace(settings, source=source, store_path=str(Path(settings.store_path).absolute()))


def search(
    text: str,
    *,
    collection: str = "documents",
    store_path: str | Path = "ragingest_data",
    limit: int = 5,
    mode: SearchMode = "hybrid",
    filters: Mapping[str, str] | None = None,
) -> list[Hit]:
    """The best chunks of an embedded collection, best first; embedded as the collection was.

    Args:
        mode: `hybrid` fuses dense and BM25 scores (DBSF); a collection without BM25 is searched dense.
        filters: metadata key (`a.b` for nested ones) to the value it must have, as text.

    Raises:
        RagingestError: there is no such collection, it is open elsewhere, or cannot search in this mode.
    """
    from ragingest.stores.qdrant_edge import QdrantEdgeStore

    if not text.strip():
        raise UsageError("there is nothing to search for", "give some words")
    if limit < 1:
        raise UsageError(f"--limit {limit} is too small", "give at least 1")
    store = QdrantEdgeStore(Path(store_path).absolute(), collection)
    spec = store.open()
    try:
        if mode == "sparse":
            query = Query(np.zeros(spec.dimensions, dtype=np.float32), BM25().encode_query(text))
        else:
            query = embed_query(spec.embedder, spec.model, spec.extra.get("base_url"), spec.dimensions, text)
        if mode == "hybrid" and not spec.sparse:
            mode = "dense"
        return store.search(query, limit, mode, filters)
    finally:
        store.close()
