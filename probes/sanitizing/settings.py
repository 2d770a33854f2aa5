"""What a user can ask of `probe sanitize`, as one immutable value."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError
from harness.tools.nvtx_range import NvtxRange
from harness.tools.sanitizer import CHECKERS
from probes.targets.target import Kind, Target

ALL = "all"
Shapes = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Settings:
    """One check of a target. `checker` is one of CHECKERS, or all of them."""

    target: Target
    checker: str = "memcheck"
    leaks: bool = False
    follow: bool = True  # re-run suspects under the other checkers
    locate: bool = True  # find the launch, and from there the layer
    kernel: str | None = None
    range: NvtxRange | None = None
    emulate: bool = False
    iterations: int = 2
    shapes: Shapes = ()
    precision: str | None = None
    backend: str | None = None
    inputs: Path | None = None
    plugins: tuple[Path, ...] = ()
    timeout: float | None = 600.0
    entry: str | None = None
    grid: tuple[int, int, int] | None = None
    block: tuple[int, int, int] | None = None
    shared: int = 0
    args: Path | None = None

    @property
    def checkers(self) -> tuple[str, ...]:
        return CHECKERS if self.checker == ALL else (self.checker,)

    def check_consistency(self) -> None:
        """Raise UsageError for options that do not belong to the target."""
        kind = self.target.kind
        if kind is not Kind.KERNEL and (self.entry or self.args or self.grid or self.block or self.emulate):
            raise UsageError("--emulate, --entry, --grid, --block and --args belong to a kernel",
                             hint="probe sanitize FILE.cu --entry NAME --grid 1 --block 32 --args FILE.npz --emulate")  # fmt: skip
        if self.emulate and self.range:
            raise UsageError("--range is for compute-sanitizer: the emulation checks the one launch that there is")
        if kind in (Kind.COMMAND, Kind.KERNEL) and (
            self.shapes or self.precision or self.inputs or self.plugins or self.backend
        ):
            raise UsageError(
                f"--shapes, --precision, --inputs, --plugin and --backend belong to a model, not to a {kind.value}"
            )
        if kind is Kind.ENGINE and self.precision:
            raise UsageError("an engine is built already: --precision belongs to a model")
        if self.leaks and "memcheck" not in self.checkers:
            raise UsageError("--leaks belongs to memcheck", hint="--tool memcheck --leaks")

    def command(self) -> list[str]:
        """The words that ask the same again, without the folders of this machine."""
        words = ["sanitize", "--tool", self.checker]
        words += [option for option, on in (("--leaks", self.leaks), ("--emulate", self.emulate), ("--no-follow", not self.follow),
                                            ("--no-locate", not self.locate)) if on]  # fmt: skip
        values = (("--kernel", self.kernel), ("--range", self.range and str(self.range)), ("--precision", self.precision), ("--entry", self.entry),
                  ("--backend", self.backend))  # fmt: skip
        words += [word for option, value in values if value for word in (option, value)]
        words += [word for option, value in (("--grid", self.grid), ("--block", self.block)) if value
                  for word in (option, ",".join(map(str, value)))]  # fmt: skip
        words += [word for name, dims in self.shapes for word in ("--shapes", f"{name}:{'x'.join(map(str, dims))}")]
        words += [
            word
            for option, path in (("--inputs", self.inputs), ("--args", self.args))
            if path
            for word in (option, path.name)
        ]
        words += [word for path in self.plugins for word in ("--plugin", path.name)]
        if self.iterations != 2:
            words += ["--iterations", str(self.iterations)]
        return [*words, *(("--",) if self.target.kind is Kind.COMMAND else ()), *self.target.public]
