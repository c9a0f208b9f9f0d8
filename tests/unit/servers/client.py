"""One request to a test server, with nothing between the test and the wire."""

from __future__ import annotations

import base64
import http.client
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
import numpy as np
import numpy.typing as npt
import openai

from tests.servers.openai_api import EmbeddingsServer

MODEL = "text-embedding-3-small"
Sdk = Callable[[EmbeddingsServer], openai.OpenAI]
Vectors = npt.NDArray[np.float32]


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]

    @property
    def vectors(self) -> Vectors:
        """The vectors in the order of the answer."""
        return np.stack([decode(item["embedding"]) for item in self.json["data"]])


def decode(embedding: str | list[float]) -> Vectors:
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4")
    return np.array(embedding, dtype=np.float32)


def send(
    url: str,
    path: str,
    body: bytes | None = None,
    *,
    method: str = "POST",
    key: str | None = "sk-test",
    timeout: float = 30.0,
) -> Reply:
    host = urlsplit(url).netloc
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    connection = http.client.HTTPConnection(host, timeout=timeout)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return Reply(
            response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
        )
    finally:
        connection.close()


def embed(
    url: str,
    texts: str | Sequence[str],
    *,
    model: str = MODEL,
    encoding_format: str = "base64",
    dimensions: int | None = 8,
    key: str | None = "sk-test",
    timeout: float = 30.0,
) -> Reply:
    body: dict[str, Any] = {"model": model, "input": texts, "encoding_format": encoding_format}
    if dimensions is not None:
        body["dimensions"] = dimensions
    return send(url, "/v1/embeddings", msgspec.json.encode(body), key=key, timeout=timeout)
