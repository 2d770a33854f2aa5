"""What a tool is put around: the user's program as it is, or a loop of ours over a model, an engine or a kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import process
from harness.engines.measuring import MEASURE
from harness.engines.options import BuildOptions
from harness.ranges import DOMAIN
from harness.record import Command, Session
from probes.targets import measuring_models
from probes.targets.driving import WORKER_RESULT
from probes.targets.inferring import Spec
from probes.targets.inferring import command as inferring_command
from probes.targets.target import SOURCE, Kind, Target

if TYPE_CHECKING:
    from probes.profiling.settings import Settings as ProfileSettings
    from probes.sanitizing.settings import Settings as SanitizeSettings

Tell = Callable[[str], None]
Shapes = dict[str, tuple[int, ...]]
PRECISION = "fp32"  # what a model is built in unless asked, by every tool


@dataclass(frozen=True)
class Workload:
    """A program, and the NVTX range in it that holds what is to be looked at (None: all of it)."""

    command: Command
    range: str | None = None  # its name
    domain: str | None = None

    @property
    def for_nsys(self) -> str | None:
        """RANGE@DOMAIN."""
        return None if self.range is None else f"{self.range}@{self.domain}" if self.domain else self.range

    @property
    def for_filters(self) -> str | None:
        """DOMAIN@RANGE, as ncu and compute-sanitizer spell it."""
        return None if self.range is None else f"{self.domain}@{self.range}" if self.domain else self.range


def narrowed(workload: Workload, name: str | None) -> Workload:
    """The same program, with the range that the user named: NAME or NAME@DOMAIN."""
    if name is None:
        return workload
    range_, _, domain = name.partition("@")
    return Workload(workload.command, range_, domain or None)


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
        shapes=dict(settings.shapes or settings.optimum), inputs=_inputs(settings.inputs), warmup=settings.warmup,
        iterations=settings.iterations, cuda_graph=settings.cuda_graph,
        sweep=None if settings.sweep is None else str(settings.sweep),
    )  # fmt: skip


def opt_profiles(settings: ProfileSettings) -> tuple[Shapes, Shapes, Shapes]:
    """Least, optimal and greatest shape of each input that any was given for; what was not is as the nearest that was."""
    low, best, high = (dict(shapes) for shapes in (settings.minimum, settings.optimum, settings.maximum))
    middle = {**low, **high, **best}
    return {**middle, **low}, middle, {**middle, **high}


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
    """The loop over inferences; the engine is built now, so that tools see it deserialised and run, and nothing else."""
    if spec.source.suffix == ".onnx" and not (spec.plan is not None and spec.plan.is_file()):
        tell("building the engine")
        measuring_models.build(replace(spec, sweep=None), session, tell, timeout_s=timeout)
    infer = replace(spec, stage="infer", sweep=None)
    path = infer.write(session.folder / "infer.spec.json")
    command = Command(inferring_command(path.absolute()), None, process.module_environment())
    return Workload(command, MEASURE, DOMAIN)


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
    return Workload(Command(words, None, process.module_environment()), MEASURE, DOMAIN)


def node_names(target: Target) -> tuple[str, ...]:
    """The names of a model's nodes, by which fused operations are tied to them; none for any other target."""
    if target.kind is not Kind.MODEL:
        return ()
    from harness.models import model

    return tuple(node.proto.name for node in model.load(target.path).nodes if node.proto.name)
