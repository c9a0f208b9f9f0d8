"""The real command with a fault built in: what FAULT says happens at one call of one function.

    FAULT=kill:after:Ledger.commit:5      die by SIGKILL after its fifth call has returned
    FAULT=kill:before:Path.replace:2      die before the second one
    FAULT=full:before:write_durably:3     the disk is full from the third one on
    FAULT=gate:before:Store.upsert:1      from the first one on, read the file or FIFO `gate` to its end
    FAULT=clock:before:Ledger.commit:4    at the fourth one the clock goes back by a day

FAULT_CLOCK sets the clock back by that many seconds from the start. FAULT_LOG names a file to which the id and number of every chunk that is embedded are appended. No file
grows beyond FAULT_LIMIT bytes.
"""

from __future__ import annotations

import errno
import inspect
import os
import pathlib
import pkgutil
import resource
import signal
import time
from collections.abc import Callable
from typing import Any

import time_machine

import ragingest.checkpoint.manager
import ragingest.jobs.wiring
from ragingest.checkpoint.batches import BatchStates
from ragingest.checkpoint.journal import Journal
from ragingest.checkpoint.known import KnownTexts
from ragingest.checkpoint.ledger import Ledger
from ragingest.checkpoint.manager import CheckpointManager
from ragingest.checkpoint.rejects import RejectsEdition, RejectsFile
from ragingest.checkpoint.vectors import PaidVectors
from ragingest.cli import main
from ragingest.embedders.null import NullEmbedder
from ragingest.embedders.openai_batch import OpenAIBatches
from ragingest.embedders.wordllama import WordLlamaEmbedder
from ragingest.sources.lines import JSONLines
from ragingest.stores.edge_process import EdgeProcess
from ragingest.stores.files import FileStore

OWNERS: dict[str, Any] = {
    "BatchStates": BatchStates,
    "CheckpointManager": CheckpointManager,
    "Embedder": WordLlamaEmbedder,
    "FileStore": FileStore,
    "JSONLines": JSONLines,
    "Journal": Journal,
    "KnownTexts": KnownTexts,
    "Ledger": Ledger,
    "OpenAIBatches": OpenAIBatches,
    "PaidVectors": PaidVectors,
    "Path": pathlib.Path,
    # Imported only where they are asked for: their clients take half a second.
    "PgvectorStore": "ragingest.stores.pgvector:PgvectorStore",
    "PineconeStore": "ragingest.stores.pinecone:PineconeStore",
    "QdrantStore": "ragingest.stores.qdrant:QdrantStore",
    "RejectsEdition": RejectsEdition,
    "RejectsFile": RejectsFile,
    "Store": EdgeProcess,
    "write_durably": ragingest.checkpoint.manager,
}


def build_in(fault: str) -> None:
    action, when, place, count = fault.split(":")
    owner = OWNERS[place.partition(".")[0]]
    if isinstance(owner, str):
        owner = pkgutil.resolve_name(owner)
    name = place.rpartition(".")[2]
    original = getattr(owner, name)
    calls = 0

    def strike(number: int) -> None:
        if action == "kill" and number == int(count):
            os.kill(os.getpid(), signal.SIGKILL)
        if action == "full" and number >= int(count):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if action == "gate" and number >= int(count):
            pathlib.Path("gate").read_bytes()
        if action == "clock" and number == int(count):
            set_back(86_400)

    async def faulty_later(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        number = calls = calls + 1
        if when == "before":
            strike(number)
        result = await original(*args, **kwargs)
        if when == "after":
            strike(number)
        return result

    def faulty(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        # Two calls may be under way at once: each has a number of its own.
        number = calls = calls + 1
        if when == "before":
            strike(number)
        result = original(*args, **kwargs)
        if when == "after":
            strike(number)
        return result

    setattr(owner, name, faulty_later if inspect.iscoroutinefunction(original) else faulty)


def set_back(seconds: float) -> None:
    """The clock that tells the date; the one that measures times goes on."""
    time_machine.travel(time.time() - seconds, tick=True).start()


def log_embedded(path: str) -> None:
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def logged(original: Callable[..., Any]) -> Callable[..., Any]:
        def embed(self: Any, chunks: Any) -> Any:
            os.write(log, "".join(f"{chunk.document.id} {chunk.number}\n" for chunk in chunks).encode())
            return original(self, chunks)

        return embed

    for embedder in (WordLlamaEmbedder, NullEmbedder):
        embedder.embed = logged(embedder.embed)  # type: ignore[method-assign]


if __name__ == "__main__":
    if os.environ.get("FAULT"):
        build_in(os.environ["FAULT"])
    if os.environ.get("FAULT_CLOCK"):
        set_back(float(os.environ["FAULT_CLOCK"]))
    if os.environ.get("FAULT_LOG"):
        log_embedded(os.environ["FAULT_LOG"])
    if os.environ.get("FAULT_LIMIT"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["FAULT_LIMIT"]),) * 2)
    main()
