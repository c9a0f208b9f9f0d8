"""The same runs and searches from Python."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from ragingest.costs.models import DEFAULT_MODELS
from ragingest.embedders.bm25 import BM25
from ragingest.errors import UsageError
from ragingest.events import Emit, Summary
from ragingest.jobs.embedding import embed_query
from ragingest.jobs.wiring import Start, open_job
from ragingest.pacing.retries import patiently
from ragingest.protocols import Hit, Query, SearchMode
from ragingest.settings import STDIN, JobSettings, RunOptions, StoreSettings
from ragingest.stores import open_store

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
        start=Start(fresh=fresh),
        emit=on_event,
    )
    return await run.run()


def absolute(settings: JobSettings) -> JobSettings:
    """The same settings with absolute paths, so that they mean the same from every folder."""
    source = settings.source if settings.source == STDIN else str(Path(settings.source).absolute())
    model = settings.model
    if settings.embedder == "sentence-transformers" and model and Path(model).is_dir():
        model = str(Path(model).absolute())
    return msgspec.structs.replace(
        settings, source=source, model=model, store_path=str(Path(settings.store_path).absolute())
    )


def search(
    text: str,
    *,
    store: StoreSettings | None = None,
    embedder: str | None = None,
    model: str | None = None,
    base_url: str | None = None,
    limit: int = 5,
    mode: SearchMode = "hybrid",
    filters: Mapping[str, str] | None = None,
) -> list[Hit]:
    """The best chunks of a collection, best first; embedded as the collection was.

    Args:
        store: which collection; the embedded one named `documents` if it is None.
        embedder, model, base_url: what embeds the text, where the collection does not say who made it.
        mode: `hybrid` fuses dense and BM25 scores (DBSF); a collection without BM25 is searched dense.
        filters: metadata key (`a.b` for nested ones) to the value it must have, as text.

    Raises:
        RagingestError: there is no such collection, it is open elsewhere, or cannot search in this mode.
    """
    if not text.strip():
        raise UsageError("there is nothing to search for", "give some words")
    if limit < 1:
        raise UsageError(f"--limit {limit} is too small", "give at least 1")
    settings = store or StoreSettings()
    settings.check()
    opened = open_store(msgspec.structs.replace(settings, store_path=str(Path(settings.store_path).absolute())))
    try:
        if not opened.abilities.search:
            raise UsageError(f"the store {opened.name} cannot search", "search the collection it was loaded into")
        spec = patiently(opened.open)
        if mode == "sparse":
            query = Query(np.zeros(spec.dimensions, dtype=np.float32), BM25().encode_query(text))
        else:
            name, its_model = embedder or spec.embedder, model or spec.model
            if not name:
                raise UsageError(
                    f"the collection {settings.collection} does not say what made it", "give --embedder and --model"
                )
            url = base_url or spec.extra.get("base_url")
            query = embed_query(name, its_model or DEFAULT_MODELS.get(name, ""), url, spec.dimensions, text)
        if mode == "hybrid" and not spec.sparse:
            mode = "dense"
        return patiently(opened.search, query, limit, mode, filters)
    finally:
        opened.close()
