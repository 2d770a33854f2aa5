"""What a user can ask of `probe profile`, as one immutable value."""

from __future__ import annotations

import dataclasses
import operator
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.tools.nvtx_range import NvtxRange
from probes.targets.target import Kind, Target

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
TOOLS = ("nsys", "ncu", "trtexec", "ort")
INPROCESS = "inprocess"  # our own measurement: what is taken where no tool was asked for, and in place of trtexec
OF_TOOLS = {"launch_count": ("ncu",), "kernel": ("ncu",), "metrics": ("ncu",), "clock_control": ("ncu",), "replay_mode": ("ncu",),
            "cpu": ("nsys",), "osrt": ("nsys",), "trace": ("nsys",), "range": ("nsys", "ncu")}  # fmt: skip
NEEDS_MODEL = ("shapes", "minimum", "optimum", "maximum", "sweep", "inputs", "plugins", "backend")


@dataclass(frozen=True)
class Sweep:
    """One dimension of one input over a range of sizes, both ends included."""

    name: str
    axis: int
    low: int
    high: int
    step: int

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(range(self.low, self.high + 1, self.step))

    def __str__(self) -> str:
        return f"{self.name}:{self.axis}={self.low}..{self.high}:{self.step}"


@dataclass(frozen=True)
class Settings:
    """One profile: the target, the tools (none named: what is here), what runs, and what is looked at."""

    target: Target
    tools: tuple[str, ...] = ()
    shapes: Shapes = ()
    minimum: Shapes = ()
    optimum: Shapes = ()
    maximum: Shapes = ()
    sweep: Sweep | None = None
    precision: str | None = None
    backend: str | None = None
    inputs: Path | None = None
    plugins: tuple[Path, ...] = ()
    iterations: int = 100
    warmup: int = 10
    timeout: float | None = 600.0
    cuda_graph: bool = False
    metrics: str = "basic"
    kernel: str | None = None
    range: NvtxRange | None = None
    launch_count: int | None = None
    clock_control: str = "none"
    replay_mode: str = "kernel"
    cpu: bool = False
    osrt: bool = False
    trace: tuple[str, ...] = ()
    entry: str | None = None
    grid: tuple[int, int, int] | None = None
    block: tuple[int, int, int] | None = None
    shared: int = 0
    args: Path | None = None

    def check_consistency(self) -> None:
        """Raise UsageError for options that do not belong to the target, or to the tools."""
        kind = self.target.kind
        if kind is Kind.ENGINE and (self.precision or self.minimum or self.optimum or self.maximum):
            raise UsageError("an engine is built already: --precision, --min, --opt and --max belong to a model")
        if kind in (Kind.COMMAND, Kind.KERNEL):
            given = [name for name in (*NEEDS_MODEL, "precision") if getattr(self, name)]
            if given:
                raise UsageError(f"{_option(given[0])} belongs to a model, not to a {kind.value}")
            if wrong := [name for name in self.tools if name in ("trtexec", "ort")]:
                raise UsageError(f"--{wrong[0]} needs a model, not a {kind.value}", hint="--nsys, --ncu")
        if kind is Kind.ENGINE and "ort" in self.tools:
            raise UsageError("--ort needs an ONNX model, not an engine")
        if kind is not Kind.KERNEL and (self.entry or self.args or self.grid or self.block):
            raise UsageError("--entry, --grid, --block and --args belong to a .cu file")
        for name, shape in self.shapes:
            self._check_bounds(name, shape)
        self._check_tools()

    def _check_tools(self) -> None:
        """Options of a tool are for a run of it; nsys is what may run unasked."""
        for name, tools in OF_TOOLS.items():
            if getattr(self, name) != getattr(type(self), name) and not {*tools} & {*(self.tools or ("nsys",))}:
                raise UsageError(f"{_option(name)} belongs to {' and '.join(f'--{tool}' for tool in tools)}")
        if self.range is not None and "ncu" in self.tools:
            _ = self.range.for_filters  # which refuses what ncu cannot select

    def _check_bounds(self, name: str, shape: tuple[int, ...]) -> None:
        """What runs must lie in what the engine is built for; ONNX Runtime alone would not mind."""
        least, most = dict(self.minimum).get(name, ()), dict(self.maximum).get(name, ())
        for option, bound, fits in (("--min", least, operator.le), ("--max", most, operator.ge)):
            if bound and (len(bound) != len(shape) or not all(map(fits, bound, shape))):
                raise UsageError(
                    f"--shapes {name}:{_spelt(shape)} lies outside {option} {name}:{_spelt(bound)}",
                    hint=f"{option} {name}:{_spelt(shape)}, or another --shapes",
                )

    def command(self) -> list[str]:
        """The words that ask the same again, without the folders of this machine."""
        words = ["profile"]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "target" or value == field.default:
                continue
            words += _words(field.name, value)
        return [*words, *(("--",) if self.target.kind is Kind.COMMAND else ()), *self.target.public]

    def shown(self) -> str:
        return shlex.join(["probe", *self.command()])


_NAMES = {"minimum": "--min", "optimum": "--opt", "maximum": "--max", "plugins": "--plugin", "cuda_graph": "--cuda-graph",
          "launch_count": "--launch-count", "clock_control": "--clock-control", "replay_mode": "--replay-mode"}  # fmt: skip


def _spelt(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _option(name: str) -> str:
    return _NAMES.get(name, f"--{name}")


def _words(name: str, value: Any) -> list[str]:
    option = _option(name)
    if name == "tools":
        return [f"--{tool}" for tool in value]
    if value is True:
        return [option]
    if name in ("shapes", "minimum", "optimum", "maximum"):
        return [word for tensor, dims in value for word in (option, f"{tensor}:{_spelt(dims)}")]
    if name == "plugins":
        return [word for path in value for word in (option, path.name)]
    if isinstance(value, Path):
        return [option, value.name]
    if isinstance(value, tuple):
        return [option, ",".join(map(str, value))]
    return [option, f"{value:g}" if isinstance(value, float) else str(value)]
