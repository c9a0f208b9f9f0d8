"""Texts, and tokenizers that make at most one token of a byte."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

_WORDS = re.findall(
    r"\w+",
    "the a of and in to that which harbour lantern morning quietly between stone river walked carried letters "
    "before evening because weather several remember distance mountain nothing window against colour people",
)

_PIECES = re.compile(r" ?[a-z]{1,6}|.", re.DOTALL)


def prose(words: int, seed: int) -> str:
    """Sentences of small words, about 6 bytes each."""
    source = random.Random(seed)  # noqa: S311  # repeatable, not secret
    return " ".join(source.choice(_WORDS) for _ in range(words)) + "."


def noise(characters: int, seed: int) -> str:
    """Hexadecimal digits, which compress to half."""
    return random.Random(seed).randbytes(characters // 2).hex()  # noqa: S311  # repeatable, not secret


def tokens_of_prose(text: str) -> int:
    """Up to six small letters a token, else a byte a token: never more than bytes."""
    return sum(1 if piece.isascii() else len(piece.encode()) for piece in _PIECES.findall(text))


def tokens_are_bytes(text: str) -> int:
    return len(text.encode())


def tokens_by_share(share: float) -> Callable[[str], int]:
    """A tokenizer that makes `share` of the bytes, at least one token of a text."""
    return lambda text: max(1, int(share * len(text.encode()))) if text else 0


def write_records(path: Path, texts: Sequence[str]) -> Path:
    """JSON Lines with ids d0, d1, ..."""
    lines = [msgspec.json.encode({"id": f"d{number}", "text": text}) for number, text in enumerate(texts)]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path
