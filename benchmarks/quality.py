"""How often search finds the passage that answers a question.

    python -m benchmarks.quality CORPUS QUESTIONS [COUNT]

QUESTIONS holds {"question", "doc_id"} a line. Documents are stored whole (--no-chunk).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.measure import ragingest, report, scratch
from ragingest.embedders import open_embedder
from ragingest.protocols import SearchMode
from ragingest.stores.qdrant_edge import QdrantEdgeStore


def main() -> None:
    corpus, questions = Path(sys.argv[1]).absolute(), Path(sys.argv[2])
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 1000
    asked = [json.loads(line) for line in questions.read_text().splitlines()[:count]]
    rows: dict[str, object] = {"corpus": corpus.name, "questions": len(asked)}
    with scratch() as folder:
        _, summary = ragingest(folder, "run", str(corpus), "--no-chunk")
        rows["documents"] = summary["counters"]["stored"]
        store = QdrantEdgeStore(folder / "ragingest_data", "documents")
        spec = store.open()
        embedder = open_embedder(spec.embedder, spec.dimensions)
        rows["points"] = store.count()
        modes: tuple[SearchMode, ...] = ("hybrid", "dense", "sparse")
        for mode in modes:
            places = []
            for item in asked:
                hits = store.search(embedder.embed_query(item["question"]), 10, mode)
                places.append(next((n for n, hit in enumerate(hits, 1) if hit.id == item["doc_id"]), 99))
            rows[mode] = {
                f"hit@{k}": round(sum(place <= k for place in places) / len(places), 3) for k in (1, 5, 10)
            }
        store.close()
    report(f"quality_{corpus.parent.name}_{corpus.suffix[1:]}", rows)


if __name__ == "__main__":
    main()
