"""What of the tools, libraries and hardware that probe can use is here, what is lost without the rest, how to get it."""

from __future__ import annotations

import dataclasses
import enum
import functools
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.errors import ToolMissing
from harness.optional import LIBRARIES, Library, present
from harness.process import run, tail
from harness.record import Command
from harness.tools import ncu, nsys, sanitizer, trtexec
from harness.tools.tool import USUAL_PLACES, Wanted, find_tool, parse_version
from probes.abilities import ABILITIES, Ability
from probes.screen import Shown, table

SCHEMA_VERSION = 1
TIMEOUT_S = 30.0  # for one tool's version, or the import of one library
DRIVER_PARAMETERS = Path("/proc/driver/nvidia/params")
CAP_SYS_ADMIN = 1 << 21  # with this capability the driver's restriction on counters does not hold

Find = Callable[[str], tuple[Path | None, bool]]


class Kind(enum.StrEnum):
    TOOL = "tool"
    LIBRARY = "library"
    GPU = "gpu"


@dataclass(frozen=True)
class Check:
    """One thing looked for. `found`: it is here; `works`: it also answered or loaded; `version` None if not told."""

    name: str
    kind: Kind
    found: bool
    works: bool
    version: str | None
    purpose: str  # what is lost without it, as "to ..."
    install: str
    note: str = ""
    required: bool = False  # the base install does nothing without it


@dataclass(frozen=True)
class Tool:
    """A program: what it is for, what installs it, the arguments that make it tell its version."""

    name: str
    purpose: str
    install: str
    arguments: tuple[str, ...] = ("--version",)
    absence: str = ""  # said when it is not found
    floor: tuple[int, ...] = ()  # the oldest version that probe drives


def _driven(wanted: Wanted) -> Tool:
    return Tool(wanted.name, wanted.purpose, wanted.install, wanted.version, floor=wanted.floor)


TOOLS = (
    _driven(nsys.WANTED),
    _driven(ncu.WANTED),
    _driven(sanitizer.WANTED),
    _driven(trtexec.WANTED),
    Tool("cuda-memcheck", "to find bad accesses with CUDA 11 and older", "",
         absence="CUDA 12 dropped it; compute-sanitizer does its work"),
    Tool("nvcc", "to compile kernels", "apt-get install cuda-nvcc-13-0"),
    Tool("cuobjdump", "to read the machine code of kernels", "apt-get install cuda-cuobjdump-13-0"),
    Tool("g++", "to compile kernels for the CPU", "apt-get install g++"),
)  # fmt: skip

BASE_LIBRARIES = tuple(
    Library(module, purpose, f"pip install {module}")
    for module, purpose in (
        ("click", "to read the command line"),
        ("jinja2", "to write reports"),
        ("numpy", "to compute"),
        ("onnx", "to read and write models"),
        ("pandas", "to tabulate"),
        ("plotly", "to draw"),
        ("rich", "to print tables"),
    )
)
REQUIRED = {"onnxruntime", *(library.module for library in BASE_LIBRARIES)}


def examine(
    path: str | None = None,
    places: Sequence[str] = USUAL_PLACES,
    timeout_s: float = TIMEOUT_S,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Check]:
    """Look for everything, one after the other; `tell` is called with what is being looked at.

    `path` is searched as PATH (default: ours), then the globs `places`; `timeout_s` holds for each program.
    """
    find = functools.partial(find_tool, path=os.environ.get("PATH") if path is None else path, places=places)
    return [
        _check_python(),
        *_check_base(timeout_s, tell),
        *(_check_library(library, timeout_s, tell) for library in LIBRARIES.values()),
        *(_check_tool(tool, find, timeout_s, tell) for tool in TOOLS),
        *_check_gpu(find, timeout_s, tell),
    ]


def healthy(checks: Iterable[Check]) -> bool:
    """Whether all that the base install needs is here and works."""
    return all(check.works for check in checks if check.required)


def lacking(checks: Iterable[Check]) -> dict[Ability, tuple[str, ...]]:
    """Of each ability what it needs and is not here."""
    working = {check.name for check in checks if check.works}
    return {ability: ability.lacks(working) for ability in ABILITIES}


