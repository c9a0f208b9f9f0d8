"""How many tokens texts will count, without the server's tokenizer; and filling requests by it.

Three numbers, from safe to sharp:

- the bound: the UTF-8 bytes. A byte-level BPE never makes more tokens than bytes. Nobody has to be
  asked, but English has about 0.21 to 0.27 tokens a byte, so requests stay three quarters empty.
- the learned charge: what the server's own counts (`usage`) of this run's texts allow. See
  `TokenEstimator.charge` for the rule and why it is safe.
- the exact count, where tiktoken is installed and its vocabulary is on disk already.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import math
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

__all__ = [
    "TYPICAL_RATIO",
    "WIDE_RATIO",
    "Charge",
    "RequestPacker",
    "TextSize",
    "TokenEstimator",
    "Vocabulary",
    "exact_counter",
    "longest_beginning",
    "measure",
]

T = TypeVar("T")

TYPICAL_RATIO = 0.27
"""Tokens a byte of English under cl100k_base, on the high side (prose 0.21 to 0.25, HTML 0.28)."""

WIDE_RATIO = 0.42
"""The same for characters of three and four bytes, on the high side (Japanese 0.36, Chinese and Korean 0.42)."""

LEAST_RATIO = 0.1
"""Less is not believed: a server that reports fewer tokens does not count them as it limits them."""

DOUBT = 2.0
"""Before anything is learned, a text that is not like prose is taken to have up to this many times its typical tokens."""

SPOILED = 2.0
"""A strange byte spoils the words around it too: what each one beyond the learned share is charged."""

PROSE_STRANGE = 0.06
"""Share of bytes in English prose that `measure` calls strange (handbooks and encyclopedias 0.055)."""

# Bytes of which ordinary Western prose consists. Digits, capitals, symbols and bytes over 127 make
# more tokens a byte, and texts in which they are frequent are not like prose.
_PLAIN = b"abcdefghijklmnopqrstuvwxyz .,'-"
_NOT_THREE = bytes(set(range(256)) - set(range(0xE0, 0xF0)))
_NOT_FOUR = bytes(set(range(256)) - set(range(0xF0, 0x100)))


class TextSize(NamedTuple):
    """Of one text or several: how many, their UTF-8 bytes, how many of those are not plain prose,
    and how many belong to characters of three or four bytes."""

    texts: int = 0
    bytes: int = 0
    strange: int = 0
    wide: int = 0

    def plus(self, other: TextSize) -> TextSize:
        return TextSize(
            self.texts + other.texts,
            self.bytes + other.bytes,
            self.strange + other.strange,
            self.wide + other.wide,
        )


def measure(text: str) -> TextSize:
    """The size of one text, at some nanoseconds a byte.

    Raises:
        UnicodeEncodeError: a lone surrogate.
    """
    data = text.encode()
    strange = len(data.translate(None, _PLAIN))
    wide = 0
    if len(data) != len(text):
        wide = 3 * len(data.translate(None, _NOT_THREE)) + 4 * len(data.translate(None, _NOT_FOUR))
    return TextSize(1, len(data), strange, wide)


class Charge(NamedTuple):
    """What the estimator has learned: the highest ratio seen, with its margin, and the share of
    strange bytes in the texts that it was seen with."""

    ratio: float
    strange_share: float


PROSE = Charge(TYPICAL_RATIO, PROSE_STRANGE)


class TokenEstimator:
    """Learns the tokens a byte of one model from the server's own counts. Pure; used by one thread.

    The rule. Answers are pooled, in their order, into groups of at least `group_bytes`; a group's
    ratio is its tokens by its bytes. Once there are `groups` of them, texts are charged at `margin`
    times the highest ratio of the last `window` groups. Bytes that are not plain prose (see
    `measure`) beyond their share in those groups, and as many beside them, are charged a whole
    token each, so that a corpus that turns from English to Chinese, tables or base64 is charged at
    the bound for what is new.

    Why it is safe. The charge only matters where the bound is over a request's limit, so for
    requests of more bytes than the limit; with `group_bytes` at most the limit, such a request
    averages over at least as many bytes as each ratio does that was learned, and a mean over more
    text strays less. What remains is a corpus that changes within plain prose by more than the
    margin in one request (English to another language in unaccented small letters: 0.25 to 0.32):
    that request is refused, which costs nothing but its round trip. The caller halves it and calls
    `forget`, and all is bounded by bytes again until four groups are learned anew.

    Args:
        special_tokens: what the model adds to each text.
        group_bytes: bytes of a group; at most the tokens that a request takes.
        groups: how many are needed before anything counts as learned.
        window: how many are remembered.
        margin: at least 1.
    """

    def __init__(
        self,
        special_tokens: int = 0,
        *,
        group_bytes: int = 131_072,
        groups: int = 4,
        window: int = 64,
        margin: float = 1.05,
    ) -> None:
        if group_bytes < 1 or not 1 <= groups <= window or margin < 1 or special_tokens < 0:
            raise ValueError("groups hold bytes, the window holds the groups, and a margin is at least 1")
        self._special = special_tokens
        self._group_bytes = group_bytes
        self._groups = groups
        self._margin = margin
        self._seen: deque[tuple[float, float]] = deque(maxlen=window)
        self._open = [0, 0, 0]
        self._total_bytes = 0
        self._total_tokens = 0
        self._learned: Charge | None = None

    @classmethod
    def for_limits(cls, max_request_tokens: int | None, special_tokens: int = 0) -> TokenEstimator:
        """The estimator for an endpoint whose requests take that many tokens."""
        return cls(special_tokens, group_bytes=min(131_072, max_request_tokens or 131_072))

    @property
    def learned(self) -> Charge | None:
        return self._learned

    @property
    def ratio(self) -> float | None:
        """Mean tokens a byte of everything learned; None before the first answer."""
        return self._total_tokens / self._total_bytes if self._total_bytes else None

    def bound(self, bytes_: int, texts: int = 1) -> int:
        """Never under the truth, for byte-level BPE."""
        return bytes_ + texts * self._special

    def estimate(self, bytes_: int, texts: int = 1, *, wide: int = 0) -> int:
        """The likely number, for budgets and plans: at the mean ratio of the answers so far, or at the typical one.

        `wide` (see `TextSize`) matters only before the first answer.
        """
        ratio = self.ratio
        typical = (bytes_ - wide) * TYPICAL_RATIO + wide * WIDE_RATIO
        tokens = typical if ratio is None else bytes_ * ratio
        return min(math.ceil(tokens), bytes_) + texts * self._special

    def charge(self, bytes_: int, texts: int = 1, *, strange: int = 0) -> int:
        """As small as is safe for texts that fill a request; the bound as long as too little is learned."""
        learned = self._learned
        if learned is None:
            return self.bound(bytes_, texts)
        return self._charged(learned, bytes_, texts, strange)

    def _charged(self, by: Charge, bytes_: int, texts: int, strange: int) -> int:
        unlike = min(bytes_, SPOILED * max(0.0, strange - by.strange_share * bytes_))
        tokens = by.ratio * bytes_ + (1 - by.ratio) * unlike
        return min(math.ceil(tokens), bytes_) + texts * self._special

    def learn(self, bytes_: int, tokens: int, texts: int = 1, *, strange: int = 0) -> None:
        """Take in an answer: what the server counted for texts of that size.

        A count of zero, which some servers send, is no count. Without `strange`, every byte that is
        not plain prose will be charged a token.
        """
        tokens -= texts * self._special
        if tokens <= 0 or bytes_ <= 0:
            return
        self._total_bytes += bytes_
        self._total_tokens += tokens
        group = self._open
        group[0] += bytes_
        group[1] += tokens
        group[2] += strange
        if group[0] < self._group_bytes:
            return
        self._seen.append((group[1] / group[0], group[2] / group[0]))
        self._open = [0, 0, 0]
        if len(self._seen) >= self._groups:
            highest = max(ratio for ratio, _ in self._seen)
            share = sum(share for _, share in self._seen) / len(self._seen)
            self._learned = Charge(min(1.0, max(LEAST_RATIO, highest * self._margin)), share)

    def forget(self) -> None:
        """The server refused a request as too long: go by bytes until enough is learned again."""
        self._seen.clear()
        self._open = [0, 0, 0]
        self._learned = None

    def fits(self, text: str, limit: int, count: Callable[[str], int] | None = None) -> bool | None:
        """Whether one text has at most `limit` tokens: True and False are certain, None is unknown here.

        Counts exactly only where the bytes do not decide it.
        """
        bound = self.bound(len(text.encode()))
        if bound <= limit:
            return True
        return count(text) + self._special <= limit if count is not None else None

    def doubtful(self, size: TextSize, limit: int) -> bool:
        """Whether a text of that size could well have more than `limit` tokens, as far as can be told without counting.

        Before anything is learned, prose is taken for prose, by its bytes, and all else for twice as
        many tokens as it typically has.
        """
        if self.bound(size.bytes) <= limit:
            return False
        if self._learned is not None:
            return self.charge(size.bytes, strange=size.strange) > limit
        return self._doubtful_at_first(size, limit)

    def _doubtful_at_first(self, size: TextSize, limit: int) -> bool:
        typical = (size.bytes - size.wide) * TYPICAL_RATIO + size.wide * WIDE_RATIO
        as_prose = self._charged(PROSE, size.bytes, size.texts, size.strange)
        return min(as_prose, DOUBT * typical + self._special) > limit

    def beginning(self, text: str, limit: int, count: Callable[[str], int] | None = None) -> str:
        """The longest beginning of `text`, by whole characters, that has at most `limit` tokens.

        By `count` that is certain; without it, it is likely. The place of a cut does not depend on
        what was learned: the same text is cut at the same place whenever it is.
        """
        if count is not None:
            return longest_beginning(text, lambda part: bool(self.fits(part, limit, count)))
        if not self.doubtful(measure(text), limit):
            return text
        return longest_beginning(text, lambda part: not self._doubtful_at_first(measure(part), limit))

    def beginnings(self, text: str, limit: int, count: Callable[[str], int] | None = None) -> list[str]:
        """What to embed of a text, of which at most `limit` tokens are taken: the second, if the first is refused."""
        if self.fits(text, limit):
            return [text]
        likely, certain = self.beginning(text, limit, count), self.certain_beginning(text, limit)
        return [likely, certain] if count is None and len(certain) < len(likely) else [likely]

    def certain_beginning(self, text: str, limit: int) -> str:
        """The longest beginning of `text`, by whole characters, that has at most `limit` tokens by its bytes."""
        return text.encode()[: max(0, limit - self._special)].decode(errors="ignore")


def longest_beginning(text: str, fits: Callable[[str], bool]) -> str:
    """A beginning of `text` that fits, by whole characters: the longest, if none fits that is longer than one that does not."""
    if fits(text):
        return text
    low, high = 0, len(text) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(text[:middle]) else (low, middle - 1)
    return text[:low]


class RequestPacker(Generic[T]):
    """Cuts a stream of items into requests of at most so many texts, tokens and bytes.

    Tokens are taken by the bound while that fits; then by exact counts where `count` is given, else
    by the estimator's charge. With `count`, or before anything is learned, no request is ever over
    `max_tokens`; with the charge none is on the conditions that `TokenEstimator` states. Every item
    is counted at most once, and only if that lets it, or one after it, into a request.

    A text that is over `max_input_tokens`, or may well be, gets a request of its own, so that its
    refusal costs no other text anything; so does one that alone is over `max_tokens` or `max_bytes`.
    Whether it can be sent is for the receiver to say. Holds one open request.

    Args:
        text: the text of an item; asked once for each.
        estimator: is asked here, and taught by whoever reads the answers.
        max_inputs: texts in a request, at least 1.
        max_tokens, max_bytes, max_input_tokens: of a request, of a request, of a text; None for no bound.
        count: exact tokens of a text, without special ones.
    """

    def __init__(
        self,
        text: Callable[[T], str],
        estimator: TokenEstimator,
        *,
        max_inputs: int,
        max_tokens: int | None = None,
        max_bytes: int | None = None,
        max_input_tokens: int | None = None,
        count: Callable[[str], int] | None = None,
    ) -> None:
        for limit in (max_inputs, max_tokens, max_bytes, max_input_tokens):
            if limit is not None and limit < 1:
                raise ValueError("a request holds at least one text, one token and one byte")
        self._text = text
        self._estimator = estimator
        self._max_inputs = max_inputs
        self._max_tokens = max_tokens
        self._max_bytes = max_bytes
        self._max_input_tokens = max_input_tokens
        self._count = count
        self._special = estimator.bound(0)
        self._start()

    def _start(self) -> None:
        self._open: list[T] = []
        self._bytes = 0
        self._certain = 0
        """Tokens of the open request, certainly not fewer than there are."""
        self._coarse: list[str] = []
        """Texts that stand in `_certain` with their bound, and are not in `_size` yet."""
        self._size = TextSize()

    def add(self, item: T) -> list[list[T]]:
        """Take an item; return the requests, none to two, that it completes or does not fit into."""
        text = self._text(item)
        # Measuring costs more than all the rest, and matters only where the bytes do not decide.
        bytes_ = len(text) if text.isascii() else len(text.encode())
        bound = bytes_ + self._special
        exact: int | None = None
        limit = self._max_input_tokens
        if limit is not None and bound > limit:
            exact = self._exactly(text)
            if exact > limit if exact is not None else self._estimator.doubtful(measure(text), limit):
                rest = self.flush()
                return [rest, [item]] if rest else [[item]]
        full: list[list[T]] = []
        if self._open:
            fits, exact = self._fits(text, bytes_, exact)
            if not fits:
                full.append(self.flush())
        self._open.append(item)
        self._bytes += bytes_
        self._certain += bound if exact is None else exact
        if exact is None:
            self._coarse.append(text)
        if len(self._open) >= self._max_inputs:
            full.append(self.flush())
        return full

    def flush(self) -> list[T]:
        """Return the open request, which may be empty, and start another."""
        request = self._open
        self._start()
        return request

    def request_stream(self, items: Iterable[T]) -> Iterator[list[T]]:
        """Yield the requests of `items`, the last one as it is; none is empty."""
        for item in items:
            yield from self.add(item)
        rest = self.flush()
        if rest:
            yield rest

    def _fits(self, text: str, bytes_: int, exact: int | None) -> tuple[bool, int | None]:
        """Whether the open request has room for the text; and its exact tokens, if they are known now."""
        if self._max_bytes is not None and self._bytes + bytes_ > self._max_bytes:
            return False, exact
        limit = self._max_tokens
        bound = bytes_ + self._special
        if limit is None or self._certain + (bound if exact is None else exact) <= limit:
            return True, exact
        coarse, self._coarse = self._coarse, []
        if self._count is None:
            for other in coarse:
                self._size = self._size.plus(measure(other))
            both = self._size.plus(measure(text))
            return self._estimator.charge(both.bytes, both.texts, strange=both.strange) <= limit, None
        for other in coarse:
            self._certain += (self._exactly(other) or 0) - self._estimator.bound(len(other.encode()))
        if exact is None and self._certain + bound > limit:
            exact = self._exactly(text)
        return self._certain + (bound if exact is None else exact) <= limit, exact

    def _exactly(self, text: str) -> int | None:
        return None if self._count is None else self._count(text) + self._special


# -- exact counts ------------------------------------------------------------------------------------


class Vocabulary(NamedTuple):
    """A byte-level BPE as tiktoken publishes it: where its file comes from, its digest, how texts are cut first."""

    name: str
    url: str
    sha256: str
    pattern: str


CL100K = Vocabulary(
    "cl100k_base",
    "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken",
    "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
)

VOCABULARIES: Mapping[str, Vocabulary] = {
    "text-embedding-3-small": CL100K,
    "text-embedding-3-large": CL100K,
    "text-embedding-ada-002": CL100K,
}


def exact_counter(model: str, vocabularies: Mapping[str, Vocabulary] = VOCABULARIES) -> Callable[[str], int] | None:
    """A function that counts the tokens of a text as the server does, or None.

    Needs tiktoken, and the model's vocabulary where tiktoken keeps those it has downloaded. Nothing
    is downloaded: the encoding is built here, from that file and after checking its digest, so that
    none of tiktoken's loading code runs.
    """
    vocabulary = vocabularies.get(model)
    data = _on_disk(vocabulary) if vocabulary is not None else None
    if vocabulary is None or data is None:
        return None
    try:
        tiktoken: Any = importlib.import_module("tiktoken")
    except ImportError:
        return None
    ranks = {}
    for line in data.splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    encoding = tiktoken.Encoding(
        vocabulary.name, pat_str=vocabulary.pattern, mergeable_ranks=ranks, special_tokens={}
    )
    encode = encoding.encode_ordinary
    return lambda text: len(encode(text))


def _on_disk(vocabulary: Vocabulary) -> bytes | None:
    """The vocabulary's file from tiktoken's cache, if it is there and whole."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    if folder is None:
        folder = str(Path(tempfile.gettempdir()) / "data-gym-cache")
    if not folder:
        return None
    key = hashlib.sha1(vocabulary.url.encode(), usedforsecurity=False).hexdigest()
    try:
        data = (Path(folder) / key).read_bytes()
    except OSError:
        return None
    return data if hashlib.sha256(data).hexdigest() == vocabulary.sha256 else None
