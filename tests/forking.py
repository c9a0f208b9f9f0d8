"""Python programs that start in milliseconds: forked from a process that has imported already what they import.

What is forked is a process like any other, with arguments, environment, folder, streams and limits of its own. It shares what takes
each start of the command most of a second (imports, the model of the default embedder, the parsers of the command line), and
nothing else; tests start it more than a thousand times. The process of the embedded store is forked like the command.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import io
import json
import os
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

__all__ = ["ForkedPopen"]

IMPORTED = (
    *(
        "ragingest.cli.app",
        "ragingest.cli.run",
        "ragingest.cli.resume",
        "ragingest.cli.display",
        "ragingest.jobs.processor",
    ),
    *(
        "ragingest.jobs.planning",
        "ragingest.library",
        "ragingest.jobs.embedding",
        "ragingest.jobs.copying",
        "aiohttp",
        "uuid",
    ),
    *("ragingest.embedders.remote", "ragingest.embedders.wordllama"),
    *("ragingest.stores.edge_process", "ragingest.stores.qdrant_edge"),
)
IMPORTED_ONCE_NAMED = {
    "pgvector": ["ragingest.stores.pgvector"],
    "pinecone": ["ragingest.stores.pinecone"],
    "qdrant": ["ragingest.stores.qdrant"],
    # And not transformers, which reads the environment when it is imported.
    "sentence-transformers": ["torch", "torch._dynamo", "sklearn.metrics"],
}
"""What an argument asks for; most tests do without."""
PROJECT = Path(__file__).parents[1]
STREAMS = 3


class ForkedPopen(subprocess.Popen[bytes]):
    """`subprocess.Popen` of `[sys.executable, "-m", MODULE, ...]` or `[sys.executable, SCRIPT, ...]`."""

    _status: int

    def _execute_child(self, args: list[Any], *rest: Any) -> None:
        # As Popen calls it: executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell, then the
        # two ends of three pipes, restore_signals, gid, gids, uid, umask.
        cwd, env, umask = *rest[4:6], rest[19]
        child_in, _, _, child_out, _, child_err = rest[9:15]
        streams = [own if given == -1 else given for own, given in enumerate((child_in, child_out, child_err))]
        self._status, status = os.pipe()
        request = {
            "args": [os.fsdecode(arg) for arg in args[1:]],
            "cwd": os.fspath(cwd or Path.cwd()),
            "env": dict(os.environ if env is None else env),
            "umask": _umask() if umask == -1 else umask,
            "file_size": resource.getrlimit(resource.RLIMIT_FSIZE),
        }
        forker = _forker()
        socket.send_fds(forker, [json.dumps(request).encode()], [*streams, status, forker.fileno()])
        os.close(status)
        self._child_created = True
        self.pid = int.from_bytes(os.read(self._status, 4), "big")
        self._close_pipe_fds(*rest[9:15])  # type: ignore[attr-defined]

    def _internal_poll(self, _deadstate: int | None = None, **_: Any) -> int | None:
        return self._ended(0)

    def _wait(self, timeout: float | None) -> int:
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            self.returncode = os.waitstatus_to_exitcode(int.from_bytes(os.read(self._status, 4), "big"))
            os.close(self._status)
        return self.returncode


def _umask() -> int:
    """That of this process; `os.umask` would have to change it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1], 8) for line in lines if line.startswith("Umask:"))


@functools.cache
def _forker() -> socket.socket:
    """To the process that forks for this one; it ends when this one does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(theirs.fileno())],
        cwd=PROJECT,
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    theirs.close()

    def end() -> None:
        ours.shutdown(socket.SHUT_RDWR)  # what was forked may hold it open
        process.wait()

    atexit.register(end)
    return ours


def _serve(requests: socket.socket) -> None:
    """Fork for each request, and run there what it asks for."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        data, fds, _, _ = socket.recv_fds(requests, 1 << 20, STREAMS + 2)
        if not data:
            return
        request: dict[str, Any] = json.loads(data)
        for name in IMPORTED_ONCE_NAMED.keys() & request["args"]:
            _import(IMPORTED_ONCE_NAMED[name])
        if os.fork() == 0:
            requests.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _keep(fds)
            _become(request)
            return
        for fd in fds:
            os.close(fd)


def _import(modules: Iterable[str]) -> None:
    for module in modules:
        if module not in sys.modules:
            importlib.import_module(module)
            _freeze()


def _freeze() -> None:
    """Spare what is forked from looking through all that is there, which copies its pages."""
    gc.collect()
    gc.freeze()


def _prepare() -> None:
    """Do once what each start of the command would do."""
    import typer.main

    from ragingest.cli.app import app
    from ragingest.embedders import wordllama
    from ragingest.errors import UsageError

    for module, name, argument in ((typer.main, "get_command", (app,)), (wordllama, "_load", ())):
        done = functools.cache(getattr(module, name))
        setattr(module, name, done)
        with suppress(UsageError):  # it is not installed
            done(*argument)


def _keep(fds: list[int]) -> None:
    """Fork once more, and tell the pid and how it ended to the status pipe; returns in what was forked only."""
    *streams, status, forker = fds
    pid = os.fork()
    if pid == 0:
        os.close(status)
        for number, fd in enumerate(streams):
            os.dup2(fd, number)
            os.close(fd)
        _fork_by(socket.socket(fileno=forker))
        return
    for fd in (*streams, forker):
        os.close(fd)
    os.write(status, pid.to_bytes(4, "big"))
    os.write(status, os.waitpid(pid, 0)[1].to_bytes(4, "big"))
    os._exit(0)


def _fork_by(forker: socket.socket) -> None:
    """Let the process of the store be forked too, by the one that has forked this one."""
    edge_process = importlib.import_module("ragingest.stores.edge_process")
    globals()["_forker"] = lambda: forker
    vars(edge_process)["subprocess"] = SimpleNamespace(**{**vars(subprocess), "Popen": ForkedPopen})


def _become(request: dict[str, Any]) -> None:
    """Run the program in this process, as the interpreter does after its start."""
    os.chdir(request["cwd"])
    os.umask(request["umask"])
    resource.setrlimit(resource.RLIMIT_FSIZE, request["file_size"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)))
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False)))
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(io.FileIO(2, "w", closefd=False)), errors="backslashreplace", line_buffering=True
    )
    first, *others = request["args"]
    if first == "-m":
        module, *others = others
        sys.argv = [module, *others]
        if not hasattr(sys.modules.get(module), "__path__"):
            sys.modules.pop(module, None)  # runpy warns of what runs a second time
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *others]
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    _import(IMPORTED)
    _prepare()
    _freeze()
    _serve(socket.socket(fileno=int(sys.argv[1])))
