"""Cohere's embed API, version 2.

One POST is one `request`; retries, pacing and halving are wrapped around it (embedders/remote.py).
Documents and searches are embedded differently (`input_type`), and are only found by one another
when each is asked for as what it is. Shapes and limits: https://docs.cohere.com/reference/embed
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ragingest.embedders.http import Endpoint, as_vectors, rate_news, shown
from ragingest.errors import TransientError
from ragingest.protocols import Answer

__all__ = ["DEFAULT_BASE_URL", "CohereRequests"]

DEFAULT_BASE_URL = "https://api.cohere.com"
PATH = "/v2/embed"

_JSON = {"Content-Type": "application/json"}


class _Embeddings(msgspec.Struct):
    base64: list[msgspec.Raw] | None = None
    numbers: list[msgspec.Raw] | None = msgspec.field(default=None, name="float")


class _BilledUnits(msgspec.Struct):
    input_tokens: float | None = None


class _Meta(msgspec.Struct):
    billed_units: _BilledUnits | None = None


class _Answer(msgspec.Struct):
    embeddings: _Embeddings
    meta: _Meta | None = None


_decode = msgspec.json.Decoder(_Answer).decode


class CohereRequests:
    """Sends one batch of texts at a time to `POST {base_url}/v2/embed`. Used on one event loop.

    Args:
        key_name: the environment variable that holds the key, for messages.
        query: the texts are searches, not documents.
    """

    name = "cohere"

    def __init__(
        self,
        model: str,
        key: str | None,
        base_url: str,
        dimensions: int | None,
        timeout: float,
        *,
        key_name: str = "COHERE_API_KEY",
        query: bool = False,
    ) -> None:
        self.model = model
        self._endpoint = Endpoint(base_url, key, key_name, model, timeout)
        self._url = self._endpoint.at(PATH)
        self._body: dict[str, Any] = {
            "model": model,
            "input_type": "search_query" if query else "search_document",
            # The bytes of float32 rows: a hundredth of the CPU of reading numbers.
            "embedding_types": ["base64"],
            # The API's own default is to cut in silence.
            "truncate": "NONE",
        }
        if dimensions is not None:
            self._body["output_dimension"] = dimensions

    async def request(self, texts: Sequence[str]) -> Answer:
        """Embed `texts` by one request on the wire; row i belongs to text i.

        Raises:
            TransientError: trying again may work; `retry_after` if the server said when.
            RejectedError: this batch will never be accepted as it is (400, 413, 422, 498).
            TerminalError: no batch will: key, model, money, or the calls of a trial key's month.
        """
        body = msgspec.json.encode({**self._body, "texts": texts})
        data, headers = await self._endpoint.call("POST", PATH, data=body, headers=_JSON)
        try:
            answer = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise TransientError(
                f"{self._url} answered 200 with something else than embeddings: "
                f"{self._endpoint.without_key(shown(data))}"
            ) from None
        rows = answer.embeddings.base64 or answer.embeddings.numbers or ()
        tokens = _tokens(answer.meta)
        if len(rows) != len(texts):
            raise TransientError(f"{self._url} answered {len(rows)} vectors for {len(texts)} texts", tokens=tokens)
        try:
            return Answer(as_vectors(rows, self._url), tokens, rate_news(headers))
        except TransientError as error:
            error.tokens = tokens
            raise

    async def close(self) -> None:
        await self._endpoint.close()


def _tokens(meta: _Meta | None) -> int:
    """Those that are paid for; 0 where the answer does not tell."""
    billed = meta and meta.billed_units
    return round(billed.input_tokens or 0) if billed else 0
