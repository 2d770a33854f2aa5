"""The process that launches a kernel on the GPU: what the profilers and the sanitizer are put around.

`python -m probes.targets.launching SPEC.json`. Warm-up comes first, then the measured launches in the NVTX range "measure" of the
domain "probe". Exit codes: 0 done, 2 usage, 3 the kernel did not compile, 4 CUDA failed, 125 anything else.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import ranges
from harness.cuda import launch
from harness.cuda.compile import Flavour
from harness.engines.measuring import MEASURE
from harness.errors import BuildFailed, LaunchFailed, ProbeError, UsageError
from probes.targets import kernels as kernel_targets
from probes.targets.kernels import Asked

EXIT_BUILD, EXIT_LAUNCH, EXIT_OTHER = 3, 4, 125
FLAVOUR: Flavour = "lineinfo"  # the same code as a release, and findings that name a line


@dataclass(frozen=True)
class Spec:
    """What is launched, how often before the measurement, how often in it, and where to say what went wrong."""

    kernel: Asked
    warmup: int = 10
    iterations: int = 100
    result: Path | None = None

    def write(self, path: Path) -> Path:
        content = dataclasses.asdict(self)
        args = self.kernel.args
        content["kernel"]["args"] = None if args is None else str(args)
        content["result"] = None if self.result is None else str(self.result)
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        return path

    @classmethod
    def read(cls, path: Path) -> Spec:
        """What `write` wrote."""
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        asked = content["kernel"]
        for name in ("grid", "block"):
            asked[name] = tuple(asked[name]) if asked[name] else None
        asked["args"] = Path(asked["args"]) if asked["args"] else None
        result = content.get("result")
        return cls(Asked(**asked), content["warmup"], content["iterations"], Path(result) if result else None)


def run(spec: Spec) -> None:
    """Compile once, then launch. Raises UsageError without a GPU, BuildFailed, LaunchFailed."""
    loaded = kernel_targets.load(spec.kernel)
    prepared = launch.prepare(loaded.steps, launch.itemsizes_of(loaded.arrays), launch.Options(flavour=FLAVOUR))
    placed = prepared.place(loaded.arrays)
    with ranges.range("warm-up"):
        for _ in range(spec.warmup):
            placed.launch()
        prepared.device.synchronize(shown="warm-up")
    with ranges.range(MEASURE):
        for _ in range(spec.iterations):
            placed.launch()
        prepared.device.synchronize(shown=loaded.name)


def main(arguments: list[str]) -> int:
    """Run one spec; the exit code."""
    if len(arguments) != 1:
        _log("usage: python -m probes.targets.launching SPEC.json")
        return UsageError.exit_code
    spec = Spec.read(Path(arguments[0]))
    try:
        run(spec)
    except ProbeError as error:
        _log(f"error: {error}")
        return _say(spec, exit_code(error), error)
    except Exception as error:  # noqa: BLE001  a bug of ours: its traceback goes to the log
        _log(traceback.format_exc())
        return _say(spec, EXIT_OTHER, error)
    return 0


def exit_code(error: ProbeError) -> int:
    if isinstance(error, BuildFailed):
        return EXIT_BUILD
    return EXIT_LAUNCH if isinstance(error, LaunchFailed) else error.exit_code


def _say(spec: Spec, code: int, error: Exception) -> int:
    """Tell whoever started the tool around us, which may not tell it itself."""
    hint = error.hint if isinstance(error, ProbeError) else None
    content = {"ok": False, "exit_code": code, "error": type(error).__name__, "message": str(error), "hint": hint}
    if spec.result is not None:
        spec.result.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return code


def _log(text: str) -> None:
    print(f"probe: {text}", file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
