"""What went wrong in a job, summed up for a person: rejects by stage and pattern, and what ended a run."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from ragingest.checkpoint.manager import CheckpointManager
from ragingest.checkpoint.rejects import reject_lines
from ragingest.errors import TerminalError
from ragingest.reject_kinds import advice_for

__all__ = ["EXAMPLES", "MAX_GROUPS", "Example", "Group", "JobFailures", "all_failures", "failures_of", "pattern_of"]

EXAMPLES = 3
"""Rejects of a group that are shown."""

MAX_GROUPS = 200
"""Patterns that are told apart; the messages of further ones are counted together, by stage and kind."""

PATTERN_CHARACTERS = 300
MESSAGE_CHARACTERS = 1000
OTHER = "(other messages)"
UNLISTED = "(there is no rejects file)"

_VARIABLE = re.compile(
    r"""
      (?P<word> \b(?:UTF-(?:8|16|32)|BM25|HTTP[ ]\d{3}|status[ ]\d{3}|64[ -]bits?)\b )
    | (?P<text> "(?:[^"\\]|\\.)*" | `[^`]*` | (?<!\w)'[^']*'(?!\w) )
    | (?P<id> \b(?=[\w.:/-]*\d)(?=[\w.:/-]*[^\W\d_])[\w:/-](?:[\w.:/-]*[\w/-])? )
    | (?P<number> \d(?:[\d,.]*\d)? )
    """,
    re.VERBOSE,
)
_STANDS_FOR = {"text": '"…"', "id": "…", "number": "N"}


def pattern_of(message: str) -> str:
    """The message without what differs from record to record: quoted texts, ids and numbers."""

    def replaced(found: re.Match[str]) -> str:
        return _STANDS_FOR.get(found.lastgroup or "", found[0])

    return _cut(_VARIABLE.sub(replaced, _cut(message, MESSAGE_CHARACTERS)), PATTERN_CHARACTERS)


class Example(msgspec.Struct, kw_only=True):
    """One reject of a group. `position` has `part`, `offset`, and `line` or `element` counted from 1."""

    position: dict[str, Any]
    id: str | None
    message: str


class Group(msgspec.Struct, kw_only=True):
    """Rejects of one stage and kind whose messages follow one pattern."""

    stage: str
    error: str
    pattern: str
    advice: str
    count: int = 0
    share: float | None = None
    """Of the records that were read; None if that is not known."""
    first: str | None = None
    last: str | None = None
    """When it was first and last seen: UTC, ISO 8601."""
    examples: list[Example] = []


class JobFailures(msgspec.Struct, kw_only=True):
    """What went wrong in a job's last run. `message` and `hint` say what ended it, if anything did."""

    job: str
    status: str
    """As the checkpoint has it; or `killed`, or `unreadable` where the checkpoint is."""
    run: int | None = None
    source: str = ""
    collection: str = ""
    updated: str = ""
    message: str = ""
    hint: str = ""
    read: int | None = None
    rejected: int = 0
    unreadable: int = 0
    """Lines of the rejects file that are no rejects: damaged, or edited."""
    rejects: str | None = None
    groups: list[Group] = []

    @property
    def any(self) -> bool:
        return self.rejected > 0 or self.status in ("failed", "killed", "unreadable")


class _Line(msgspec.Struct):
    """What is needed of a line of the rejects file."""

    stage: str = "unknown"
    error: str = "unknown"
    message: str = ""
    id: str | None = None
    position: dict[str, Any] = {}
    at: str | None = None


_decode = msgspec.json.Decoder(_Line).decode


def all_failures(manager: CheckpointManager) -> list[JobFailures]:
    """Of every job of the folder, also those in which nothing went wrong."""
    return [failures_of(manager, job) for job in manager.jobs()]


def failures_of(manager: CheckpointManager, job: str) -> JobFailures:
    """What went wrong in the last run of `job`; its memory does not grow with the number of rejects.

    Raises:
        UsageError: there is no such job.
        TerminalError: the rejects file cannot be read.
    """
    try:
        loaded = manager.load(job)
    except TerminalError as error:
        return JobFailures(job=job, status="unreadable", message=error.message, hint=error.hint)
    if loaded is None:
        raise manager.unknown(job)
    checkpoint = loaded.checkpoint
    found = JobFailures(
        job=job,
        status=checkpoint.status,
        run=checkpoint.run,
        source=checkpoint.settings.source,
        collection=checkpoint.settings.collection,
        updated=checkpoint.updated,
        message=checkpoint.message,
        hint=checkpoint.hint,
        read=checkpoint.counters.read,
        rejected=checkpoint.counters.rejected,
    )
    if checkpoint.status == "running" and not manager.is_locked(job):
        found.status = "killed"
        found.message = "the run ended without a word: it was killed, or the machine went down"
        found.hint = f"go on with: ragingest resume {job}"
    path = manager.rejects_of(checkpoint)
    _count(found, reject_lines(path, checkpoint.rejects_bytes))
    if found.groups:
        found.rejects = str(path)
    else:
        found.groups = [_unlisted(kind, count, found.read) for kind, count in checkpoint.reject_kinds.items()]
    return found


def _unlisted(kind: str, count: int, read: int | None) -> Group:
    """Rejects of which only their number is known."""
    return Group(
        stage="unknown",
        error=kind,
        pattern=UNLISTED,
        advice=advice_for(kind),
        count=count,
        share=_share(count, read),
    )


def _share(count: int, read: int | None) -> float | None:
    return count / read if read else None


def _count(found: JobFailures, lines: Iterable[bytes]) -> None:
    groups: dict[tuple[str, str, str], Group] = {}
    for line in lines:
        try:
            reject = _decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            found.unreadable += 1
            continue
        group = _group_for(groups, reject)
        group.count += 1
        if reject.at is not None:
            group.first = min(group.first or reject.at, reject.at)
            group.last = max(group.last or reject.at, reject.at)
        if len(group.examples) < EXAMPLES:
            message = _cut(reject.message, MESSAGE_CHARACTERS)
            group.examples.append(Example(position=reject.position, id=reject.id, message=message))
    for group in groups.values():
        group.share = _share(group.count, found.read)
    found.groups = sorted(
        groups.values(), key=lambda group: (-group.count, group.stage, group.error, group.pattern)
    )


def _group_for(groups: dict[tuple[str, str, str], Group], reject: _Line) -> Group:
    stage, error = _cut(reject.stage, 40), _cut(reject.error, 40)
    key = (stage, error, pattern_of(reject.message))
    if key not in groups and len(groups) >= MAX_GROUPS:
        key = (stage, error, OTHER)
        if key not in groups and len(groups) >= 2 * MAX_GROUPS:
            key = ("other", "other", OTHER)
    if key not in groups:
        groups[key] = Group(stage=key[0], error=key[1], pattern=key[2], advice=advice_for(key[1]), examples=[])
    return groups[key]


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"
