"""Servers as processes of their own, on CPUs of their own where there are enough.

A server is a module that prints its URL as its first line on stdout and ends on SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol, Self, TypeVar

import msgspec

from tests.servers.threads import ServerThread

__all__ = ["ServerProcess", "serve"]

C_contra = TypeVar("C_contra", contravariant=True)

PROJECT = Path(__file__).parents[2]
PATIENCE = 30.0


class ServerProcess:
    """A server that runs while the `with` block does.

    `cpus` are the CPUs wanted; `pinned` those it got, empty where none of them is to be had.
    """

    def __init__(self, module: str, arguments: Sequence[str] = (), *, cpus: Iterable[int] = ()) -> None:
        self.url = ""
        self.pinned: frozenset[int] = frozenset()
        self._command = [sys.executable, "-m", module, *arguments]
        self._cpus = frozenset(cpus)
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        assert self._process is not None
        return self._process.poll()

    def start(self) -> None:
        """Return when it serves.

        Raises:
            RuntimeError: it ended instead; the message is what it wrote on stderr.
        """
        # A file, not a pipe: nobody reads it while the server runs, and it must not fill up.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop and kill
        self._process = subprocess.Popen(self._command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=self._errors)
        self._pin()
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().decode().strip()
        if not self.url:
            self._process.wait(PATIENCE)
            self._errors.seek(0)
            message = self._errors.read().decode(errors="replace")
            self._close()
            raise RuntimeError(f"{' '.join(self._command)} did not start: {message}")

    def stop(self) -> None:
        """End it as a service manager does, and wait for it."""
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
        self._close()

    def kill(self) -> None:
        """End it with SIGKILL, and wait for it."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.returncode is None:
            self.stop()
        self._close()

    def _pin(self) -> None:
        # Before it has started threads, which inherit the CPUs.
        if sys.platform == "linux":
            allowed = self._cpus & os.sched_getaffinity(0)
            if allowed:
                os.sched_setaffinity(self.pid, allowed)
                self.pinned = frozenset(allowed)

    def _close(self) -> None:
        assert self._process is not None
        if self._process.stdout is not None:
            self._process.stdout.close()
        if self._errors is not None:
            self._errors.close()


class _Server(Protocol[C_contra]):
    def __call__(self, config: C_contra, *, port: int) -> ServerThread: ...


def serve(kind: type[C_contra], server: _Server[C_contra]) -> None:
    """Serve as the command line says, until SIGTERM or SIGINT; the URL is the first line on stdout."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--config", default="{}", help=f"{kind.__name__} as JSON")
    options = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    with server(msgspec.json.decode(options.config, type=kind), port=options.port) as running:
        sys.stdout.write(running.url + "\n")
        sys.stdout.flush()
        stop.wait()
