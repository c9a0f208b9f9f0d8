"""`ragingest search TEXT`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ragingest.cli import display
from ragingest.cli import options as opt
from ragingest.errors import UsageError
from ragingest.protocols import SearchMode
from ragingest.settings import StoreSettings

__all__ = ["search"]


def search(
    text: Annotated[str, typer.Argument(help="What to search for.")],
    store: opt.Store = "qdrant-edge",
    collection: opt.Collection = "documents",
    store_path: opt.StorePath = Path("ragingest_data"),
    url: opt.Url = None,
    namespace: opt.Namespace = None,
    embedder: opt.MadeBy = None,
    model: opt.Model = None,
    base_url: opt.BaseUrl = None,
    limit: Annotated[int, typer.Option("--limit", "-n", help="Chunks to show, at most.")] = 5,
    dense: Annotated[bool, typer.Option("--dense", help="By meaning only.")] = False,
    sparse: Annotated[bool, typer.Option("--sparse", help="By words only (BM25).")] = False,
    filter_: Annotated[
        list[str] | None,
        typer.Option("--filter", "-f", help="key=value that the metadata must have; may be given again."),
    ] = None,
    json_: opt.Json = False,
) -> None:
    """Show the best chunks of a collection: by meaning and by words, unless told otherwise."""
    from ragingest.library import search as find

    if dense and sparse:
        raise UsageError("--dense and --sparse exclude each other", "leave both out for hybrid search")
    mode: SearchMode = "dense" if dense else "sparse" if sparse else "hybrid"
    hits = find(
        text,
        store=StoreSettings(
            store=store, store_path=str(store_path), url=url, collection=collection, namespace=namespace
        ),
        embedder=embedder,
        model=model,
        base_url=base_url,
        limit=limit,
        mode=mode,
        filters=_filters(filter_),
    )
    display.show_hits(hits, as_json=json_)


def _filters(given: list[str] | None) -> dict[str, str]:
    filters = {}
    for item in given or ():
        key, equals, value = item.partition("=")
        if not key or not equals:
            raise UsageError(f"--filter {item!r} is not key=value", "write for example --filter section=archives")
        filters[key] = value
    return filters
