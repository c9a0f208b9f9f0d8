"""ragingest against what people use instead, from OpenAI's API into a Qdrant server: `make bench-peers`.

    python -m benchmarks.peer_contest PYTHON [TURNS] [TEXTS]

PYTHON is the interpreter of the environment of the peers; inside its folder is that of CocoIndex. Latency 0; the sink
counts points and drops them (`benchmarks.qdrant_sink`), so that what is measured is the client.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from benchmarks.api import OURS, ragingest
from benchmarks.contest import Contestant, Stage, compare, ratio, stage
from benchmarks.measure import Others, report

PEERS = {
    "LlamaIndex IngestionPipeline": "llamaindex.py",
    "LangChain index()": "langchain_index.py",
    "Haystack Pipeline": "haystack_pipeline.py",
    "CocoIndex App": "cocoindex_flow.py",
    "qdrant-client upload_points": "qdrant_upload.py",
}
APART = {"CocoIndex App": "cocoindex"}
# They would report their use and fetch lists of prices over the Internet.
OFFLINE = {
    "COCOINDEX_DISABLE_USAGE_TRACKING": "1",
    "HAYSTACK_TELEMETRY_ENABLED": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "true",
}
FOLDER = Path(__file__).parent / "peers"


def peer(name: str, python: Path) -> Contestant:
    interpreter = python.parents[1] / APART.get(name, "") / "bin" / python.name

    def command(on: Stage, corpus: Path) -> list[str]:
        return [str(interpreter), str(FOLDER / PEERS[name]), str(corpus), on.url, on.sink]

    return Contestant(name, command)


def ours() -> Contestant:
    inner = ragingest(OURS, "--store", "qdrant", "--no-spool")

    def command(on: Stage, corpus: Path) -> list[str]:
        return [*inner.command(on, corpus), "--url", on.sink]

    return inner._replace(command=command)


def main() -> None:
    python = Path(sys.argv[1]).absolute()
    turns = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    texts = int(sys.argv[3]) if len(sys.argv) > 3 else 10_000
    os.environ.update(OFFLINE)
    others = Others()
    with stage() as on:
        results = compare([ours(), *(peer(name, python) for name in PEERS)], on, texts, turns)
    ratios = {
        name: {
            figure: ratio(results, OURS, name, figure)._asdict() for figure in ("net_cpu", "cpu", "rate", "peak")
        }
        for name in PEERS
    }
    figures = {"texts": texts, "turns": turns, "contestants": results, "ratios": ratios}
    report("peers", {**figures, "others": others.share()})


if __name__ == "__main__":
    main()
