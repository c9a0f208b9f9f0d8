"""The embedded store as it grows: rate, memory and disk for each further tenth of a load, under several settings.

    python -m benchmarks.edge_growth [POINTS] [DIMENSIONS] [SETTING ...]

Points with BM25 vectors and texts of 622 characters go into `QdrantEdgeStore` in a process of its own, 256 an upsert, as
the store's own process does it; making vectors and terms is not in the rate. A flush comes every 50,000 points.
Without SETTING only `as it is`; with `all` every one of `SETTINGS`, which change the engine's configuration.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import qdrant_edge as edge

from benchmarks.corpora import passages
from benchmarks.measure import Others, report, scratch
from ragingest.embedders.bm25 import BM25
from ragingest.protocols import CollectionSpec
from ragingest.stores import qdrant_edge
from ragingest.stores.columns import Columns
from ragingest.stores.qdrant_edge import QdrantEdgeStore
from ragingest.stores.qdrant_layout import SPARSE

BATCH = 256
FLUSH = 50_000
STEPS = 10
DIFFERENT_TEXTS = 20 * BATCH
Config = Callable[[CollectionSpec], edge.EdgeConfig]


class Setting(NamedTuple):
    """How the shard is created, and after how many points a segment is closed."""

    config: Config = qdrant_edge._config
    segment_points: int = qdrant_edge.SEGMENT_POINTS


def _config(spec: CollectionSpec, **changes: Any) -> edge.EdgeConfig:
    """The engine's own choices, but for the graph, and for `changes`."""
    vectors = edge.EdgeVectorParams(spec.dimensions, edge.Distance.Cosine, memory=changes.pop("vectors", None))
    words = edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf, memory=changes.pop("words", None))
    graph = edge.HnswIndexConfig(m=0, ef_construct=100, full_scan_threshold=10_000)
    return edge.EdgeConfig(vectors, {SPARSE: words}, hnsw_config=graph, **changes)


NEVER = sys.maxsize
SETTINGS = {
    "as it is": Setting(),
    "segments of 50,000 points": Setting(segment_points=50_000),
    "segments of 20,000 points": Setting(segment_points=20_000),
    "one segment, never closed": Setting(_config, NEVER),
    "the same, without a log": Setting(lambda spec: _config(spec, wal_enabled=False), NEVER),
    "the same, vectors cold": Setting(lambda spec: _config(spec, vectors=edge.Memory.Cold), NEVER),
    "the same, words cold": Setting(lambda spec: _config(spec, words=edge.Memory.Cold), NEVER),
    "the same, payload cached": Setting(lambda spec: _config(spec, payload_memory=edge.Memory.Cached), NEVER),
}


class Step(msgspec.Struct):
    """After so many points: points a second since the step before, and what the process and its folder hold then."""

    points: int
    rate: float
    cpu_us: float
    flush_seconds: float
    anonymous_mb: float
    mapped_mb: float
    disk_mb: float


def batches(points: int, dimensions: int) -> Iterator[Columns]:
    records = [json.loads(record) for record in passages(DIFFERENT_TEXTS)]
    encode = BM25().encode
    terms = [(vector.indices, vector.values) for vector in encode([record["text"] for record in records])]
    dice = np.random.default_rng(1)
    for start in range(0, points, BATCH):
        count = min(BATCH, points - start)
        first = start % DIFFERENT_TEXTS
        some = records[first : first + count]
        yield Columns(
            [f"doc-{number:08}" for number in range(start, start + count)],
            [0] * count,
            [1] * count,
            [record["text"] for record in some],
            [f"{number:048x}" for number in range(start, start + count)],
            [record["metadata"] for record in some],
            dice.standard_normal((count, dimensions), dtype=np.float32),
            terms[first : first + count],
        )


def fill(points: int, dimensions: int, setting: str) -> Iterator[Step]:
    """Load one collection in the working directory; what each tenth took."""
    for name, value in zip(("_config", "SEGMENT_POINTS"), SETTINGS[setting], strict=True):
        setattr(qdrant_edge, name, value)  # only in this process
    store = QdrantEdgeStore(Path("data"), "documents")
    store.prepare(CollectionSpec(dimensions, True, "noise", "none"))
    done, step_done, seconds, cpu, flushing = 0, 0, 0.0, 0.0, 0.0
    step = points // STEPS
    for columns in batches(points, dimensions):
        began, cpu_began = time.perf_counter(), time.process_time()
        store.upsert_columns(columns)
        before, done = done, done + len(columns.ids)
        if before // FLUSH != done // FLUSH:
            flush_began = time.perf_counter()
            store.flush()
            flushing += time.perf_counter() - flush_began
        seconds += time.perf_counter() - began
        cpu += time.process_time() - cpu_began
        if done - step_done >= step or done == points:
            count = done - step_done
            yield Step(done, count / seconds, cpu / count * 1e6, flushing, *_held())
            step_done, seconds, cpu, flushing = done, 0.0, 0.0, 0.0
    began = time.perf_counter()
    store.close()
    store.open()
    assert store.count() == points
    opening = time.perf_counter() - began
    store.close()
    yield Step(points, 0.0, 0.0, opening, *_held())


def _held() -> tuple[float, float, float]:
    status = Path("/proc/self/status").read_text()
    held = {
        line.split(":")[0]: int(line.split()[1]) / 1e3 for line in status.splitlines() if line.startswith("Rss")
    }
    disk = sum(path.stat().st_blocks * 512 for path in Path("data").rglob("*") if path.is_file())
    return held["RssAnon"], held["RssFile"], disk / 1e6


def measure(points: int, dimensions: int, setting: str) -> list[Step]:
    with scratch() as folder:
        command = [sys.executable, "-m", "benchmarks.edge_growth", "--one", str(points), str(dimensions), setting]
        said = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            check=True,
            capture_output=True,
        )
    return msgspec.json.decode(said.stdout, type=list[Step])


def main() -> None:
    points = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    dimensions = int(sys.argv[2]) if len(sys.argv) > 2 else 384
    wanted = sys.argv[3:] or ["as it is"]
    others = Others()
    rows = {}
    for setting in SETTINGS if wanted == ["all"] else wanted:
        *steps, reopened = measure(points, dimensions, setting)
        rows[setting] = {
            "last_to_first": round(steps[-1].rate / steps[0].rate, 3),
            "last_to_first_cpu": round(steps[0].cpu_us / steps[-1].cpu_us, 3),
            "seconds_to_close_and_open": round(reopened.flush_seconds, 2),
            "steps": [
                {name: round(value, 2) for name, value in msgspec.structs.asdict(step).items()} for step in steps
            ],
        }
        print(setting, rows[setting])
    name = f"edge_growth_{dimensions}" if len(rows) == 1 else f"edge_settings_{dimensions}"
    report(name, {"points": points, "dimensions": dimensions, "settings": rows, "others": others.share()})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        sys.stdout.write(msgspec.json.encode(list(fill(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))).decode())
    else:
        main()
