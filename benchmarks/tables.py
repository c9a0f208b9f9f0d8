"""What `benchmarks/results` holds, as the tables of docs/performance.md. Measures nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

from benchmarks.measure import RESULTS

__all__ = ["TABLES"]

HEADINGS = {"net_cpu": "CPU", "rate": "rate", "peak": "memory"}


def _load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n" + "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _ratio(spread: dict[str, float]) -> str:
    return f"**{spread['median']:.2f}** ({spread['low']:.2f} to {spread['high']:.2f})"


def _taken(*names: str) -> str:
    """On which machine, and how busy it was with other things."""
    found = [_load(name) for name in names]
    busy = max(one["others"] for one in found)
    machine = f"{found[0]['cores']} cores, Python {found[0]['python']}"
    return f"\nTaken on {machine}; other work had {100 * busy:.0f} % of the machine meanwhile.\n\n"


def _contestants(results: dict[str, Any], ratios: dict[str, Any]) -> list[list[object]]:
    rows: list[list[object]] = []
    for name, of in results.items():
        row: list[object] = [name, _number(of["net_cpu_us"]["median"]), _number(of["docs_per_second"]["median"])]
        row += [_number(of["peak_mb"]["median"]), _number(of["requests"]["median"])]
        row += [_ratio(ratios[name][figure]) if name in ratios else "" for figure in HEADINGS]
        rows.append(row)
    return rows


COLUMNS = ["CPU us a document", "documents a second", "peak MB", "requests"]
OURS_TO_IT = [f"ragingest's {figure} to its" for figure in HEADINGS.values()]


def api() -> str:
    rows = [
        [f"{found['latency_ms']} ms", *row]
        for found in _load("api")["rounds"]
        for row in _contestants(found["contestants"], found["ratios"])
    ]
    return _table(["latency", "client", *COLUMNS, *OURS_TO_IT], rows) + _taken("api")


def parts() -> str:
    found = _load("parts")
    lists = [[*of.items(), ("in all", sum(of.values()))] for of in (found["ragingest"], found["bare"])]
    rows = [
        [cell for part in line for cell in (part[0], _number(part[1]) if part[0] else "")]
        for line in zip_longest(*lists, fillvalue=("", 0.0))
    ]
    return _table(["ragingest", "CPU us a text", "bare, the same points", "CPU us a text"], rows) + _taken("parts")


def peers() -> str:
    found = _load("peers")
    rows = _contestants(found["contestants"], found["ratios"])
    return _table(["client", *COLUMNS, *OURS_TO_IT], rows) + _taken("peers")


def default_path() -> str:
    rows = []
    for name in ("default_path_passages", "default_path_wordnet"):
        if not (RESULTS / f"{name}.json").exists():
            continue
        of = _load(name)
        rows.append(
            [
                f"{of['corpus']} ({of['records']:,})",
                _number(of["records_per_second"]["median"]),
                _number(of["three_steps_per_second"]["median"]),
                _ratio(of["ratio"]),
                _number(of["cpu_us"]["median"]),
                f"{_number(of['cpu_us_embedding']['median'])} + {_number(of['cpu_us_upserting']['median'])}",
                _number(of["peak_mb"]["median"]),
            ]
        )
    head = [
        "corpus",
        "records a second",
        "the three steps alone",
        "share",
        "CPU us a record",
        "of the steps",
        "peak MB",
    ]
    return _table(head, rows) + _taken("default_path_passages")


def memory() -> str:
    paths = _load("memory")["paths"]
    sizes = [row["documents"] for row in next(iter(paths.values()))]
    rows = [[name, *(f"{row['peak_mb']:.0f} MB" for row in of)] for name, of in paths.items()]
    return _table(["path", *(f"{size:,} documents" for size in sizes)], rows) + _taken("memory")


def keeping() -> str:
    found = _load("keeping")
    shares = found.get("share_of_such_a_run", [])
    rows = [
        [
            f"{row['documents']:,}",
            row["cpu_us"],
            f"{row['seconds']:.2f} s",
            f"{100 * share:.1f} %",
            f"{row['checkpoint_bytes']:,}",
            row["ledger_bytes_a_document"],
        ]
        for row, share in zip(found["ragingest"], shares, strict=True)
    ]
    head = [
        "documents",
        "CPU us a document",
        "in all",
        "of a run over an API",
        "checkpoint, bytes",
        "ledger, bytes a document",
    ]
    theirs = [[f"{row['documents']:,}", row["seconds_us"], f"{row['seconds']:.2f} s"] for row in found["tutorials"]]
    second = _table(["documents", "us a document", "in all"], theirs)
    return f"{_table(head, rows)}\nThe list of all ids, written as JSON after each batch of 100:\n{second}{_taken('keeping')}"


def edge_growth() -> str:
    rows = []
    names = [f"edge_growth_{dimensions}" for dimensions in (384, 1536)]
    names = [name for name in names if (RESULTS / f"{name}.json").exists()]
    for name in names:
        found = _load(name)
        of = next(iter(found["settings"].values()))
        first, last = of["steps"][0], of["steps"][-1]
        rows.append(
            [
                f"{found['points']:,} x {found['dimensions']}",
                _number(first["rate"]),
                _number(last["rate"]),
                f"**{of['last_to_first']:.2f}** ({of['last_to_first_cpu']:.2f})",
                _number(last["anonymous_mb"]),
                _number(last["mapped_mb"]),
                _number(last["disk_mb"]),
                of["seconds_to_close_and_open"],
            ]
        )
    head = [
        "points",
        "a second, first tenth",
        "last tenth",
        "last to first (by CPU)",
        "anonymous MB",
        "mapped MB",
        "disk MB",
    ]
    return _table([*head, "to open again, s"], rows) + _taken(*names)


def edge_settings() -> str:
    found = _load("edge_settings_384")
    rows = []
    for name, of in found["settings"].items():
        last = of["steps"][-1]
        cpu = sum(step["cpu_us"] for step in of["steps"]) / len(of["steps"])
        rows.append(
            [
                name,
                _number(cpu),
                f"{of['last_to_first_cpu']:.2f}",
                _number(last["anonymous_mb"]),
                _number(last["mapped_mb"]),
                _number(last["disk_mb"]),
                of["seconds_to_close_and_open"],
            ]
        )
    head = [
        "setting",
        "CPU us a point",
        "last to first, by CPU",
        "anonymous MB",
        "mapped MB",
        "disk MB",
        "to open again, s",
    ]
    return f"\n{found['points']:,} points of {found['dimensions']} dimensions:\n" + _table(head, rows) + "\n"


def reading() -> str:
    rows = []
    for of in _load("reading")["files"]:
        rates = of["mb_per_cpu_second"]
        rows.append(
            [
                f"{of['file']} ({of['mb']:.0f} MB)",
                f"{of['library']}: {_number(rates[of['library']]['median'])}",
                _number(rates["records"]["median"]),
                _ratio(of["ratios"]["records"]),
                _number(rates["documents"]["median"]),
                _ratio(of["ratios"]["documents"]),
            ]
        )
    head = ["file", "the library alone, MB/s", "records, MB/s", "share", "documents, MB/s", "share"]
    return _table(head, rows) + _taken("reading")


def laws() -> str:
    found = _load("laws")
    example = found["example"]
    latency = _table(
        ["latency", "documents a second", "requests"],
        [[f"{row['latency_ms']} ms", _number(row["docs_per_second"]), row["requests"]] for row in found["latency"]],
    )
    size = _table(
        ["texts a request, at most", "documents a second", "requests"],
        [[row["texts_a_request"], _number(row["docs_per_second"]), row["requests"]] for row in found["size"]],
    )
    concurrency = _table(
        ["requests at once, at most", "documents a second", "the bare client with as many"],
        [
            [row["requests_at_once"], _number(row["docs_per_second"]), _number(row["bare_docs_per_second"])]
            for row in found["concurrency"]
        ],
    )
    told = (
        f"\n{example['documents']:,} documents at {example['latency_ms']} ms a request: one at a time "
        f"{example['one_at_a_time_seconds']:.1f} s; ragingest, nothing set, {example['ragingest_seconds']:.2f} s, of which "
        f"{example['of_them_from_the_first_request']:.2f} s from the first of its {example['requests']} requests.\n"
    )
    return f"{latency}{size}{concurrency}{told}{_taken('laws')}"


TABLES: dict[str, Callable[[], str]] = {
    "bench-api": api,
    "bench-parts": parts,
    "bench-peers": peers,
    "bench-default-path": default_path,
    "bench-memory": memory,
    "bench-keeping": keeping,
    "bench-edge-growth": edge_growth,
    "bench-edge-settings": edge_settings,
    "bench-reading": reading,
    "bench-laws": laws,
}
