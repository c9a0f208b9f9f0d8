"""Any iterable through any function, resumably: the checkpoint machinery without embedder and store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import msgspec

from ragingest.batching import StreamingBatcher
from ragingest.checkpoint.journal import boot_identity, now
from ragingest.checkpoint.ledger import Ledger, LedgerRow
from ragingest.checkpoint.manager import CheckpointManager
from ragingest.checkpoint.state import Checkpoint, PartState
from ragingest.errors import RagingestError
from ragingest.events import Counters
from ragingest.settings import JobSettings, RunOptions
from ragingest.version import __version__

__all__ = ["BatchProcessor", "ProcessResult"]

T = TypeVar("T")


class ProcessResult(TypedDict):
    """`processed`: documents done, by this call and earlier ones; `failed`: by this call; `resumed`: whether
    an earlier call had done some."""

    processed: int
    failed: int
    resumed: bool


class BatchProcessor:
    """Calls a function on batches of documents and remembers which are done.

    A document is done when the function has returned for it. One that makes it raise costs only
    itself: the batch is halved until it stands alone, so the function may see a document twice and
    should be repeatable. Those that failed are tried again by the next call.

    Args:
        batch_size: documents in a call of the function.
        checkpoint_interval: batches between two checkpoints.
        checkpoint_dir: where the state is kept.
    """

    def __init__(
        self, batch_size: int = 100, checkpoint_interval: int = 5, checkpoint_dir: str | Path = "./checkpoints"
    ) -> None:
        if batch_size < 1 or checkpoint_interval < 1:
            raise ValueError("batch_size and checkpoint_interval are at least 1")
        self.batch_size = batch_size
        self.checkpoint_interval = checkpoint_interval
        self._manager = CheckpointManager(Path(checkpoint_dir))

    def process(
        self, documents: Iterable[T], process_fn: Callable[[list[T]], object], job_id: str
    ) -> ProcessResult:
        """Process what earlier calls with this `job_id` have not.

        A document is known by its `id` (of a mapping) or by its JSON; one whose content has changed
        is done again. Memory does not grow with the number of documents.

        Raises:
            RagingestError: the job is locked, or its state cannot be written.
            TypeError: a document has no JSON and so cannot be recognised.
        """
        self._manager.files(job_id)
        self._manager.open_folder()
        with self._manager.lock(job_id):
            loaded = self._manager.load(job_id)
            ledger = Ledger(self._manager.files(job_id).ledger)
            try:
                pass_ = _Pass(self._manager, ledger, loaded.checkpoint if loaded else None, job_id, process_fn)
                try:
                    batcher: StreamingBatcher[T] = StreamingBatcher(self.batch_size)
                    for number, batch in enumerate(batcher.batch_stream(documents), 1):
                        pass_.process(batch)
                        if number % self.checkpoint_interval == 0:
                            pass_.save("running")
                except BaseException:
                    pass_.save("interrupted")
                    raise
                pass_.save("completed")
                return ProcessResult(processed=ledger.count(), failed=pass_.failed, resumed=pass_.resumed)
            finally:
                ledger.close()


class _Pass:
    def __init__(
        self,
        manager: CheckpointManager,
        ledger: Ledger,
        before: Checkpoint | None,
        job: str,
        process_fn: Callable[[list[Any]], object],
    ) -> None:
        self.resumed = not ledger.is_empty()
        self.failed = 0
        self._manager = manager
        self._ledger = ledger
        self._process_fn = process_fn
        self._at = 0
        settings = JobSettings(source="python", embedder="null", store="null")
        moment = now()
        self._checkpoint = Checkpoint(
            ragingest=__version__,
            job=job,
            run=before.run + 1 if before else 1,
            status="running",
            started=moment,
            updated=moment,
            boot=boot_identity(),
            settings=settings,
            fingerprint=settings.fingerprint(),
            options=RunOptions(),
            parts=[PartState(name="python")],
            counters=Counters(),
        )

    def process(self, batch: Sequence[Any]) -> None:
        counters = self._checkpoint.counters
        keyed = [(*_identify(document), document) for document in batch]
        known = self._ledger.lookup([key for key, _, _ in keyed])
        todo: dict[str, tuple[str, bytes, Any]] = {}
        for key, digest, document in keyed:
            before = known.get(key)
            if before is not None and before.digest == digest and key not in todo:
                counters.unchanged += 1
            else:
                counters.duplicate += key in todo
                todo[key] = (key, digest, document)
        self._call(list(todo.values()))
        self._at += len(batch)

    def _call(self, items: list[tuple[str, bytes, Any]]) -> None:
        if not items:
            return
        counters = self._checkpoint.counters
        try:
            self._process_fn([document for _, _, document in items])
        except RagingestError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever the caller's function raises
            if len(items) == 1:
                counters.rejected += 1
                self.failed += 1
                kinds = self._checkpoint.reject_kinds
                kinds[type(error).__name__] = kinds.get(type(error).__name__, 0) + 1
                return
            middle = len(items) // 2
            self._call(items[:middle])
            self._call(items[middle:])
            return
        run = self._checkpoint.run
        self._ledger.commit(LedgerRow(key, digest, 1, run, run, 0, self._at) for key, digest, _ in items)
        counters.stored += len(items)

    def save(self, status: Any) -> None:
        self._ledger.sync()
        # A document counts as read once it has its outcome: an exception may end a batch anywhere.
        counters = self._checkpoint.counters
        counters.read = counters.stored + counters.unchanged + counters.duplicate + counters.rejected
        part = PartState(name="python", done=[(0, self._at)] if self._at else [])
        self._checkpoint = msgspec.structs.replace(self._checkpoint, status=status, updated=now(), parts=[part])
        self._manager.save(self._checkpoint)


def _identify(document: object) -> tuple[str, bytes]:
    """(key, digest) of a document."""
    data = msgspec.json.encode(document, order="sorted")
    digest = hashlib.blake2b(data, digest_size=24).digest()
    given = document.get("id") if isinstance(document, Mapping) else None
    return (str(given) if given is not None else digest.hex()), digest
