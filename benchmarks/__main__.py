"""Everything that docs/performance.md shows of speed, in some ten minutes: `make bench`.

    python -m benchmarks [NAME ...]

Runs the named benchmarks, or all of them, one after the other; then draws the plots and writes the tables.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

BENCHMARKS = ("reading", "api", "laws", "default_path", "keeping", "memory", "edge_growth", "resume", "own_cost")
ROOT = Path(__file__).parents[1]


def main() -> None:
    wanted = sys.argv[1:] or BENCHMARKS
    for name in wanted:
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=ROOT, check=True)
        print(f"{name}: {time.monotonic() - began:.0f} s\n", flush=True)
    for command in (["-m", "benchmarks.plots"], ["docs/generate.py"]):
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
