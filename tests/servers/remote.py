"""The books and the settings of a server in another process."""

from __future__ import annotations

import urllib.request
from typing import Any

import msgspec

from tests.servers.books import Books
from tests.servers.config import Control

__all__ = ["control", "read_books"]


def read_books(url: str) -> Books:
    """The books of a server in another process."""
    with urllib.request.urlopen(f"{url}/_books") as answer:  # noqa: S310 - the URL is the test's own server
        return msgspec.json.decode(answer.read(), type=Books)


def control(url: str, **changes: Any) -> None:
    """Change a server in another process; the names are those of `Control`."""
    body = msgspec.json.encode(msgspec.convert(changes, Control, from_attributes=True))
    request = urllib.request.Request(f"{url}/_control", data=body, method="POST")  # noqa: S310 - as above
    with urllib.request.urlopen(request):  # noqa: S310 - as above
        pass
