from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragingest.costs.tokens import TYPICAL_RATIO, TextSize, TokenEstimator, measure
from tests.unit.planning.texts import prose, tokens_by_share

GROUP = 10_000


def near(tokens: int) -> object:
    """That many, or one more for rounding up."""
    return pytest.approx(tokens + 0.5, abs=0.5)


def learned(ratio: float, strange_share: float = 0.05, answers: int = 4) -> TokenEstimator:
    estimator = TokenEstimator(group_bytes=GROUP)
    for _ in range(answers):
        estimator.learn(GROUP, int(ratio * GROUP), strange=int(strange_share * GROUP))
    return estimator


@given(st.text())
def test_a_text_is_measured_as_its_characters_are_encoded(text: str) -> None:
    size = measure(text)
    widths = [len(character.encode()) for character in text]
    assert size.texts == 1
    assert size.bytes == sum(widths)
    assert size.wide == sum(width for width in widths if width >= 3)
    plain = sum(character in "abcdefghijklmnopqrstuvwxyz .,'-" for character in text)
    assert size.strange == size.bytes - plain


@given(st.integers(0, 10**9), st.integers(0, 3), st.integers(1, 100))
def test_the_bound_is_the_bytes_and_the_models_own_tokens(bytes_: int, special: int, texts: int) -> None:
    assert TokenEstimator(special).bound(bytes_, texts) == bytes_ + special * texts


def test_the_first_estimate_is_at_the_typical_ratio_and_later_ones_at_the_mean_of_the_answers() -> None:
    estimator = TokenEstimator()
    assert estimator.ratio is None
    assert estimator.estimate(1_000_000) == round(TYPICAL_RATIO * 1_000_000)
    estimator.learn(3_000, 600)
    estimator.learn(1_000, 400)
    assert estimator.ratio == 0.25
    assert estimator.estimate(1_000_000) == 250_000


def test_the_first_estimate_knows_that_wide_characters_make_more_tokens() -> None:
    size = measure("天地玄黄宇宙洪荒" * 100)
    estimator = TokenEstimator()
    assert estimator.estimate(size.bytes, wide=size.wide) > 1.4 * estimator.estimate(size.bytes)


