"""Reading and changing a server in another process."""

from __future__ import annotations

import urllib.request
from typing import Any, TypeVar

import msgspec

from tests.servers.books import Books
from tests.servers.config import Control

__all__ = ["control", "post_json", "read_books", "read_json"]

T = TypeVar("T")


def read_json(url: str, kind: type[T]) -> T:
    with urllib.request.urlopen(url) as answer:  # noqa: S310 - the URL is the test's own server
        return msgspec.json.decode(answer.read(), type=kind)


def post_json(url: str, content: object) -> None:
    request = urllib.request.Request(url, data=msgspec.json.encode(content), method="POST")  # noqa: S310 - as above
    with urllib.request.urlopen(request):  # noqa: S310 - as above
        pass


def read_books(url: str) -> Books:
    """The books of the embedding service."""
    return read_json(f"{url}/_books", Books)


def control(url: str, **changes: Any) -> None:
    """Change the embedding service; the names are those of `Control`."""
    post_json(f"{url}/_control", msgspec.convert(changes, Control, from_attributes=True))
