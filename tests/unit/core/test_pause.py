from __future__ import annotations

from ragingest.pipeline import SAVE_SHARE, pause_after

INTERVAL = 2.0


def test_quick_saves_come_at_their_interval() -> None:
    assert pause_after(0.001, 0.002, INTERVAL) == INTERVAL


def test_slow_saves_take_a_thirtieth_of_the_time() -> None:
    assert pause_after(0.5, 0.4, INTERVAL) == pause_after(0.4, 0.5, INTERVAL) == SAVE_SHARE * 0.4


def test_one_slow_save_among_quick_ones_does_not_put_off_the_next() -> None:
    assert pause_after(5.0, 0.01, INTERVAL) == pause_after(0.01, 5.0, INTERVAL) == INTERVAL
