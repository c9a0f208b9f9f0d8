from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragingest.pacing.rate_limiter import parse_reset, parse_retry_after

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1),
        ("6m0s", 360),
        ("120ms", 0.12),
        ("1h2m3s", 3723),
        ("7.66s", 7.66),
        ("1m30.951s", 90.951),
        ("17ms", 0.017),
        ("15.2µs", 15.2e-6),
        ("500ns", 500e-9),
        ("1d2h", 93600),
        ("2m", 120),
        ("0s", 0),
        ("0", 0),
        ("59", 59),
        ("1.5", 1.5),
        (" 20s ", 20),
    ],
)
def test_a_reset_is_read_in_all_its_forms(text: str, seconds: float) -> None:
    assert parse_reset(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "s",
        "m",
        "soon",
        "-1",
        "-1s",
        "1 s",
        "1s2m",
        "1s1s",
        "1x",
        "nan",
        "inf",
        "1e5",
        "9" * 400,
        "9" * 400 + "s",
        "1h-2m",
        "٣s",
        ".",
        ".s",
        "1..2s",
        "0x10",
        "Mon, 01 Mar 2026",
    ],
)
def test_garbage_is_no_reset(text: str) -> None:
    assert parse_reset(text) is None


@given(st.text(max_size=20) | st.from_regex(r"\A[0-9.dhmsnuµ]{0,12}\Z"))
def test_any_text_gives_a_number_that_is_not_negative_or_none(text: str) -> None:
    seconds = parse_reset(text)
    assert seconds is None or 0 <= seconds < float("inf")


@given(st.integers(0, 300), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_what_go_prints_is_read_back(hours: int, minutes: int, seconds: int, millis: int) -> None:
    fraction = f".{millis:03}".rstrip("0").rstrip(".")
    text = f"{hours}h{minutes}m{seconds}{fraction}s"
    assert parse_reset(text) == pytest.approx(hours * 3600 + minutes * 60 + seconds + millis / 1000)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "1500"}, 1.5),
        ({"Retry-After": "20"}, 20),
        ({"RETRY-AFTER": " 0.25 "}, 0.25),
        ({"retry-after": "0"}, 0),
        ({"Retry-After-Ms": "250", "Retry-After": "1"}, 0.25),
        ({"Retry-After-Ms": "soon", "Retry-After": "1"}, 1),
        ({"Retry-After": "Sun, 01 Mar 2026 12:00:30 GMT"}, 30),
        ({"Retry-After": "Sun, 01 Mar 2026 11:00:00 GMT"}, 0),
        ({"Retry-After": "Sunday, 01-Mar-26 12:01:00 GMT"}, 60),
        ({"Retry-After": "Sun, 01 Mar 2026 14:00:30 +0200"}, 30),
        ({"Content-Type": "text/html", "retry-after": "3"}, 3),
    ],
)
def test_a_pause_is_read_from_the_headers(headers: dict[str, str], seconds: float) -> None:
    assert parse_retry_after(headers, NOW) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Retry-After": ""},
        {"Retry-After": "-5"},
        {"Retry-After": "soon"},
        {"Retry-After": "nan"},
        {"Retry-After": "inf"},
        {"Retry-After": "9" * 400},
        {"Retry-After": "Sun, 99 Foo 2026 12:00:30 GMT"},
        {"Retry-After": "Sun, 01 Mar 99999 12:00:30 GMT"},
        {"Retry-After-Ms": "-1"},
        {"X-Retry-After": "5"},
    ],
)
def test_garbage_is_no_pause(headers: dict[str, str]) -> None:
    assert parse_retry_after(headers, NOW) is None


@given(st.text(max_size=40), st.text(max_size=10))
def test_no_header_is_an_error(text: str, milliseconds: str) -> None:
    seconds = parse_retry_after({"Retry-After": text, "retry-after-ms": milliseconds}, NOW)
    assert seconds is None or 0 <= seconds < float("inf")


@given(st.integers(0, 10**7), st.integers(-12, 12))
def test_an_http_date_is_as_far_away_as_it_says_in_whatever_zone_now_is(seconds: int, hours: int) -> None:
    date = format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)
    now = NOW.astimezone(timezone(timedelta(hours=hours)))
    assert parse_retry_after({"Retry-After": date}, now) == seconds


def test_a_now_without_a_zone_is_utc() -> None:
    naive = NOW.replace(tzinfo=None)
    assert parse_retry_after({"Retry-After": "Sun, 01 Mar 2026 12:00:30 GMT"}, naive) == 30
