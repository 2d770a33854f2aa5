"""What a tool is put around: the user's program as it is, or a loop of ours over a model, an engine or a kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import process
from harness.engines.measuring import MEASURE
from harness.engines.options import BuildOptions
from harness.ranges import DOMAIN
from harness.record import Command, Session
from harness.tools.nvtx_range import NvtxRange
from probes.targets import measuring_models
from probes.targets.driving import WORKER_RESULT
from probes.targets.inferring import Spec
from probes.targets.inferring import command as inferring_command
from probes.targets.target import SOURCE, Kind

if TYPE_CHECKING:
    from probes.profiling.settings import Settings as ProfileSettings
    from probes.sanitizing.settings import Settings as SanitizeSettings

Tell = Callable[[str], None]
Shapes = dict[str, tuple[int, ...]]
MEASURED = NvtxRange(MEASURE, DOMAIN)
PRECISION = "fp32"  # what a model is built in unless asked, by every tool


@dataclass(frozen=True)
class Workload:
    """A program, the NVTX range in it that holds what is to be looked at (None: all of it), and what a model is fed."""

    command: Command
    range: NvtxRange | None = None
    shapes: Shapes = field(default_factory=dict)


def for_profile(settings: ProfileSettings, session: Session, tell: Tell) -> Workload:
    """What is profiled. A model is built first, outside of every tool; warm-up lies outside of the range."""
    target = settings.target
    if target.kind is Kind.COMMAND:
        return Workload(Command(target.words))
    if target.kind is Kind.KERNEL:
        return kernel(settings, session, settings.warmup, settings.iterations)
    return inference(model_spec(settings, session), session, settings.timeout, tell)


def for_sanitizer(settings: SanitizeSettings, session: Session, tell: Tell) -> Workload:
    """What is checked: no warm-up, since the first inference may be the one that is wrong."""
    target = settings.target
    if target.kind is Kind.COMMAND:
        return Workload(Command(target.words))
    if target.kind is Kind.KERNEL:
        return kernel(settings, session, 0, 1)
    spec = measuring_models.spec_for(
        session, "infer", target.path.absolute(), options=_build_options(settings, {}), shapes=dict(settings.shapes),
        inputs=_inputs(settings.inputs), warmup=0, iterations=settings.iterations, transfers=True,
    )  # fmt: skip
    return inference(spec, session, settings.timeout, tell)


def model_spec(settings: ProfileSettings, session: Session) -> Spec:
    """The inference that all tools measure."""
    least, best, most = opt_profiles(settings)
    profiles = {name: (least[name], best[name], most[name]) for name in best}
    return measuring_models.spec_for(
        session, "infer", settings.target.path.absolute(), options=_build_options(settings, profiles),
        shapes=shapes(settings), inputs=_inputs(settings.inputs), warmup=settings.warmup,
        iterations=settings.iterations, cuda_graph=settings.cuda_graph,
        sweep=None if settings.sweep is None else str(settings.sweep),
    )  # fmt: skip


def shapes(settings: ProfileSettings) -> Shapes:
    """What runs, of the inputs that anything was given for: --shapes, else what the engine is optimised for."""
    given = (settings.minimum, settings.maximum, settings.optimum, settings.shapes)
    return {name: shape for pairs in given for name, shape in pairs}


def opt_profiles(settings: ProfileSettings) -> tuple[Shapes, Shapes, Shapes]:
    """Least, optimal and greatest shape of these inputs; bounds that were not given hold what runs, and no more."""
    run, low, best, high = shapes(settings), *map(dict, (settings.minimum, settings.optimum, settings.maximum))
    best = {**run, **best}
    least = {name: tuple(map(min, best[name], run[name])) for name in run}
    most = {name: tuple(map(max, best[name], run[name])) for name in run}
    return {**least, **low}, best, {**most, **high}


def _build_options(settings: ProfileSettings | SanitizeSettings, profiles: dict[str, Any]) -> BuildOptions:
    return BuildOptions(
        backend=settings.backend, precision=settings.precision or PRECISION, opt_profiles=profiles,
        calibration=_inputs(settings.inputs) if settings.precision == "int8" else (), plugins=tuple(path.absolute() for path in settings.plugins),
    )  # fmt: skip


def folders(settings: ProfileSettings | SanitizeSettings) -> tuple[Path, ...]:
    """Where the files lie that were named."""
    target = () if settings.target.kind is Kind.COMMAND else (settings.target.path,)
    named = (*target, settings.inputs, settings.args, *settings.plugins)
    return tuple(dict.fromkeys(path.absolute().parent for path in named if path is not None))


def _inputs(path: Path | None) -> tuple[Path, ...]:
    return () if path is None else (path.absolute(),)


def inference(spec: Spec, session: Session, timeout: float | None, tell: Tell) -> Workload:
    """The loop over inferences; the engine is built now, so that tools see it deserialised and run, and nothing else.

    One that is there is loaded now: what is wrong with it is told here, in the words of the runtime alone.
    """
    tell("building the engine")
    built = measuring_models.build(spec, session, tell, timeout_s=timeout)
    shapes = {name: tuple(shape) for name, shape in built.result["shapes"].items()}
    infer = replace(spec, stage="infer", sweep=None, shapes=shapes)
    path = infer.write(session.folder / "infer.spec.json")
    command = Command(inferring_command(path.absolute()), None, process.module_environment())
    return Workload(command, MEASURED, shapes)


def kernel(settings: ProfileSettings | SanitizeSettings, session: Session, warmup: int, iterations: int) -> Workload:
    """The loop over launches of a kernel of ours, or of a .cu file."""
    from probes.targets import kernels
    from probes.targets.kernels import Asked
    from probes.targets.launching import Spec as LaunchSpec

    word = str(settings.target.path.absolute()) if settings.target.path.suffix == SOURCE else settings.target.words[0]
    args = None if settings.args is None else settings.args.absolute()
    asked = Asked(word, settings.entry, settings.grid, settings.block, settings.shared, args)
    if settings.target.path.suffix == SOURCE:
        kernels.load(asked)  # what is wrong with the arguments is told now, not by a process under a tool
    spec = LaunchSpec(asked, warmup, iterations, (session.folder / WORKER_RESULT).absolute())
    path = spec.write(session.folder / "launch.spec.json")
    words = process.module_words("probes.targets.launching", str(path.absolute()))
    return Workload(Command(words, None, process.module_environment()), MEASURED)
