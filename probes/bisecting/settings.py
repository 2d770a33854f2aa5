"""What a user can ask of `probe bisect`, as one immutable value that survives being written to a session and read back."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.models.precision import Precision

LOWERED = ("precision", "finite")  # emulated on the CPU, or built where a backend is given
ENGINES = ("crash", "fusion", "route")  # faults of engines alone
BUILT = ("build", *ENGINES)
OF_ENGINES = ("objective", "level", "plugins", "replace", "memory", "sanitize")


@dataclass(frozen=True)
class Settings:
    """One bisection: the model, the fault, its inputs, how much it may cost."""

    model: Path
    fault: str = "precision"
    precision: Precision = Precision.FP16
    tolerance: float = 1e-2
    good: Path | None = None
    backend: str | None = None
    check: str | None = None
    reduce: bool = False
    inputs: tuple[Path, ...] = ()
    seed: int = 0
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    low: float = -1.0
    high: float = 1.0
    samples: int = 1
    jobs: int = 1
    dask: str | None = None
    timeout: float | None = None
    budget: int | None = None
    repeat: int = 1
    keep_scope: bool = False
    threads: int = 0
    objective: str = "nodes"  # or "time": what the set to keep in FP32 costs is measured milliseconds
    engine_precision: str = "fp32"  # of engines whose faults are not about lowering
    level: int | None = None  # of the builder's optimisation
    plugins: tuple[Path, ...] = ()
    replace: tuple[tuple[str, Path], ...] = ()  # plugin op -> an .onnx file that computes the same
    memory: float | None = None  # GiB on the host, of one trial
    sanitize: str | None = None

    def check_consistency(self) -> None:
        """Raise UsageError for options that do not go together or lack their partner."""
        needs = {
            "compare": ("good", "--good OTHER.onnx"),
            "check": ("check", "--check 'CMD {model}'"),
        }
        for fault, (name, option) in needs.items():
            given = getattr(self, name) is not None
            if fault == self.fault and not given:
                raise UsageError(f"--fault {fault} needs {option}")
            if fault != self.fault and given:
                raise UsageError(f"{option.split()[0]} belongs to --fault {fault}, not to --fault {self.fault}")
        if self.fault in BUILT and self.backend is None:
            raise UsageError(f"--fault {self.fault} needs --backend trt-rtx, or --backend trt")
        if self.fault not in (*BUILT, *LOWERED) and self.backend is not None:
            raise UsageError(
                f"--backend belongs to --fault {', '.join((*BUILT, *LOWERED))}, not to --fault {self.fault}"
            )
        if not self.tries_engines and (
            odd := [f"--{name}" for name in OF_ENGINES if getattr(self, name) != _default(name)]
        ):
            raise UsageError(f"{odd[0]} is about engines", hint="--backend trt")
        if self.replace and self.fault != "crash":
            raise UsageError(f"--replace belongs to --fault crash, not to --fault {self.fault}")
        if self.objective == "time" and self.fault not in LOWERED:
            raise UsageError(f"--objective time belongs to --fault {', '.join(LOWERED)}, not to --fault {self.fault}")
        if self.reduce and self.fault not in ("build", "check"):
            raise UsageError("--reduce belongs to --fault build or --fault check")

    @property
    def tries_engines(self) -> bool:
        """Whether each evaluation is an engine that is built and run, not an emulation nor a parse."""
        return self.fault in ENGINES or (self.fault in LOWERED and self.backend is not None)

    def to_json(self) -> dict[str, Any]:
        return {key: _plain(value) for key, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Settings:
        values = dict(content)
        for name in ("model", "good"):
            values[name] = Path(values[name]) if values[name] is not None else None
        values["plugins"] = tuple(Path(path) for path in values.get("plugins", ()))
        values["replace"] = tuple((op, Path(path)) for op, path in values.get("replace", ()))
        values["inputs"] = tuple(Path(path) for path in values["inputs"])
        values["shapes"] = tuple((name, tuple(dims)) for name, dims in values["shapes"])
        values["precision"] = Precision(values["precision"])
        return cls(**values)

    def command(self) -> str:
        """The command line that asks the same again; files by name only, so that no folder of this machine shows."""
        words = ["probe", "bisect", self.model.name]
        for entry in dataclasses.fields(self)[1:]:
            value = getattr(self, entry.name)
            if value == entry.default or entry.name in ("jobs", "dask", "threads", "low", "high"):
                continue
            words += _option(entry.name, value)
        if (self.low, self.high) != (-1.0, 1.0):
            words += ["--range", f"{self.low:g}:{self.high:g}"]
        return shlex.join(words)


def _default(name: str) -> Any:
    return Settings.__dataclass_fields__[name].default


def _option(name: str, value: Any) -> list[str]:
    option = {"shapes": "--shape", "keep_scope": "--keep-scope", "plugins": "--plugin",
              "engine_precision": "--precision"}.get(name, f"--{name}")  # fmt: skip
    if value is True:
        return [option]
    if name == "replace":
        return [word for op, path in value for word in (option, f"{op}={path.name}")]
    if name in ("inputs", "plugins"):
        return [word for path in value for word in (option, path.name)]
    if name == "shapes":
        return [word for tensor, dims in value for word in (option, f"{tensor}:{'x'.join(map(str, dims))}")]
    if isinstance(value, Path):
        return [option, value.name]
    return [option, f"{value:g}" if isinstance(value, float) else str(value)]


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
