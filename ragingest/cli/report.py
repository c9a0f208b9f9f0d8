"""What went wrong, for a person: as lines, and as a page that can be sent."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from string import Template

from ragingest.checkpoint.journal import now
from ragingest.jobs.failures import Example, Group, JobFailures
from ragingest.version import __version__

__all__ = ["as_html", "as_text"]

ID_CHARACTERS = 60


def as_text(failures: Sequence[JobFailures]) -> str:
    """Jobs with failures, one after the other; or that there are none."""
    told = [line for job in failures if job.any for line in _lines(job)]
    return "\n".join(told or ["nothing went wrong"])


def _lines(job: JobFailures) -> Iterator[str]:
    yield f"{job.job}: {_headline(job)}"
    if job.message:
        yield f"  {_printable(job.message)}"
    if job.hint:
        yield f"  -> {_printable(job.hint)}"
    for group in job.groups:
        yield f"  {group.count:,} x {_kind(group)}: {_printable(group.pattern)}"
        yield f"      {_extent(group)}"
        yield f"      -> {group.advice}"
        for example in group.examples:
            yield f"      {_place(example)}: {_printable(example.message)}"
    if job.unreadable:
        yield f"  {job.unreadable:,} lines of the rejects file cannot be read"
    if job.rejects:
        yield f"  {_printable(job.rejects)}"


def _headline(job: JobFailures) -> str:
    run = f"run {job.run} " if job.run is not None else ""
    told = f"{run}{job.status}"
    if job.read is not None:
        told += f", {job.rejected:,} of {job.read:,} records rejected"
        if job.rejected and job.read:
            told += f" ({_percent(job.rejected / job.read)})"
    return told


def _kind(group: Group) -> str:
    return _printable(f"{group.stage} {group.error}")


def _extent(group: Group) -> str:
    parts = [] if group.share is None else [f"{_percent(group.share)} of the records read"]
    if group.first and group.last:
        first, last = _time(group.first), _time(group.last)
        parts.append(f"{first} UTC" if first == last else f"{first} to {last} UTC")
    return ", ".join(parts)


def _time(moment: str) -> str:
    return moment[:19].replace("T", " ")


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.0995 else f"{100 * share:.0f} %"


def _place(example: Example) -> str:
    unit = next((name for name in example.position if name not in ("part", "offset")), None)
    place = f"{unit} {example.position[unit]}" if unit else "somewhere"
    if not example.id:
        return place
    shown = example.id if len(example.id) <= ID_CHARACTERS else example.id[:ID_CHARACTERS] + "…"
    return f"{place}, {_printable(shown)}"


def _printable(text: str) -> str:
    """What came from a record must not steer the terminal, nor turn a page's letters round."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


# -- the page ----------------------------------------------------------------------------------------


def as_html(failures: Sequence[JobFailures]) -> str:
    """One page that needs nothing else: no script, no image, nothing from the network."""
    wrong = [job for job in failures if job.any]
    fine = [job.job for job in failures if not job.any]
    title = (
        f"ragingest: {len(wrong)} of {len(failures)} jobs with failures"
        if wrong
        else "ragingest: nothing went wrong"
    )
    rest = f"<p class=fine>Nothing went wrong in: {_text(', '.join(fine))}</p>" if fine else ""
    return _PAGE.substitute(
        title=_text(title),
        made=_text(f"{_time(now())} UTC, ragingest {__version__}"),
        jobs="".join(map(_section, wrong)) + rest,
    )


def _section(job: JobFailures) -> str:
    source = f" &larr; {_text(job.source)}" if job.source else ""
    ended = ""
    if job.message:
        ended = f"<div class=ended><p>{_text(job.message)}</p>{_advice(job.hint)}</div>"
    notes = [f"{job.unreadable:,} lines of the rejects file cannot be read."] if job.unreadable else []
    notes += [f"All of them: {job.rejects}"] if job.rejects else []
    return _JOB.substitute(
        name=_text(job.job),
        headline=_text(_headline(job)),
        source=f"{_text(job.collection)}{source}",
        updated=_text(_time(job.updated)),
        ended=ended,
        groups="".join(map(_group, job.groups)),
        notes="".join(f"<p class=note>{_text(note)}</p>" for note in notes),
    )


def _group(group: Group) -> str:
    rows = "".join(
        f"<tr><td>{_text(_place(example))}</td><td>{_text(example.message)}</td></tr>" for example in group.examples
    )
    return _GROUP.substitute(
        count=f"{group.count:,}",
        kind=_text(_kind(group)),
        pattern=_text(group.pattern),
        extent=_text(_extent(group)),
        advice=_advice(group.advice),
        examples=f"<table>{rows}</table>" if rows else "",
    )


def _text(text: str) -> str:
    return escape(_printable(text))


def _advice(text: str) -> str:
    """A sentence, with what stands between backticks as code."""
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", _text(text))
    return f"<p class=advice>{marked}</p>" if text else ""


_PAGE = Template("""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>$title</title>
<style>
  :root { color-scheme: light dark; --line: #8884; --soft: #6a6a6a; --bad: #c0392b; --good: #1f6391 }
  @media (prefers-color-scheme: dark) { :root { --soft: #a0a0a0; --bad: #e8796c; --good: #6fb5e2 } }
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem }
  h1 { font-size: 1.4rem; margin-bottom: 0 }
  h2 { font-size: 1.2rem; margin: 0 }
  h3 { font-size: 1rem; margin: 0 }
  p { margin: .3rem 0; overflow-wrap: anywhere }
  section { border-top: 2px solid var(--line); margin-top: 2rem; padding-top: 1rem }
  article { border-left: 3px solid var(--line); margin: 1.2rem 0; padding-left: 1rem }
  .ended { border-left: 3px solid var(--bad); margin: 1rem 0; padding-left: 1rem }
  .made, .extent, .note, .fine, .source { color: var(--soft); font-size: .9rem }
  .count { color: var(--bad) }
  .advice::before { content: "What to do: "; color: var(--good); font-weight: 600 }
  table { border-collapse: collapse; font-size: .85rem; width: 100%; margin-top: .4rem }
  td { border-top: 1px solid var(--line); padding: .2rem .8rem .2rem 0; vertical-align: top; overflow-wrap: anywhere }
  td:first-child { width: 30%; color: var(--soft) }
  code { white-space: nowrap }
</style>
<h1>$title</h1>
<p class=made>$made</p>
$jobs
</html>
""")

_JOB = Template("""\
<section>
<h2>$name</h2>
<p>$headline</p>
<p class=source>$source, $updated UTC</p>
$ended$groups$notes
</section>
""")

_GROUP = Template("""\
<article>
<h3><span class=count>$count &times;</span> $kind</h3>
<p>$pattern</p>
<p class=extent>$extent</p>
$advice$examples
</article>
""")
