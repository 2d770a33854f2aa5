"""Memory of an FP16 emulation of a large model: a BERT-large of 1.3 GB, with random weights, at a small sequence.

    python benchmarks/memory.py [--folder models] [--config large] [--seq 64]

Each stage runs in this one process; the table shows the resident memory after it and the peak, split into what is ours
alone (anonymous) and what is the model file mapped into memory (shared with the page cache, can be dropped).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from harness.bert import model as bert
from harness.models import model as models
from harness.models.emulate import Emulation

GB = 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("models"))
    parser.add_argument("--config", default="large")
    parser.add_argument("--seq", type=int, default=64)
    parser.add_argument("--build", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    path = options.folder / f"bert-{options.config}" / "model.onnx"
    if options.build:
        write(path, options.config)
        return
    if not path.exists():  # in a process of its own, so that building is not measured here
        subprocess.run(
            [sys.executable, __file__, "--build", "--folder", str(options.folder), "--config", options.config],
            check=True,
        )
    table = Table(
        "after",
        "seconds",
        "resident GB",
        "anonymous GB",
        "mapped file GB",
        "peak resident GB",
        title=f"{path.parent.name}, S={options.seq}",
    )
    start = time.perf_counter()

    def row(stage: str) -> None:
        status = read_status()
        table.add_row(
            stage,
            f"{time.perf_counter() - start:.1f}",
            *(f"{status[k] / GB:.2f}" for k in ("VmRSS", "RssAnon", "RssFile", "VmHWM")),
        )

    row("start")
    model = models.load(path)
    row(f"load ({model.weight_bytes / GB:.2f} GB of weights)")
    emulation = Emulation(model)
    row("instrumented session")
    ids = np.random.default_rng(0).integers(1000, 20000, (1, options.seq))
    feeds = {"input_ids": ids, "token_type_ids": 0 * ids, "attention_mask": 0 * ids + 1}
    emulation.run(feeds, [])
    row("a run with nothing lowered")
    emulation.run(feeds, emulation.candidates)
    row("a run with everything lowered")
    Console(width=140).print(table)


def write(path: Path, config_name: str) -> None:
    """Random weights, stored as external data beside the model."""
    from harness.models import submodel

    path.parent.mkdir(parents=True, exist_ok=True)
    config = bert.BertConfig.preset(config_name)
    submodel.INLINE_LIMIT = 0
    bert.save(bert.build_onnx(config, bert.random_weights(config, 0)), path)


def read_status() -> dict[str, int]:
    """Bytes, from the kernel's own account of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return {
        key: int(value.split()[0]) * 1024
        for key, _, value in (line.partition(":") for line in lines)
        if value.strip().endswith("kB")
    }


if __name__ == "__main__":
    main()
