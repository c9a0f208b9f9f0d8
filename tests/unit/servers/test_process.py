from __future__ import annotations

import os
import sys

import msgspec
import pytest

from tests.servers.faults import status
from tests.servers.openai_api import ServerConfig, control, digest_of, read_books
from tests.servers.process import ServerProcess
from tests.unit.servers.client import embed, send

MODULE = "tests.servers.openai_api"


def test_a_server_in_a_process_serves_and_shows_its_books() -> None:
    config = '{"rpm": 2, "script": [{"kind": "status", "status": 503}, null], "poison": "venom"}'
    with ServerProcess(MODULE, ["--port", "0", "--config", config]) as server:
        assert server.url.startswith("http://127.0.0.1:")
        statuses = [embed(server.url, text).status for text in ("one", "one", "venom", "one", "one")]
        assert statuses == [503, 200, 400, 200, 429]
        control(server.url, rpm=None)
        assert embed(server.url, "one").status == 200
        control(server.url, script=[status(500)])
        assert embed(server.url, "one").status == 500
        control(server.url, odds=[(1.0, status(502))])
        assert embed(server.url, "one").status == 502
        books = read_books(server.url)
        assert books.times_answered == {digest_of("one"): 3}
        assert books.by_status == {"503": 1, "200": 3, "400": 1, "429": 1, "500": 1, "502": 1}
        assert books.busiest(60) == (3, 3)
    assert server.returncode == 0


def test_a_killed_server_is_gone() -> None:
    with ServerProcess(MODULE) as server:
        server.kill()
        with pytest.raises(ConnectionRefusedError):
            send(server.url, "/_books", method="GET")


def test_a_server_that_does_not_start_says_why() -> None:
    with pytest.raises(RuntimeError, match="unknown field `rps`"):
        with ServerProcess(MODULE, ["--config", '{"rps": 2}']):
            raise AssertionError("it never gets here")


@pytest.mark.parametrize(("wanted", "expected"), [({0}, {0}), ({99_999}, set())])
def test_a_server_is_pinned_to_the_cpus_that_there_are(wanted: set[int], expected: set[int]) -> None:
    with ServerProcess(MODULE, cpus=wanted) as server:
        if sys.platform == "linux":
            expected &= os.sched_getaffinity(0)
            assert server.pinned == expected
            assert os.sched_getaffinity(server.pid) == (expected or os.sched_getaffinity(0))
        else:
            assert server.pinned == frozenset()


def test_control_knows_no_other_words() -> None:
    with pytest.raises(msgspec.ValidationError, match="rps"):
        control("http://127.0.0.1:1", rps=3)


def test_the_settings_are_json_and_back() -> None:
    config = ServerConfig(rpm=3, script=[None, status(500)], odds=[(0.5, status(503))])
    assert msgspec.json.decode(msgspec.json.encode(config), type=ServerConfig) == config
