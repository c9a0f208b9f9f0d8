from __future__ import annotations

from collections.abc import Iterator

import httpx2
import openai
import pytest

from tests.servers.openai_api import EmbeddingsServer
from tests.unit.servers.client import Sdk


@pytest.fixture(scope="session")
def sdk() -> Iterator[Sdk]:
    """Makes the vendor's client of a server, without its retries; all share the costly part."""
    with httpx2.Client() as http:

        def connect(server: EmbeddingsServer) -> openai.OpenAI:
            return openai.OpenAI(api_key="sk-test", base_url=server.base_url, max_retries=0, http_client=http)

        yield connect
