"""Contestants against each other: by turns (A B A B), on the same machine, into the same server, in the same run.

The servers have a core of their own, the client and all processes it starts have another. A contestant is a command;
what it took is that of the whole process, its children included. Its rate counts from its first request on the
wire to its end, so without the start of the interpreter, but with all that it writes last. CPU a document is
given with the start and without it: the start is what the same command takes for a corpus of 100 texts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.corpora import passages, write_lines
from benchmarks.measure import Cores, Spread, run, scratch
from benchmarks.qdrant_sink import read_sink
from tests.servers.process import ServerProcess
from tests.servers.remote import control, read_books

__all__ = ["Contestant", "Stage", "Turn", "compare", "ratio", "stage"]

SERVER = "tests.servers.openai_api"
SINK = "benchmarks.qdrant_sink"
WARM_UP = 100


@dataclass(frozen=True)
class Stage:
    """Servers that run, and corpora of so many passages of 622 characters."""

    url: str
    sink: str
    cores: Cores
    folder: Path
    corpora: dict[int, Path] = field(default_factory=dict)

    def corpus(self, texts: int) -> Path:
        if texts not in self.corpora:
            self.corpora[texts] = write_lines(self.folder / f"{texts}.jsonl", passages(texts))
        return self.corpora[texts]

    def set_latency(self, milliseconds: float) -> None:
        control(self.url, latency=milliseconds / 1000)


class Contestant(NamedTuple):
    """`command` makes the command of a stage and a corpus; `stored` counts the documents in what it printed."""

    name: str
    command: Callable[[Stage, Path], list[str]]
    stored: Callable[[str], int] = lambda said: int(json.loads(said.splitlines()[-1])["stored"])


class Turn(NamedTuple):
    """What one turn took: seconds, CPU seconds, bytes, requests to the embedding server, documents a second."""

    wall: float
    cpu: float
    peak: int
    requests: int
    rate: float
    net_cpu: float = 0.0
    """CPU seconds without the start."""


@contextmanager
def stage() -> Iterator[Stage]:
    """Both servers on their core, and this process beside them, out of the client's way."""
    cores = Cores.of_machine()
    before = os.sched_getaffinity(0)
    with ExitStack() as open_:
        server = open_.enter_context(ServerProcess(SERVER, cpus=cores.server))
        sink = open_.enter_context(ServerProcess(SINK, cpus=cores.server))
        folder = open_.enter_context(scratch())
        os.environ["OPENAI_API_KEY"] = "sk-test"
        os.environ["PYTHONPATH"] = os.pathsep.join(
            [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        )
        os.sched_setaffinity(0, cores.server)
        open_.callback(os.sched_setaffinity, 0, before)
        yield Stage(server.url, sink.url, cores, folder)


def take_turn(contestant: Contestant, on: Stage, texts: int) -> Turn:
    """Load the corpus once.

    Raises:
        SystemExit: it failed, or did not store every document.
    """
    corpus = on.corpus(texts)
    before, sunk = read_books(on.url), read_sink(on.sink).points
    with scratch() as folder:
        taken = run(contestant.command(on, corpus), folder, cpus=on.cores.client)
    after = read_books(on.url)
    sunk = read_sink(on.sink).points - sunk
    stored = contestant.stored(taken.stdout)
    if stored < texts or (sunk and sunk < texts):
        raise SystemExit(f"{contestant.name} stored {stored} of {texts} documents, {sunk} of them in the sink")
    began = after.accepted[len(before.accepted)].at
    return Turn(taken.wall, taken.cpu, taken.peak, after.requests - before.requests, texts / (taken.ended - began))


def compare(contestants: Sequence[Contestant], on: Stage, texts: int, turns: int) -> dict[str, dict[str, Any]]:
    """Let each load the corpus `turns` times, by turns; what each took, as medians and spread."""
    starts = {contestant.name: take_turn(contestant, on, WARM_UP).cpu for contestant in contestants}
    taken: dict[str, list[Turn]] = {contestant.name: [] for contestant in contestants}
    for _ in range(turns):
        for contestant in contestants:
            turn = take_turn(contestant, on, texts)
            taken[contestant.name].append(turn._replace(net_cpu=turn.cpu - starts[contestant.name]))
    return {
        name: {
            "docs_per_second": Spread.of([turn.rate for turn in some])._asdict(),
            "cpu_us": Spread.of([turn.cpu / texts * 1e6 for turn in some])._asdict(),
            "net_cpu_us": Spread.of([turn.net_cpu / (texts - WARM_UP) * 1e6 for turn in some])._asdict(),
            "start_cpu_seconds": round(starts[name], 2),
            "peak_mb": Spread.of([turn.peak / 1e6 for turn in some])._asdict(),
            "requests": Spread.of([turn.requests for turn in some])._asdict(),
            "seconds": Spread.of([turn.wall for turn in some])._asdict(),
            "turns": [turn._asdict() for turn in some],
        }
        for name, some in taken.items()
    }


def ratio(results: dict[str, dict[str, Any]], ours: str, theirs: str, figure: str) -> Spread:
    """Of a figure of the turns (`net_cpu`, `cpu`, `rate`, `peak`), turn by turn."""
    pairs = zip(results[ours]["turns"], results[theirs]["turns"], strict=True)
    return Spread.of([float(one[figure]) / float(other[figure]) for one, other in pairs])
