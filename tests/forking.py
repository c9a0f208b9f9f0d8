"""Python programs that start in milliseconds: forked from a process that has imported already what they import.

What is forked is a process like any other, with arguments, environment, folder and streams of its own. It shares the half second
of imports that each start of the command costs, and nothing else; tests start it more than a thousand times.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import io
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
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
    *("ragingest.embedders.remote", "ragingest.embedders.wordllama", "ragingest.stores.edge_process"),
)
PROJECT = Path(__file__).parents[1]
STREAMS = 3


class ForkedPopen(subprocess.Popen[bytes]):
    """`subprocess.Popen` of `[sys.executable, "-m", MODULE, ...]` or `[sys.executable, SCRIPT, ...]`."""

    _status: int

    def _execute_child(self, args: list[Any], *rest: Any) -> None:
        # As Popen calls it: executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell, then the
        # two ends of three pipes.
        cwd, env = rest[4:6]
        child_in, _, _, child_out, _, child_err = rest[9:15]
        streams = [own if given == -1 else given for own, given in enumerate((child_in, child_out, child_err))]
        self._status, status = os.pipe()
        request = {
            "args": [os.fsdecode(arg) for arg in args[1:]],
            "cwd": os.fspath(cwd or Path.cwd()),
            "env": dict(os.environ if env is None else env),
        }
        socket.send_fds(_forker(), [json.dumps(request).encode()], [*streams, status])
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
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _serve(requests: socket.socket) -> dict[str, Any]:
    """Fork for each request; returns in what was forked, with what it was asked to be."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        data, fds, _, _ = socket.recv_fds(requests, 1 << 20, STREAMS + 1)
        if not data:
            sys.exit()
        if os.fork() == 0:
            requests.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _keep(fds)
            request: dict[str, Any] = json.loads(data)
            return request
        for fd in fds:
            os.close(fd)


def _keep(fds: list[int]) -> None:
    """Fork once more, and tell the pid and how it ended to the last of `fds`; returns in what was forked only."""
    *streams, status = fds
    pid = os.fork()
    if pid == 0:
        os.close(status)
        for number, fd in enumerate(streams):
            os.dup2(fd, number)
            os.close(fd)
        return
    for fd in streams:
        os.close(fd)
    os.write(status, pid.to_bytes(4, "big"))
    os.write(status, os.waitpid(pid, 0)[1].to_bytes(4, "big"))
    os._exit(0)


def _become(request: dict[str, Any]) -> None:
    """Run the program in this process, as the interpreter does after its start."""
    os.chdir(request["cwd"])
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
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *others]
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    for name in IMPORTED:
        importlib.import_module(name)
    _become(_serve(socket.socket(fileno=int(sys.argv[1]))))
