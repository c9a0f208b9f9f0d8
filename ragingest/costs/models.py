"""What is known of embedding models before the first request: dimensions, limits, price. One table.

Every row says where its facts stand and when they were read there. A price is in US dollars, of a
million tokens, as listed; None where the documentation gives none.
"""

from __future__ import annotations

from dataclasses import dataclass

from ragingest.errors import UsageError

__all__ = ["DEFAULT_MODELS", "MODELS", "ModelFacts", "facts_of"]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Limits are what one request takes; `dimensions` is None until the first answer tells.

    `shortenable`: the endpoint makes shorter vectors when it is asked for `dimensions`.
    `special_tokens`: what the model adds to every text, and counts.
    """

    provider: str
    name: str
    dimensions: int | None
    shortenable: bool
    max_inputs: int
    max_input_tokens: int
    max_request_tokens: int | None
    price_per_million: float | None
    batch_price_per_million: float | None
    source: str
    date: str
    special_tokens: int = 0
    sizes: tuple[int, ...] = ()
    """The only numbers of dimensions that it makes, where not every smaller one will do."""

    def check_dimensions(self, dimensions: int) -> None:
        """Refuse to ask for vectors that the model does not make.

        Raises:
            UsageError: says which it makes.
        """
        full = self.dimensions
        if self.sizes:
            makes = dimensions in self.sizes
        else:
            makes = full is None or dimensions == full or (self.shortenable and dimensions < full)
        if not makes:
            raise UsageError(
                f"{self.name} makes {self.choices} dimensions, not {dimensions}",
                "change --dimensions, or leave it out",
            )

    @property
    def choices(self) -> str:
        """Which dimensions there are, in words."""
        if self.sizes:
            return f"{', '.join(map(str, self.sizes[:-1]))} or {self.sizes[-1]}"
        return f"{self.dimensions} or fewer" if self.shortenable else str(self.dimensions)


# The documentation says 8,192 in one place and 8,191 in another: the smaller.
OPENAI_INPUT_TOKENS = 8_191
OPENAI_INPUTS = 2_048
OPENAI_REQUEST_TOKENS = 300_000

COHERE_INPUTS = 96

# What text-embeddings-inference takes unless --max-client-batch-size says more; the lowest of the
# servers that people run themselves.
OPEN_INPUTS = 32

OPEN = "open weights"
"""Provider of models that anybody may serve, under an API like OpenAI's."""


def _openai(name: str, dimensions: int, shortenable: bool, price: float) -> ModelFacts:
    return ModelFacts(
        provider="openai",
        name=name,
        dimensions=dimensions,
        shortenable=shortenable,
        max_inputs=OPENAI_INPUTS,
        max_input_tokens=OPENAI_INPUT_TOKENS,
        max_request_tokens=OPENAI_REQUEST_TOKENS,
        price_per_million=price,
        batch_price_per_million=price / 2,
        source="https://platform.openai.com/docs/models/" + name,
        date="2026-11",
    )


def _cohere(name: str, dimensions: int, tokens: int, *sizes: int, special_tokens: int = 0) -> ModelFacts:
    return ModelFacts(
        provider="cohere",
        name=name,
        dimensions=dimensions,
        shortenable=bool(sizes),
        max_inputs=COHERE_INPUTS,
        max_input_tokens=tokens,
        max_request_tokens=None,
        price_per_million=None,
        batch_price_per_million=None,
        source="https://docs.cohere.com/docs/cohere-embed",
        date="2026-11",
        special_tokens=special_tokens,
        sizes=sizes,
    )


def _open(name: str, dimensions: int, tokens: int, source: str) -> ModelFacts:
    return ModelFacts(
        provider=OPEN,
        name=name,
        dimensions=dimensions,
        shortenable=False,
        max_inputs=OPEN_INPUTS,
        max_input_tokens=tokens,
        max_request_tokens=None,
        price_per_million=None,
        batch_price_per_million=None,
        source=source,
        date="2026-11",
        special_tokens=2,
    )


_BGE_M3 = "https://huggingface.co/BAAI/bge-m3"
_NOMIC = "https://huggingface.co/nomic-ai/nomic-embed-text-v1.5"
_MXBAI = "https://huggingface.co/mixedbread-ai/mxbai-embed-large-v1"

MODELS: tuple[ModelFacts, ...] = (
    _openai("text-embedding-3-small", 1536, True, 0.02),
    _openai("text-embedding-3-large", 3072, True, 0.13),
    _openai("text-embedding-ada-002", 1536, False, 0.10),
    _cohere("embed-v4.0", 1536, 128_000, 256, 512, 1024, 1536),
    # What these put around a text is in the 512, and not on the bill.
    _cohere("embed-english-v3.0", 1024, 512, special_tokens=2),
    _cohere("embed-english-light-v3.0", 384, 512, special_tokens=2),
    _cohere("embed-multilingual-v3.0", 1024, 512, special_tokens=2),
    _cohere("embed-multilingual-light-v3.0", 384, 512, special_tokens=2),
    # By their names at Hugging Face, and by those that Ollama gives them.
    _open("BAAI/bge-m3", 1024, 8_192, _BGE_M3),
    _open("bge-m3", 1024, 8_192, _BGE_M3),
    _open("nomic-ai/nomic-embed-text-v1.5", 768, 8_192, _NOMIC),
    # Ollama runs it with 2,048 tokens unless told otherwise, and cuts what is longer in silence.
    _open("nomic-embed-text", 768, 2_048, "https://ollama.com/library/nomic-embed-text"),
    _open("mixedbread-ai/mxbai-embed-large-v1", 1024, 512, _MXBAI),
    _open("mxbai-embed-large", 1024, 512, _MXBAI),
)

DEFAULT_MODELS = {
    "openai": "text-embedding-3-small",
    "openai-batch": "text-embedding-3-small",
    "cohere": "embed-v4.0",
}
"""Which model an embedder uses when none is named."""

_SPEAKS_OPENAI = frozenset({"openai", "openai-batch"})

_BY_NAME = {(facts.provider, facts.name): facts for facts in MODELS}


def facts_of(provider: str, model: str) -> ModelFacts:
    """The row of `model` as the embedder `provider` reaches it.

    A tag behind the name, as in `bge-m3:latest`, does not matter. A model that the table does not
    have gets OpenAI's request limits (Cohere's number of texts from Cohere), no dimensions and no
    price.
    """
    known = _BY_NAME.get(("openai" if provider in _SPEAKS_OPENAI else provider, model))
    if known is None and provider in _SPEAKS_OPENAI:
        known = _BY_NAME.get((OPEN, model)) or _BY_NAME.get((OPEN, model.partition(":")[0]))
    if known is not None:
        return known
    return ModelFacts(
        provider=provider,
        name=model,
        dimensions=None,
        shortenable=True,
        max_inputs=COHERE_INPUTS if provider == "cohere" else OPENAI_INPUTS,
        max_input_tokens=OPENAI_INPUT_TOKENS,
        max_request_tokens=OPENAI_REQUEST_TOKENS,
        price_per_million=None,
        batch_price_per_million=None,
        source="",
        date="",
    )
