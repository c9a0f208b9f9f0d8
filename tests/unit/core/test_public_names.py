from __future__ import annotations

import inspect

import pytest

import ragingest


def test_every_public_name_exists_once_and_nothing_else_is_public() -> None:
    assert len(set(ragingest.__all__)) == len(ragingest.__all__)
    offered = {
        name for name, value in vars(ragingest).items() if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert offered | {"__version__"} == set(ragingest.__all__)


@pytest.mark.parametrize("name", [name for name in ragingest.__all__ if name != "__version__"])
def test_every_public_name_is_documented_in_its_own_words(name: str) -> None:
    value = getattr(ragingest, name)
    assert callable(value)
    assert (vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__ or "").strip()
    if inspect.isclass(value):
        for method, function in inspect.getmembers(value, inspect.isfunction):
            if not method.startswith("_") and function.__qualname__ == f"{name}.{method}" and method in _PROMISED:
                assert inspect.getdoc(function)


_PROMISED = {"process", "batch_stream", "wait_for_memory", "acquire", "load", "save", "lock", "archive", "jobs"}


def test_the_version_is_a_release_number() -> None:
    assert [part.isdigit() for part in ragingest.__version__.split(".")[:2]] == [True, True]
