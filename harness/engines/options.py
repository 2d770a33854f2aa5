"""What an engine is built with: options that mean the same on every backend, and the key that finds a build again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
from onnx import external_data_helper

from harness.errors import UsageError

PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8")
BACKENDS = ("trt", "trt-rtx", "ort-cpu", "ort-cuda")

Shape = tuple[int, ...]
Bounds = tuple[Shape, Shape, Shape]  # least, optimal, greatest
Populate = Callable[[ModuleType, Any], Any]  # (tensorrt, network) -> whatever must stay alive until the engine is built
Source = Path | onnx.ModelProto | Populate
Tell = Callable[[str], None]

TACTIC_SOURCES = "PROBE_TACTIC_SOURCES"  # in the environment


@dataclass(frozen=True)
class BuildOptions:
    """How to build. Enum members are given by name, since their numbers differ between versions.

    precision: fp32 (no TF32), tf32, fp16, bf16, or int8 with fp16 for what is not quantised. The network's inputs and
        outputs keep their types. Where precision is a builder flag it allows, and TensorRT takes what is faster; where
        networks are strongly typed (`typing`: auto, weak, strong) the model itself is rewritten.
    opt_profiles: input name -> (least, optimal, greatest) shape; for a shape tensor its values.
    layer_precisions: ONNX node (or layer) name -> precision, for layers that differ from `precision`.
    outputs: tensors to be marked as outputs beside the network's own.
    debug_tensors: tensors to be marked for debugging (from TensorRT 10 on): materialised, and no outputs.
    calibration: .npz samples for int8 where the model has no Q/DQ nodes.
    tactic_sources: names of TacticSource; one with a minus before it (-CUDNN) is taken out of those used by default. If
    None, the environment's PROBE_TACTIC_SOURCES says it, for machines where a library that TensorRT counts on is missing.
    flags: BuilderFlag names beyond those that follow from the rest.
    """

    backend: str | None = None  # None: the best one here
    precision: str = "fp32"
    typing: str = "auto"
    opt_profiles: Mapping[str, Bounds] = field(default_factory=dict)
    layer_precisions: Mapping[str, str] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    debug_tensors: tuple[str, ...] = ()
    calibration: tuple[Path, ...] = ()
    flags: tuple[str, ...] = ()
    timing_cache: Path | None = None
    memory_pools: Mapping[str, int] = field(default_factory=dict)  # MemoryPoolType -> bytes
    optimisation_level: int | None = None  # 0 to 5
    detailed: bool = True  # layer information, and NVTX ranges of layers, that name the ONNX nodes
    plugins: tuple[Path, ...] = ()
    tactic_sources: tuple[str, ...] | None = None
    build_route: str | None = None
    capability: str | None = None  # of RTX, by name: SM89

    def __post_init__(self) -> None:
        if self.tactic_sources is None and (asked := os.environ.get(TACTIC_SOURCES)):
            object.__setattr__(self, "tactic_sources", tuple(asked.split(",")))
        for name in (self.precision, *self.layer_precisions.values()):
            if name not in PRECISIONS:
                raise UsageError(f"precision: expected one of {', '.join(PRECISIONS)}, got {name!r}")
        if self.typing not in ("auto", "weak", "strong"):
            raise UsageError(f"typing: expected auto, weak or strong, got {self.typing!r}")
        if self.backend is not None and self.backend not in BACKENDS:
            raise UsageError(f"backend: expected one of {', '.join(BACKENDS)}, got {self.backend!r}")
        for name, bounds in self.opt_profiles.items():
            _check_bounds(name, bounds)


def to_json(value: Any) -> Any:
    """A frozen dataclass, or what stands in one, as JSON values."""
    if hasattr(value, "__dataclass_fields__"):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def from_json(content: Mapping[str, Any]) -> BuildOptions:
    """The options that `to_json` wrote. Raises UsageError for a field that there is not."""
    known = {one.name for one in fields(BuildOptions)}
    if unknown := sorted(set(content) - known):
        raise UsageError(f"build options: expected {', '.join(sorted(known))}, got {unknown[0]!r}")
    made = dict(content)
    for name in ("outputs", "debug_tensors", "flags", "tactic_sources"):
        made[name] = (
            tuple(made[name]) if made.get(name) is not None else BuildOptions.__dataclass_fields__[name].default
        )
    for name in ("calibration", "plugins"):
        made[name] = tuple(map(Path, made.get(name) or ()))
    made["timing_cache"] = Path(made["timing_cache"]) if made.get("timing_cache") else None
    made["opt_profiles"] = {
        name: tuple(tuple(map(int, shape)) for shape in bounds)
        for name, bounds in (made.get("opt_profiles") or {}).items()
    }
    return BuildOptions(**made)


def build_key(source: Source, options: BuildOptions, facts: Mapping[str, str]) -> str | None:
    """The same for two builds if nothing that matters differs; None for a callable, whose content is not known.

    `facts` are of the backend (`engine.facts`): version, device, driver. The timing cache is left out: it changes how
    long a build takes, and a search pins it anyway.
    """
    if not isinstance(source, Path | onnx.ModelProto):
        return None
    digest = hashlib.sha256()
    settings = {
        name: value
        for name, value in to_json(options).items()
        if name not in ("timing_cache", "plugins", "calibration")
    }
    digest.update(json.dumps([settings, dict(facts)], sort_keys=True).encode())
    if isinstance(source, Path):
        _add_model_file(digest, source)
    else:
        digest.update(source.SerializeToString(deterministic=True))
    for path in (*options.plugins, *options.calibration):
        _add_file(digest, path)
    return digest.hexdigest()


def _check_bounds(name: str, bounds: Bounds) -> None:
    ranks = {len(shape) for shape in bounds}
    ordered = len(bounds) == 3 and len(ranks) == 1
    if not ordered or any(not low <= best <= high for low, best, high in zip(*bounds, strict=True)):
        shown = ", ".join("x".join(map(str, shape)) for shape in bounds)
        raise UsageError(f"opt_profile of input {name!r}: expected least <= optimal <= greatest, got {shown}")


def _add_model_file(digest: hashlib._Hash, path: Path) -> None:
    """The model and, where it has some, the files beside it that hold its weights."""
    _add_file(digest, path)
    if path.suffix != ".onnx":
        return
    skeleton = onnx.load(str(path), load_external_data=False)
    tensors = [t for t in skeleton.graph.initializer if external_data_helper.uses_external_data(t)]
    for location in sorted({external_data_helper.ExternalDataInfo(tensor).location for tensor in tensors}):
        _add_file(digest, path.parent / location)


def _add_file(digest: hashlib._Hash, path: Path) -> None:
    if not path.is_file():
        raise UsageError(f"{path} does not exist")
    with path.open("rb") as stream:
        digest.update(hashlib.file_digest(stream, "sha256").digest())
