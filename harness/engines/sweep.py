"""One input dimension varied: which shapes that means, and where the times along it show that something changed."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from harness.engines.options import Bounds, Shape
from harness.errors import UsageError

MOST_SHAPES = 4096
_TEXT = re.compile(r"(?P<input>.+):(?P<axis>\d+)=(?P<low>\d+)\.\.(?P<high>\d+)(?::(?P<step>\d+))?")


@dataclass(frozen=True)
class Sweep:
    """Sizes `low`, `low + step` .. `high` of one axis of one input."""

    input: str
    axis: int
    low: int
    high: int
    step: int = 1

    @property
    def sizes(self) -> list[int]:
        return list(range(self.low, self.high + 1, self.step))

    def __str__(self) -> str:
        return f"{self.input}:{self.axis}={self.low}..{self.high}:{self.step}"


def parse(text: str) -> Sweep:
    """`ids:1=16..512:16`, the step being 1 if it is left out. Raises UsageError for anything else."""
    found = _TEXT.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"--sweep: expected INPUT:AXIS=LOW..HIGH:STEP, got {text!r}", hint="--sweep ids:1=16..512:16")
    sweep = Sweep(found["input"], *(int(found[name] or 1) for name in ("axis", "low", "high", "step")))
    if sweep.low < 1 or sweep.high < sweep.low or sweep.step < 1:
        raise UsageError(f"--sweep {text}: expected 1 <= LOW <= HIGH and a step of at least 1")
    if len(sweep.sizes) > MOST_SHAPES:
        raise UsageError(f"--sweep {text}: {len(sweep.sizes)} shapes, at most {MOST_SHAPES} are measured in one go")
    return sweep


def shapes_at(
    sweep: Sweep, inputs: Sequence[onnx.ValueInfoProto], given: Mapping[str, Shape], size: int
) -> dict[str, Shape]:
    """The shape of every input with the axis at `size`: every dimension of the same symbolic name follows it.

    `given` are complete shapes by input name for all that is not swept.
    """
    names = {value.name: [dim.dim_param for dim in value.type.tensor_type.shape.dim] for value in inputs}
    symbol = _symbol(sweep, inputs)
    shapes = {}
    for name, dims in names.items():
        follows = [
            (symbol and dim == symbol) or (name == sweep.input and axis == sweep.axis) for axis, dim in enumerate(dims)
        ]
        shapes[name] = tuple(size if follow else old for follow, old in zip(follows, given[name], strict=True))
    return shapes


def bounds(sweep: Sweep, inputs: Sequence[onnx.ValueInfoProto], given: Mapping[str, Shape]) -> dict[str, Bounds]:
    """One opt_profile over the whole range, best at its middle size, for every input with dynamic dimensions.

    It also holds the given shapes themselves, so that the same engine serves the tools that run one shape.
    """
    sizes = sweep.sizes
    least, best, most = (
        shapes_at(sweep, inputs, given, size) for size in (sizes[0], sizes[len(sizes) // 2], sizes[-1])
    )
    dynamic = [value.name for value in inputs if any(dim.dim_value <= 0 for dim in value.type.tensor_type.shape.dim)]
    return {
        name: (tuple(map(min, least[name], given[name])), best[name], tuple(map(max, most[name], given[name])))
        for name in dynamic
    }


def _symbol(sweep: Sweep, inputs: Sequence[onnx.ValueInfoProto]) -> str:
    """The symbolic name of the swept dimension ("" if it has none). Raises UsageError where there is nothing to sweep."""
    value = next((value for value in inputs if value.name == sweep.input), None)
    if value is None:
        raise UsageError(
            f"--sweep {sweep}: the model has no input {sweep.input!r}; it reads {[v.name for v in inputs]}"
        )
    dims = value.type.tensor_type.shape.dim
    if sweep.axis >= len(dims):
        raise UsageError(f"--sweep {sweep}: input {sweep.input!r} has {len(dims)} dimensions, counted from 0")
    if dims[sweep.axis].dim_value > 0:
        raise UsageError(f"--sweep {sweep}: dimension {sweep.axis} of input {sweep.input!r} is fixed at "
                         f"{dims[sweep.axis].dim_value}", hint="export the model with this dimension dynamic")  # fmt: skip
    return dims[sweep.axis].dim_param


# Where something changes


@dataclass(frozen=True)
class Step:
    """What changed from the size before: kernels, tactics or, where neither is known, the latency's own course."""

    kind: str  # "kernels", "tactics" or "latency"
    change: str


def steps_by_name(signatures: Sequence[Sequence[str] | None], kind: str) -> list[Step | None]:
    """A step wherever the names (kernels, tactics) differ from those of the size before."""
    found: list[Step | None] = [None]
    for before, after in itertools.pairwise(signatures):
        if before is None or after is None or list(before) == list(after):
            found.append(None)
            continue
        gone, new = sorted(set(before) - set(after)), sorted(set(after) - set(before))
        found.append(Step(kind, f"{_few(gone)} -> {_few(new)}"))
    return found[: len(signatures)]


def steps_by_latency(
    sizes: Sequence[int], medians_ns: Sequence[float], spreads_ns: Sequence[float]
) -> list[Step | None]:
    """A step wherever latency leaves the course of its neighbours by more than noise explains.

    The rise to each size, per unit of size, is compared with the line through the rises around it (Theil-Sen, so that
    another step nearby does not bend it). It is a step if it differs by more than six times the typical deviation of rises, by more than three times the spread of the two
    medians, and by more than 5 % of the latency. It says that something changed, not what.
    """
    found: list[Step | None] = [None] * len(sizes)
    if len(sizes) < 5:  # too few rises to know what is usual
        return found
    rises = np.diff(np.asarray(medians_ns)) / np.diff(np.asarray(sizes))
    widths = np.diff(np.asarray(sizes))
    usual = np.array([_expected(rises, at) for at in range(len(rises))])
    away = (rises - usual) * widths
    typical = 1.4826 * float(np.median(np.abs(away)))
    for at, excess in enumerate(away):
        noise = 3 * float(np.hypot(spreads_ns[at], spreads_ns[at + 1]))
        if abs(excess) > max(6 * typical, noise, 0.05 * medians_ns[at]):
            percent = 100 * excess / medians_ns[at]
            found[at + 1] = Step("latency", f"{percent:+.0f} % beside the course of the sizes around it")
    return found


def _expected(rises: np.ndarray, at: int, reach: int = 6) -> float:
    """What the rise at a place should be by those of the nearest others: smooth curves have straight rises."""
    others = sorted((one for one in range(len(rises)) if one != at), key=lambda one: abs(one - at))[:reach]
    slopes = [(rises[a] - rises[b]) / (a - b) for a, b in itertools.combinations(others, 2)]
    slope = float(np.median(slopes))
    return float(np.median([rises[one] - slope * (one - at) for one in others]))


def agreed(rounds: Sequence[Sequence[Step | None]]) -> list[Step | None]:
    """The steps that every round shows, in the words of the first, going the same way."""
    found: list[Step | None] = []
    for step, *others in zip(*rounds, strict=True):
        same = all(other is not None and step is not None and other.change[0] == step.change[0] for other in others)
        found.append(step if same else None)
    return found


def median_error(values: np.ndarray) -> float:
    """How far the median of a series is uncertain, in its unit: from the interquartile range, as for a normal one."""
    low, high = np.percentile(values, (25, 75))
    return float(1.253 * (high - low) / 1.349 / np.sqrt(len(values)))


def _few(names: Sequence[str], most: int = 3) -> str:
    shown = ", ".join(names[:most]) or "none"
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
