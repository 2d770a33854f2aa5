"""`probe kernels run`: one launch of a kernel of the user's own, on the CPU or on the GPU, from a file of arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import EXIT_CLEAN, EXIT_DEFECT, ProbeError, UsageError
from harness.record import Session
from kernels.plan import Extent, Launch
from probes.targets import arguments, driving

Tell = Callable[[str], None]
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Settings:
    """What to launch. `emulate` None: the GPU if there is one. `checks`, `timeout` and `undefined` are the emulation's."""

    source: Path
    entry: str | None
    grid: Extent
    block: Extent
    args: Path | None = None
    shared: int = 0
    defines: tuple[tuple[str, str], ...] = ()
    emulate: bool | None = None
    checks: str = "all"
    undefined: tuple[str, ...] = ()  # arrays whose contents mean nothing before the launch
    timeout: float = 60.0
    out_npz: Path | None = None
    out: Path | None = None


@dataclass(frozen=True)
class Ran:
    """The JSON document, the session, and lines for the screen."""

    document: dict[str, Any]
    session: Session
    printed: tuple[str, ...]

    @property
    def findings(self) -> list[dict[str, Any]]:
        return list(self.document["findings"])

    @property
    def exit_code(self) -> int:
        wrong = any(row["severity"] == "error" for row in self.findings) or not self.document["complete"]
        return EXIT_DEFECT if wrong else EXIT_CLEAN

    def rows(self) -> list[tuple[str, ...]]:
        """kind, place, block, thread, times, message."""
        return [
            (row["kind"], f"{row['file']}:{row['line']}" if row.get("file") else "", _triple(row, "block"),
             _triple(row, "thread"), str(row["count"]), row["message"])
            for row in self.findings
        ]  # fmt: skip


def _triple(row: Mapping[str, Any], name: str) -> str:
    values = [row.get(f"{name}_{axis}") for axis in "xyz"]
    return "" if values[0] is None else f"({', '.join(map(str, values))})"


@dataclass(frozen=True)
class _Result:
    device: str
    arrays: Mapping[str, Array]
    findings: tuple[dict[str, Any], ...]
    printed: tuple[str, ...] = ()
    complete: bool = True


def run(settings: Settings, tell: Tell = lambda _: None) -> Ran:
    """Launch once and write the session.

    Raises UsageError for what does not fit the kernel, BuildFailed for what does not compile.
    """
    entry, wanted = arguments.read_kernel(settings.source, settings.entry, dict(settings.defines))
    given = arguments.read(settings.args) if settings.args is not None else {}
    inputs = arguments.bind(wanted, given)
    if unknown := [name for name in settings.undefined if name not in inputs.arrays]:
        raise UsageError(
            f"no array is called {', '.join(unknown)}", hint=f"there are {', '.join(inputs.arrays) or 'none'}"
        )
    launch = Launch(settings.source, entry, settings.grid, settings.block, inputs.arguments, settings.shared,
                    settings.defines, inputs.names, variables=inputs.contents)  # fmt: skip
    session = Session.create("kernels-run", settings.out)
    tell(f"running {entry}")
    result = _run(settings, launch, inputs.arrays, session)
    document = _document(settings, launch, result, inputs.arrays)
    facts = {"device": result.device, "entry": entry, "source": settings.source.name}
    session.write_json("manifest.json", driving.manifest("kernels-run", _command(settings, entry), facts))
    session.write_json("result.json", document)
    np.savez(settings.out_npz or session.folder / "arrays.npz", **result.arrays)  # type: ignore[arg-type]
    return Ran(document, session, result.printed)


def _run(settings: Settings, launch: Launch, arrays: Mapping[str, Array], session: Session) -> _Result:
    if settings.emulate is not True:
        try:
            return _on_gpu(launch, arrays)
        except ProbeError:
            if settings.emulate is False or _has_gpu():
                raise
    return _emulated(settings, launch, arrays, session)


def _has_gpu() -> bool:
    from harness.cuda import device

    try:
        device.get()
    except ProbeError:
        return False
    return True


def _on_gpu(launch: Launch, arrays: Mapping[str, Array]) -> _Result:
    from harness.cuda import launch as launching

    made = launching.run([launch], arrays)
    return _Result(made.device.name, made.arrays, made.findings)


def _emulated(settings: Settings, launch: Launch, arrays: Mapping[str, Array], session: Session) -> _Result:
    from harness.emulation import run as emulated

    made = emulated.run([launch], arrays, checks=settings.checks, timeout_s=settings.timeout,
                        uninitialised=settings.undefined, folder=session.raw)  # fmt: skip
    printed = tuple("".join(one.text for one in made.printed).splitlines())
    return _Result("emulation", made.arrays, made.findings, printed, made.complete)


def _document(settings: Settings, launch: Launch, result: _Result, before: Mapping[str, Array]) -> dict[str, Any]:
    emulated = result.device == "emulation"
    return {
        "source": settings.source.name, "entry": launch.entry, "grid": list(launch.grid), "block": list(launch.block),
        "shared_bytes": launch.shared_bytes, "device": result.device, "checks": settings.checks if emulated else None,
        "complete": result.complete, "findings": list(result.findings), "printed": list(result.printed),
        "arrays": {name: _facts(array, before[name]) for name, array in result.arrays.items()},
    }  # fmt: skip


def _facts(array: Array, before: Array) -> dict[str, Any]:
    finite = array[np.isfinite(array)] if array.dtype.kind == "f" else array
    return {
        "dtype": str(array.dtype), "shape": list(array.shape), "changed": array.tobytes() != before.tobytes(),
        "not_finite": int(array.size - finite.size),
        "min": finite.min().item() if finite.size else None, "max": finite.max().item() if finite.size else None,
    }  # fmt: skip


def _command(settings: Settings, entry: str) -> list[str]:
    sizes = ["x".join(map(str, extent)) for extent in (settings.grid, settings.block)]
    words = ["kernels", "run", settings.source.name, "--entry", entry, "--grid", sizes[0], "--block", sizes[1]]
    if settings.shared:
        words += ["--shared", str(settings.shared)]
    if settings.args is not None:
        words += ["--args", settings.args.name]
    if settings.emulate is not None:
        words.append("--emulate" if settings.emulate else "--gpu")
    return [*words, "--check", settings.checks]
