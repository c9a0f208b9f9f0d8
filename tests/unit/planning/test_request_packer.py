from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragingest.costs.tokens import RequestPacker, TextSize, TokenEstimator, measure
from tests.unit.planning.texts import prose, tokens_are_bytes, tokens_by_share, tokens_of_prose

Count = Callable[[str], int]

TEXTS = st.lists(st.text(min_size=1, max_size=60), max_size=60)
COUNTS: st.SearchStrategy[Count] = st.one_of(
    st.just(tokens_are_bytes), st.just(tokens_of_prose), st.floats(0.01, 1.0).map(tokens_by_share)
)


def packer(
    estimator: TokenEstimator | None = None,
    *,
    max_inputs: int = 2048,
    max_tokens: int | None = None,
    max_bytes: int | None = None,
    max_input_tokens: int | None = None,
    count: Count | None = None,
) -> RequestPacker[str]:
    return RequestPacker(
        str,
        estimator or TokenEstimator(),
        max_inputs=max_inputs,
        max_tokens=max_tokens,
        max_bytes=max_bytes,
        max_input_tokens=max_input_tokens,
        count=count,
    )


def size_of(texts: Sequence[str]) -> TextSize:
    total = TextSize()
    for text in texts:
        total = total.plus(measure(text))
    return total


def send_all(
    texts: Sequence[str], estimator: TokenEstimator, server: Count, limit: int, max_inputs: int = 2048
) -> list[int]:
    """The true tokens of each request, of a server that answers each with its count."""
    sent = []
    for request in packer(estimator, max_tokens=limit, max_inputs=max_inputs).request_stream(texts):
        size, tokens = size_of(request), sum(map(server, request))
        estimator.learn(size.bytes, tokens, size.texts, strange=size.strange)
        sent.append(tokens)
    return sent


@given(TEXTS, COUNTS, st.integers(1, 20), st.integers(1, 200), st.integers(1, 200), st.booleans())
def test_no_request_is_over_a_limit_whatever_the_tokenizer(
    texts: list[str], server: Count, inputs: int, tokens: int, bytes_: int, counts: bool
) -> None:
    requests = list(
        packer(
            max_inputs=inputs, max_tokens=tokens, max_bytes=bytes_, count=server if counts else None
        ).request_stream(texts)
    )
    assert [text for request in requests for text in request] == texts
    for request in requests:
        assert 1 <= len(request) <= inputs
        if len(request) > 1:
            assert sum(map(server, request)) <= tokens
            assert size_of(request).bytes <= bytes_


@given(TEXTS, COUNTS, st.integers(1, 200))
def test_with_exact_counts_no_request_leaves_out_a_text_that_it_had_room_for(
    texts: list[str], server: Count, limit: int
) -> None:
    requests = list(packer(max_tokens=limit, count=server).request_stream(texts))
    for request, following in pairwise(requests):
        assert sum(map(server, request)) + server(following[0]) > limit


@given(TEXTS, COUNTS, st.integers(1, 200), st.integers(1, 100))
def test_no_position_in_the_stream_is_counted_twice(
    texts: list[str], server: Count, limit: int, input_limit: int
) -> None:
    counted: Counter[str] = Counter()

    def count(text: str) -> int:
        counted[text] += 1
        return server(text)

    list(packer(max_tokens=limit, max_input_tokens=input_limit, count=count).request_stream(texts))
    assert counted <= Counter(texts)


def test_nothing_is_counted_where_the_bytes_decide() -> None:
    def count(text: str) -> int:
        raise AssertionError(text)

    texts = [prose(20, seed) for seed in range(50)]
    limit = sum(len(text) for text in texts)
    requests = list(packer(max_tokens=limit, max_input_tokens=1_000, count=count).request_stream(texts))
    assert requests == [texts]


@given(TEXTS, COUNTS, st.integers(1, 200), st.integers(1, 60), st.booleans())
def test_a_text_over_the_limit_of_one_text_never_travels_with_others(
    texts: list[str], server: Count, limit: int, input_limit: int, counts: bool
) -> None:
    count = server if counts else None
    for request in packer(
        max_tokens=limit, max_input_tokens=input_limit, count=count, estimator=TokenEstimator()
    ).request_stream(texts):
        if len(request) > 1:
            for text in request:
                assert not counts or server(text) <= input_limit
                assert not TokenEstimator().doubtful(measure(text), input_limit) or counts


