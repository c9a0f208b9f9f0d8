from __future__ import annotations

import re
from html.parser import HTMLParser

from ragingest.cli.report import as_html, as_text
from ragingest.jobs.failures import Example, Group, JobFailures

EVIL = '<script>alert("&")</script>\x1b[2J\u202e'


def failed(**changes: object) -> JobFailures:
    fields: dict[str, object] = {
        "job": "nightly",
        "status": "failed",
        "run": 3,
        "source": f"/srv/{EVIL}.jsonl",
        "collection": "documents",
        "updated": "2026-01-02T03:04:05+00:00",
        "message": f"the store said {EVIL}",
        "hint": "check the server, or use `--store-path`",
        "read": 4000,
        "rejected": 12,
        "unreadable": 1,
        "rejects": "/srv/checkpoints/nightly.rejects.jsonl",
        "groups": [
            Group(
                stage="decode",
                error="invalid_text",
                pattern=EVIL,
                advice="name another field with `--text-field`",
                count=11,
                share=0.003,
                first="2026-01-02T03:00:00+00:00",
                last="2026-01-02T03:01:00+00:00",
                examples=[
                    Example(position={"part": EVIL, "line": 17, "offset": 9}, id=EVIL + "x" * 500, message=EVIL)
                ],
            )
        ],
    }
    return JobFailures(**{**fields, **changes})  # type: ignore[arg-type]


FINE = JobFailures(job="fine", status="completed", run=1, read=10)


class Page(HTMLParser):
    """Well-formed as far as this page goes: every tag that must be closed is, in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == ["html"] or self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "html"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "html":
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_escapes_what_comes_from_records_and_holds_no_script() -> None:
    page = as_html([failed(), FINE])
    parsed = Page(page)
    assert "script" not in parsed.tags
    assert "<script>" not in page
    assert "\x1b" not in page
    assert '<script>alert("&")</script>' in parsed.text


def test_the_page_needs_nothing_from_anywhere_else() -> None:
    parsed = Page(as_html([failed()]))
    assert {"img", "link", "iframe", "a"}.isdisjoint(parsed.tags)
    assert {"src", "href", "onclick", "onload"}.isdisjoint(name for name, _ in parsed.attributes)
    assert not re.search(r"url\(|@import", as_html([failed()]))


def test_the_page_and_the_lines_say_the_same() -> None:
    page, lines = Page(as_html([failed(), FINE])).text, as_text([failed(), FINE])
    for said in (
        *("nightly", "run 3 failed", "12 of 4,000 records rejected (0.3 %)", "decode invalid_text", "0.3 % of"),
        *("line 17", "1 lines of the rejects file cannot be read", "nightly.rejects.jsonl", "check the server"),
        "2026-01-02 03:00:00 to 2026-01-02 03:01:00 UTC",
    ):
        assert said in page, said
        assert said in lines, said
    assert "name another field with --text-field" in page
    assert "fine" in page
    assert "fine" not in lines
    assert "1 of 2 jobs with failures" in page


def test_the_lines_cannot_steer_a_terminal() -> None:
    text = as_text([failed()])
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert all(len(line) < 400 for line in text.splitlines())


def test_nothing_wrong_is_said_too() -> None:
    assert as_text([FINE]) == "nothing went wrong"
    assert "nothing went wrong" in Page(as_html([FINE])).text
    assert "nothing went wrong" in Page(as_html([])).text
