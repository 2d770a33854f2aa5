"""The options of `probe bisect`, and how they become `Settings`."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from harness.errors import UsageError
from probes import options
from probes.options import FILE, FOLDER, argument, option

if TYPE_CHECKING:
    from probes.bisecting.settings import Settings
    from probes.bisecting.statements.settings import StatementSettings

# Spelt out here so that `probe --help` need not load the libraries behind them; a test holds them together.
FAULTS = (
    "precision", "finite", "compare", "build", "check", "crash", "fusion", "route", "sanitizer", "nan", "mismatch",
)  # fmt: skip
STATEMENT_FAULTS = ("sanitizer", "nan", "mismatch", "check")
SOURCES = (".cu", ".cuh")
PRECISIONS = ("fp16", "bf16")
ENGINE_PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
ENGINE_FAULTS = ("crash", "fusion", "route")
CHECKERS = ("memcheck", "racecheck", "initcheck", "synccheck")


class Range(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.2 only
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

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return self.name  # click would write it in capitals

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Path]:
        if isinstance(value, tuple):
            return value
        op, equals, path = str(value).partition("=")
        if not (op and equals and path):
            self.fail(f"{value!r}: expected an operator and a model, such as CustomOp=subgraph.onnx", param, ctx)
        return op, Path(path)


SECTIONS = {
    "What to look for": (
        argument("model", type=FILE, required=False),
        option("--fault", type=click.Choice(FAULTS), metavar="FAULT",
               help="precision (default), finite, compare, build, check; of an engine also crash, fusion, route; of a .cu sanitizer"
               " (default), nan, mismatch (of --expect), check."),
        option("--precision", type=click.Choice(ENGINE_PRECISIONS), metavar="fp16|bf16", default="fp16",
               help="What tensors are lowered to (default: fp16). For crash, fusion and route the engine's own: also fp32"
               " (their default) or tf32."),
        option("--tolerance", type=click.FloatRange(min=0), metavar="ERROR", default=1e-2, show_default=True,
               help="Relative L2 error that every output may have."),
        option("--good", type=FILE, metavar="OTHER.onnx", help="The model that is right (compare)."),
        option("--check", metavar="'CMD {model}'",
               help="Your command, with {model} or {source} in it: exit code 0 good, 125 skip, any other bad (check)."),
        option("--reduce", is_flag=True, help="Find the smallest failing sub-model (build, check) or kernel instead."),
    ),
    "Inputs of the model": (
        option("--inputs", type=FILE, multiple=True, metavar="FILE",
               help="One sample as .npz, or several as Polygraphy JSON; repeatable. Random ones without it:"),
        option("--shape", "--shapes", "shapes", type=options.Shape(), multiple=True, help="Shape of a random input; repeatable."),
        option("--range", "bounds", type=Range(), default="-1:1", show_default=True, help="Range of random inputs."),
        option("--samples", type=click.IntRange(min=1), metavar="N", default=1, show_default=True, help="How many random samples."),
        option("--seed", type=int, metavar="N", default=0, show_default=True, help="Of the random inputs."),
    ),
    "The search": (
        option("--jobs", type=click.IntRange(min=1), metavar="N", default=1, show_default=True,
               help="Worker processes; the result is the same for any number."),
        option("--threads", type=click.IntRange(min=0), metavar="N", default=0,
               help="ONNX Runtime threads per worker (default: all cores, 1 with --jobs)."),
        option("--dask", metavar="ADDRESS", help="Evaluate on a dask.distributed cluster, such as tcp://host:8786."),
        option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="For one evaluation; more is unresolved."),
        option("--budget", type=click.IntRange(min=1), metavar="N", help="Stop after so many evaluations, with the best so far."),
        option("--repeat", type=click.IntRange(min=1), metavar="N", default=1, show_default=True,
               help="Evaluate each candidate set so often; verdicts that change are unresolved."),
        option("--keep-scope", is_flag=True, help="Search by module scope first, then within the guilty scopes."),
    ),
    "Engines instead of the emulation": (
        option("--backend", type=click.Choice(["trt-rtx", "trt"]),
               help="The builder; each evaluation is an engine. trt-rtx builds without a GPU."),
        option("--objective", type=click.Choice(["nodes", "time"]), default="nodes", show_default=True,
               help="What the set kept in FP32 should cost little of: nodes, or measured milliseconds."),
        option("--level", type=click.IntRange(0, 5), metavar="0..5", help="The builder's optimisation level."),
        option("--plugin", "plugins", type=FILE, multiple=True, metavar="LIBRARY.so", help="A library of TensorRT plugins; repeatable."),
        option("--replace", type=Replacement(), multiple=True, help="A model that computes what a plugin does (crash); repeatable."),
        option("--memory", type=click.FloatRange(min=0, min_open=True), metavar="GIB", help="Of the host for one engine; more is out of memory."),
        option("--sanitize", type=click.Choice(CHECKERS), metavar="CHECKER",
               help=f"Run every engine under compute-sanitizer; a finding is a failure: {', '.join(CHECKERS)}."),
    ),
    "Launch of a kernel (FILE.cu)": (
        options.ENTRY,
        option("--grid", type=options.Extent(), help="Blocks."),
        option("--block", type=options.Extent(), help="Threads of a block."),
        option("--smem", "--shared", "shared", metavar="BYTES", type=click.IntRange(min=0), default=0, help="Dynamic shared memory."),
        option("--args", type=FILE, metavar="FILE", help="Arrays and scalars by name of parameter or variable: .npz or YAML."),
        option("--expect", type=FILE, metavar="FILE.npz", help="What arrays must hold afterwards, by parameter name (mismatch)."),
    ),
    "Results": (
        options.out("bisect"),
        option("--resume", type=FOLDER, metavar="DIR", help="Go on with an interrupted session; nothing is evaluated twice."),
        options.JSON,
    ),
}  # fmt: skip


def to_settings(values: dict[str, Any]) -> Settings | StatementSettings:
    """What click parsed (without --out, --resume and --json), of a model or of a kernel's source."""
    if values["model"] is None:
        raise UsageError("which model?", hint="probe bisect MODEL.onnx, or probe bisect --resume DIR")
    if not values["model"].exists():
        raise UsageError(f"{values['model']} does not exist", hint="give the path of an .onnx or a .cu file")
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

    known = {entry.name for entry in dataclasses.fields(StatementSettings)} | {"model"}
    values = _without(values, values.keys() - known, "a model", "probe bisect MODEL.onnx")
    implied = "check" if values["check"] else "mismatch" if values["expect"] else "sanitizer"
    return StatementSettings(source=values.pop("model"), **{**values, "fault": values["fault"] or implied})


def _without(values: dict[str, Any], names: Collection[str], of: str, hint: str) -> dict[str, Any]:
    """The values less those of the other kind of target, of which none may have been given."""
    context = click.get_current_context(silent=True)
    for one in context.command.params if context is not None else ():
        given = context is not None and context.get_parameter_source(one.name or "") is ParameterSource.COMMANDLINE
        if one.name in names and given:
            raise UsageError(f"{one.opts[0]} is for {of}, not for {values['model'].name}", hint=hint)
    return {name: value for name, value in values.items() if name not in names}


_SOURCE_ONLY = ("entry", "grid", "block", "args", "expect", "shared")
