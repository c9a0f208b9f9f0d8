"""What was sent over the wire and what it cost: every request, retries and halvings included."""

from __future__ import annotations

import math

import msgspec

__all__ = ["Books"]

LOWEST_SECONDS = 0.001
STEPS_A_DOUBLING = 4
BUCKETS = 20 * STEPS_A_DOUBLING  # up to 1,048 s


class Books(msgspec.Struct, kw_only=True):
    """Counts of a run's embedding requests. `tokens` are those that the server said it counted."""

    requests: int = 0
    answered: int = 0
    texts: int = 0
    """Texts that were answered with a vector: each was paid for."""
    reused: int = 0
    """Texts whose vector was there already: the same text again, or kept from before."""
    truncated: int = 0
    """Texts of which only the beginning was embedded; those of repeated work again."""
    tokens: int = 0
    throttled: int = 0
    """Answers 429 and 503, but for those 429s that no waiting mends."""
    waited: float = 0.0
    """Seconds that requests waited for a budget or after a failure, summed over all."""
    batches: int = 0
    """Of a batch API: how many were submitted."""
    batches_done: int = 0
    """How many of them are fetched."""
    price_per_million: float | None = None
    """Dollars for a million tokens; None if it is not known."""
    latencies: dict[int, int] = {}
    """Answers by latency: bucket b holds those from 1 ms * 2^(b/4) on."""

    @property
    def used(self) -> bool:
        """Whether anything was sent."""
        return self.requests > 0 or self.batches > 0

    @property
    def cost(self) -> float | None:
        """Dollars, at list price."""
        return None if self.price_per_million is None else self.tokens * self.price_per_million / 1e6

    def catch_up(self, later: Books) -> None:
        """Take up what `later`, books of the same run, have more: counts only grow."""
        for name in COUNTS:
            setattr(self, name, max(getattr(self, name), getattr(later, name)))
        for bucket, count in later.latencies.items():
            self.latencies[bucket] = max(self.latencies.get(bucket, 0), count)

    def took(self, seconds: float) -> None:
        """Count the latency of an answer."""
        bucket = 0
        if seconds > LOWEST_SECONDS:
            bucket = min(BUCKETS, int(STEPS_A_DOUBLING * math.log2(seconds / LOWEST_SECONDS)))
        self.latencies[bucket] = self.latencies.get(bucket, 0) + 1

    def latency(self, share: float) -> float | None:
        """Seconds within which that share of the answers came, to 19 % (a bucket's width)."""
        total = sum(self.latencies.values())
        if not total:
            return None
        rank = math.ceil(share * total)
        seen = 0
        for bucket in sorted(self.latencies):
            seen += self.latencies[bucket]
            if seen >= rank:
                return float(LOWEST_SECONDS * 2 ** ((bucket + 1) / STEPS_A_DOUBLING))
        raise AssertionError("a rank over the total")


COUNTS = tuple(name for name in Books.__struct_fields__ if name not in ("price_per_million", "latencies"))
