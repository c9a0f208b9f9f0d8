"""The embedded store in a process of its own, so that its engine does not hold our interpreter's lock.

Building points and updating the shard hold the lock for 50 us a point, which is as long as reading,
embedding and bookkeeping take together: in one process they exclude each other, in two they overlap.

Requests and replies are pickles with lengths before them, on the child's stdin and stdout, the numbers of arrays
behind them as they lie in memory. The child ignores signals and ends when its stdin does, however this process
ended.
"""

from __future__ import annotations

import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from ragingest.documents import EmbeddedBatch, Fault
from ragingest.errors import RagingestError, RejectedError, TerminalError
from ragingest.memory import own_anonymous_bytes
from ragingest.protocols import (
    DEFAULT_LAYOUT,
    Abilities,
    CollectionSpec,
    Hit,
    Query,
    SearchMode,
    StoredPoint,
    StoreLimits,
)
from ragingest.settings import Layout
from ragingest.stores.columns import columns_of

__all__ = ["EdgeProcess"]

CLOSE_SECONDS = 30
_LENGTH = struct.Struct("!Q")


class EdgeProcess:
    """`QdrantEdgeStore` by remote control; see there for what it keeps and how.

    Two upserts may be under way: one is encoded here while the child works on the other.
    """

    name = "qdrant-edge"
    limits = StoreLimits(max_points=256, max_bytes=8_000_000, concurrency=2)
    abilities = Abilities()
    forgets = False

    def __init__(self, folder: Path, collection: str, *, drop_text: bool = False) -> None:
        self._collection = collection
        self._drop_text = drop_text
        self._lock = threading.Lock()
        self.memory_bytes = 0
        self._child = subprocess.Popen(  # noqa: S603  # our own module, by our own interpreter
            [sys.executable, "-m", __name__, str(folder), collection],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )

    def _call(self, method: str, *args: Any) -> Any:
        request = _packed((method, args))
        with self._lock:
            try:
                assert self._child.stdin is not None
                assert self._child.stdout is not None
                _send(self._child.stdin, request)
                reply = _receive(self._child.stdout)
            except (OSError, ValueError):
                reply = None
        if reply is None:
            raise TerminalError(
                f"the process of the store {self._collection} ended (exit code {self._exit_code()})",
                "see what it printed, and whether the machine ran out of memory; then resume",
            )
        error, result, self.memory_bytes = reply
        if error is not None:
            kind, details = error
            raise kind(*details)
        return result

    def _exit_code(self) -> int | None:
        try:
            return self._child.wait(timeout=CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            return None

    def prepare(self, spec: CollectionSpec, layout: Layout = DEFAULT_LAYOUT) -> CollectionSpec:
        held: CollectionSpec = self._call("prepare", spec, layout)
        return held

    def describe(self, spec: CollectionSpec) -> None:
        self._call("describe", spec)

    def open(self) -> CollectionSpec:
        found: CollectionSpec = self._call("open")
        return found

    def encode(self, batch: EmbeddedBatch) -> list[bytes | Fault] | None:
        return None

    def upsert(self, batch: EmbeddedBatch) -> None:
        self._call("upsert_columns", columns_of(batch, drop_text=self._drop_text))

    def delete(self, points: Sequence[tuple[str, int]]) -> None:
        self._call("delete", list(points))

    def flush(self) -> None:
        self._call("flush")

    def count(self) -> int:
        return int(self._call("count"))

    def fetch(self, points: Sequence[tuple[str, int]]) -> list[StoredPoint]:
        found: list[StoredPoint] = self._call("fetch", list(points))
        return found

    def scan(self, after: str | None, limit: int) -> tuple[list[StoredPoint], str | None]:
        page: tuple[list[StoredPoint], str | None] = self._call("scan", after, limit)
        return page

    def search(
        self, query: Query, limit: int, mode: SearchMode = "dense", filters: Mapping[str, str] | None = None
    ) -> list[Hit]:
        sparse = None if query.sparse is None else (query.sparse.indices, query.sparse.values)
        found: list[Hit] = self._call("search", Query(query.dense, sparse), limit, mode, filters)
        return found

    def finish(self, report: Callable[[float], None] = lambda _share: None) -> None:
        self._call("finish")

    def close(self) -> None:
        """Let the child close the collection, and wait for it."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        with suppress(OSError):  # it may be gone already
            self._child.stdin.close()
        try:
            self._child.wait(timeout=CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child.stdout.close()


def _packed(message: object) -> list[bytes | memoryview]:
    """The pickle, and behind it the arrays, which are not copied."""
    arrays: list[pickle.PickleBuffer] = []
    data = pickle.dumps(message, protocol=5, buffer_callback=arrays.append)
    return [data, *(array.raw() for array in arrays)]


def _send(pipe: IO[bytes], parts: Sequence[bytes | memoryview]) -> None:
    pipe.write(_LENGTH.pack(len(parts)))
    for part in parts:
        pipe.write(_LENGTH.pack(len(part)))
        pipe.write(part)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:
    """The next message; None at the end, even if that comes in the middle of one."""
    try:
        data, *arrays = [_part(pipe, _length(pipe)) for _ in range(_length(pipe))]
    except EOFError:
        return None
    return pickle.loads(data, buffers=arrays)  # noqa: S301  # from our own process


def _length(pipe: IO[bytes]) -> int:
    length: int
    (length,) = _LENGTH.unpack(_part(pipe, _LENGTH.size))
    return length


def _part(pipe: Any, length: int) -> bytearray:
    data = bytearray(length)
    if pipe.readinto(data) < length:
        raise EOFError
    return data


def _serve(folder: Path, collection: str) -> None:
    from ragingest.stores.qdrant_edge import QdrantEdgeStore

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    requests = sys.stdin.buffer
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints must not be a reply
    store = QdrantEdgeStore(folder, collection)
    try:
        while (request := _receive(requests)) is not None:
            method, args = request
            error: tuple[type[Exception], tuple[str, str]] | None = None
            result = None
            try:
                result = getattr(store, method)(*args)
            except RagingestError as known:
                error = (type(known), (known.message, known.hint))
            except RejectedError as rejected:
                error = (RejectedError, (rejected.kind, str(rejected)))
            _send(replies, _packed((error, result, own_anonymous_bytes())))
    except BrokenPipeError:
        pass  # the parent is gone
    finally:
        store.close()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), sys.argv[2])
