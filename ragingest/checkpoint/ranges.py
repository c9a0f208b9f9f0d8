"""Sets of positions as ranges: their size depends on the gaps, not on the records."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

__all__ = ["RangeSet"]


class RangeSet:
    """A set of non-negative integers, kept as sorted, disjoint, non-touching half-open ranges.

    Adding costs O(log n + merged) in the number of ranges n, plus a list shift.
    """

    __slots__ = ("_ends", "_starts")

    def __init__(self, ranges: Iterable[tuple[int, int] | list[int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in ranges:
            self.add(start, end)

    def add(self, start: int, end: int) -> None:
        """Add all integers in [start, end).

        Raises:
            ValueError: start is negative or end lies before it.
        """
        if start < 0 or end < start:
            raise ValueError(f"not a range: [{start}, {end})")
        if start == end:
            return
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def without(self, other: RangeSet) -> RangeSet:
        """The integers of this set that are not in `other`."""
        left = RangeSet()
        for start, end in self:
            for index in range(bisect_right(other._ends, start), len(other._starts)):
                if other._starts[index] >= end:
                    break
                left.add(start, max(start, other._starts[index]))
                start = other._ends[index]
            left.add(start, max(start, end))
        return left

    def __contains__(self, value: int) -> bool:
        index = bisect_right(self._starts, value) - 1
        return index >= 0 and value < self._ends[index]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._starts, self._ends, strict=True))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RangeSet) and self._starts == other._starts and self._ends == other._ends

    def __len__(self) -> int:
        """The number of ranges, which is what they cost."""
        return len(self._starts)

    def __repr__(self) -> str:
        return f"RangeSet({self.as_lists()})"

    @property
    def watermark(self) -> int:
        """The smallest integer that is not in the set."""
        return self._ends[0] if self._starts and self._starts[0] == 0 else 0

    @property
    def total(self) -> int:
        """How many integers are in the set."""
        return sum(self._ends) - sum(self._starts)

    @property
    def end(self) -> int:
        """One more than the largest integer in the set; 0 if it is empty."""
        return self._ends[-1] if self._ends else 0

    def as_lists(self) -> list[list[int]]:
        return [[start, end] for start, end in self]
