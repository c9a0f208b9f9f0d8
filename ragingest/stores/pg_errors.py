"""What Postgres' errors mean for a run: https://www.postgresql.org/docs/current/errcodes-appendix.html."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from ragingest.errors import RejectedError, TerminalError, TransientError

__all__ = ["sorted_errors"]

# By the whole code first, then by its class.
_THROTTLED = frozenset({"53200", "53300"})  # out of memory, too many connections
_TRANSIENT = frozenset(
    {
        "08", "40",  # the connection; deadlock, serialization
        "57P01", "57P02", "57P03", "57P05",  # shut down, crashed, starting, idle for too long
        "57014",  # cancelled: the time allowed is over
        "55P03", "55006",  # locked, in use
    }
)  # fmt: skip
# Between "is it there?" and "make it" another process has made it: the next try finds it.
_MADE_BY_ANOTHER = frozenset({"42P06", "42P07", "42710"})
_REJECTED = frozenset({"22", "23", "54"})  # a value, a constraint, a limit of the program

_HINTS = {
    "53100": "the server's disk is full: free some space, then resume",
    "25006": "the server only reads, as a standby does: give the primary in --url, then resume",
    "42501": "let the owner grant the privilege, or give another role in --url",
    "42P01": "the table was removed while it was in use; load it again with --fresh",
    "28P01": "put the right password into PGPASSWORD or ~/.pgpass",
    "28000": "the server's pg_hba.conf does not let this role in from here",
    "3D000": "create the database, or give another one in --url",
}
# A refused connection has no code, and its message may be in any language: what is not known here is tried again.
_REFUSALS = {
    "password authentication failed": _HINTS["28P01"],
    "no password supplied": _HINTS["28P01"],
    "no pg_hba.conf entry": _HINTS["28000"],
    "authentication failed": _HINTS["28000"],
    "is not permitted to log in": _HINTS["28000"],
    "permission denied for database": _HINTS["42501"],
    "does not exist": "name a role and a database that are there in --url",
}
# Of libpq and OpenSSL; a line that broke during the handshake is none of these.
_TLS = (
    "certificate verify failed",
    "server does not support SSL",
    "root certificate file",
    "does not match host name",
    "wrong version number",
    "unsupported protocol",
)


@contextmanager
def sorted_errors(place: str, *, writes: bool = False) -> Iterator[None]:
    """Turn what psycopg raises into `TransientError`, `TerminalError` or, of rows written, `RejectedError`.

    `place` names server and database.
    """
    try:
        yield
    except psycopg.Error as error:
        raise _sorted(error, place, writes=writes) from None


def _sorted(error: psycopg.Error, place: str, *, writes: bool) -> Exception:
    code = error.sqlstate
    said = (error.diag.message_primary or str(error)).strip() or type(error).__name__
    if code is None:
        return _without_code(error, place, said)
    keys = {code, code[:2]}
    if code in _THROTTLED:
        return TransientError(f"{place}: {said}", throttled=True)
    if keys & _TRANSIENT or code in _MADE_BY_ANOTHER:
        return TransientError(f"{place}: {said}")
    if code == "23505" and not writes:
        return TransientError(f"{place}: {said}")  # likewise, seen by an index of the system's catalogue
    if writes and keys & _REJECTED:
        return RejectedError("payload", f"Postgres refuses the row: {said} ({code})")
    return TerminalError(f"{place}: {said} ({code})", _HINTS.get(code, "see the server's log; then resume"))


def _without_code(error: psycopg.Error, place: str, said: str) -> Exception:
    if not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return TerminalError(f"{place}: {said}", "check --url")
    said = " ".join(said.split())
    for refusal, hint in _REFUSALS.items():
        if refusal in said and "FATAL" in said:
            return TerminalError(f"{place} cannot be opened: {said}", hint)
    if any(phrase in said for phrase in _TLS):
        return TerminalError(
            f"{place} cannot be reached over TLS: {said}",
            "check sslmode in --url, and name the authority that signed its certificate: sslrootcert=..., PGSSLROOTCERT",
        )
    if "no password supplied" in said:
        return TerminalError(f"{place} cannot be opened: {said}", _HINTS["28P01"])
    return TransientError(f"{place}: {said}")
