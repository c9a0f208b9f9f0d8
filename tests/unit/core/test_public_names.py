from __future__ import annotations

import inspect

import pytest

import ragingest

LANGUAGE = {"Any", "TYPE_CHECKING"}


def test_every_public_name_exists_once_and_nothing_else_is_public() -> None:
    assert len(set(ragingest.__all__)) == len(ragingest.__all__)
    offered = {name for name in dir(ragingest) if not name.startswith("_")} - LANGUAGE
    offered = {name for name in offered if not inspect.ismodule(getattr(ragingest, name))}
    assert offered | {"__version__"} == set(ragingest.__all__)


def test_what_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        ragingest.nonsense  # noqa: B018


@pytest.mark.parametrize("name", [name for name in ragingest.__all__ if name != "__version__"])
def test_every_public_name_is_documented_in_its_own_words(name: str) -> None:
    value = getattr(ragingest, name)
    assert callable(value)
    own = vars(value)["__doc__"] if inspect.isclass(value) else value.__doc__
    assert own
    assert own.strip()


@pytest.mark.parametrize(
    "method",
    [
        ragingest.BatchProcessor.process,
        ragingest.StreamingBatcher.batch_stream,
        ragingest.ResourceManager.wait_for_memory,
        ragingest.ResourceManager.acquire,
        ragingest.CheckpointManager.load,
        ragingest.CheckpointManager.save,
        ragingest.CheckpointManager.lock,
    ],
    ids=lambda method: method.__qualname__,
)
def test_what_the_documents_show_is_documented_in_the_code(method: object) -> None:
    assert inspect.getdoc(method)


def test_the_version_is_a_release_number() -> None:
    assert [part.isdigit() for part in ragingest.__version__.split(".")[:2]] == [True, True]
