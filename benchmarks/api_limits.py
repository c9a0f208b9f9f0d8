"""How much of a server's limits a minute is used, and how rarely it has to refuse, with nothing set.

    python -m benchmarks.api_limits [MINUTES]

The command that people use, against the loopback server of the tests with windows of a true minute and its headers:
limited by requests, limited by tokens, and with half of the budget taken away in the middle. The three run at the same
time, each for so many minutes. Ends with an error if less than 95 % is used or more than 1 % of the requests get a 429.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.corpora import short_records
from benchmarks.measure import RAGINGEST, report, scratch
from tests.api.running import check_told
from tests.servers.books import Accepted
from tests.servers.openai_api import control, read_books
from tests.servers.process import ServerProcess

SERVER = "tests.servers.openai_api"
BATCH = 20
DIMENSIONS = 16
LATENCY = 0.2
MINUTE = 60.0
LEAST_USED = 0.95
MOST_REFUSED = 0.01


class Case(NamedTuple):
    name: str
    limits: dict[str, int]
    halved: bool = False


CASES = (
    Case("limited by requests", {"rpm": 600}),
    Case("limited by tokens", {"tpm": 200_000}),
    Case("half of the requests taken away", {"rpm": 600}, halved=True),
    Case("half of the tokens taken away", {"tpm": 200_000}, halved=True),
)


class Bench(threading.Thread):
    """One run of one case; `figures` when it has ended, or `failure`."""

    def __init__(self, case: Case, corpus: Path, folder: Path, minutes: float) -> None:
        super().__init__()
        self.case = case
        self.figures: dict[str, object] = {}
        self.failure: BaseException | None = None
        self._corpus = corpus
        self._folder = folder
        self._seconds = MINUTE * minutes

    def run(self) -> None:
        try:
            self.figures = self._measured()
        except BaseException as error:  # noqa: BLE001  # told by the thread that waits for this one
            self.failure = error

    def _measured(self) -> dict[str, object]:
        config = json.dumps({**self.case.limits, "window": MINUTE, "latency": LATENCY})
        with ServerProcess(SERVER, ["--config", config]) as server:
            process = self._start(server.url)
            while not read_books(server.url).accepted:
                time.sleep(0.05)
            began = time.monotonic()
            limits, halved_at = dict(self.case.limits), None
            if self.case.halved:
                time.sleep(self._seconds / 2)
                limits = {name: limit // 2 for name, limit in limits.items()}
                control(server.url, **limits)
                halved_at = time.monotonic()
            time.sleep(began + self._seconds - time.monotonic())
            process.send_signal(signal.SIGINT)
            said, _ = process.communicate()
            books = read_books(server.url)
        told = json.loads(said)["counters"]["books"]
        check_told(told, books)
        first = books.accepted[0].at
        if halved_at is None:
            spans = {"used after the first minute": (first + MINUTE, first + self._seconds, self.case.limits)}
        else:
            spans = {
                "used after the first minute": (first + MINUTE, halved_at, self.case.limits),
                "used of the half, a minute later": (halved_at + MINUTE, first + self._seconds, limits),
            }
        used = {name: _share(books.accepted, *span) for name, span in spans.items()}
        refused = books.limited / books.requests
        assert min(used.values()) >= LEAST_USED, used
        assert refused <= MOST_REFUSED, (books.limited, books.requests)
        return {
            **{name: round(share, 4) for name, share in used.items()},
            "requests": books.requests,
            "429s": f"{books.limited} ({refused:.2%})",
        }

    def _start(self, url: str) -> subprocess.Popen[bytes]:
        options = ("--embedder", "openai", "--base-url", f"{url}/v1", "--dimensions", str(DIMENSIONS))
        more = ("--store", "null", "--batch-size", str(BATCH), "--job", self.case.name.replace(" ", "-"))
        return subprocess.Popen(
            [*RAGINGEST, "run", str(self._corpus), *options, *more, "--json", "--quiet"],
            cwd=self._folder,
            stdout=subprocess.PIPE,
        )


def _share(accepted: list[Accepted], start: float, end: float, limits: dict[str, int]) -> float:
    """Part of what the limit allows between two moments of the server's clock, which is the machine's."""
    some = [request for request in accepted if start <= request.at < end]
    spent = len(some) if "rpm" in limits else sum(request.tokens for request in some)
    (limit,) = limits.values()
    return spent / (limit * (end - start) / MINUTE)


def main() -> None:
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 6.0
    os.environ["OPENAI_API_KEY"] = "sk-test"
    figures: dict[str, object] = {"minutes": minutes, "latency": LATENCY}
    with scratch() as folder:
        corpus = short_records(folder / "corpus.jsonl", round(1.5 * minutes * 600 * BATCH))
        benches = [Bench(case, corpus, folder, minutes) for case in CASES]
        for bench in benches:
            bench.start()
        for bench in benches:
            bench.join()
            figures[bench.case.name] = bench.figures or repr(bench.failure)
    report("api_limits", figures)
    for bench in benches:
        if bench.failure is not None:
            raise bench.failure


if __name__ == "__main__":
    main()