def summarise(checks: Sequence[Check]) -> str:
    """One line: how much of what probe does can be done here."""
    able = sum(not missing for missing in lacking(checks).values())
    gpu = any(check.name == "gpu" and check.works for check in checks)
    return f"{'with this' if gpu else 'without a'} GPU, {able} of the {len(ABILITIES)} things that probe does can be done here"


def show(checks: Sequence[Check]) -> Shown:
    """What is here, how to get what is not, and what each verb can do with it."""
    state = {(True, True): "yes", (True, False): "broken"}
    yield table(("what", "here", "version", "what for"), [
        (one.name, state.get((one.found, one.works), "no"), one.version or "", one.purpose) for one in checks
    ])  # fmt: skip
    yield from (f"{one.name}: {one.note}" for one in checks if one.note)
    yield "\nto have more:"
    yield from (f"  {install:<42} # {', '.join(names)}" for install, names in missing(checks).items())
    yield table(("probe ...", "what it does", "here"), [
        (one.command, one.text, f"needs {', '.join(lacks)}".replace("|", " or ") if lacks else "yes")
        for one, lacks in lacking(checks).items()
    ])  # fmt: skip
    yield summarise(checks)


def missing(checks: Iterable[Check]) -> dict[str, list[str]]:
    """What does not work, by the line that brings it."""
    wanted: dict[str, list[str]] = {}
    for check in checks:
        if not check.works and check.install:
            wanted.setdefault(check.install, []).append(check.name)
    return wanted


def to_document(checks: Sequence[Check]) -> dict[str, Any]:
    """The checks as `probe doctor --json` writes them; no host, user or environment in it."""
    return {
        "schema_version": SCHEMA_VERSION,
        "healthy": healthy(checks),
        "summary": summarise(checks),
        "checks": [dataclasses.asdict(check) for check in checks],
        "abilities": [
            {"command": f"probe {one.command}", "text": one.text, "here": not missed, "lacks": list(missed)}
            for one, missed in lacking(checks).items()
        ],
    }


def _check_python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("python", Kind.LIBRARY, True, True, version, "to run probe", "Python 3.11 or newer", required=True)


def _check_base(timeout_s: float, tell: Callable[[str], None]) -> list[Check]:
    """The light libraries, loaded in one process; if that fails, one by one, to see which it was."""
    tell("the base libraries")
    modules = [module for library in BASE_LIBRARIES if (module := present(library))]
    status, _ = _load(modules, timeout_s)
    return [_check_library(library, timeout_s, tell, load=bool(status)) for library in BASE_LIBRARIES]


def _check_library(library: Library, timeout_s: float, tell: Callable[[str], None], load: bool = True) -> Check:
    tell(library.module)
    module, required = present(library), library.module in REQUIRED
    check = Check(library.module, Kind.LIBRARY, False, False, None, library.purpose, library.install, required=required)
    if module is None:
        return check
    here = dataclasses.replace(check, found=True, works=True, version=_version(module))
    status, output = _load([module], timeout_s) if load else ("", "")
    return dataclasses.replace(here, works=False, note=_note("does not load", status, output)) if status else here


def _load(modules: Sequence[str], timeout_s: float) -> tuple[str, str]:
    """Import in a process of its own: a library that does not fit the driver may not only raise but crash or hang."""
    return _ask([sys.executable, "-P", "-c", "\n".join(f"import {module}" for module in modules)], timeout_s)


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    """Module -> distributions, read once: it takes a tenth of a second."""
    return metadata.packages_distributions()


def _version(module: str) -> str | None:
    """The version of the distribution that brought a module; None for a module that came without one."""
    distributions = _distributions().get(module)
    return metadata.version(distributions[0]) if distributions else None


def _check_tool(tool: Tool, find: Find, timeout_s: float, tell: Callable[[str], None]) -> Check:
    tell(tool.name)
    program, on_path = find(tool.name)
    check = Check(tool.name, Kind.TOOL, program is not None, program is not None, None, tool.purpose, tool.install)
    if program is None:
        return dataclasses.replace(check, note=tool.absence)
    status, output = _ask([str(program), *tool.arguments], timeout_s)
    version = parse_version(output)
    if status and version is None:
        return dataclasses.replace(check, works=False, note=_note("does not run", status, output))
    notes = [] if on_path else [f"not on PATH: {program}"]
    notes += ["tells no version that probe can read"] if version is None else []
    notes += (
        [f"older than {'.'.join(map(str, tool.floor))}, the oldest that probe drives"]
        if _older(version, tool.floor)
        else []
    )
    return dataclasses.replace(check, version=version, note="; ".join(notes))


