from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragingest.checkpoint.ranges import RangeSet

ranges = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 12)).map(lambda pair: (pair[0], pair[0] + pair[1])), max_size=25
)


def naive(added: list[tuple[int, int]]) -> set[int]:
    return {number for start, end in added for number in range(start, end)}


@given(ranges)
def test_a_range_set_holds_what_a_plain_set_holds(added: list[tuple[int, int]]) -> None:
    ranges, plain = RangeSet(), set[int]()
    for start, end in added:
        ranges.add(start, end)
        plain |= set(range(start, end))
        assert [number in ranges for number in range(-2, 80)] == [number in plain for number in range(-2, 80)]
        assert ranges.total == len(plain)
        assert ranges.end == max(plain, default=-1) + 1
        assert ranges.watermark == next(number for number in range(100) if number not in plain)


@given(ranges)
def test_ranges_are_sorted_disjoint_and_never_touch(added: list[tuple[int, int]]) -> None:
    lists = RangeSet(added).as_lists()
    flat = [bound for pair in lists for bound in pair]
    assert flat == sorted(set(flat))
    assert len(RangeSet(added)) == len(lists)
    gaps = naive(added)
    assert len(lists) == sum(number - 1 not in gaps for number in gaps)


@given(ranges, st.randoms())
def test_the_order_of_adding_does_not_matter(added: list[tuple[int, int]], random: object) -> None:
    mixed = list(added)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    assert RangeSet(added) == RangeSet(mixed)


@given(ranges, ranges)
def test_two_sets_are_equal_when_they_hold_the_same(one: list[tuple[int, int]], two: list[tuple[int, int]]) -> None:
    assert (RangeSet(one) == RangeSet(two)) == (naive(one) == naive(two))


@given(ranges)
def test_a_range_set_survives_being_lists(added: list[tuple[int, int]]) -> None:
    ranges = RangeSet(added)
    assert RangeSet(ranges.as_lists()) == ranges
    assert RangeSet(ranges) == ranges
    assert [list(pair) for pair in ranges] == ranges.as_lists()


@given(ranges)
def test_a_copy_does_not_follow_its_original(added: list[tuple[int, int]]) -> None:
    original = RangeSet(added)
    copy = RangeSet(original)
    original.add(1000, 1001)
    assert 1000 not in copy


def test_the_size_depends_on_the_gaps_and_not_on_the_records() -> None:
    done = RangeSet()
    for start in range(0, 100_000, 10):
        done.add(start, start + 10)
    assert done.as_lists() == [[0, 100_000]]
    assert repr(done) == "RangeSet([[0, 100000]])"


def test_an_empty_set_holds_nothing() -> None:
    empty = RangeSet()
    assert (empty.watermark, empty.total, empty.end, len(empty), empty.as_lists()) == (0, 0, 0, 0, [])
    assert 0 not in empty


def test_adding_an_empty_range_adds_nothing() -> None:
    done = RangeSet([(5, 5)])
    assert done == RangeSet()


@pytest.mark.parametrize(("start", "end"), [(-1, 3), (4, 3), (-5, -4)])
def test_what_is_no_range_is_refused(start: int, end: int) -> None:
    with pytest.raises(ValueError, match="not a range"):
        RangeSet().add(start, end)


def test_a_range_set_is_equal_to_nothing_else() -> None:
    assert RangeSet([(0, 1)]) != [[0, 1]]


@given(ranges, ranges)
def test_what_is_left_without_another_set_is_what_plain_sets_leave(
    first: list[tuple[int, int]], second: list[tuple[int, int]]
) -> None:
    left = RangeSet(first).without(RangeSet(second))
    assert naive(list(left)) == naive(first) - naive(second)
