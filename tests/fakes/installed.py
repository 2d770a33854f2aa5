"""The fake tools put into a folder, to be used as PATH, with what each is to do and what it was called with."""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from places import DATA

PROGRAM = Path(__file__).with_name("nvidia.py")
NAMES = ("nsys", "ncu", "compute-sanitizer", "trtexec", "nvidia-smi")
TENSORRT_TRACE = DATA / "nsys" / "h100_trt86_myelin_2025.3.sqlite.gz"
SYSTEM = ("/usr/bin", "/bin")  # sh, and whatever programs the tests run

VERSIONS = {"nsys": "2025.3.2.367", "ncu": "2025.3.1.0", "compute-sanitizer": "2025.3.1.0", "trtexec": "101601"}
BANNERS = {
    "nsys": "NVIDIA Nsight Systems version {}-253235822v0",
    "ncu": "NVIDIA (R) Nsight Compute Command Line Profiler\nVersion {} (build 36398880) (public-release)",
    "compute-sanitizer": "NVIDIA (R) Compute Sanitizer\nVersion {} (build 36398880)",
    "trtexec": "&&&& RUNNING TensorRT.trtexec [TensorRT v{}] [b11] # trtexec --help",
}
# What the help of each lists: of the options that probe uses, those that the versions have.
OPTIONS = {
    "nsys": "--trace --sample --cpuctxsw --cuda-graph-trace --capture-range --capture-range-end --nvtx-capture --env-var"
    " --export --force-overwrite --output",
    "ncu": "--target-processes --nvtx --nvtx-include --kernel-name --launch-skip --launch-count --replay-mode --clock-control"
    " --set --section --csv --page --print-units --log-file --force-overwrite --export",
    "compute-sanitizer": "--tool --leak-check --xml --save --kernel-name --launch-skip --launch-count --target-processes"
    " --error-exitcode --print-limit --launch-timeout --report-api-errors",
    "trtexec": "--onnx --loadEngine --shapes --minShapes --optShapes --maxShapes --fp16 --bf16 --int8 --noTF32 --loadInputs"
    " --staticPlugins --iterations --duration --warmUp --avgRuns --useCudaGraph --useSpinWait --noDataTransfers"
    " --profilingVerbosity --separateProfileRun --dumpProfile --exportTimes --exportProfile --exportLayerInfo"
    " --timingCacheFile",
}
# What nvidia-smi answers to the two questions that probe asks, or that it found no GPU.
SMI = """case "$*" in
*driver_version*) echo 'NVIDIA H100 80GB HBM3, 9.0, 580.159.04, 81559' ;;
*) echo '1980, 2619, 1980, 0x0000000000000000, 34, 71.52' ;;
esac"""
NO_GPU = "echo 'NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.'; exit 9"


@dataclass
class Tools:
    """A folder of fake tools. `set` says how one behaves; a tool that was not added is not there."""

    folder: Path
    config: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, *names: str) -> Tools:
        self.folder.mkdir(exist_ok=True)
        for name in names:
            self.config.setdefault(name, {})
        return self._write()

    def set(self, name: str, **values: Any) -> Tools:
        self.config.setdefault(name, {}).update(
            {key: str(v) if isinstance(v, Path) else v for key, v in values.items()}
        )
        return self._write()

    def remove(self, name: str) -> Tools:
        """As if it were not installed."""
        del self.config[name]
        (self.folder / name).unlink()
        return self

    @property
    def environment(self) -> dict[str, str]:
        """PATH with the fake tools first; nothing else of NVIDIA's is found behind them."""
        return {"PATH": os.pathsep.join((str(self.folder), *SYSTEM))}

    @property
    def pids(self) -> Path:
        return self._config.parent / "pids"

    @property
    def hangs(self) -> Path:
        return self._config.parent / "hangs"

    def calls(self, name: str) -> list[list[str]]:
        """The arguments of every start but those that asked for the version or the options."""
        path = self._config.parent / f"{name}.calls"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    @property
    def _config(self) -> Path:
        return self.folder.parent / "fakes.json"

    def _script(self, name: str) -> str:
        """A tool tells version and options at once; for all else Python starts."""
        settings = self.config[name]
        if name == "nvidia-smi":
            return SMI if settings.get("mode") == "gpu" else NO_GPU
        banner = BANNERS[name].format(settings.get("version", VERSIONS[name]))
        listed = "\n".join(f"  {option} arg" for option in str(settings.get("options", OPTIONS[name])).split())
        words = shlex.join([sys.executable, "-S", str(PROGRAM), name, str(self._config)])
        return (f'case "$*" in\n--version) echo {shlex.quote(banner)} ;;\n'
                f"--help|'profile --help') echo {shlex.quote(f'{banner}{chr(10)}{listed}')} ;;\n"
                f'*) exec {words} "$@" ;;\nesac')  # fmt: skip

    def _write(self) -> Tools:
        for name in self.config:
            (self.folder / name).write_text(f"#!/bin/sh\n{self._script(name)}\n", encoding="utf-8")
            (self.folder / name).chmod(0o755)
        self._config.write_text(json.dumps(self.config), encoding="utf-8")
        return self


def replaying(folder: Path) -> Tools:
    """All tools, each replaying a real artifact, on a machine with a GPU."""
    tools = Tools(folder).add(*NAMES)
    tools.set("nvidia-smi", mode="gpu")
    sanitizer, timings = DATA / "sanitizer", DATA / "trtexec"
    tools.set("nsys", data=DATA / "nsys" / "cestwc__balinski-and-gomory-cuda__report1.sqlite.gz")
    tools.set("ncu", data=DATA / "ncu" / "h100_raw_with_stdout.csv")
    tools.set(
        "compute-sanitizer",
        memcheck=sanitizer / "h100_2025.3_memcheck_oob.xml",
        racecheck=sanitizer / "h100_2025.3_racecheck.xml",
        synccheck=sanitizer / "h100_2025.3_synccheck.xml",
        initcheck=sanitizer / "h100_2025.3_initcheck.xml",
    )
    tools.set(
        "trtexec",
        data=timings / "h100_trt86_shape_8x128.log",
        times=timings / "h100_trt86_shape_32x384.times.json",
        layers=timings / "h100_trt86_inspector_layers_fp16.json",
    )
    return tools