def _older(version: str | None, floor: tuple[int, ...]) -> bool:
    return version is not None and tuple(int(part) for part in version.split(".") if part.isdigit()) < floor


def _check_gpu(find: Find, timeout_s: float, tell: Callable[[str], None]) -> list[Check]:
    tell("the GPU")
    absent = Check("gpu", Kind.GPU, False, False, None, "to run engines and kernels", "apt-get install nvidia-driver")
    program, _ = find("nvidia-smi")
    if program is None:
        return [absent, _check_counters(None)]
    query = [str(program), "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    status, output = _ask(query, timeout_s)
    gpus = parse_gpus(output) if not status else []
    if not gpus:
        return [
            dataclasses.replace(absent, note=_note("nvidia-smi found no GPU", status, output)),
            _check_counters(None),
        ]
    driver = gpus[0][2]
    names = ", ".join(f"{name} (compute capability {capability})" for name, capability, _ in gpus)
    here = dataclasses.replace(absent, found=True, works=True, version=f"driver {driver}", note=names)
    return [here, _check_counters(_read_counter_permission())]


def parse_gpus(text: str) -> list[tuple[str, str, str]]:
    """(name, compute capability, driver version) of each GPU in nvidia-smi's CSV; other lines are passed over."""
    rows = ([field.strip() for field in line.rsplit(",", 2)] for line in text.splitlines())
    return [(row[0], row[1], row[2]) for row in rows if len(row) == 3 and re.fullmatch(r"[\d.]+", row[2])]


def counters_allowed(parameters: str, status: str) -> bool | None:
    """Whether ncu may read counters, from the driver's parameters and /proc/self/status; None if they do not say."""
    restricted = re.search(r"^RmProfilingAdminOnly:\s*(\d+)", parameters, re.MULTILINE)
    capabilities = re.search(r"^CapEff:\s*([0-9a-fA-F]+)", status, re.MULTILINE)
    if restricted is None:
        return None
    return int(restricted[1]) == 0 or bool(capabilities and int(capabilities[1], 16) & CAP_SYS_ADMIN)


def _read_counter_permission() -> bool | None:
    try:
        return counters_allowed(DRIVER_PARAMETERS.read_text(), Path("/proc/self/status").read_text())
    except OSError:
        return None


def _check_counters(allowed: bool | None) -> Check:
    """`allowed` None: not known, because there is no driver or it does not say."""
    note = {
        True: "",
        False: "the driver keeps them for administrators: ncu will stop with ERR_NVGPUCTRPERM",
        None: "not known: no NVIDIA driver that tells",
    }[allowed]
    install = "run as root (in a container: --cap-add=SYS_ADMIN), or load the driver with NVreg_RestrictProfilingToAdminUsers=0"
    return Check(
        "counters", Kind.GPU, bool(allowed), bool(allowed), None, "to let ncu read hardware counters", install, note
    )


def _ask(argv: Sequence[str], timeout_s: float) -> tuple[str, str]:
    """Run a program: ("" or how it failed, the end of what it printed)."""
    with tempfile.TemporaryDirectory(prefix="probe-doctor-") as folder:
        try:
            done = run(Command(tuple(argv), timeout_s=timeout_s, cwd=Path(folder)), Path(folder) / "log")
        except ToolMissing as error:
            return str(error), ""
        output = f"{tail(done.stdout)}\n{tail(done.stderr)}"
    if done.timed_out:
        return f"no answer in {timeout_s:g} s", output
    if done.signal:
        return f"ended by signal {done.signal}", output
    return "" if done.ok else f"exit status {done.returncode}", output


def _note(what: str, status: str, output: str) -> str:
    """One printable line: what happened, how it ended, the last thing said; the home folder's name is left out."""
    said = next((line for line in reversed(output.splitlines()) if line.strip()), "")
    line = ": ".join(part for part in (what, status, said.strip()[:200]) if part)
    printable = "".join(character if character.isprintable() else "?" for character in line)
    return printable.replace(str(Path.home()), "~")
