"""Ranges: nothing without a tool, one call each with one, payloads by name where nvtx knows them."""

from __future__ import annotations

import os
import subprocess
import sys
import types

import numpy as np
import pytest

import fake_gpu
from harness import ranges
from places import FAKES, ROOT


class Domain:
    """What nvtx gives when a tool listens: remembers what it is told. `named`: payloads may be structures."""

    def __init__(self, named=True):
        self.told, self.named = [], named

    def get_event_attributes(self, message=None, color=None, category=None, payload=None):
        if isinstance(payload, np.ndarray) and not self.named:
            raise TypeError("Unsupported payload type")
        return (message, category, payload)

    def push_range(self, attributes):
        self.told.append(attributes)

    def pop_range(self):
        self.told.append("pop")


@pytest.fixture
def listen(monkeypatch):
    def make(domain):
        asked = []
        fake = types.SimpleNamespace(get_domain=lambda name: asked.append(name) or domain)
        monkeypatch.setitem(sys.modules, "nvtx", fake)
        monkeypatch.setattr(ranges, "load", lambda name: fake)
        ranges._domain.cache_clear()
        return asked

    yield make
    ranges._domain.cache_clear()


def test_ranges_nest_in_the_domain_probe(listen):
    domain = Domain()
    asked = listen(domain)
    with ranges.range("build"), ranges.range("layer", 3):
        pass
    ranges.push("by hand")
    ranges.pop()
    assert domain.told == [("build", None, None), ("layer", None, 3), "pop", "pop", ("by hand", None, None), "pop"]
    assert asked == ["probe"]
    assert ranges.listening()


def test_a_range_ends_when_its_work_fails(listen):
    domain = Domain()
    listen(domain)
    with pytest.raises(ValueError, match="work"), ranges.range("build"):
        raise ValueError("work")
    assert domain.told[-1] == "pop"


def test_a_prepared_range_is_described_once_and_entered_often(listen, monkeypatch):
    domain = Domain()
    listen(domain)
    marked = ranges.prepare("gemm", {"m": 5, "alpha": 0.5, "dtype": "float16"}, category="launch")
    monkeypatch.setattr(domain, "get_event_attributes", None)
    for _ in range(3):
        with marked:
            pass
    name, category, payload = domain.told[0]
    assert (name, category, len(domain.told)) == ("gemm", "launch", 6)
    assert (payload["m"], payload["alpha"], payload["dtype"]) == (5, 0.5, "float16")


def test_an_old_nvtx_gets_the_parameters_in_the_name(listen):
    domain = Domain(named=False)
    listen(domain)
    with ranges.range("gemm", {"m": 5, "dtype": "float16"}):
        pass
    assert domain.told[0] == ("gemm [m=5, dtype=float16]", None, None)


def test_without_a_tool_nothing_is_made(listen):
    listen(type("DummyDomain", (Domain,), {})())
    assert ranges.range("x") is ranges.prepare("x", {"n": 1}) is ranges.NOTHING
    with pytest.raises(ValueError, match="seen"), ranges.NOTHING:
        raise ValueError("seen")
    ranges.push("x")
    ranges.pop()
    assert not ranges.listening()


def test_without_nvtx_nothing_is_made():
    code = (
        "import sys; sys.modules['nvtx'] = None\nfrom harness import ranges\nassert ranges.range('x') is ranges.NOTHING"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_payload_holds_numbers_of_64_bits_and_texts():
    got = ranges.structure({"grid_x": 1, "seed": 2**64 - 1, "low": -(2**63), "scale": 0.5, "x": "in", "none": ""})
    assert got.shape == ()
    assert [got[name].item() for name in got.dtype.names] == [1, 2**64 - 1, -(2**63), 0.5, "in", ""]


def test_the_cost_is_measured_both_ways():
    cost = ranges.cost_ns(repeats=200, rounds=3)
    assert set(cost) == {"prepared", "named"}
    assert all(0 <= value < 1e6 for value in cost.values())


HEARD = """
from harness import ranges
assert ranges.listening()
with ranges.range("parse", 7):
    marked = ranges.prepare("gemm", {"m": 5, "dtype": "float16", "alpha": 0.5}, category="launch")
    for _ in range(2):
        with marked:
            pass
ranges.push("by hand")
ranges.pop()
cost = ranges.cost_ns(repeats=50, rounds=3)
assert cost["prepared"] > 0 and cost["named"] > 0
"""


def test_a_tool_hears_names_nesting_and_payloads(tmp_path):
    pytest.importorskip("nvtx")
    tool = fake_gpu.compile_fake(FAKES / "nvtx_tool.c", tmp_path / "tool.so")
    environment = {**os.environ, "NVTX_INJECTION64_PATH": str(tool), "NVTX_HEARD": str(tmp_path / "heard"),
                   "PYTHONPATH": str(ROOT)}  # fmt: skip
    subprocess.run([sys.executable, "-c", HEARD], check=True, env=environment)
    lines = [line.split() for line in (tmp_path / "heard").read_text().splitlines()]
    events = [line for line in lines if line[0] != "category" and line[-1] != "range"][:8]
    category = next(line[2] for line in lines if line[0] == "category")
    assert {line[1] for line in lines} == {"probe"}
    assert [line[0] for line in events] == ["push", "push", "pop", "push", "pop", "pop", "push", "pop"]
    assert events[0][-2:] == ["7", "parse"]
    assert [(line[2], line[-1]) for line in (events[1], events[3])] == [(category, "gemm")] * 2
    assert int(events[1][3]) not in (0, int(events[0][3])), (
        "the parameters were not handed over as a payload of their own"
    )
