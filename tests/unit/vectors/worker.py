"""A process that is there to be killed: puts and drops batches, and says so before and after each.

python -m tests.unit.vectors.worker PATH NAME spool|cache
"""

from __future__ import annotations

import os
import sys
from itertools import count
from pathlib import Path

from ragingest.checkpoint.vectors import PaidVectors
from tests.unit.vectors.support import MODEL, digests, put

BATCH = 30
DIMENSIONS = 64


def texts(name: str, batch: int) -> list[bytes]:
    """Half of them are those of every other name."""
    return digests(f"{name if number % 2 else ''} {batch} {number}" for number in range(BATCH))


def main() -> None:
    path, name, use = sys.argv[1:]
    paid = PaidVectors(Path(path), MODEL, DIMENSIONS, use == "cache")
    for batch in count():
        put(paid, texts(name, batch))
        tell("put", batch)
        if batch % 3 == 2:
            tell("dropping", batch - 1)
            paid.drop(texts(name, batch - 1))
            paid.sync()
            tell("dropped", batch - 1)


def tell(what: str, batch: int) -> None:
    os.write(1, f"{what} {batch}\n".encode())


if __name__ == "__main__":
    main()
