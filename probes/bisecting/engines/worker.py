"""The process of one trial: build, deserialise, infer, measure, each stage told in a file before it begins.

`python -m probes.bisecting.engines.worker TRIAL.json RESULT.json`. A builder or a kernel may crash or hang: who reads RESULT.json knows
in which stage the process died. The exit code is 0 if everything was done.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness import engine
from harness.cuda.driver import driver
from harness.engine import Engine
from harness.engines import measuring
from harness.engines import trt as engine_trt
from harness.engines.device import present
from harness.engines.options import to_json
from harness.engines.runner import Runner
from harness.errors import EXIT_INTERNAL, EXIT_UNDECIDED, ProbeError
from harness.models import inputs
from probes.bisecting.engines.trial import OUTPUTS, PLAN, Trial

LAYER_ITERATIONS = 20
WATCH_S = 0.1
PR_SET_PDEATHSIG = 1


class Report:
    """RESULT.json while it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._content: dict[str, Any] = {"stage": "load", "ok": False}

    def write(self, **news: Any) -> None:
        with self._lock:
            self._content |= news
            part = self._path.with_name(f".{self._path.name}.part")
            part.write_text(json.dumps(self._content), encoding="utf-8")
            part.replace(self._path)


def main(arguments: list[str]) -> int:
    die_with_parent()
    spec, path = map(Path, arguments)
    trial, report = Trial.from_json(json.loads(spec.read_text(encoding="utf-8"))), Report(path)
    report.write()
    if trial.memory_bytes is not None:
        watch(trial.memory_bytes, lambda used: report.write(message=f"out of memory: {used >> 20} MiB on the host"))
    try:
        (survey if trial.survey else run)(trial, path.parent, report)
    except ProbeError as error:
        report.write(ok=False, error=type(error).__name__, message=str(error), hint=error.hint)
        return error.exit_code
    except MemoryError:
        report.write(ok=False, error="MemoryError", message="out of memory on the host")
        return EXIT_UNDECIDED
    except Exception as error:  # noqa: BLE001  a bug of ours: the traceback goes to the log, its text to the result
        _log(traceback.format_exc())
        report.write(ok=False, error=type(error).__name__, message=str(error))
        return EXIT_INTERNAL
    report.write(stage="done", ok=True)
    return 0


def run(trial: Trial, folder: Path, report: Report) -> None:
    made = _built(trial, folder, report)
    if trial.samples and _runs(made.backend):
        _infer(trial, made, folder, report)


def _built(trial: Trial, folder: Path, report: Report) -> Engine:
    if trial.plan is not None:
        return engine.load(trial.plan, trial.options.backend, trial.options)
    report.write(stage="build")
    made = engine.build(trial.source, trial.options, _log, folder=folder)
    report.write(facts=to_json(dict(made.facts)))
    if isinstance(made.content, bytes):
        made.save(folder / PLAN)
    return made


def _infer(trial: Trial, made: Engine, folder: Path, report: Report) -> None:
    report.write(stage="deserialize")
    samples = inputs.load_samples(trial.samples)
    with made.runner() as runner:
        names = []
        for number, feeds in enumerate(samples):
            report.write(stage="infer")
            path = folder / OUTPUTS.format(number)
            np.savez(path, allow_pickle=False, **runner.infer(feeds))
            names.append(path.name)
        report.write(outputs=names)
        if trial.measure:
            report.write(stage="measure")
            runner.bind(samples[0])
            _measure(trial, runner, report)


def _measure(trial: Trial, runner: Runner, report: Report) -> None:
    """The median of the time on the device, beyond it that of each layer."""
    measuring.loop(runner, max(3, trial.measure // 5), "warm-up")
    columns = measuring.loop(runner, trial.measure, measuring.MEASURE)
    times = next(c for c in (columns["compute_ns"], columns["latency_ns"]) if not np.isnan(c).all())
    report.write(latency_ns=float(np.median(times)))
    if trial.layers:
        layers = measuring.summarise(tuple(runner.layers(LAYER_ITERATIONS)))
        report.write(layers=[(layer.layer, layer.median_ns) for layer in layers],
                     information=runner.layer_information() or "")  # fmt: skip


def survey(trial: Trial, folder: Path, report: Report) -> None:
    """The facts that builds depend on, how many GPUs there are, what the network consists of."""
    backend = engine.choose(trial.options.backend, runs=False)
    report.write(stage="survey")
    gpus = driver().number("cuDeviceGetCount") if present() else 0
    found: dict[str, Any] = {"facts": engine.facts(backend), "gpus": gpus, "runs": _runs(backend)}
    report.write(facts=found)  # what is known even if the network does not parse
    told = engine_trt.survey(trial.source, trial.options, backend, folder)
    found["network"] = {**to_json(asdict(replace(told, features=frozenset()))), "features": sorted(told.features)}
    report.write(facts=found)


def _runs(backend: str) -> bool:
    return any(one.name == backend and one.runs for one in engine.backends())


def die_with_parent() -> None:
    """Be killed with the worker that started us (Ctrl-C, a time-out), so that no build goes on on the GPU for nobody."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def watch(limit_bytes: int, tell: Callable[[int], None]) -> None:
    """End this process once it holds more than so much memory on the host. Address space says nothing: CUDA reserves it."""

    def look() -> None:
        while (used := resident_bytes()) <= limit_bytes:
            time.sleep(WATCH_S)
        tell(used)
        os._exit(EXIT_UNDECIDED)

    threading.Thread(target=look, daemon=True).start()


def resident_bytes() -> int:
    """What this process holds in memory, less what it shares with files."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE")


def _log(text: str) -> None:
    print(f"probe: {text}", file=sys.stderr, flush=True)  # noqa: T201  this process's own log


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
