"""ragingest: the bulk loader for vector databases.

import asyncio
import ragingest

summary = asyncio.run(ragingest.ingest("corpus.jsonl"))
hits = ragingest.search("opening hours on Sunday")
"""

# What is public is imported when it is first asked for: a process of the embedded store needs little of it, and every start counts.

import importlib
from typing import TYPE_CHECKING, Any

from ragingest.version import __version__

if TYPE_CHECKING:
    from ragingest.batching import StreamingBatcher, calculate_batch_size
    from ragingest.checkpoint.manager import CheckpointManager
    from ragingest.errors import (
        ExitCode,
        JobLockedError,
        RagingestError,
        RejectedError,
        SettingsChangedError,
        TerminalError,
        TooManyErrorsError,
        TransientError,
        UsageError,
    )
    from ragingest.events import Counters, Summary
    from ragingest.jobs.processor import BatchProcessor
    from ragingest.library import ingest, search
    from ragingest.protocols import Hit
    from ragingest.resources import ResourceManager
    from ragingest.settings import ErrorBudget, JobSettings, MemoryLimit, RunOptions, StoreSettings

__all__ = [
    "BatchProcessor",
    "CheckpointManager",
    "Counters",
    "ErrorBudget",
    "ExitCode",
    "Hit",
    "JobLockedError",
    "JobSettings",
    "MemoryLimit",
    "RagingestError",
    "RejectedError",
    "ResourceManager",
    "RunOptions",
    "SettingsChangedError",
    "StoreSettings",
    "StreamingBatcher",
    "Summary",
    "TerminalError",
    "TooManyErrorsError",
    "TransientError",
    "UsageError",
    "__version__",
    "calculate_batch_size",
    "ingest",
    "search",
]

_MODULES = {
    "batching": ("StreamingBatcher", "calculate_batch_size"),
    "checkpoint.manager": ("CheckpointManager",),
    "errors": (
        "ExitCode",
        "JobLockedError",
        "RagingestError",
        "RejectedError",
        "SettingsChangedError",
        "TerminalError",
        "TooManyErrorsError",
        "TransientError",
        "UsageError",
    ),
    "events": ("Counters", "Summary"),
    "library": ("ingest", "search"),
    "jobs.processor": ("BatchProcessor",),
    "protocols": ("Hit",),
    "resources": ("ResourceManager",),
    "settings": ("ErrorBudget", "JobSettings", "MemoryLimit", "RunOptions", "StoreSettings"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
