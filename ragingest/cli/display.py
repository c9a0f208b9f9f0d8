"""Everything that is printed: progress and messages on stderr, results on stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ragingest.checkpoint.manager import CheckpointManager
from ragingest.checkpoint.state import Checkpoint
from ragingest.costs.books import Books
from ragingest.errors import RagingestError
from ragingest.events import (
    Counters,
    Emit,
    Event,
    Finishing,
    Noticed,
    Paused,
    Progressed,
    Resumed,
    RunStarted,
    Summary,
)
from ragingest.jobs.verifying import Verification
from ragingest.memory import own_anonymous_bytes
from ragingest.protocols import Hit

__all__ = [
    "JobState",
    "PlainLines",
    "progress",
    "show_done",
    "show_error",
    "show_hits",
    "show_job",
    "show_jobs",
    "show_states",
    "show_summary",
    "show_verification",
    "show_warning",
    "size",
    "status_of",
    "write_json",
]

LINE_SECONDS = 30.0
REFRESH_SECONDS = 0.25
SNIPPET_CHARACTERS = 240
LOG_COLUMNS = 160


# -- progress ----------------------------------------------------------------------------------------


@contextmanager
def progress(*, quiet: bool) -> Iterator[Emit]:
    """A consumer of events that fits where stderr goes: a live screen, lines for a log, or nothing."""
    console = Console(stderr=True, highlight=False)
    if quiet:
        yield lambda _event: None
    elif console.is_terminal:
        with LiveScreen(console) as screen:
            yield screen
    else:
        yield PlainLines(lambda line: console.print(line, soft_wrap=True, markup=False))


class PlainLines:
    """For cron and logs: what happens once, and a line of progress every 30 seconds."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock = clock
        self._last = clock()
        self._rate = _Rate(clock)
        self._total: int | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._total = event.total_bytes
            self._rate.start(event.done_records)
        if isinstance(event, Progressed | Finishing):
            if self._clock() - self._last < LINE_SECONDS:
                return
            self._last = self._clock()
            self._write(self._line(event) if isinstance(event, Progressed) else f"indexing, {event.share:.0%}")
        else:
            line = _sentence(event)
            if line:
                self._write(line)

    def _line(self, event: Progressed) -> str:
        share = f"{100 * event.bytes_read / self._total:.0f} %, " if self._total else ""
        counters = event.counters
        spent = f", {_books_line(counters.books)}" if counters.books.used else ""
        return (
            f"{share}{counters.read:,} records, {self._rate.of(counters.read):,.0f}/s, {counters.chunks:,} chunks, "
            f"{counters.rejected:,} rejected, {size(own_anonymous_bytes())}{spent}"
        )


class LiveScreen:
    """For a person at a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(compact=True),
            console=console,
        )
        self._task = self._progress.add_task("starting", total=None)
        self._rate = _Rate(time.monotonic)
        self._counters = Counters()
        self._in_flight = 0
        self._paused: Paused | None = None
        self._total: int | None = None
        self._live = Live(
            console=console, get_renderable=self._render, refresh_per_second=1 / REFRESH_SECONDS, transient=True
        )

    def __enter__(self) -> LiveScreen:
        self._live.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._live.__exit__(*exception)

    def __call__(self, event: Event) -> None:
        match event:
            case RunStarted():
                self._total = event.total_bytes
                self._rate.start(event.done_records)
                self._progress.update(self._task, description=event.job, total=event.total_bytes)
            case Progressed():
                self._counters = event.counters
                self._in_flight = event.in_flight
                self._progress.update(self._task, completed=event.bytes_read)
            case Paused():
                self._paused = event
            case Resumed():
                self._paused = None
            case Finishing():
                self._progress.update(self._task, description="indexing", completed=event.share, total=1.0)
            case _:
                pass
        line = _sentence(event)
        if line and not isinstance(event, Paused | Resumed):
            self._console.print(line, markup=False)

    def _render(self) -> Group:
        counters = self._counters
        numbers = Text.assemble(
            (f"  {self._rate.of(counters.read):,.0f} records/s", "bold"),
            f"   {counters.read:,} records   {counters.chunks:,} chunks   ",
            (f"{counters.rejected:,} rejected", "red" if counters.rejected else ""),
            f"   {self._in_flight:,} in flight   {size(own_anonymous_bytes())} memory",
        )
        lines: list[Any] = [self._progress, numbers]
        if counters.books.used:
            lines.append(Text("  " + _books_line(counters.books)))
        if self._paused is not None:
            lines.append(Text("  " + _paused(self._paused), style="yellow"))
        return Group(*lines)


class _Rate:
    """Records a second since the start of this attempt."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.start(0)

    def start(self, done: int) -> None:
        self._began = self._clock()
        self._done = done

    def of(self, read: int) -> float:
        seconds = self._clock() - self._began
        return (read - self._done) / seconds if seconds > 0 else 0.0


