"""What `benchmarks/results` holds, as pictures for docs/performance.md. Measures nothing.

python -m benchmarks.plots
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from benchmarks.measure import RESULTS

IMAGES = Path(__file__).parents[1] / "docs" / "images"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ragingest",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "figure.figsize": (5.2, 3.2),
    "legend.frameon": False,
}


def _load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def _save(name: str, x: str, y: str) -> None:
    plt.xlabel(x)
    plt.ylabel(y)
    if len(plt.gca().get_legend_handles_labels()[0]) > 1:
        plt.legend()
    IMAGES.mkdir(exist_ok=True)
    plt.tight_layout()
    plt.savefig(IMAGES / f"{name}.svg", metadata={"Date": None})
    plt.close()


def _ticks(values: list[float]) -> None:
    plt.xticks(values, [f"{value:,.0f}" for value in values])
    plt.minorticks_off()


def rate_by_latency() -> None:
    rows = _load("laws")["latency"]
    plt.plot([row["latency_ms"] for row in rows], [row["docs_per_second"] for row in rows], "o-")
    plt.ylim(bottom=0)
    _save("rate-by-latency", "latency of a request, ms", "documents a second")


def rate_by_size() -> None:
    found = _load("laws")
    sizes = [row["texts_a_request"] for row in found["size"]]
    plt.plot(sizes, [row["docs_per_second"] for row in found["size"]], "o-")
    plt.xscale("log")
    plt.ylim(bottom=0)
    _ticks(sizes)
    _save("rate-by-size", f"texts a request, at {found['size_latency_ms']} ms", "documents a second")


def rate_by_concurrency() -> None:
    found = _load("laws")
    rows = found["concurrency"]
    numbers = [row["requests_at_once"] for row in rows]
    law = [number * 100 / (found["concurrency_latency_ms"] / 1000) for number in numbers]
    plt.plot(numbers, law, ":", color="grey", label="100 texts x requests at once / latency")
    plt.plot(numbers, [row["bare_docs_per_second"] for row in rows], "s-", label="bare client")
    plt.plot(numbers, [row["docs_per_second"] for row in rows], "o-", label="ragingest")
    plt.xscale("log")
    plt.yscale("log")
    _ticks(numbers)
    _save("rate-by-concurrency", f"requests at once, at {found['concurrency_latency_ms']} ms", "documents a second")


def memory() -> None:
    for name, rows in _load("memory")["paths"].items():
        plt.plot([row["documents"] for row in rows], [row["peak_mb"] for row in rows], "o-", label=name)
    plt.xscale("log")
    plt.ylim(bottom=0)
    _save("memory", "documents", "peak anonymous memory, MB")


def keeping() -> None:
    found = _load("keeping")
    for name, label in (
        ("tutorials", "list of ids as JSON, after each batch"),
        ("ragingest", "ledger and checkpoint"),
    ):
        rows = found[name]
        plt.plot([row["documents"] for row in rows], [row["seconds"] for row in rows], "o-", label=label)
    plt.xscale("log")
    plt.yscale("log")
    _save("keeping", "documents", "seconds in all")


def main() -> None:
    mpl.use("svg")
    with mpl.rc_context(STYLE):
        for draw in (rate_by_latency, rate_by_size, rate_by_concurrency, memory, keeping):
            draw()


if __name__ == "__main__":
    main()
