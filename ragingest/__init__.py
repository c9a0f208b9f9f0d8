"""ragingest: the bulk loader for vector databases.

import asyncio
import ragingest

summary = asyncio.run(ragingest.ingest("corpus.jsonl"))
hits = ragingest.search("opening hours on Sunday")
"""

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
from ragingest.library import ingest, search
from ragingest.processor import BatchProcessor
from ragingest.protocols import Hit
from ragingest.resources import ResourceManager
from ragingest.settings import ErrorBudget, JobSettings, MemoryLimit, RunOptions, StoreSettings
from ragingest.version import __version__

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
