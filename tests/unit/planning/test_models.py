from __future__ import annotations

import pytest

from ragingest.costs.models import DEFAULT_MODELS, MODELS, ModelFacts, facts_of


def test_openai_models_have_the_documented_limits_and_prices() -> None:
    small = facts_of("openai", "text-embedding-3-small")
    assert (small.dimensions, small.shortenable) == (1536, True)
    assert (small.max_inputs, small.max_input_tokens, small.max_request_tokens) == (2048, 8191, 300_000)
    assert (small.price_per_million, small.batch_price_per_million) == (0.02, 0.01)
    large, ada = facts_of("openai", "text-embedding-3-large"), facts_of("openai", "text-embedding-ada-002")
    assert (large.dimensions, large.price_per_million) == (3072, 0.13)
    assert (ada.dimensions, ada.shortenable, ada.price_per_million) == (1536, False, 0.10)


def test_cohere_takes_96_texts_a_request_of_known_and_unknown_models() -> None:
    for model in ("embed-v4.0", "embed-english-v3.0", "embed-multilingual-v3.0", "embed-of-tomorrow"):
        assert facts_of("cohere", model).max_inputs == 96


def test_an_unknown_model_gets_openais_request_limits_and_nothing_that_is_not_known() -> None:
    facts = facts_of("openai", "model-of-tomorrow")
    assert (facts.provider, facts.name) == ("openai", "model-of-tomorrow")
    assert (facts.max_inputs, facts.max_input_tokens, facts.max_request_tokens) == (2048, 8191, 300_000)
    assert (facts.dimensions, facts.price_per_million, facts.batch_price_per_million) == (None, None, None)


def test_the_batch_api_has_the_same_models() -> None:
    assert facts_of("openai-batch", "text-embedding-3-small") == facts_of("openai", "text-embedding-3-small")


@pytest.mark.parametrize("name", ["bge-m3", "bge-m3:latest", "BAAI/bge-m3"])
def test_open_models_are_found_behind_servers_that_speak_openais_api_with_or_without_a_tag(name: str) -> None:
    assert facts_of("openai", name).dimensions == 1024
    assert facts_of("openai", name).price_per_million is None


def test_a_model_of_one_provider_is_not_one_of_another() -> None:
    assert facts_of("cohere", "text-embedding-3-small").dimensions is None
    assert facts_of("cohere", "BAAI/bge-m3").dimensions is None
    assert facts_of("openai", "embed-v4.0").dimensions is None


def test_every_default_model_is_in_the_table() -> None:
    for embedder, model in DEFAULT_MODELS.items():
        assert facts_of(embedder, model) in MODELS


@pytest.mark.parametrize("facts", MODELS, ids=lambda facts: str(facts.name))
def test_every_row_says_where_and_when_it_was_read_and_makes_sense(facts: ModelFacts) -> None:
    assert facts.source.startswith("https://")
    year, month = facts.date.split("-")
    assert int(year) >= 2024
    assert 1 <= int(month) <= 12
    assert facts.dimensions is not None
    assert min(facts.dimensions, facts.max_inputs, facts.max_input_tokens) > 0
    assert facts.max_request_tokens is None or facts.max_request_tokens >= facts.max_input_tokens
    if facts.batch_price_per_million is not None:
        assert facts.price_per_million is not None
        assert facts.batch_price_per_million < facts.price_per_million


def test_no_model_stands_twice_in_the_table() -> None:
    assert len({(facts.provider, facts.name) for facts in MODELS}) == len(MODELS)
