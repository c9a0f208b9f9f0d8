"""Between ragingest and its servers: latency, resets, half-open connections, a narrow line, no name, no TLS."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from tests.api.running import Place, make
from tests.servers.fault_proxy import CUT, HALF_OPEN, REFUSED, FaultProxy, Weather

COUNT = 400
FINE = Weather()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with Place.opened(tmp_path) as place:
        yield place


def arguments(place: Place, url: str, *more: str) -> list[str]:
    given = place.arguments(make(COUNT), *more)
    given[given.index("--base-url") + 1] = url
    return given


@pytest.mark.parametrize(
    "weather",
    [
        [Weather(latency=0.05)],
        [Weather(bandwidth=200_000)],
        [REFUSED, REFUSED, CUT, FINE],
        [CUT, FINE, CUT, REFUSED, CUT, FINE],
        [HALF_OPEN, CUT, HALF_OPEN, FINE],
    ],
    ids=["slow", "narrow", "resets", "cut", "half-open"],
)
def test_through_a_bad_network_everything_arrives(place: Place, weather: list[Weather]) -> None:
    records = make(COUNT)
    with FaultProxy(place.server.url, weather) as proxy:
        done = place.command.json(*arguments(place, f"{proxy.url}/v1", "--timeout", "3"))
    assert (done.counters["stored"], done.counters["rejected"]) == (COUNT, 0)
    place.check_stored(records)


def test_a_line_of_ten_kilobytes_a_second_is_slow_and_no_fault(place: Place) -> None:
    records = make(60)
    given = place.arguments(records)
    with FaultProxy(place.server.url, [Weather(bandwidth=10_000)]) as proxy:
        given[given.index("--base-url") + 1] = f"{proxy.url}/v1"
        done = place.command.json(*given)
    assert done.counters["stored"] == 60
    assert place.check_books(done)["requests"] == 2


def test_a_server_that_falls_silent_is_given_up_in_time_and_taken_up_again(place: Place) -> None:
    records = make(COUNT)
    with FaultProxy(place.server.url, [Weather(cut_after=15_000), HALF_OPEN]) as proxy:
        given = arguments(
            place, f"{proxy.url}/v1", "--timeout", "0.2", "--give-up-after", "1", "--dimensions", "16"
        )
        told = place.command(*given, code=4)
    assert "did not answer within 0.2 s" in told.said
    assert "ragingest resume j" in told.said
    with FaultProxy(place.server.url) as mended:
        given[given.index("--base-url") + 1] = f"{mended.url}/v1"
        done = place.command.json(*given, "--fresh")
    assert done.counters["stored"] == COUNT
    place.check_stored(records)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://no-such-host.invalid/v1", "no-such-host.invalid"),
        (f"http://127.0.0.1:{free_port()}/v1", "cannot be reached"),
    ],
    ids=["no name", "nobody there"],
)
def test_an_address_where_nobody_is_ends_the_run_with_a_sentence(place: Place, url: str, told: str) -> None:
    said = place.command(*arguments(place, url, "--give-up-after", "0.5"), code=4).said
    assert told in said
    assert "resume" in said


def test_no_tls_where_it_is_spoken_ends_the_run_at_once(place: Place) -> None:
    url = place.server.base_url.replace("http://", "https://")
    said = place.command(*arguments(place, url), code=4).said
    assert "TLS" in said
    assert "https or http" in said


def test_a_certificate_that_nobody_vouches_for_ends_the_run_at_once(
    place: Place, self_signed: tuple[Path, Path]
) -> None:
    with FaultProxy(place.server.url, tls=self_signed) as proxy:
        url = proxy.url.replace("http://", "https://").replace("127.0.0.1", "localhost")
        said = place.command(*arguments(place, f"{url}/v1"), code=4).said
        assert "certificate" in said
        trusting = {"SSL_CERT_FILE": str(self_signed[0])}
        anew = replace(place.command, start=subprocess.Popen)  # certificates are read when aiohttp is imported
        done = anew(*arguments(place, f"{url}/v1", "--json"), environment=trusting)
    assert done.counters["stored"] == COUNT


@pytest.fixture
def self_signed(tmp_path: Path) -> tuple[Path, Path]:
    """Certificate and key for localhost that the system's authorities know nothing of."""
    ca = trustme.CA()
    issued = ca.issue_cert("localhost", "127.0.0.1")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    issued.private_key_pem.write_to_path(str(key))
    for blob in issued.cert_chain_pems:
        blob.write_to_path(str(certificate), append=True)
    ca.cert_pem.write_to_path(str(certificate), append=True)
    return certificate, key
