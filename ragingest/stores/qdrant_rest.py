"""Upserts over REST: a JSON body put together from points that were encoded one by one.

PUT /collections/{name}/points?wait=true&ordering=medium      {"points":[{"id":...,"vector":...,"payload":...},...]}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import httpx
import msgspec
import numpy as np
import orjson

from ragingest.documents import EmbeddedBatch, Fault, point_id
from ragingest.errors import RejectedError
from ragingest.stores.metadata import encode_metadata
from ragingest.stores.qdrant_errors import ServerErrors
from ragingest.stores.qdrant_layout import DENSE, SPARSE

__all__ = ["RestUpserts"]

# service.max_request_size_mb, as it is unless the operator has changed it.
MAX_BODY_BYTES = 32 * 1024 * 1024
_HEAD, _TAIL = b'{"points":[', b"]}"


class _Result(msgspec.Struct):
    status: str


class _Answer(msgspec.Struct):
    result: _Result


_decode = msgspec.json.Decoder(_Answer).decode


class RestUpserts:
    """Encodes points and sends them. Used by several threads at once."""

    max_bytes = MAX_BODY_BYTES - len(_HEAD) - len(_TAIL)

    def __init__(
        self, url: str, collection: str, key: str, timeout: float, connections: int, errors: ServerErrors
    ) -> None:
        self._url = f"{url.rstrip('/')}/collections/{quote(collection, safe='')}/points"
        self._errors = errors
        self._client = httpx.Client(
            headers={"Content-Type": "application/json", **({"api-key": key} if key else {})},
            params={"wait": "true", "ordering": "medium"},
            timeout=timeout,
            verify=url.startswith("https"),  # loading the certificates takes its time
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        )

    def encode(self, batch: EmbeddedBatch, *, drop_text: bool) -> list[bytes | Fault]:
        """Each point as JSON with a comma before it, or why there is none."""
        sparse = batch.sparse or [None] * len(batch.chunks)
        encoded: list[bytes | Fault] = []
        document, metadata = None, b""
        rows = np.ascontiguousarray(batch.dense, dtype=np.float32)
        for chunk, dense, terms in zip(batch.chunks, rows, sparse, strict=True):
            try:
                if chunk.document is not document:
                    document, metadata = None, encode_metadata(chunk.document.metadata)
                    document = chunk.document
                vector = orjson.dumps(dense, option=orjson.OPT_SERIALIZE_NUMPY)
                encoded.append(
                    b',{"id":"%b","vector":%b,"payload":{"id":%b,"chunk":%d,"chunks":%d,"text":%b,"digest":"%b",'
                    b'"metadata":%b}}'
                    % (
                        point_id(document.id, chunk.number).encode(),
                        vector if terms is None else _named_vectors(vector, terms),
                        orjson.dumps(document.id),
                        chunk.number,
                        document.chunks,
                        b'""' if drop_text else orjson.dumps(chunk.text),
                        document.digest.hex().encode(),
                        metadata,
                    )
                )
            except RejectedError as error:
                encoded.append(Fault(error.kind, str(error)))
            except TypeError as error:
                encoded.append(Fault("payload", f"the document cannot be written as JSON: {error}"))
        return encoded

    def send(self, wire: Sequence[bytes]) -> str:
        """One request on the wire; the status that the server gives the write.

        Raises:
            TransientError, RejectedError, TerminalError: as the contract of stores says.
        """
        body = b"".join((_HEAD, memoryview(wire[0])[1:], *wire[1:], _TAIL))
        try:
            answer = self._client.put(self._url, content=body)
        except httpx.HTTPError as error:
            raise self._errors.of(error) from None
        if answer.status_code != 200:
            raise self._errors.of_status(answer.status_code, answer.headers, answer.content)
        try:
            return _decode(answer.content).result.status
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise self._errors.unreadable() from None

    def close(self) -> None:
        self._client.close()


def _named_vectors(dense: bytes, terms: Any) -> bytes:
    sparse = orjson.dumps({"indices": terms.indices, "values": terms.values})
    return b'{"%b":%b,"%b":%b}' % (DENSE.encode(), dense, SPARSE.encode(), sparse)
