"""The page of `probe report` in headless Chromium, against an empty page of plotly: size, loading, elements, timeline.

Run: `python -m benchmarks.page` (`--events 1000 100000 1000000 --repeat 7`). Needs Chromium and chromedriver. Every load
is in a browser of its own, as when a file is opened, for a second load finds plotly.js compiled. A page is shown when
its first text is painted, and drawn when all its pictures are and a frame has passed. Pages take turns; medians are told.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from rich.console import Console
from rich.table import Table

from benchmarks import chromium
from reports.artifact import Artifact
from reports.collect import Collection
from reports.columns import validate
from reports.pages import profile as profile_page

PEER = "empty plotly page"
MANY = 24  # files on one page
# Runs in every page before its own script. `done` is when what it shows is there: ours say so, plotly's draws as it loads.
WATCH = """(() => {
  const frame = () => requestAnimationFrame(() => requestAnimationFrame(() => { window.done ??= performance.now(); }));
  addEventListener("load", () => {
    const root = document.documentElement;
    if (window.Plotly && !document.querySelector("#main")) return frame();
    const ready = () => root.dataset.drawn && root.dataset.pictures && frame();
    new MutationObserver(ready).observe(root, { attributes: true });
    ready();
  });
})()"""
SHOWN = "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? window.done"
ELEMENTS = "return document.querySelectorAll('*').length"
FIRST = "return Number(document.querySelector('[data-columns]').dataset.readyMs)"
REDRAW = """const picture = document.querySelector('[data-columns]').picture; const took = [];
picture.act('all');
for (let round = 0; round < 15; round += 1) { const began = performance.now(); picture.draw();
    picture.context.getImageData(0, 0, 1, 1); took.push(performance.now() - began); }
return took.sort((a, b) => a - b)[7]"""


def trace(events: int, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Half kernels on two streams, a quarter ranges, a quarter API calls; durations and gaps as uneven as real ones."""
    generator = np.random.default_rng(seed)
    count, quarter = events // 2, events // 4
    duration = generator.lognormal(8.5, 1, count).astype(np.int64)
    start = np.cumsum(duration + generator.lognormal(6.5, 1.2, count).astype(np.int64)) - duration
    names = np.array([f"void gemm_kernel<float, {number}>(float const*, float*, int)" for number in range(40)])
    kernel = names[generator.zipf(1.5, count) % 40]
    opened, number = start[: 2 * quarter : 2] - 8_000, np.arange(quarter)
    frames = {
        "kernels": {"kernel": kernel, "kernel_short": kernel, "device_id": 0, "process_id": 1, "start_ns": start,
                    "stream_id": np.where(np.arange(count) % 4, 7, 13), "duration_ns": duration,
                    "range_id": np.minimum(np.arange(count) // 2, quarter - 1)},
        "ranges": {"range_id": number, "domain": "probe", "process_id": 1, "thread_id": 2, "range_group": "request #",
                   "range": np.char.add("request ", number.astype(str)), "kind": "push_pop", "depth": 0,
                   "start_ns": opened, "end_ns": opened + 4_000, "open": False},
        "api_calls": {"api": "cudaLaunchKernel", "process_id": 1, "thread_id": 2, "start_ns": start[:quarter] - 9_000,
                      "duration_ns": generator.integers(500, 900, quarter)},
    }  # fmt: skip
    return {name: validate(name, pd.DataFrame(columns)) for name, columns in frames.items()}


def iterations(count: int = 2000, seed: int = 0) -> dict[str, pd.DataFrame]:
    """What a benchmark measured: its page has a figure of plotly."""
    took = np.random.default_rng(seed).normal(1e6, 2e4, count)
    return {"iterations": validate("iterations", pd.DataFrame({"iteration": np.arange(count), "compute_ns": took}))}


def write_pages(folder: Path, events: list[int]) -> tuple[dict[str, Path], dict[str, float]]:
    """Every page, and how long ours took to write."""
    pages = {PEER: folder / "plotly.html"}
    go.Figure().write_html(pages[PEER], include_plotlyjs=True)
    contents = {f"trace of {count:,} events": [trace(count)] for count in events}
    contents["benchmark, a plotly figure"] = [iterations()]
    contents[f"{MANY} benchmarks"] = [iterations(seed=seed) for seed in range(MANY)]
    took = {}
    for place, (name, found) in enumerate(contents.items()):
        artifacts = (Artifact(Path(f"run{n}.sqlite"), "nsys-sqlite", "nsys", "2025.3", t) for n, t in enumerate(found))
        began = time.perf_counter()
        pages[name] = profile_page.write(Collection(tuple(artifacts)), folder / f"page{place}.html")
        took[name] = time.perf_counter() - began
    return pages, took


@dataclass(frozen=True)
class Load:
    """One load: seconds from asking for the page, elements, and of a timeline the milliseconds to draw it, and again."""

    shown: float
    drawn: float
    elements: float
    first: float = math.nan
    again: float = math.nan

    @classmethod
    def of(cls, address: str, page: Path) -> Load:
        browser = chromium.Browser(address)
        try:
            browser.devtools("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
            browser.go(page)
            browser.wait("return window.done !== undefined")
            shown, drawn, elements = (browser.run(script) for script in (SHOWN, "return window.done", ELEMENTS))
            scripts = (FIRST, REDRAW) if browser.run("return document.querySelector('[data-columns]') !== null") else ()
            return cls(shown / 1000, drawn / 1000, elements, *(browser.run(script) for script in scripts))
        finally:
            browser.close()

    @classmethod
    def median(cls, loads: list[Load]) -> Load:
        return cls(*(statistics.median(values) for values in zip(*map(astuple, loads), strict=True)))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, nargs="+", default=[1000, 1_000_000])
    parser.add_argument("--repeat", type=int, default=5)
    return parser.parse_args()


def main(events: list[int], repeat: int) -> None:
    table = Table("page", "MB", "shown s", "of peer", "drawn s", "of peer", "elements", "written in s", title="pages")
    with tempfile.TemporaryDirectory() as folder, chromium.driver() as address:
        pages, took = write_pages(Path(folder), events)
        loads: dict[str, list[Load]] = {name: [] for name in pages}
        for name, page in list(pages.items()) * repeat:
            loads[name].append(Load.of(address, page))
        sizes = {name: page.stat().st_size / 1e6 for name, page in pages.items()}
    medians = {name: Load.median(found) for name, found in loads.items()}
    peer = medians[PEER]
    for name, own in medians.items():
        parts = [f"{seconds:.2f}" for seconds in (own.shown, own.shown / peer.shown, own.drawn, own.drawn / peer.drawn)]
        table.add_row(
            name, f"{sizes[name]:.2f}", *parts, f"{own.elements:.0f}", f"{took[name]:.2f}" if name in took else ""
        )
    Console(width=110).print(table)
    big = f"trace of {max(events):,} events"
    print(f"asked: at most 1.4 of the peer, 1000 elements; timeline of the {big}: page {sizes[big]:.2f} MB (asked: 6), "
          f"drawn in {medians[big].first:.0f} ms (asked: 1500), again in {medians[big].again:.1f} ms (asked: 50)")  # fmt: skip


if __name__ == "__main__":
    options = arguments()
    main(options.events, options.repeat)
