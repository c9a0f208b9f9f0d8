"""Everything that docs/performance.md shows of speed, in half an hour: `make bench`.

    python -m benchmarks ["NAME [ARGUMENT ...]" ...]

Runs the named benchmarks, or `BENCHMARKS`, one after the other; then draws the plots and writes the tables. Larger numbers
are for arguments: `python -m benchmarks "memory 10000000" "keeping 10000000" "edge_growth 1000000 1536"`.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

BENCHMARKS = (
    "reading",
    "api",
    "parts",
    "laws",
    "default_path",
    "keeping 1000000",
    "memory 300000",
    "edge_growth 500000 384",
    "resume 300000",
)
ROOT = Path(__file__).parents[1]


def main() -> None:
    wanted = sys.argv[1:] or BENCHMARKS
    for name in wanted:
        began = time.monotonic()
        module, *arguments = name.split()
        subprocess.run([sys.executable, "-m", f"benchmarks.{module}", *arguments], cwd=ROOT, check=True)
        print(f"{name}: {time.monotonic() - began:.0f} s\n", flush=True)
    for command in (["-m", "benchmarks.plots"], ["docs/generate.py"]):
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