def test_special_tokens_fill_requests_too() -> None:
    for count in (None, tokens_are_bytes):
        requests = packer(TokenEstimator(2), max_tokens=30, count=count).request_stream(["abcd"] * 10)
        assert [len(request) for request in requests] == [5, 5]


@pytest.mark.parametrize("words", [8, 60, 400])
def test_english_fills_nine_tenths_of_the_texts_or_the_tokens_once_a_ratio_is_learned(words: int) -> None:
    limit, inputs = 30_000, 200
    estimator = TokenEstimator.for_limits(limit)
    texts = [prose(words, seed) for seed in range(max(800, 600_000 // words // 5))]
    sizes: list[int] = []
    requests = []
    for request in packer(estimator, max_tokens=limit, max_inputs=inputs).request_stream(texts):
        size, tokens = size_of(request), sum(map(tokens_of_prose, request))
        estimator.learn(size.bytes, tokens, size.texts, strange=size.strange)
        sizes.append(tokens)
        requests.append(max(tokens / limit, len(request) / inputs))
    assert max(sizes) <= limit
    settled = requests[len(requests) // 2 : -1]
    assert len(settled) >= 2
    assert min(settled) >= 0.9


def test_a_learned_ratio_needs_a_third_of_the_requests_that_bytes_need() -> None:
    limit = 10_000
    texts = [prose(50, seed) for seed in range(1_500)]
    taught = send_all(texts, TokenEstimator.for_limits(limit), tokens_of_prose, limit)
    by_bytes = list(packer(max_tokens=limit).request_stream(texts))
    assert len(taught) < len(by_bytes) / 2.5


@pytest.mark.parametrize(
    "foreign", ["天地玄黄宇宙洪荒" * 12, "1 2 3 4 5 6 7 8 9 " * 15, "QmFzZTY0IEVuY29kZWQ" * 15, "😀🎉" * 30]
)
def test_a_corpus_that_turns_to_something_unlike_prose_is_not_sent_in_requests_over_the_limit(
    foreign: str,
) -> None:
    limit = 10_000
    texts = [prose(50, seed) for seed in range(600)] + [foreign] * 400

    def server(text: str) -> int:
        return tokens_are_bytes(text) if text == foreign else tokens_of_prose(text)

    assert max(send_all(texts, TokenEstimator.for_limits(limit), server, limit)) <= limit


@given(st.lists(st.integers(1, 400), min_size=50, max_size=200), st.floats(0.15, 0.9), st.floats(0, 0.04))
def test_texts_whose_ratio_stays_within_the_margin_never_make_a_request_over_the_limit(
    lengths: list[int], ratio: float, drift: float
) -> None:
    """The condition under which the learned charge is safe, taken at its word."""
    limit = 2_000

    def server(text: str) -> int:
        number = int(text[:6])
        high = ratio * (1 + drift * (number % 5) / 4)
        return int(len(text) * min(1.0, high))

    texts = [f"{number:06}" + "x" * length for number, length in enumerate(lengths * 3)]
    estimator = TokenEstimator.for_limits(limit)
    assert max(send_all(texts, estimator, server, limit)) <= limit


def test_an_item_is_any_object_with_a_text() -> None:
    items = [(1, "one"), (2, "two"), (3, "three")]
    packed = RequestPacker[tuple[int, str]](lambda item: item[1], TokenEstimator(), max_inputs=2)
    assert list(packed.request_stream(items)) == [items[:2], items[2:]]


def test_flushing_an_empty_packer_gives_an_empty_request() -> None:
    assert packer().flush() == []
    assert list(packer().request_stream([])) == []


@pytest.mark.parametrize("name", ["max_inputs", "max_tokens", "max_bytes", "max_input_tokens"])
def test_limits_below_one_are_refused(name: str) -> None:
    limits: dict[str, Any] = {"max_inputs": 1, name: 0}
    with pytest.raises(ValueError, match="at least one"):
        RequestPacker(str, TokenEstimator(), **limits)
