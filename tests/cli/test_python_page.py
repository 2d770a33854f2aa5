"""The page on using probe from Python: its code runs as it stands, and every table is described as it is."""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest

from places import DATA, ROOT
from reports.columns import TABLES
from small_models import planted_chain

TRACE = DATA / "nsys" / "h100_trt86_myelin_2025.3.sqlite.gz"
SCALE = """extern "C" __global__ void scale(const float* x, float* y, float factor, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) { y[i] = factor * x[i]; }
}
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_code_of_the_page_runs_from_top_to_bottom(tmp_path) -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE))
    told = "\nprint(slow.to_string(), by_range.to_string(), outputs.keys(), measured.statistics('latency_ns'))\n"
    (tmp_path / "page.py").write_text(code + told, encoding="utf-8")
    (tmp_path / "trace.sqlite").write_bytes(gzip.decompress(TRACE.read_bytes()))
    (tmp_path / "scale.cu").write_text(SCALE, encoding="utf-8")
    onnx.save(planted_chain(), tmp_path / "model.onnx")
    np.savez(tmp_path / "inputs.npz", x=np.ones((1, 8), np.float32))
    done = subprocess.run(
        [sys.executable, "page.py"], cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "matrix_multiply" in done.stdout


def test_every_table_is_described_with_its_columns_and_types() -> None:
    page = (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", page, re.DOTALL | re.MULTILINE))
    described = {name: re.findall(r"^- `(\w+)` (\w+)", text, re.MULTILINE) for name, text in sections.items()}
    assert described == {name: list(columns.items()) for name, columns in TABLES.items()}
