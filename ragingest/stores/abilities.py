"""What a store cannot do, so that it is said before a run."""

from __future__ import annotations

import msgspec

from ragingest.errors import UsageError
from ragingest.protocols import Store
from ragingest.settings import Layout

__all__ = ["check_abilities", "shortcomings"]


def check_abilities(store: Store, layout: Layout) -> None:
    """Refuse what was asked for and cannot be done.

    Raises:
        UsageError: the layout asks for it.
    """
    asked = {name for name, value in msgspec.structs.asdict(layout).items() if value}
    if missing := sorted(asked - store.abilities.layout):
        flags = ", ".join("--" + name.replace("_", "-") for name in missing)
        raise UsageError(f"the store {store.name} cannot do {flags}", "leave it out, or give another --store")


def shortcomings(store: Store) -> list[str]:
    """What nobody asked for and some will miss, in sentences."""
    if store.forgets:
        return []
    if not store.abilities.search:
        return [f"the store {store.name} is for other tools: ragingest cannot search it"]
    if not store.abilities.sparse:
        return [f"the store {store.name} keeps no sparse vectors: a search goes by meaning only"]
    return []
