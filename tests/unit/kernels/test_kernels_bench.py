"""`probe kernels bench` without a GPU: what it makes of measured times, on the screen, in the session, on the page."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from harness.cuda.timing import Timing
from harness.errors import ParseError, UsageError
from kernels.manifest import BY_NAME
from probes.kernels import benching as kernel_benching
from probes.kernels.benching import Settings
from reports import units
from reports.readers import detect, kernel_bench

COPY = 3e12  # bytes a second of the pretended card
FACTS = SimpleNamespace(
    name="Pretended card", compute_capability=(9, 0), multiprocessors=132, clock_khz=1_755_000, l2_bytes=50 << 20,
    as_manifest=lambda: {"name": "Pretended card"},
)  # fmt: skip


def timing_of(nanoseconds):
    return Timing(
        nanoseconds, nanoseconds, nanoseconds, nanoseconds * 0.99, nanoseconds * 1.01, 20, 10, 4, 1 << 26, 50 << 20
    )


@pytest.fixture
def card(monkeypatch):
    """A card on which everything takes 40 us, and a large product 2 ms."""
    monkeypatch.setattr(kernel_benching.gpu, "get", lambda: SimpleNamespace(facts=FACTS))
    monkeypatch.setattr(kernel_benching.gpu, "clock_state", lambda device: {})
    monkeypatch.setattr(kernel_benching.gpu, "copy_bandwidth", lambda device: COPY)

    def measure(steps, arrays, *, effort):
        large = max(array.size for array in arrays.values()) == kernel_benching.PRODUCT**2
        return timing_of(2e6 if large else 4e4)

    monkeypatch.setattr(kernel_benching.timing, "measure", measure)
    monkeypatch.setattr(kernel_benching, "_torch", lambda wanted: (None, "no peers: none here"))


@pytest.fixture
def small(monkeypatch):
    """Products small enough for a test."""
    monkeypatch.setattr(kernel_benching, "PRODUCT", 64)


def test_a_bench_stands_beside_its_bound(card, small, tmp_path):
    done = kernel_benching.bench(Settings(("skip_layernorm",), "128x768 float16", out=tmp_path / "s"))
    (entry,) = done.document["kernel_bench"]
    spec = BY_NAME["skip_layernorm"]
    (case,) = (case for case in spec.bench if case.label == "128x768 float16")
    assert entry["bytes"] == spec.traffic(case)
    assert entry["bound_ns"] == pytest.approx(spec.traffic(case) / COPY * 1e9)
    assert (entry["bound_by"], entry["precision"]) == ("memory", "fp32")
    ((name, label, taken, _, bound, share, *_),) = kernel_benching.rows(done.document)
    assert (name, label) == ("skip_layernorm", "128x768 float16")
    assert taken.startswith("40")
    assert bound.endswith("memory")
    assert share == units.percent(entry["bound_ns"] / 4e4)
    page = done.report.read_text(encoding="utf-8")
    assert "128x768 float16" in page
    assert "Roofline" in page


def test_products_are_bound_by_what_a_large_product_reaches(card, small, tmp_path):
    done = kernel_benching.bench(Settings(("fully_connected",), "4096x768x3072 float16 bias", out=tmp_path / "s"))
    (entry,) = done.document["kernel_bench"]
    peak = done.document["roofs"]["flop_per_s"]["fp16"]
    assert peak == pytest.approx(2 * 64**3 / 2e-3)
    assert (entry["bound_by"], entry["precision"]) == ("compute", "fp16")
    assert entry["bound_ns"] == pytest.approx(2 * 4096 * 768 * 3072 / peak * 1e9)


def test_the_session_is_read_back(card, small, tmp_path):
    done = kernel_benching.bench(Settings(("skip_layernorm",), "128x768", out=tmp_path / "s"))
    path = done.session.raw / "kernel-bench.json"
    artifact = detect.read(path)
    assert artifact.kind == "kernel-bench"
    table = artifact.tables["kernel_bench"]
    assert len(table) == len(done.document["kernel_bench"]) == len(artifact.tables["roofline"])
    assert set(table["implementation"]) == {"probe"}
    assert json.loads((done.session.folder / "manifest.json").read_text())["notes"] == ["no peers: none here"]


def test_peers_are_rows_of_their_own(tmp_path):
    timing = timing_of(4e4).as_record()
    entry = {"operation": "gelu", "case": "4x8", "bytes": 100, "flop": 10, "precision": "fp32", "bound_ns": 2e4,
             "bound_by": "memory", "timing": timing, "peers": {"torch": timing_of(8e4).as_record()}}  # fmt: skip
    path = tmp_path / "b.json"
    path.write_text(json.dumps({"kernel_bench": [entry], "roofs": {"bytes_per_s": 1.0, "flop_per_s": {"fp32": 1.0}}}))
    table = kernel_bench.read(path).tables["kernel_bench"]
    assert dict(zip(table["implementation"], table["bound_pct"], strict=True)) == {"probe": 50.0, "torch": 25.0}


def test_a_broken_file_is_told(tmp_path):
    path = tmp_path / "b.json"
    path.write_text('{"kernel_bench": [{"case": 3}]}')
    with pytest.raises(ParseError, match="benchmark of probe's kernels"):
        detect.read(path)


def test_without_a_gpu_it_says_so_and_leaves_nothing(tmp_path, monkeypatch):
    def none():
        raise UsageError("there is no NVIDIA driver here")

    monkeypatch.setattr(kernel_benching.gpu, "get", none)
    with pytest.raises(UsageError, match="no NVIDIA driver"):
        kernel_benching.bench(Settings(out=tmp_path / "s"))
    assert not (tmp_path / "s").exists()
