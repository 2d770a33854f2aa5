"""A kernel named on the command line, as steps over arrays: one of ours by its name, or any in a .cu file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.errors import UsageError
from kernels import manifest
from kernels.plan import Launch, Plan, Step
from kernels.spec import checked
from probes.targets import arguments
from probes.targets.target import SOURCE

SEED = 0
Array = np.ndarray


@dataclass(frozen=True)
class Asked:
    """What was typed: a name, or a .cu file with its entry point, launch and arguments (.npz, by parameter name)."""

    word: str
    entry: str | None = None
    grid: tuple[int, int, int] | None = None
    block: tuple[int, int, int] | None = None
    shared: int = 0
    args: Path | None = None


@dataclass(frozen=True)
class Loaded:
    """Steps, the arrays they work on by buffer name, and which of those must not be read before they are written."""

    name: str
    steps: tuple[Step, ...]
    arrays: dict[str, Array]
    written: tuple[str, ...] = ()


def load(asked: Asked, *, most_threads: int | None = None) -> Loaded:
    """One of ours solves the first problem that it is measured on or, where threads have a limit, the largest test in it.

    Raises UsageError if there is no such kernel, or the arguments do not fit it.
    """
    return _file(asked) if Path(asked.word).suffix == SOURCE else _ours(asked.word, most_threads)


def _ours(name: str, most_threads: int | None) -> Loaded:
    """With random inputs."""
    spec = manifest.BY_NAME.get(name)
    if spec is None:
        raise UsageError(f"no kernel is called {name}", hint="probe kernels list")
    plans = ((case, checked(spec, case)) for case in (spec.cases if most_threads else (*spec.bench, *spec.cases)[:1]))
    case, plan = max(plans, key=lambda one: _threads(one[1]) * (_threads(one[1]) <= (most_threads or math.inf)))
    arrays = dict(spec.inputs(case, np.random.default_rng(SEED)))
    for buffer in plan.buffers:
        if buffer.name not in arrays:
            dtype = np.dtype(np.uint16 if buffer.dtype == "bfloat16" else buffer.dtype)
            arrays[buffer.name] = np.zeros(buffer.shape, dtype)
    written = tuple(buffer.name for buffer in plan.buffers if buffer.role in ("out", "scratch"))
    return Loaded(f"{name}, {case.label}", plan.steps, arrays, written)


def _threads(plan: Plan) -> int:
    return sum(math.prod((*step.grid, *step.block)) for step in plan.steps if isinstance(step, Launch))


def _file(asked: Asked) -> Loaded:
    """One launch of a kernel of the user's own."""
    source = Path(asked.word).absolute()
    if asked.grid is None or asked.block is None:
        raise UsageError(
            f"how is {source.name} launched?", hint=f"--entry NAME --grid 1 --block 32 --args FILE.npz {source.name}"
        )
    entry, wanted = arguments.read_kernel(source, asked.entry)
    given = arguments.bind(wanted, {} if asked.args is None else arguments.read(asked.args))
    launch = Launch(source, entry, asked.grid, asked.block, given.arguments, asked.shared, names=given.names,
                    variables=given.contents)  # fmt: skip
    return Loaded(entry, (launch,), dict(given.arrays))
