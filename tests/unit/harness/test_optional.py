"""The one door to heavy libraries: what is there comes through, what is not says how to get it."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from harness import optional
from harness.errors import DependencyMissing


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Put a module of the given text behind the door, under a name that no real library has."""

    def make(text: str) -> str:
        name = "probe_test_library"
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setitem(optional.LIBRARIES, name, optional.Library(name, "to test the door", f"pip install {name}"))
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    return make


def test_a_library_that_is_there_comes_through(library):
    assert optional.load(library("ANSWER = 42")).ANSWER == 42


def test_submodules_come_through_the_same_door():
    assert optional.load("onnxruntime.capi").__name__ == "onnxruntime.capi"


def test_a_missing_library_says_what_for_and_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # as if it were not installed
    with pytest.raises(DependencyMissing, match="cupy is needed to launch the plugin") as caught:
        optional.load("cupy", "to launch the plugin")
    assert caught.value.hint == "pip install 'probe-trt[gpu]'"


@pytest.mark.parametrize(
    "text",
    ["import no_such_module_of_theirs", "raise OSError('libcuda.so.1: cannot open shared object file')",
     "raise RuntimeError('built against NumPy 1')", "None.attribute"],
)  # fmt: skip
def test_a_library_that_does_not_load_is_missing_and_says_why(library, text):
    with pytest.raises(DependencyMissing, match="to test the door") as caught:
        optional.load(library(text))
    assert f"({type(caught.value.__cause__).__name__}: {caught.value.__cause__})" in str(caught.value)


def test_an_interrupt_during_an_import_stays_an_interrupt(library):
    with pytest.raises(KeyboardInterrupt):
        optional.load(library("raise KeyboardInterrupt"))


def test_every_library_says_what_is_lost_without_it():
    for name, entry in optional.LIBRARIES.items():
        assert entry.module == name
        assert entry.purpose.startswith(("to ", "for "))
        assert entry.install.startswith("pip install ")


def test_a_stand_in_comes_through_only_where_the_library_is_absent(library, monkeypatch):
    stand_in = library("ANSWER = 42")
    entry = optional.Library("tensorrt_rtx", "to test", "pip install x", stand_in=stand_in)
    monkeypatch.setitem(optional.LIBRARIES, "tensorrt_rtx", entry)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert optional.load("tensorrt_rtx").ANSWER == 42
    real = ModuleType("tensorrt_rtx")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", real)
    assert optional.load("tensorrt_rtx") is real


def test_a_library_that_is_here_and_broken_is_not_replaced(library, monkeypatch):
    broken = library("raise ImportError('no driver')")
    entry = optional.Library(broken, "to test", "pip install x", stand_in="json")
    monkeypatch.setitem(optional.LIBRARIES, broken, entry)
    with pytest.raises(DependencyMissing, match="no driver"):
        optional.load(broken)
