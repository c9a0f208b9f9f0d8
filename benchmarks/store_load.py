"""Many points with vectors of 1,536 dimensions and 2 KB of metadata into a store that fails three times in ten.

python -m benchmarks.store_load STORE [POINTS]

Ends with an error if a request is over a limit or fills less than 90 % of the one that binds, or if a point is
lost or there twice.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time

from benchmarks.measure import report, scratch
from benchmarks.store_targets import TARGETS
from ragingest.pacing.retries import patiently
from tests.loading import Load, load


def main() -> None:
    name = sys.argv[1]
    what = Load(int(sys.argv[2]) if len(sys.argv) > 2 else 100_000, dimensions=1536, metadata_bytes=2000)
    with scratch() as folder, TARGETS[name](folder) as target:
        store = target.store(True)
        patiently(store.prepare, what.spec)
        cpu, began = time.process_time(), time.perf_counter()
        done = load(store, what)
        store.flush()
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        limits = store.limits
        store.close()
        quiet = target.store(False)
        quiet.prepare(what.spec)
        what.check(quiet)
        quiet.close()
    points = [request.points for request in done.requests]
    sizes = [request.size for request in done.requests]
    fill = done.fill(limits)
    figures = {
        "points": what.points,
        "dimensions": what.dimensions,
        "metadata bytes": what.metadata_bytes,
        "faults": target.faults,
        "upserts": done.counters.upserts,
        "of them failed": done.counters.upserts_failed,
        "points in an upsert, at most": f"{max(points)} of {limits.max_points}",
        "bytes in an upsert, at most": f"{max(sizes)} of {limits.max_bytes}",
        "filled of the limit that binds": f"{statistics.median(fill):.3f}, at least {min(fill):.3f}",
        "points a second": round(what.points / wall),
        "CPU us a point": round(cpu / what.points * 1e6),
        "peak RSS MB": round(peak / 1000),
        "lost or twice": 0,
    }
    assert max(points) <= limits.max_points
    assert limits.max_bytes is None or max(sizes) <= limits.max_bytes
    assert min(fill) >= 0.9
    report(f"store_load_{name}", figures)


if __name__ == "__main__":
    main()
