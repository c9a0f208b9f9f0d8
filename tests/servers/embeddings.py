"""Parsing, checking and answering embedding requests, as OpenAI and as Cohere do. No I/O, no state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np

from tests.servers.answers import Answer, ApiError
from tests.servers.books import Charge
from tests.servers.config import COHERE_SIZES, ServerConfig
from tests.servers.faults import Fault
from tests.servers.vectors import TokenCounter, as_base64, as_json, hash_of, vector_of

__all__ = ["CohereRequest", "EmbeddingsRequest", "Embedder", "parse_cohere", "parse_openai"]

_T = TypeVar("_T")

NAMES_NO_TEXT = (
    "'$.input' is invalid. Please check the API reference: https://platform.openai.com/docs/api-reference."
)


class EmbeddingsRequest(msgspec.Struct):
    """The body of POST /v1/embeddings. Inputs as token ids are not taken."""

    model: str
    input: str | list[str]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


class CohereRequest(msgspec.Struct):
    """The body of POST /v2/embed."""

    model: str
    texts: list[str]
    input_type: Literal["search_document", "search_query", "classification", "clustering"]
    embedding_types: tuple[Literal["float", "base64"], ...] = ("float",)
    output_dimension: int | None = None
    truncate: Literal["NONE", "START", "END"] = "END"


_openai_decoder = msgspec.json.Decoder(EmbeddingsRequest)
_cohere_decoder = msgspec.json.Decoder(CohereRequest)


def parse_openai(body: bytes) -> EmbeddingsRequest:
    return _parse(_openai_decoder, body)


def parse_cohere(body: bytes) -> CohereRequest:
    return _parse(_cohere_decoder, body)


def _parse(decoder: msgspec.json.Decoder[_T], body: bytes) -> _T:
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ApiError(400, f"We could not parse the body of your request: {error}") from error


class Embedder:
    """The service's model: checks against its limits, charges, vectors."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._counter = TokenCounter(config.tokens_per_ascii_byte, config.tokens_per_other_byte)

    def check(self, request: EmbeddingsRequest) -> Charge:
        """What the request costs.

        Raises:
            ApiError: it is over a limit, or asks for what is not there.
        """
        config, texts = self._config, request.texts
        self._check_model(request.model, request.dimensions)
        if not texts:
            raise ApiError(400, NAMES_NO_TEXT)
        if len(texts) > config.max_inputs:
            raise ApiError(
                400,
                f"Invalid 'input': array too long. Expected an array with maximum length {config.max_inputs}, "
                f"but got an array with length {len(texts)} instead.",
                code="array_above_max_length",
                param="input",
            )
        if "" in texts:
            raise ApiError(400, NAMES_NO_TEXT)
        counts = [self._counter.count(text) for text in texts]
        if max(counts) > config.max_tokens_per_text:
            raise ApiError(
                400,
                f"This model's maximum context length is {config.max_tokens_per_text} tokens, however you requested "
                f"{max(counts)} tokens ({max(counts)} in your prompt; 0 for the completion). "
                "Please reduce your prompt; or completion length.",
            )
        if sum(counts) > config.max_tokens_per_request:
            raise ApiError(
                400,
                f"Requested {sum(counts)} tokens, max {config.max_tokens_per_request} tokens per request",
                type="max_tokens_per_request",
                code="max_tokens_per_request",
            )
        if config.poison and any(config.poison in text for text in texts):
            raise ApiError(400, NAMES_NO_TEXT)
        return Charge([hash_of(text) for text in texts], sum(counts))

    def answer(self, request: EmbeddingsRequest, charge: Charge, fault: Fault | None = None) -> Answer:
        """The answer to a request that was checked, bent as `fault` says."""
        dimensions = request.dimensions or self._config.models[request.model]
        base64 = request.encoding_format == "base64"
        rows = self._rows(request.texts, charge.hashes, dimensions, fault, base64=base64)
        quote = b'"' if base64 else b""
        items = [
            b'{"object":"embedding","index":%d,"embedding":%b%b%b}' % (index, quote, row, quote)
            for index, row in enumerate(rows)
        ]
        if fault is not None and fault.kind == "out_of_order":
            items = shuffled(items)
        usage = b'{"prompt_tokens":%d,"total_tokens":%d}' % (charge.tokens, charge.tokens)
        model = msgspec.json.encode(request.model)
        body = b'{"object":"list","data":[%b],"model":%b,"usage":%b}' % (b",".join(items), model, usage)
        return Answer(200, body, charge=charge)

    def check_cohere(self, request: CohereRequest) -> Charge:
        """As `check`; a text that is too long is refused only where the request forbids cutting it."""
        config, texts = self._config, request.texts
        if request.model not in config.models:
            raise ApiError(
                404,
                f"model '{request.model}' not found, make sure the correct model ID was used "
                "and that you have access to the model.",
            )
        if request.output_dimension is not None and (
            not request.model.startswith("embed-v4") or request.output_dimension not in COHERE_SIZES
        ):
            raise ApiError(400, f"invalid request: output_dimension {request.output_dimension} is not supported")
        if not texts or "" in texts:
            raise ApiError(400, "invalid request: texts must be a list of strings that are not empty")
        if len(texts) > config.cohere_max_texts:
            raise ApiError(
                400,
                f"invalid request: total number of texts must be at most {config.cohere_max_texts} "
                f"- received {len(texts)}",
            )
        limit = config.cohere_max_tokens.get(request.model, config.max_tokens_per_text)
        whole = [self._counter.count(text) for text in texts]
        counts = [min(count, limit) for count in whole]
        if request.truncate == "NONE" and counts != whole:
            raise ApiError(
                400, f"too many tokens: total number of tokens cannot exceed {limit} - received {max(whole)}."
            )
        if config.poison and any(config.poison in text for text in texts):
            raise ApiError(400, "invalid request: a text could not be processed")
        return Charge([hash_of(text) for text in texts], sum(counts))

    def answer_cohere(self, request: CohereRequest, charge: Charge, fault: Fault | None = None) -> Answer:
        dimensions = request.output_dimension or self._config.models[request.model]
        embeddings = []
        for kind in dict.fromkeys(request.embedding_types):
            base64 = kind == "base64"
            rows = self._rows(request.texts, charge.hashes, dimensions, fault, base64=base64)
            quote = b'"' if base64 else b""
            written = b",".join(b"%b%b%b" % (quote, row, quote) for row in rows)
            embeddings.append(b'"%b":[%b]' % (kind.encode(), written))
        body = b'{"id":"%b","embeddings":{%b},"texts":%b,"meta":%b,"response_type":"embeddings_by_type"}' % (
            b"11111111-1111-4111-8111-111111111111",
            b",".join(embeddings),
            msgspec.json.encode(request.texts),
            msgspec.json.encode({"api_version": {"version": "2"}, "billed_units": {"input_tokens": charge.tokens}}),
        )
        return Answer(200, body, charge=charge)

    def _check_model(self, model: str, dimensions: int | None) -> None:
        if model not in self._config.models:
            raise ApiError(
                404, f"The model `{model}` does not exist or you do not have access to it.", code="model_not_found"
            )
        if dimensions is None:
            return
        if model.startswith("text-embedding-ada"):
            raise ApiError(400, "This model does not support specifying dimensions; text-embedding-3 does.")
        if not 1 <= dimensions <= self._config.models[model]:
            raise ApiError(
                400, f"Invalid value for 'dimensions' = {dimensions}. Must be at most {self._config.models[model]}."
            )

    def _rows(
        self, texts: Sequence[str], hashes: Sequence[bytes], dimensions: int, fault: Fault | None, *, base64: bool
    ) -> list[bytes]:
        """The vectors as they are written out, without quotes."""
        kind = fault.kind if fault else None
        encode = as_base64 if base64 else as_json
        if kind == "empty_data":
            return []
        rows = encode(hashes, dimensions + (kind == "wrong_dimension"))
        if fault is not None and kind == "wrong_count":
            wanted = len(rows) + fault.surplus
            rows = rows[:wanted] if 0 < wanted < len(rows) else rows + rows[-1:] * max(1, fault.surplus)
        if kind == "not_a_number":
            rows[0] = _without_a_number(texts[0], dimensions, base64=base64)
        return rows


def _without_a_number(text: str, dimensions: int, *, base64: bool) -> bytes:
    vector = vector_of(text, dimensions).copy()
    vector[0] = np.nan
    if base64:
        return _quoteless(msgspec.json.encode(vector.astype("<f4").tobytes()))
    values: list[Any] = [None, *vector[1:].tolist()]
    return msgspec.json.encode(values)


def _quoteless(encoded: bytes) -> bytes:
    return encoded[1:-1]


def shuffled(items: list[bytes]) -> list[bytes]:
    """In another order than before, if there is more than one; always the same for the same number."""
    order = np.random.default_rng(len(items)).permutation(len(items)).tolist()
    if order == sorted(order):
        order.reverse()
    return [items[index] for index in order]
