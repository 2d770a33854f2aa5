"""The steps of the BERT ladder as data: what each changes, on which route it can be taken, and what is to be known of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.errors import UsageError

FRAMEWORKS = ("torch", "torch-tensorrt", "tvm")
ROUTES = ("kernels", "onnx", "plugins", "frameworks")  # the last are all of FRAMEWORKS
# Largest relative L2 error that a precision explains; GELU's tanh form is in FP16's. What needs training has none.
BOUNDS = {"fp32": 1e-4, "tf32": 1e-2, "fp16": 2e-2, "int8": 0.25}
UNFUSED = {"merged": False, "permuted": False, "fused_gelu": False, "fused_norm": False}


@dataclass(frozen=True)
class Rung:
    """One step. `plan` are the fields of `PlanOptions` that it sets, on top of the steps before.

    `engine` is the precision of routes that build an engine by themselves, "" where such a route has no such step.
    `aside`: a side step, on which the following ones do not build.
    """

    name: str
    title: str
    plan: Mapping[str, Any] = field(default_factory=dict)
    engine: str = ""
    graph: bool = False
    pruned: bool = False
    aside: bool = False
    note: str = ""


RUNGS: tuple[Rung, ...] = (
    Rung("fp32", "FP32", {"precision": "fp32", **UNFUSED}, engine="fp32",
         note="every operation by itself, but embedding and attention, which are one kernel each in every step"),
    Rung("tf32", "TF32 products", {"precision": "tf32"}, engine="tf32"),
    Rung("fp16", "FP16", {"precision": "fp16"}, engine="fp16"),
    Rung("fusion", "fused layernorm, merged QKV", {"merged": True, "fused_norm": True},
         note="bias, residual sum and layernorm in one kernel; Q, K and V in one product"),
    Rung("gelu", "bias and GELU in the product", {"fused_gelu": True}, note="the tanh form of GELU"),
    Rung("permuted", "permuted QKV weights", {"permuted": True},
         note="our attention transposes nothing in either order; heads stand together in memory now"),
    Rung("residual", "residual sum in the product", {"residual_in_product": True}, aside=True,
         note="bias and residual sum in the product, layernorm by itself: it reads one tensor less"),
    Rung("varlen", "no padding", {"packed": True}, note="only tokens are computed; the same with no padding to leave out"),
    Rung("sparse", "2:4 sparse weights", {}, pruned=True, aside=True,
         note="needs training: pruned by size here; accuracy is shown as it is"),
    Rung("int4", "INT4 weights", {"int4": True}, aside=True,
         note="needs training: rounded in groups here; unpacked before each product: saves memory, not time"),
    Rung("int8", "INT8", {"precision": "int8"}, engine="int8", note="attention in FP16, so its input and output are converted"),
    Rung("int8-attention", "INT8 attention", {"int8_attention": True},
         note="reads and writes INT8, and multiplies it as FP16: nothing is converted before and after it"),
    Rung("graph", "CUDA graph", {}, graph=True, note="the same kernels, launched as one"),
    Rung("graph-fp16", "CUDA graph of FP16", {"precision": "fp16", "int8_attention": False}, engine="fp16", graph=True, aside=True,
         note="without INT8, for comparison"),
)  # fmt: skip
BY_NAME = {rung.name: rung for rung in RUNGS}


def choose(names: tuple[str, ...]) -> tuple[Rung, ...]:
    """The named steps in the order of the ladder; all, if none is named. Raises UsageError for one that does not exist."""
    if unknown := [name for name in names if name not in BY_NAME]:
        raise UsageError(f"no step {unknown[0]!r}", hint=f"some of {','.join(BY_NAME)}")
    return tuple(rung for rung in RUNGS if not names or rung.name in names)


def choose_routes(names: tuple[str, ...]) -> tuple[str, ...]:
    """The routes that are meant, each framework by its own name; all, if none is named."""
    known = (*ROUTES, *FRAMEWORKS)
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"no route {unknown[0]!r}", hint=f"some of {','.join(known)}")
    meant = {*names, *(FRAMEWORKS if "frameworks" in names else ())}
    return tuple(route for route in (*ROUTES[:-1], *FRAMEWORKS) if not names or route in meant)


def options_of(rung: Rung) -> dict[str, Any]:
    """All fields of `PlanOptions` at this step: those of every step up to it that is not aside, then its own."""
    made: dict[str, Any] = {}
    for one in RUNGS:
        if one.name == rung.name:
            return made | dict(one.plan)
        if not one.aside:
            made |= one.plan
    raise UsageError(f"no step {rung.name!r}", hint=f"some of {','.join(BY_NAME)}")


def bound_of(rung: Rung) -> float | None:
    """The relative L2 error beyond which a step is wrong; None where training would have to mend it."""
    options = options_of(rung)
    return None if rung.pruned or options.get("int4") else BOUNDS[options["precision"]]
