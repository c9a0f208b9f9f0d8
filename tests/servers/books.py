"""What the server counted. `Books` is one consistent copy; `Bookkeeper` writes it while requests come in.

A text can be charged in three ways: *answered* (right vectors, delivered), *lost* (computed, and the answer
never arrived whole: charged but unanswered), *spoiled* (answered with vectors that cannot be used). An answer
is booked before its first byte is sent, so whoever holds an answer finds it in the books; when the
client is gone before all of it was sent, it moves from answered to lost.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal, NamedTuple

import msgspec

from tests.servers.vectors import key_of

__all__ = ["Accepted", "Bookkeeper", "Books", "Charge"]

Outcome = Literal["answered", "lost", "spoiled"]


class Accepted(NamedTuple):
    """A request that the rate limits let through, by the server's clock."""

    at: float
    texts: int
    tokens: int


class Charge(NamedTuple):
    """What a request costs: the hashes of its texts, and its tokens."""

    hashes: Sequence[bytes]
    tokens: int


class Books(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since the start. Texts are named by `digest_of`. Live embedding requests, OpenAI's and Cohere's, unless it says otherwise."""

    requests: int
    """All whose body arrived, whatever came of them."""
    by_status: dict[str, int]
    """By HTTP status, and `reset` for those whose connection was reset. Adds up to `requests` when none is in flight."""
    broken: int
    """Those whose client was gone before it had sent the body; not in `requests`."""
    others: dict[str, dict[str, int]]
    """By status, for the endpoints `files` and `batches`."""
    in_flight: int
    """Until the last byte was handed over, so perhaps a moment longer than the client waits."""
    most_in_flight: int
    limited: int
    """429s of the server's own rate limits, which no script ordered."""
    faults: dict[str, int]
    """Faults that took effect, by kind, on any endpoint."""
    accepted: list[Accepted]

    texts_received: int
    """In requests that could be parsed."""
    by_input_type: dict[str, int]
    """Those of them that came to Cohere's endpoint, by what they were said to be."""
    texts_answered: int
    tokens_answered: int
    texts_lost: int
    tokens_lost: int
    texts_spoiled: int
    tokens_spoiled: int
    times_answered: dict[str, int]
    times_lost: dict[str, int]
    times_spoiled: dict[str, int]

    files_uploaded: int
    batches_created: int
    batch_times_submitted: dict[str, int]
    """In batches created, those that failed validation taken out again."""
    batch_times_answered: dict[str, int]
    """With a vector in an output file."""
    batch_texts_answered: int
    batch_tokens_answered: int

    @property
    def tokens_charged(self) -> int:
        return self.tokens_answered + self.tokens_lost + self.tokens_spoiled

    def paid_again(self) -> dict[str, int]:
        """Texts that were answered more than once."""
        return {digest: times for digest, times in self.times_answered.items() if times > 1}

    def busiest(self, length: float) -> tuple[int, int]:
        """The most requests, and the most tokens, accepted in any `length` seconds."""
        most_requests = most_tokens = tokens = first = 0
        for last, accepted in enumerate(self.accepted):
            tokens += accepted.tokens
            while self.accepted[first].at + length <= accepted.at:
                tokens -= self.accepted[first].tokens
                first += 1
            most_requests = max(most_requests, last - first + 1)
            most_tokens = max(most_tokens, tokens)
        return most_requests, most_tokens


class Bookkeeper:
    """Thread-safe: every change and every copy is one step."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._changes = 0
        self._requests = 0
        self._statuses: dict[str, Counter[str]] = {name: Counter() for name in ("embeddings", "files", "batches")}
        self._broken = 0
        self._in_flight = 0
        self._most_in_flight = 0
        self._limited = 0
        self._faults: Counter[str] = Counter()
        self._accepted: list[Accepted] = []
        self._texts_received = 0
        self._by_input_type: Counter[str] = Counter()
        self._texts: dict[Outcome, int] = {"answered": 0, "lost": 0, "spoiled": 0}
        self._tokens: dict[Outcome, int] = {"answered": 0, "lost": 0, "spoiled": 0}
        self._times: dict[Outcome, Counter[bytes]] = {
            "answered": Counter(),
            "lost": Counter(),
            "spoiled": Counter(),
        }
        self._files_uploaded = 0
        self._batches_created = 0
        self._batch_submitted: Counter[bytes] = Counter()
        self._batch_answered: Counter[bytes] = Counter()
        self._batch_tokens = 0

    @contextmanager
    def flight(self, endpoint: str) -> Iterator[None]:
        """Around one request, from its first byte to the last of its answer."""
        if endpoint != "embeddings":
            yield
            return
        with self._change():
            self._in_flight += 1
            self._most_in_flight = max(self._most_in_flight, self._in_flight)
        try:
            yield
        finally:
            with self._change():
                self._in_flight -= 1

    def broken(self) -> None:
        with self._change():
            self._broken += 1

    def received(self, endpoint: str) -> None:
        if endpoint == "embeddings":
            with self._change():
                self._requests += 1

    def parsed(self, texts: int, input_type: str = "") -> None:
        with self._change():
            self._texts_received += texts
            if input_type:
                self._by_input_type[input_type] += texts

    def accepted(self, at: float, texts: int, tokens: int) -> None:
        with self._change():
            self._accepted.append(Accepted(at, texts, tokens))

    def limited(self) -> None:
        with self._change():
            self._limited += 1

    def closed(
        self, endpoint: str, status: str, fault: str | None, charge: Charge | None, outcome: Outcome = "answered"
    ) -> None:
        """How a request ended, in one step."""
        with self._change():
            self._statuses[endpoint][status] += 1
            if fault is not None:
                self._faults[fault] += 1
            if charge is not None:
                self._add(outcome, charge, 1)

    def undelivered(self, charge: Charge) -> None:
        """The answer that was just booked did not reach the client."""
        with self._change():
            self._add("answered", charge, -1)
            self._add("lost", charge, 1)

    def file_uploaded(self) -> None:
        with self._change():
            self._files_uploaded += 1

    def batch_created(self, hashes: Sequence[bytes]) -> None:
        with self._change():
            self._batches_created += 1
            self._batch_submitted.update(hashes)

    def batch_refused(self, hashes: Sequence[bytes]) -> None:
        with self._change():
            self._batch_submitted.subtract(hashes)

    def batch_answered(self, charge: Charge) -> None:
        with self._change():
            self._batch_answered.update(charge.hashes)
            self._batch_tokens += charge.tokens

    def copy(self) -> Books:
        with self._changed:
            return Books(
                requests=self._requests,
                by_status=dict(self._statuses["embeddings"]),
                broken=self._broken,
                others={name: dict(self._statuses[name]) for name in ("files", "batches")},
                in_flight=self._in_flight,
                most_in_flight=self._most_in_flight,
                limited=self._limited,
                faults=dict(self._faults),
                accepted=list(self._accepted),
                texts_received=self._texts_received,
                by_input_type=dict(self._by_input_type),
                texts_answered=self._texts["answered"],
                tokens_answered=self._tokens["answered"],
                texts_lost=self._texts["lost"],
                tokens_lost=self._tokens["lost"],
                texts_spoiled=self._texts["spoiled"],
                tokens_spoiled=self._tokens["spoiled"],
                times_answered=_named(self._times["answered"]),
                times_lost=_named(self._times["lost"]),
                times_spoiled=_named(self._times["spoiled"]),
                files_uploaded=self._files_uploaded,
                batches_created=self._batches_created,
                batch_times_submitted=_named(self._batch_submitted),
                batch_times_answered=_named(self._batch_answered),
                batch_texts_answered=self._batch_answered.total(),
                batch_tokens_answered=self._batch_tokens,
            )

    def wait_until(self, condition: Callable[[Books], bool], timeout: float) -> Books:
        """The first copy that meets a condition, looked at after each change.

        Raises:
            TimeoutError: none did.
        """
        deadline = time.monotonic() + timeout
        seen = -1
        while True:
            with self._changed:
                changed = self._changed.wait_for(partial(self._changed_since, seen), deadline - time.monotonic())
                seen = self._changes
            if not changed:
                raise TimeoutError(f"the books never came to it: {self.copy()}")
            books = self.copy()
            if condition(books):
                return books

    def _changed_since(self, seen: int) -> bool:
        return self._changes != seen

    @contextmanager
    def _change(self) -> Iterator[None]:
        with self._changed:
            yield
            self._changes += 1
            self._changed.notify_all()

    def _add(self, outcome: Outcome, charge: Charge, sign: Literal[1, -1]) -> None:
        times = self._times[outcome]
        if sign == 1:
            times.update(charge.hashes)
        else:
            times.subtract(charge.hashes)
        self._texts[outcome] += sign * len(charge.hashes)
        self._tokens[outcome] += sign * charge.tokens


def _named(times: Counter[bytes]) -> dict[str, int]:
    return {key_of(text_hash): count for text_hash, count in times.items() if count}
