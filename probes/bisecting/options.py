"""The options of `probe bisect`, and how they become `Settings`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from harness.errors import UsageError

if TYPE_CHECKING:
    from probes.bisecting.settings import Settings
    from probes.bisecting.statements.settings import StatementSettings

# Spelt out here so that `probe --help` need not load the libraries behind them; a test holds them together.
FAULTS = (
    "precision",
    "finite",
    "compare",
    "build",
    "check",
    "crash",
    "fusion",
    "route",
    "sanitizer",
    "nan",
    "mismatch",
)
STATEMENT_FAULTS = ("sanitizer", "nan", "mismatch", "check")
SOURCES = (".cu", ".cuh")
PRECISIONS = ("fp16", "bf16")
ENGINE_PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
ENGINE_FAULTS = ("crash", "fusion", "route")

FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)


class Shape(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.2 only
    """NAME:1x128, as in trtexec."""

    name = "NAME:1x128"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[int, ...]]:
        if isinstance(value, tuple):
            return value
        name, colon, dims = str(value).rpartition(":")
        try:
            shape = tuple(int(d) for d in dims.replace(",", "x").split("x") if d)
        except ValueError:
            shape = (-1,)
        if not colon or any(d < 0 for d in shape):
            self.fail(f"{value!r}: expected an input's name, a colon and its dimensions, such as ids:1x128", param, ctx)
        return name, shape


class Range(click.ParamType):  # type: ignore[type-arg]
    """LOW:HIGH."""

    name = "LOW:HIGH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        if isinstance(value, tuple):
            return value
        try:
            low, high = (float(part) for part in str(value).split(":"))
        except ValueError:
            self.fail(f"{value!r}: expected two numbers with a colon between them, such as 0:1", param, ctx)
        if not low < high:
            self.fail(f"{value!r}: the first number must be the smaller one", param, ctx)
        return low, high


class Replacement(click.ParamType):  # type: ignore[type-arg]
    """OP=FILE.onnx."""

    name = "OP=FILE.onnx"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Path]:
        if isinstance(value, tuple):
            return value
        op, equals, path = str(value).partition("=")
        if not (op and equals and path):
            self.fail(f"{value!r}: expected an operator and a model, such as CustomOp=subgraph.onnx", param, ctx)
        return op, Path(path)


_OPTIONS = (
    click.argument("model", type=FILE, required=False),
    click.option("--fault", type=click.Choice(FAULTS),
                 help="Of a model: precision (default): which nodes must stay in FP32; finite: which make NaN or Inf; compare:"
                 " which differ from --good; build: which break the build; check: which fail your own --check; crash: which plugins"
                 " or nodes crash, hang or compute wrongly; fusion: which tensors must be materialised; route: which switch"
                 " of the builder. Of a .cu:"
                 " sanitizer (default): what the checks of the emulation find; nan: which make NaN or Inf; mismatch: what"
                 " --expect is not; check."),
    click.option("--precision", type=click.Choice(ENGINE_PRECISIONS), default="fp16", show_default=True,
                 help="What tensors are lowered to; of the engine (default fp32) for --fault crash, fusion and route."),
    click.option("--tolerance", type=click.FloatRange(min=0), default=1e-2, show_default=True,
                 help="Relative L2 error that every output may have."),
    click.option("--good", type=FILE, metavar="OTHER.onnx", help="The model that is right (--fault compare)."),
    click.option("--backend", type=click.Choice(["trt-rtx", "trt"]),
                 help="The builder. With --fault precision or finite each evaluation is an engine, not an emulation."),
    click.option("--objective", type=click.Choice(["nodes", "time"]), default="nodes", show_default=True,
                 help="What the set kept in FP32 should cost little of: nodes, or measured milliseconds (--backend)."),
    click.option("--level", type=click.IntRange(0, 5), help="The builder's optimisation level (--backend)."),
    click.option("--plugin", "plugins", type=FILE, multiple=True, metavar="LIBRARY.so", help="A library of TensorRT plugins; repeatable."),
    click.option("--replace", type=Replacement(), multiple=True, help="A model that computes what a plugin does (--fault crash); repeatable."),
    click.option("--memory", type=click.FloatRange(min=0, min_open=True), metavar="GIB", help="Of the host for one engine; more is out of memory (--backend)."),
    click.option("--sanitize", type=click.Choice(["memcheck", "racecheck", "initcheck", "synccheck"]),
                 help="Run every engine under compute-sanitizer; a finding is a failure (--backend)."),
    click.option("--check", metavar="'CMD {model}'", help="Your command, {model} or {source} in it: 0 good, 125 skip, any other code bad (--fault check)."),
    click.option("--reduce", is_flag=True, help="Find the smallest failing sub-model (--fault build or check) or kernel instead."),
    click.option("--entry", metavar="NAME", help="The kernel of a .cu; not needed where it has one only."),
    click.option("--grid", metavar="X[,Y[,Z]]", help="Blocks of its launch."),
    click.option("--block", metavar="X[,Y[,Z]]", help="Threads of a block."),
    click.option("--smem", "shared", metavar="BYTES", type=click.IntRange(min=0), default=0, help="Dynamic shared memory."),
    click.option("--args", type=FILE, metavar="FILE", help="Its arrays and scalars by parameter name: .npz or YAML."),
    click.option("--expect", type=FILE, metavar="FILE.npz", help="What arrays must hold afterwards, by parameter name (--fault mismatch)."),
    click.option("--inputs", type=FILE, multiple=True, metavar="FILE", help="One sample as .npz, or several as Polygraphy JSON; repeatable."),
    click.option("--shape", "shapes", type=Shape(), multiple=True, help="Shape of a random input; repeatable."),
    click.option("--range", "bounds", type=Range(), default="-1:1", show_default=True, help="Range of random inputs."),
    click.option("--samples", type=click.IntRange(min=1), default=1, show_default=True, help="How many random samples."),
    click.option("--seed", type=int, default=0, show_default=True, help="Of the random inputs."),
    click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Worker processes; the result is the same for any number."),
    click.option("--dask", metavar="ADDRESS", help="Evaluate on a dask.distributed cluster, such as tcp://host:8786."),
    click.option("--threads", type=click.IntRange(min=0), default=0, help="ONNX Runtime threads per worker (default: all cores, 1 with --jobs)."),
    click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="For one evaluation; more is unresolved."),
    click.option("--budget", type=click.IntRange(min=1), metavar="N", help="Stop after so many evaluations, with the best so far."),
    click.option("--repeat", type=click.IntRange(min=1), default=1, show_default=True,
                 help="Evaluate each candidate set so often; verdicts that change are unresolved."),
    click.option("--keep-scope", is_flag=True, help="Search by module scope first, then within the guilty scopes."),
    click.option("--out", type=FOLDER, metavar="DIR", help="Session folder (default: probe-runs/<UTC time>-bisect)."),
    click.option("--resume", type=FOLDER, metavar="DIR", help="Go on with an interrupted session; nothing is evaluated twice."),
)  # fmt: skip


def bisect_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def to_settings(values: dict[str, Any]) -> Settings | StatementSettings:
    """What click parsed (without --out, --resume and --json), of a model or of a kernel's source."""
    if values["model"] is None:
        raise UsageError("which model?", hint="probe bisect MODEL.onnx, or probe bisect --resume DIR")
    return _of_source(values) if values["model"].suffix in SOURCES else _of_model(values)


