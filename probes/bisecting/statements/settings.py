"""What a user can ask of `probe bisect FILE.cu`, as one immutable value that survives being written and read back."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from probes.targets.kernels import Asked

FAULTS = ("sanitizer", "nan", "mismatch", "check")
Extent = tuple[int, int, int]


@dataclass(frozen=True)
class StatementSettings:
    """One bisection of a kernel's statements: the source, how it is launched, the fault, how much it may cost."""

    source: Path
    fault: str = "sanitizer"
    entry: str | None = None
    grid: Extent | None = None
    block: Extent | None = None
    shared: int = 0
    args: Path | None = None
    expect: Path | None = None  # .npz of what arrays must hold afterwards, by parameter name
    tolerance: float = 1e-2
    check: str | None = None
    reduce: bool = False
    jobs: int = 1
    timeout: float | None = None
    budget: int | None = None
    repeat: int = 1

    def check_consistency(self) -> None:
        """Raise UsageError for options that do not go together or lack their partner."""
        if self.fault not in FAULTS:
            raise UsageError(f"--fault {self.fault} is about models; {self.source.name} is a CUDA source",
                             hint=f"--fault {', '.join(FAULTS)}")  # fmt: skip
        if (self.fault == "check") != (self.check is not None):
            raise UsageError("--fault check and --check 'CMD {source}' belong together")
        if (self.fault == "mismatch") != (self.expect is not None):
            raise UsageError("--fault mismatch and --expect FILE.npz belong together",
                             hint="--expect FILE.npz holds, by parameter name, what an array must be after the launch")  # fmt: skip
        if self.fault != "check" and (self.grid is None or self.block is None):
            raise UsageError("how is the kernel launched?", hint="--grid 4 --block 128 --args FILE.npz")

    @property
    def launch(self) -> Asked:
        return Asked(str(self.source), self.entry, self.grid, self.block, self.shared, self.args)

    def to_json(self) -> dict[str, Any]:
        """With absolute paths, so that the session can be resumed from anywhere."""
        content = dataclasses.asdict(self)
        for name in ("source", "args", "expect"):
            content[name] = None if content[name] is None else str(content[name].absolute())
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> StatementSettings:
        values = dict(content)
        for name in ("source", "args", "expect"):
            values[name] = None if values[name] is None else Path(values[name])
        for name in ("grid", "block"):
            values[name] = None if values[name] is None else tuple(values[name])
        return cls(**values)

    def command(self) -> str:
        """The command line that asks the same again; files by name only, so that no folder of this machine shows."""
        words = ["probe", "bisect", self.source.name]
        for entry in dataclasses.fields(self)[1:]:
            value = getattr(self, entry.name)
            if value != entry.default and entry.name != "jobs":
                words += _option(entry.name, value)
        return shlex.join(words)


def _option(name: str, value: Any) -> list[str]:
    option = {"shared": "--smem"}.get(name, f"--{name}")
    if value is True:
        return [option]
    if isinstance(value, tuple):
        return [option, ",".join(map(str, value))]
    return [option, value.name if isinstance(value, Path) else f"{value:g}" if isinstance(value, float) else str(value)]
