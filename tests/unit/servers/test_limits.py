from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.servers.limits import RateLimits, SlidingWindow, format_duration

steps = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12)), max_size=60)


@given(steps, st.integers(1, 20))
def test_no_window_ever_holds_more_than_the_limit_and_nothing_that_fits_is_refused(
    steps: list[tuple[int, int]], limit: int
) -> None:
    window = SlidingWindow(limit, 60)
    taken: list[tuple[int, int]] = []
    now = 0
    for pause, amount in steps:
        now += pause
        used = sum(size for at, size in taken if at > now - 60)
        assert window.used(now) == used
        fits = used + amount <= limit
        assert (window.wait(amount, now) == 0) == fits
        if fits:
            window.take(amount, now)
            taken.append((now, amount))


@given(steps, st.integers(12, 30))
def test_the_wait_is_the_shortest_that_helps(steps: list[tuple[int, int]], limit: int) -> None:
    window = SlidingWindow(limit, 60)
    taken: list[tuple[int, int]] = []
    now = 0
    for pause, amount in steps:
        now += pause
        wait = window.wait(amount, now)
        assert wait is not None
        if wait:
            # A second earlier it would not have fitted.
            used = sum(size for at, size in taken if at > now + wait - 1 - 60)
            assert used + amount > limit
        now += int(wait)
        assert window.wait(amount, now) == 0
        window.take(amount, now)
        taken.append((now, amount))


def test_what_is_larger_than_the_limit_never_fits() -> None:
    assert SlidingWindow(10, 60).wait(11, 0) is None


def test_a_limit_set_later_counts_what_was_taken_before_it() -> None:
    window = SlidingWindow(None, 60)
    window.take(5, 0)
    window.limit = 6
    assert window.wait(2, 10) == 50
    window.limit = 7
    assert window.wait(2, 10) == 0


def test_a_request_is_taken_from_both_windows_or_from_none() -> None:
    limits = RateLimits(rpm=10, tpm=100, length=60)
    assert limits.admit(90, 0) is None
    refusal = limits.admit(20, 1)
    assert refusal is not None
    assert (refusal.kind, refusal.limit, refusal.used, refusal.requested, refusal.wait) == (
        "tokens",
        100,
        90,
        20,
        59,
    )
    assert limits.requests.used(1) == 1
    assert limits.admit(10, 1) is None


def test_of_two_reasons_the_one_that_lasts_longer_is_given() -> None:
    limits = RateLimits(rpm=1, tpm=100, length=60)
    assert limits.admit(10, 0) is None
    refusal = limits.admit(101, 1)
    assert refusal is not None
    assert refusal.kind == "tokens"
    assert refusal.wait is None


def test_headers_say_what_is_left_and_when_all_of_it_is_back() -> None:
    limits = RateLimits(rpm=10, tpm=None, length=60)
    assert limits.headers(0)["x-ratelimit-reset-requests"] == "0s"
    limits.admit(7, 0)
    limits.admit(7, 20)
    assert limits.headers(30) == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "8",
        "x-ratelimit-reset-requests": "50s",
    }


def test_a_limit_below_what_is_used_leaves_nothing() -> None:
    limits = RateLimits(rpm=10, tpm=100, length=60)
    limits.admit(80, 0)
    limits.tokens.limit = 50
    assert limits.headers(1)["x-ratelimit-remaining-tokens"] == "0"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (-1, "0s"),
        (0.12, "120ms"),
        (0.0001, "1ms"),
        (0.999, "999ms"),
        (1, "1s"),
        (8.64, "8.64s"),
        (59.7001, "59.701s"),
        (86.4, "1m26.4s"),
        (360, "6m0s"),
        (3600, "1h0m0s"),
        (3661.5, "1h1m1.5s"),
    ],
)
def test_durations_are_written_as_the_service_writes_them(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