def _of_model(values: dict[str, Any]) -> Settings:
    from probes.bisecting.settings import Settings

    values = _without(values, _SOURCE_ONLY, "a CUDA source", "probe bisect FILE.cu")
    values["fault"] = values["fault"] or "precision"
    if values["fault"] in STATEMENT_FAULTS and values["fault"] != "check":
        raise UsageError(
            f"--fault {values['fault']} is about a CUDA source", hint="probe bisect FILE.cu, or --fault finite"
        )
    values["low"], values["high"] = values.pop("bounds")
    if values["dask"] is not None and values["jobs"] > 1:
        raise UsageError(
            "--jobs and --dask exclude each other", hint="leave --jobs out: the cluster's workers are used"
        )
    return Settings(**{**values, **_precisions(values["fault"], values["precision"])})


def _precisions(fault: str, given: str) -> dict[str, Any]:
    """Of an engine whose fault is not about lowering, only what was asked for."""
    from harness.models.precision import Precision

    if fault in ENGINE_FAULTS:
        context = click.get_current_context(silent=True)
        source = context.get_parameter_source("precision") if context is not None else None
        asked = source is click.core.ParameterSource.COMMANDLINE
        return {"precision": Precision.FP16, "engine_precision": given if asked else "fp32"}
    if given not in PRECISIONS:
        raise UsageError(f"--fault {fault} lowers to {' or '.join(PRECISIONS)}, not to {given}")
    return {"precision": Precision(given)}


def _of_source(values: dict[str, Any]) -> StatementSettings:
    from probes.bisecting.statements.settings import StatementSettings
    from probes.printing.options import extent

    known = {entry.name for entry in dataclasses.fields(StatementSettings)} | {"model"}
    values = _without(values, values.keys() - known, "a model", "probe bisect MODEL.onnx")
    implied = "check" if values["check"] else "mismatch" if values["expect"] else "sanitizer"
    sizes = {name: extent(name, values[name]) if values[name] else None for name in ("grid", "block")}
    return StatementSettings(source=values.pop("model"), **{**values, **sizes, "fault": values["fault"] or implied})


def _without(values: dict[str, Any], names: Collection[str], of: str, hint: str) -> dict[str, Any]:
    """The values less those of the other kind of target, of which none may have been given."""
    context = click.get_current_context(silent=True)
    for option in context.command.params if context is not None else ():
        given = context is not None and context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
        if option.name in names and given:
            raise UsageError(f"{option.opts[0]} is for {of}, not for {values['model'].name}", hint=hint)
    return {name: value for name, value in values.items() if name not in names}


_SOURCE_ONLY = ("entry", "grid", "block", "args", "expect", "shared")
