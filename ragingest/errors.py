"""Every error that ragingest raises on purpose.

RagingestError                  what happened, where, and what to do next; carries the exit code
├── UsageError             2    the command or its settings are wrong
├── TooManyErrorsError     3    the source feeds garbage
├── TerminalError          4    a source, an embedder or a store failed for good; the job can be resumed
├── JobLockedError         5    another process works on the job
└── SettingsChangedError   6    the checkpoint or the collection does not fit the settings
TransientError                  trying the same call again may work
RejectedError                   one record cannot be ingested; the others can

The tree is about who acts: the user (RagingestError), the retry layer (TransientError), or nobody,
because the record goes to the rejects file (RejectedError).
"""

from __future__ import annotations

import re
from enum import IntEnum

__all__ = [
    "TOO_LARGE",
    "ExitCode",
    "JobLockedError",
    "RagingestError",
    "RejectedError",
    "SettingsChangedError",
    "TerminalError",
    "TooManyErrorsError",
    "TransientError",
    "UsageError",
    "without_secrets",
]


class ExitCode(IntEnum):
    """What the process tells its caller. The one table; help and docs are made from it."""

    OK = 0
    REJECTS = 1
    USAGE = 2
    TOO_MANY_ERRORS = 3
    FAILED = 4
    LOCKED = 5
    MISMATCH = 6
    WAITING = 75
    SIGINT = 130
    SIGTERM = 143

    @property
    def meaning(self) -> str:
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.OK: "all records are stored",
    ExitCode.REJECTS: "finished, some records were rejected (see the rejects file)",
    ExitCode.USAGE: "wrong usage or settings",
    ExitCode.TOO_MANY_ERRORS: "stopped: too many records were rejected (--max-errors)",
    ExitCode.FAILED: "stopped: the source, the embedder or the store failed; resumable",
    ExitCode.LOCKED: "the job is locked by another process",
    ExitCode.MISMATCH: "the checkpoint or the collection does not fit the settings",
    ExitCode.WAITING: "not finished yet: batches are under way; resume later",
    ExitCode.SIGINT: "interrupted by Ctrl-C; resumable",
    ExitCode.SIGTERM: "interrupted by SIGTERM; resumable",
}


_USER_INFO = re.compile(r"//[^/\s:@'\"]*:[^\s'\"]*@|[^/\s:@'\"]+:[^/\s@'\"]+@")
_IN_QUERY = re.compile(r"(?i)([?&][^=&\s]*(?:password|passwd|key|token|secret)=)[^\s&'\"]+")


def without_secrets(text: str) -> str:
    """The text with stars in place of user and password, and of keys, in its URLs."""
    return _IN_QUERY.sub(r"\1***", _USER_INFO.sub("***@", text))


class RagingestError(Exception):
    """An error for a person: `message` says what happened and where, `hint` what to do.

    A URL that the user wrote stands in it without its password.
    """

    exit_code = ExitCode.FAILED

    def __init__(self, message: str, hint: str = "") -> None:
        self.message = without_secrets(message)
        self.hint = without_secrets(hint)
        super().__init__(self.message)


class UsageError(RagingestError):
    """The command or its settings are wrong."""

    exit_code = ExitCode.USAGE


class TooManyErrorsError(RagingestError):
    """More records were rejected than the user allows."""

    exit_code = ExitCode.TOO_MANY_ERRORS


class TerminalError(RagingestError):
    """A source, an embedder or a store failed for good; the job can be resumed."""

    exit_code = ExitCode.FAILED


class JobLockedError(RagingestError):
    """Another process works on the job."""

    exit_code = ExitCode.LOCKED


class SettingsChangedError(RagingestError):
    """The checkpoint or the collection does not fit the settings."""

    exit_code = ExitCode.MISMATCH


class TransientError(Exception):
    """The call failed in a way that a later try may not.

    `retry_after` in seconds, if the server said; `throttled` if it asked for fewer calls (429, 503);
    `news` what the answer said of the server's budgets (`protocols.RateNews`); `tokens` what it counted
    for an answer that is of no use.
    """

    def __init__(
        self,
        message: str,
        retry_after: float | None = None,
        *,
        throttled: bool = False,
        news: tuple[float | None, ...] | None = None,
        tokens: int = 0,
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.throttled = throttled
        self.news = news
        self.tokens = tokens


TOO_LARGE = "too_large_for_store"
"""The kind of a `RejectedError` where a server takes less in one request than it was sent."""


class RejectedError(Exception):
    """A record (or a batch that holds such a record) that will never be accepted as it is.

    `kind` is a stable word for programs (`empty_text`, `invalid_json`, ...), `str(error)` the
    sentence for people.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
