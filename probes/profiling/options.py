"""The options of `probe profile`, and how they become `Settings`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from probes.bisecting.options import FILE, FOLDER, Shape

if TYPE_CHECKING:
    from probes.profiling.settings import Settings

# Spelt out here so that `probe --help` need not load the libraries behind them; a test holds them together.
PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8")
METRICS = ("basic", "roofline", "full")
BACKENDS = ("trt", "trt-rtx", "ort-cpu", "ort-cuda")


class Shapes(Shape):
    """NAME:1x128, or several with commas between, as in trtexec."""

    name = "NAME:1x128"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        return tuple(super(Shapes, self).convert(part, param, ctx) for part in str(value).split(","))


class SweepType(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.2 only
    """NAME:AXIS=LOW..HIGH:STEP."""

    name = "NAME:AXIS=LOW..HIGH[:STEP]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from probes.profiling.settings import Sweep

        if isinstance(value, Sweep):
            return value
        match = re.fullmatch(r"(.+):(\d+)=(\d+)\.\.(\d+)(?::(\d+))?", str(value))
        if match is None:
            self.fail(f"{value!r}: expected an input, its axis and a range, such as ids:1=16..512:16", param, ctx)
        axis, low, high = (int(part) for part in match.groups()[1:4])
        step = int(match[5] or 1)
        if step < 1 or low < 1 or high < low:
            self.fail(f"{value!r}: expected sizes that grow from 1 or more, such as 16..512:16", param, ctx)
        return Sweep(match[1], axis, low, high, step)


class Extent(click.ParamType):  # type: ignore[type-arg]
    """4, 4,2 or 4,2,1: x, y, z."""

    name = "X[,Y[,Z]]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int, int]:
        if isinstance(value, tuple):
            return value
        if not re.fullmatch(r"[1-9]\d*(?:[,x][1-9]\d*){0,2}", str(value)):
            self.fail(f"{value!r}: expected one to three positive numbers, such as 128 or 32,4", param, ctx)
        parts = [int(part) for part in re.split("[,x]", str(value))]
        x, y, z = (*parts, 1, 1)[:3]
        return x, y, z


class Words(click.ParamType):  # type: ignore[type-arg]
    """Words with commas between."""

    name = "A,B"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        words = tuple(word.strip() for word in str(value).split(",") if word.strip())
        if not words or not all(re.fullmatch(r"[\w-]+", word) for word in words):
            self.fail(f"{value!r}: expected words with commas between, such as cuda,nvtx", param, ctx)
        return words


TARGET = click.argument("words", metavar="TARGET...", nargs=-1, type=click.UNPROCESSED)
RUN_OPTIONS = (
    click.option("--shapes", type=Shapes(), multiple=True, help="Shape of an input at run time; repeatable."),
    click.option("--precision", type=click.Choice(PRECISIONS), help="What the model is built in (default: fp32); the same on every backend."),
    click.option("--backend", type=click.Choice(BACKENDS), help="Which runtime (default: TensorRT where there is a GPU, else ONNX Runtime)."),
    click.option("--inputs", type=FILE, metavar="FILE", help="Inputs as .npz; random ones without."),
    click.option("--plugin", "plugins", type=FILE, multiple=True, metavar="LIBRARY", help="A library of TensorRT plugins; repeatable."),
    click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=600.0, show_default=True, metavar="SECONDS",
                 help="For each tool's run."),
    click.option("--entry", metavar="NAME", help="Which kernel of a .cu file."),
    click.option("--grid", type=Extent(), help="Blocks (a .cu file)."),
    click.option("--block", type=Extent(), help="Threads of a block (a .cu file)."),
    click.option("--shared", type=click.IntRange(min=0), default=0, help="Bytes of dynamic shared memory (a .cu file)."),
    click.option("--args", type=FILE, metavar="FILE", help="The kernel's arguments as .npz, by parameter name (a .cu file)."),
    click.option("--out", type=FOLDER, metavar="DIR", help="Session folder (default: probe-runs/<UTC time>-<verb>)."),
)  # fmt: skip
_OPTIONS = (
    TARGET,
    click.option("--nsys", is_flag=True, help="A timeline: kernels, copies, ranges (Nsight Systems)."),
    click.option("--ncu", is_flag=True, help="Hardware counters of chosen launches (Nsight Compute)."),
    click.option("--trtexec", is_flag=True, help="TensorRT's own timing; without a trtexec the same is measured in-process."),
    click.option("--ort", is_flag=True, help="ONNX Runtime's profile, node by node; needs no GPU."),
    click.option("--min", "minimum", type=Shapes(), multiple=True, help="Smallest shape of an input in the opt_profile; repeatable."),
    click.option("--opt", "optimum", type=Shapes(), multiple=True, help="The shape to optimise for; repeatable."),
    click.option("--max", "maximum", type=Shapes(), multiple=True, help="Greatest shape; repeatable."),
    click.option("--sweep", type=SweepType(), help="Latency and throughput over one dimension, such as ids:1=16..512:16."),
    click.option("--iterations", type=click.IntRange(min=1), default=100, show_default=True, help="Measured inferences."),
    click.option("--warmup", type=click.IntRange(min=0), default=10, show_default=True, help="Inferences before, left out."),
    click.option("--cuda-graph", is_flag=True, help="Run the inference as a CUDA graph."),
    click.option("--metrics", type=click.Choice(METRICS), default="basic", show_default=True, help="How much ncu reads of each launch."),
    click.option("--kernel", metavar="REGEX", help="ncu: kernels whose name matches."),
    click.option("--range", "range_", metavar="NAME[@DOMAIN]", help="Only launches inside this NVTX range."),
    click.option("--launch-count", type=click.IntRange(min=1), metavar="N", help="ncu: stop after so many launches."),
    click.option("--clock-control", type=click.Choice(["none", "base"]), default="none", show_default=True,
                 help="ncu: leave the clocks as they are, or lock them."),
    click.option("--cpu", is_flag=True, help="nsys: sample the program's threads."),
    click.option("--osrt", is_flag=True, help="nsys: trace calls of the operating system."),
    click.option("--trace", type=Words(), metavar="LIST", help="nsys: what to trace (default: cuda,nvtx,cublas,cudnn)."),
    *RUN_OPTIONS,
)  # fmt: skip


def profile_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def to_settings(values: dict[str, Any]) -> Settings:
    """`Settings` from what click parsed (without --out and --json)."""
    from probes.profiling.settings import TOOLS, Settings
    from probes.targets.target import parse

    values = dict(values)
    target = parse(values.pop("words"), "profile")
    chosen = tuple(tool for tool in TOOLS if values.pop(tool))
    for name in ("shapes", "minimum", "optimum", "maximum"):
        values[name] = tuple(pair for group in values[name] for pair in group)
    values["range"] = values.pop("range_")
    values["trace"] = values["trace"] or ()
    settings = Settings(target, chosen, **values)
    settings.check_consistency()
    return settings