def _sentence(event: Event) -> str:
    match event:
        case RunStarted():
            line = f"{event.job}: run {event.run} of {event.source} into {event.collection}"
            if event.resumed:
                line += f", continued: {event.done_records:,} records are done"
                if event.rereads and event.done_records:
                    line += "; the source is read again up to there"
            return line
        case Noticed():
            return event.message
        case Paused():
            return _paused(event)
        case Resumed():
            return f"reading goes on after {event.waited:.0f} s"
        case _:
            return ""


def _paused(event: Paused) -> str:
    return f"reading is paused: {event.where} uses {size(event.used)} of the {size(event.limit)} allowed (--max-memory)"


# -- results -----------------------------------------------------------------------------------------


def show_summary(summary: Summary, *, as_json: bool, checkpoint_dir: Path, command: str = "resume") -> None:
    """What the run did: on stdout; and on stderr what went wrong and the command that goes on from there."""
    if as_json:
        write_json(_summary_fields(summary))
    else:
        out = _out()
        c = summary.counters
        out.print(
            f"{summary.status}: {summary.job}, run {summary.run}: {summary.source} -> {summary.collection} "
            f"({summary.store}, {summary.embedder})"
        )
        out.print(
            f"  read {c.read:,} = stored {c.stored:,} + unchanged {c.unchanged:,} + duplicate {c.duplicate:,} "
            f"+ rejected {c.rejected:,}"
        )
        out.print(
            f"  {c.chunks:,} chunks in {_duration(summary.seconds)}, {summary.rate:,.0f} records/s, "
            f"peak memory {size(summary.peak_memory_bytes)}"
        )
        changes = []
        if c.revised:
            changes.append(f"{c.revised:,} chunks got new metadata and kept their vectors")
        if c.removed:
            changes.append(f"{c.removed:,} documents that disappeared were removed")
        if c.books.truncated:
            changes.append(f"{c.books.truncated:,} texts were cut to what the model takes")
        if changes:
            out.print("  " + ", ".join(changes))
        if c.books.used:
            out.print(f"  {_books_line(c.books)}")
        if summary.rejects:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in _by_count(summary.reject_kinds))
            out.print(f"  rejected: {kinds}; see {summary.rejects}")
    err = _err()
    if summary.message:
        err.print(f"ragingest: {summary.message}")
        if summary.hint:
            err.print(f"  {summary.hint}")
    if summary.status == "completed" and not summary.counters.read:
        err.print(f"ragingest: {summary.source} holds no record; check the path, --format and --json-path")
    if summary.status in ("interrupted", "failed", "waiting"):
        folder = "" if checkpoint_dir == Path("checkpoints") else f" --checkpoint-dir {checkpoint_dir}"
        err.print(f"  go on with: ragingest {command} {summary.job}{folder}")


def _summary_fields(summary: Summary) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(summary)
    fields["counters"]["books"] = _books_fields(summary.counters.books)
    return {**fields, "records_per_second": round(summary.rate, 1)}


def _books_fields(books: Books) -> dict[str, Any]:
    """The books for programs: latencies in seconds, cost in dollars."""
    fields: dict[str, Any] = msgspec.to_builtins(books)
    del fields["latencies"]
    fields["waited"] = round(books.waited, 3)
    fields["cost"] = books.cost
    fields["latency"] = {f"p{share}": books.latency(share / 100) for share in (50, 95, 99)}
    return fields


