from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from tests.faults.small_disk import can_mount
from tests.servers.pinecone_server import IndexConfig, PineconeConfig, PineconeServer
from tests.servers.postgres import PostgresServer

if TYPE_CHECKING:
    from tests.servers.qdrant_server import QdrantServer

SHARED = Path(__file__).parents[2] / "shared" / "data"

FAULTS = Path(__file__).parent / "faults"

# Workers of pytest-xdist share the cores, and so do the threads that PyTorch would start in each.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How fast a machine is does not decide whether a test passes.
hypothesis.settings.register_profile(
    "ragingest", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("ragingest")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every-fault", action="store_true", help="try every step at which a run may die, not a third of them"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs the shared corpora where they are not, or a mount where that is not allowed."""
    if not config.getoption("--every-fault"):
        of_test: dict[str, list[pytest.Item]] = {}
        for item in items:
            if FAULTS in item.path.parents and item.path.name != "test_bad_inputs.py":
                of_test.setdefault(item.nodeid.partition("[")[0], []).append(item)
        passed_over = {
            case for cases in of_test.values() if len(cases) > 3 for number, case in enumerate(cases) if number % 3
        }
        config.hook.pytest_deselected(items=list(passed_over))
        items[:] = [item for item in items if item not in passed_over]
    for marker, possible in (("shared", SHARED.is_dir), ("mounts", can_mount)):
        left_out = [item for item in items if item.get_closest_marker(marker)]
        if left_out and not possible():
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if not item.get_closest_marker(marker)]


@pytest.fixture
def shared_data() -> Path:
    """The folder of the shared corpora; for tests that are marked `shared`."""
    return SHARED


@pytest.fixture
def sample_data() -> Path:
    return Path(__file__).parents[1] / "sample_data"


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A server for all tests of this process; each takes a schema of its own."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def qdrant() -> Iterator[QdrantServer]:
    """A Qdrant server on loopback; whoever uses it drops the collections that others have left."""
    from tests.servers.qdrant_server import QdrantServer  # slow to import, and most tests need none

    with QdrantServer() as server:
        yield server


@pytest.fixture(scope="session")
def pinecone() -> Iterator[PineconeServer]:
    """A server that many tests share: each with indexes of its own, or namespaces of the index `shared`."""
    with PineconeServer(PineconeConfig(indexes=[IndexConfig(name="shared", dimension=8)])) as server:
        yield server