def test_until_four_groups_are_learned_a_request_is_charged_its_bytes() -> None:
    estimator = TokenEstimator(group_bytes=GROUP)
    for _ in range(3):
        estimator.learn(GROUP, GROUP // 5)
        assert estimator.charge(50_000) == 50_000
        assert estimator.learned is None
    estimator.learn(GROUP, GROUP // 5)
    assert estimator.charge(50_000) == near(10_500)


def test_the_highest_ratio_of_the_window_counts_and_is_forgotten_behind_it() -> None:
    estimator = TokenEstimator(group_bytes=GROUP, window=6)
    for ratio in (0.2, 0.4, 0.2, 0.2):
        estimator.learn(GROUP, int(ratio * GROUP))
    assert estimator.charge(100_000) == near(42_000)
    for _ in range(5):
        estimator.learn(GROUP, int(0.2 * GROUP))
    assert estimator.charge(100_000) == near(21_000)


def test_small_answers_are_pooled_so_that_chance_in_one_does_not_count() -> None:
    estimator = TokenEstimator(group_bytes=GROUP)
    for number in range(400):
        estimator.learn(100, 15 if number % 2 else 25)
    assert estimator.charge(100_000) == near(21_000)


def test_text_unlike_what_was_learned_is_charged_its_bytes() -> None:
    estimator = learned(0.2, strange_share=0.05)
    like = estimator.charge(100_000, strange=5_000)
    half = estimator.charge(100_000, strange=40_000)
    wholly = estimator.charge(100_000, strange=100_000)
    assert like == near(21_000)
    assert half > like + 35_000 * 0.79
    assert wholly == 100_000


def test_answers_without_their_strange_bytes_are_learned_on_the_safe_side() -> None:
    estimator = TokenEstimator(group_bytes=GROUP)
    for _ in range(4):
        estimator.learn(GROUP, GROUP // 5)
    assert estimator.charge(100_000, strange=5_000) > learned(0.2).charge(100_000, strange=5_000)


def test_after_a_refusal_requests_are_bounded_by_bytes_again() -> None:
    estimator = learned(0.2)
    estimator.forget()
    assert estimator.charge(100_000) == 100_000
    for _ in range(4):
        estimator.learn(GROUP, GROUP // 2)
    assert estimator.charge(100_000) == near(52_500)


@pytest.mark.parametrize("tokens", [0, -5])
def test_a_server_that_reports_no_tokens_teaches_nothing(tokens: int) -> None:
    estimator = TokenEstimator(group_bytes=1)
    for _ in range(10):
        estimator.learn(GROUP, tokens)
    assert estimator.learned is None
    assert estimator.ratio is None


def test_a_server_that_reports_next_to_nothing_is_not_believed() -> None:
    estimator = learned(0.0001)
    assert estimator.charge(100_000, strange=5_000) == near(10_000)


def test_special_tokens_are_counted_by_texts_and_not_learned_as_text() -> None:
    estimator = TokenEstimator(2, group_bytes=GROUP)
    for _ in range(4):
        estimator.learn(GROUP, 2_000 + 2 * 100, 100)
    assert estimator.ratio == 0.2
    assert estimator.charge(100_000, 10) == near(21_020)
    assert estimator.estimate(100_000, 10) == 20_020


def test_groups_are_never_larger_than_a_request() -> None:
    estimator = TokenEstimator.for_limits(5_000)
    for _ in range(4):
        estimator.learn(5_000, 1_000)
    assert estimator.learned is not None
    assert TokenEstimator.for_limits(None).learned is None


@given(
    st.lists(st.tuples(st.integers(1, 50_000), st.floats(0.01, 1.0), st.floats(0, 1)), max_size=30),
    st.integers(0, 10**6),
    st.floats(0, 1),
    st.integers(0, 2),
)
def test_a_charge_is_never_over_the_bound_and_grows_with_the_text(
    answers: list[tuple[int, float, float]], bytes_: int, strange_share: float, special: int
) -> None:
    estimator = TokenEstimator(special, group_bytes=GROUP)
    for size, ratio, strange in answers:
        estimator.learn(size, int(size * ratio) + special, strange=int(size * strange))
    strange_bytes = int(strange_share * bytes_)
    charge = estimator.charge(bytes_, strange=strange_bytes)
    assert 0 <= charge <= estimator.bound(bytes_)
    assert charge <= estimator.charge(bytes_ + 100, strange=strange_bytes + 100)
    assert charge <= estimator.charge(bytes_, strange=bytes_)
    assert estimator.estimate(bytes_) <= estimator.bound(bytes_)


@given(st.lists(st.floats(0.05, 1.0), min_size=4, max_size=80))
def test_a_request_like_those_of_the_window_is_charged_what_any_of_them_had(ratios: list[float]) -> None:
    estimator = TokenEstimator(group_bytes=GROUP)
    for ratio in ratios:
        estimator.learn(GROUP, int(ratio * GROUP), strange=500)
    highest = max(int(ratio * GROUP) for ratio in ratios[-64:])
    assert estimator.charge(GROUP, strange=500) >= highest


def test_whether_a_text_fits_is_certain_by_its_bytes_or_by_counting_and_unknown_otherwise() -> None:
    estimator = TokenEstimator()
    text = prose(100, seed=1)
    counted: list[str] = []

    def count(text: str) -> int:
        counted.append(text)
        return tokens_by_share(0.25)(text)

    assert estimator.fits(text, len(text), count) is True
    assert counted == []
    assert estimator.fits(text, len(text) // 2, count) is True
    assert estimator.fits(text, len(text) // 8, count) is False
    assert estimator.fits(text, len(text) // 2) is None


def test_a_text_is_in_doubt_only_if_it_could_well_be_too_long() -> None:
    estimator = TokenEstimator()
    assert not estimator.doubtful(TextSize(1, 8_191), 8_191)
    assert not estimator.doubtful(TextSize(1, 12_000), 8_191)
    assert estimator.doubtful(TextSize(1, 40_000), 8_191)
    taught = learned(0.2)
    assert not taught.doubtful(TextSize(1, 38_000, 1_900), 8_191)
    assert taught.doubtful(TextSize(1, 38_000, 38_000), 8_191)


PROSE = "The library opens at nine, and every reader finds a place. "


@pytest.mark.parametrize(
    ("text", "bytes_", "doubtful"),
    [
        (PROSE, 16_000, False),
        (PROSE, 28_000, False),
        (PROSE, 31_000, True),
        ("x = {'a': [1, 2, 3], 'b': 0xFF}\n", 15_000, False),
        ("x = {'a': [1, 2, 3], 'b': 0xFF}\n", 16_000, True),
        ("Библиотека открывается в девять. ", 15_000, False),
        ("Библиотека открывается в девять. ", 16_000, True),
        ("図書館は九時に開きます。", 9_000, False),
        ("図書館は九時に開きます。", 10_500, True),
    ],
)
def test_at_first_prose_is_believed_to_be_prose_and_all_else_to_have_twice_its_tokens(
    text: str, bytes_: int, doubtful: bool
) -> None:
    size = measure(text * (bytes_ // len(text.encode())))
    assert TokenEstimator().doubtful(size, 8_191) is doubtful


# -- the beginning of a text ---------------------------------------------------------------------------

PIECES = st.sampled_from([PROSE, "word ", "é", "図書館", "🔒", "0x1F;", "\n"])
LONG_TEXTS = st.lists(PIECES, max_size=40).map("".join)


@given(text=LONG_TEXTS, limit=st.integers(3, 200), special=st.integers(0, 2))
def test_the_certain_beginning_fits_by_its_bytes_and_no_longer_one_does(
    text: str, limit: int, special: int
) -> None:
    estimator = TokenEstimator(special)
    part = estimator.certain_beginning(text, limit)
    assert text.startswith(part)
    assert estimator.fits(part, limit) or not part
    if part != text:
        assert not estimator.fits(text[: len(part) + 1], limit)


@given(text=LONG_TEXTS, limit=st.integers(3, 200), special=st.integers(0, 2))
def test_with_exact_counts_the_beginning_fits_and_no_longer_one_does(text: str, limit: int, special: int) -> None:
    def count(part: str) -> int:
        return -(-len(part.encode()) // 3)

    part = TokenEstimator(special).beginning(text, limit, count)
    assert text.startswith(part)
    assert count(part) + special <= limit or not part
    if part != text:
        assert count(text[: len(part) + 1]) + special > limit


@given(text=LONG_TEXTS, limit=st.integers(3, 200))
def test_without_counts_it_is_not_in_doubt_nor_shorter_than_the_certain_one(text: str, limit: int) -> None:
    estimator = TokenEstimator()
    part = estimator.beginning(text, limit)
    assert text.startswith(part)
    assert not estimator.doubtful(measure(part), limit)
    assert part == text or len(part.encode()) >= len(estimator.certain_beginning(text, limit).encode()) - 4


def test_a_text_is_cut_at_the_same_place_whatever_was_learned() -> None:
    text = PROSE * 1000
    untaught = TokenEstimator().beginning(text, 8_191)
    assert 8_191 < len(untaught) < len(text)
    for ratio in (0.18, 0.25, 0.4):
        assert learned(ratio).beginning(text, 8_191) == untaught


def test_what_is_not_in_doubt_is_not_cut() -> None:
    text = PROSE * 600
    assert TokenEstimator().doubtful(measure(text), 8_191)
    assert learned(0.2).beginning(text, 8_191) == text


@pytest.mark.parametrize(
    "make",
    [
        lambda: TokenEstimator(group_bytes=0),
        lambda: TokenEstimator(groups=0),
        lambda: TokenEstimator(groups=5, window=4),
        lambda: TokenEstimator(margin=0.9),
        lambda: TokenEstimator(-1),
    ],
)
def test_settings_that_would_not_be_safe_are_refused(make: object) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match="margin"):
        make()