def _books_line(books: Books) -> str:
    cost = "cost unknown" if books.cost is None else f"${books.cost:,.4f}"
    parts = [f"{books.batches:,} batches ({books.batches_done:,} done)"] if books.batches else []
    parts += [f"{books.requests:,} requests", f"{books.tokens:,} tokens", cost]
    if books.reused:
        parts.append(f"{books.reused:,} texts reused")
    if books.throttled:
        parts.append(f"{books.throttled:,} throttled")
    if books.waited >= 1:
        parts.append(f"{_duration(books.waited)} waited")
    if (p50 := books.latency(0.5)) is not None:
        parts.append(f"latency p50 {_milliseconds(p50)}, p95 {_milliseconds(books.latency(0.95) or 0)}")
    return ", ".join(parts)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms"


def show_verification(found: Verification, *, as_json: bool, to_stderr: bool = False) -> None:
    """What was compared, and what is not as it should be."""
    if as_json:
        write_json({**msgspec.to_builtins(found), "exit_code": int(found.exit_code)})
        return
    out = _err() if to_stderr else _out()
    out.print(
        f"{found.job}: {found.compared:,} of {found.documents:,} documents compared; {found.points:,} points "
        f"according to the job, {found.points_in_store:,} in {found.collection} ({found.store})"
    )
    for kind, differences in found.named.items():
        count = getattr(found, kind)
        out.print(f"  {count:,} points {kind}:")
        for difference in differences:
            out.print(f"    {difference.id!r} chunk {difference.chunk}: {difference.what}")
        if count > len(differences):
            out.print(f"    and {count - len(differences):,} more")
    if not found.named:
        out.print("  nothing is missing, altered or foreign")
    elif found.affected and not to_stderr:
        out.print(f"  mend {found.affected:,} documents with: ragingest verify {found.job} --repair")


def show_error(error: RagingestError, *, as_json: bool) -> None:
    """What happened, and what to do; with `as_json` also as a document on stdout."""
    err = _err()
    err.print(f"ragingest: {error.message}")
    if error.hint:
        err.print(f"  {error.hint}")
    if as_json:
        write_json(
            {"status": "error", "message": error.message, "hint": error.hint, "exit_code": int(error.exit_code)}
        )


def show_warning(message: str) -> None:
    _err().print(f"ragingest: {message}")


def show_jobs(checkpoints: Sequence[Checkpoint], manager: CheckpointManager, *, as_json: bool) -> None:
    if as_json:
        write_json([_job_fields(checkpoint, manager) for checkpoint in checkpoints])
        return
    if not checkpoints:
        _out().print(_no_jobs(manager))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("job", overflow="fold")
    table.add_column("status", no_wrap=True)
    for name in ("read", "stored", "unchanged", "duplicate", "rejected", "records/s", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("updated (UTC)", no_wrap=True)
    for checkpoint in checkpoints:
        c = checkpoint.counters
        table.add_row(
            checkpoint.job,
            status_of(checkpoint, manager),
            *(f"{number:,}" for number in (c.read, c.stored, c.unchanged, c.duplicate, c.rejected)),
            f"{_rate(checkpoint):,.0f}",
            _duration(checkpoint.seconds),
            checkpoint.updated[:16].replace("T", " "),
        )
    _out(table=True).print(table)


def show_job(checkpoint: Checkpoint, manager: CheckpointManager, *, as_json: bool) -> None:
    fields = _job_fields(checkpoint, manager)
    if as_json:
        write_json(fields)
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    counters = fields.pop("counters")
    del counters["books"]
    settings = fields.pop("settings")
    kinds = fields.pop("reject_kinds")
    for section in (fields, counters):
        for name, value in section.items():
            if value not in ("", None):
                table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value))
    if checkpoint.counters.books.used:
        table.add_row("books", _books_line(checkpoint.counters.books))
    if checkpoint.counters.books.truncated:
        table.add_row("truncated", f"{checkpoint.counters.books.truncated:,}")
    for kind, count in _by_count(kinds):
        table.add_row(f"rejected: {kind}", f"{count:,}")
    for name, value in settings.items():
        if value is not None and name not in ("source", "collection", "store", "embedder"):
            shown = ", ".join(value) if isinstance(value, list | tuple) else str(value)
            table.add_row(f"setting: {name.replace('_', ' ')}", shown)
    _out(table=True).print(table)


