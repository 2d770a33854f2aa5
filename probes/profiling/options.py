"""The options of `probe profile`, and how they become `Settings`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from probes import options
from probes.options import FILE, Extent, Shapes, Words, argument, option

if TYPE_CHECKING:
    from harness.tools.nvtx_range import NvtxRange
    from probes.profiling.settings import Settings

# Spelt out here so that `probe --help` need not load the libraries behind them; a test holds them together.
PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8")
METRICS = ("basic", "roofline", "full")
BACKENDS = ("trt", "trt-rtx", "ort-cpu", "ort-cuda")


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


TARGET = argument("words", metavar="TARGET...", nargs=-1, type=click.UNPROCESSED)
RANGE = option(
    "--range",
    "range_",
    metavar="NAME[@DOMAIN]",
    help="Only launches inside this NVTX range, of the default domain without one.",
)
TIMEOUT = option("--timeout", type=click.FloatRange(min=0, min_open=True), default=600.0, show_default=True, metavar="SECONDS",
                 help="For each tool's run.")  # fmt: skip

# What `probe sanitize` takes as well.
MODEL = (
    option("--shapes", "--shape", "shapes", type=Shapes(), multiple=True, help="Shape of an input at run time; repeatable."),
    option("--inputs", type=FILE, metavar="FILE", help="Inputs as .npz; random ones without."),
    option("--precision", type=click.Choice(PRECISIONS), metavar="TYPE",
           help=f"What it is built in: {', '.join(PRECISIONS)} (default: fp32); the same on every backend."),
    option("--backend", type=click.Choice(BACKENDS), metavar="RUNTIME",
           help=f"{', '.join(BACKENDS)} (default: TensorRT where there is a GPU, else ONNX Runtime)."),
    option("--plugin", "plugins", type=FILE, multiple=True, metavar="LIBRARY", help="A library of TensorRT plugins; repeatable."),
)  # fmt: skip
KERNEL = (
    options.ENTRY,
    option("--grid", type=Extent(), help="Blocks."),
    option("--block", type=Extent(), help="Threads of a block."),
    option("--shared", "--smem", type=click.IntRange(min=0), metavar="BYTES", default=0, help="Dynamic shared memory."),
    option(
        "--args", type=FILE, metavar="FILE", help="Arrays and scalars by name of parameter or variable: .npz or YAML."
    ),
)

SECTIONS = {
    "With which tools (default: what is here)": (
        TARGET,
        option("--nsys", is_flag=True, help="A timeline: kernels, copies, ranges (Nsight Systems)."),
        option("--ncu", is_flag=True, help="Hardware counters of chosen launches (Nsight Compute)."),
        option("--trtexec", is_flag=True, help="TensorRT's own timing; without a trtexec the same is measured in-process."),
        option("--ort", is_flag=True, help="ONNX Runtime's profile, node by node; needs no GPU."),
    ),
    "What is measured": (
        option("--sweep", type=SweepType(), metavar="NAME:AXIS=LOW..HIGH[:STEP]",
               help="Latency and throughput over one dimension, such as ids:1=16..512:16."),
        option("--iterations", type=click.IntRange(min=1), metavar="N", default=100, show_default=True, help="Measured inferences."),
        option("--warmup", type=click.IntRange(min=0), metavar="N", default=10, show_default=True, help="Inferences before, left out."),
        option("--cuda-graph", is_flag=True, help="Run the inference as a CUDA graph."),
        RANGE,
        TIMEOUT,
    ),
    "A model or engine": (
        *MODEL,
        option("--min", "minimum", type=Shapes(), multiple=True, help="Smallest shape of an input in the opt_profile; repeatable."),
        option("--opt", "optimum", type=Shapes(), multiple=True, help="The shape to optimise for; repeatable."),
        option("--max", "maximum", type=Shapes(), multiple=True, help="Greatest shape; repeatable."),
    ),
    "A kernel (FILE.cu)": KERNEL,
    "Nsight Compute": (
        option("--metrics", type=click.Choice(METRICS), default="basic", show_default=True, help="How much is read of each launch."),
        option("--kernel", metavar="REGEX", help="Kernels whose name matches."),
        option("--launch-count", type=click.IntRange(min=1), metavar="N", help="Stop after so many launches."),
        option("--clock-control", type=click.Choice(["none", "base"]), default="none", show_default=True,
               help="Leave the clocks as they are, or lock them."),
        option("--replay-mode", type=click.Choice(["kernel", "application"]), default="kernel", show_default=True,
               help="What runs again to read more counters: each launch, or the whole program."),
    ),
    "Nsight Systems": (
        option("--cpu", is_flag=True, help="Sample the program's threads."),
        option("--osrt", is_flag=True, help="Trace calls of the operating system."),
        option("--trace", type=Words(), metavar="LIST", help="What to trace (default: cuda,nvtx,cublas,cudnn)."),
    ),
    "Results": (options.out("profile"), options.JSON),
}  # fmt: skip


def nvtx_range(text: str | None) -> NvtxRange | None:
    """What --range names. Raises UsageError if it names none."""
    from harness.tools.nvtx_range import NvtxRange

    return None if text is None else NvtxRange.parse(text)


def to_settings(values: dict[str, Any]) -> Settings:
    """`Settings` from what click parsed (without --out and --json)."""
    from probes.profiling.settings import TOOLS, Settings
    from probes.targets.target import parse

    values = dict(values)
    target = parse(values.pop("words"), "profile")
    chosen = tuple(tool for tool in TOOLS if values.pop(tool))
    for name in ("shapes", "minimum", "optimum", "maximum"):
        values[name] = tuple(pair for group in values[name] for pair in group)
    values["range"] = nvtx_range(values.pop("range_"))
    values["trace"] = values["trace"] or ()
    settings = Settings(target, chosen, **values)
    settings.check_consistency()
    return settings