def _job_fields(checkpoint: Checkpoint, manager: CheckpointManager) -> dict[str, Any]:
    files = manager.files(checkpoint.job)
    return {
        "job": checkpoint.job,
        "status": status_of(checkpoint, manager),
        "run": checkpoint.run,
        "source": checkpoint.settings.source,
        "collection": checkpoint.settings.collection,
        "store": checkpoint.settings.store,
        "embedder": checkpoint.settings.embedder,
        "started": checkpoint.started,
        "updated": checkpoint.updated,
        "seconds": checkpoint.seconds,
        "attempts": checkpoint.attempts,
        "records_per_second": round(_rate(checkpoint), 1),
        "message": checkpoint.message,
        "checkpoint": str(files.checkpoint),
        "rejects": str(files.rejects) if checkpoint.counters.rejected else None,
        "counters": {
            **msgspec.to_builtins(checkpoint.counters),
            "books": _books_fields(checkpoint.counters.books),
        },
        "reject_kinds": checkpoint.reject_kinds,
        "settings": msgspec.to_builtins(checkpoint.settings),
    }


def status_of(checkpoint: Checkpoint, manager: CheckpointManager) -> str:
    """The status; a run that no process works on any more was killed."""
    if checkpoint.status == "running" and not manager.is_locked(checkpoint.job):
        return "killed"
    return checkpoint.status


class JobState(NamedTuple):
    """What is kept of a job: its `size` on disk in bytes, and what its checkpoint says, if it has one."""

    job: str
    status: str
    size: int
    run: int | None = None
    read: int | None = None
    rejected: int | None = None
    updated: str = ""
    source: str = ""
    collection: str = ""


def show_states(states: Sequence[JobState], manager: CheckpointManager, *, as_json: bool) -> None:
    if as_json:
        write_json([state._asdict() for state in states])
        return
    if not states:
        _out().print(_no_jobs(manager))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("job", overflow="fold")
    table.add_column("status", no_wrap=True)
    for name in ("run", "read", "rejected", "on disk"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("updated (UTC)", no_wrap=True)
    table.add_column("source", overflow="fold")
    for state in states:
        numbers = ("" if number is None else f"{number:,}" for number in (state.run, state.read, state.rejected))
        updated = state.updated[:16].replace("T", " ")
        table.add_row(state.job, state.status, *numbers, size(state.size), updated, state.source)
    _out(table=True).print(table)


def show_done(line: str, fields: Mapping[str, Any], *, as_json: bool) -> None:
    """The result of a command that changes something: a line, or a document."""
    if as_json:
        write_json(fields)
    else:
        _out().print(line)


def _no_jobs(manager: CheckpointManager) -> str:
    return f"no jobs in {manager.folder}; start one with ragingest run SOURCE"


def show_hits(hits: Sequence[Hit], *, as_json: bool) -> None:
    if as_json:
        write_json([hit._asdict() for hit in hits])
        return
    out = _out()
    if not hits:
        out.print("nothing found")
    for number, hit in enumerate(hits, 1):
        place = f" chunk {hit.chunk}" if hit.chunk else ""
        out.print(f"{number}. {hit.score:.3f}  {hit.id}{place}")
        text = " ".join(hit.text.split())
        out.print("   " + (text if len(text) <= SNIPPET_CHARACTERS else text[: SNIPPET_CHARACTERS - 1] + "…"))


def write_json(value: object) -> None:
    """One document on stdout."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=1).decode() + "\n")


def _out(*, table: bool = False) -> Console:
    """stdout: lines as long as they are; tables as wide as the terminal, or as a log may be."""
    console = Console(highlight=False, soft_wrap=not table, markup=False)
    if table and not console.is_terminal:
        console.width = LOG_COLUMNS
    return console


def _err() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True, markup=False)


def _by_count(kinds: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(kinds.items(), key=lambda item: (-item[1], item[0]))


def _rate(checkpoint: Checkpoint) -> float:
    return checkpoint.counters.read / checkpoint.seconds if checkpoint.seconds else 0.0


def size(number: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02} min"
