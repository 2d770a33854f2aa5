"""CUDA source to machine code: NVRTC (through CuPy) or nvcc, three flavours, a cache, errors with file and line."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness import process
from harness.cuda.driver import shown_path
from harness.errors import BuildFailed, DependencyMissing, ToolMissing, UsageError
from harness.optional import LIBRARIES, load, present
from harness.record import Command

Flavour = Literal["release", "lineinfo", "debug"]
Compiler = Literal["nvrtc", "nvcc"]

KERNELS = Path(__file__).resolve().parents[2] / "kernels" / "cuda"
TIMEOUT_S = 600.0
STANDARD = "c++17"

# Debug code is not optimised: its times mean nothing, and cuda-gdb and compute-sanitizer see every variable and line.
FLAVOURS: dict[str, dict[str, tuple[str, ...]]] = {
    "nvcc": {"release": (), "lineinfo": ("-lineinfo",), "debug": ("-G", "-g")},
    "nvrtc": {"release": (), "lineinfo": ("--generate-line-info",), "debug": ("--device-debug",)},
}

ARCH = re.compile(r"sm_(\d{2,3})([af]?)")
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*[<"]([^>"\n]+)[>"]', re.MULTILINE)
ERRORS = (
    re.compile(r"^(?P<file>[^\n(]+?)\((?P<line>\d+)\): (?:catastrophic )?error[^:\n]*: (?P<text>.+)$", re.MULTILINE),
    re.compile(r"^(?P<file>[^\n:]+):(?P<line>\d+):(?:\d+:)? (?:fatal )?error: (?P<text>.+)$", re.MULTILINE),
    re.compile(r"^(?P<file>ptxas)(?:[^\n;]*?line (?P<line>\d+);)? *(?:error|fatal) *: (?P<text>.+)$", re.MULTILINE),
)


@dataclass(frozen=True)
class Unit:
    """One source to compile. `arch` is `sm_80`, `sm_90a`, ...; headers are looked for beside it, in `includes`, then
    among probe's own kernels."""

    source: Path
    arch: str
    flavour: Flavour = "release"
    defines: tuple[tuple[str, str], ...] = ()
    includes: tuple[Path, ...] = ()

    @property
    def folders(self) -> tuple[Path, ...]:
        return (self.source.resolve().parent, *self.includes, KERNELS)


@dataclass(frozen=True)
class Built:
    """A cubin, what the compiler said (nvcc: with each kernel's resources), and whether it came from the cache."""

    image: bytes
    log: str
    cached: bool


def build(unit: Unit, compiler: Compiler | None = None, *, cache: Path | None = None) -> Built:
    """Compile a source, or take what an equal compilation left in the cache.

    `compiler` None: NVRTC where CuPy is, nvcc otherwise. `cache` is a folder; None is the user's own.
    Raises BuildFailed with the first error's file and line, UsageError for what cannot be compiled at all,
    DependencyMissing or ToolMissing without the compiler.
    """
    _check(unit)
    compiler = compiler or default_compiler()
    folder = cache or default_cache()
    stem = key(unit, compiler)
    if (hit := _from_cache(folder, stem)) is not None:
        return hit
    image, log = (_nvrtc if compiler == "nvrtc" else _nvcc)(unit)
    _to_cache(folder, stem, image, log)
    return Built(image, log, cached=False)


def default_compiler() -> Compiler:
    """NVRTC where CuPy is installed (no process to start), nvcc otherwise."""
    return "nvrtc" if present(LIBRARIES["cupy"]) else "nvcc"


def default_cache() -> Path:
    """The user's cache folder for compiled kernels (XDG)."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "probe" / "kernels"


def gencode(arch: str) -> str:
    """nvcc's option for code of one architecture alone, `sm_90a` with what only it has."""
    return f"-gencode=arch=compute_{arch.removeprefix('sm_')},code={arch}"


def nvcc_command(unit: Unit, output: Path) -> Command:
    """The command that writes a cubin; ptxas tells every kernel's resources on the way."""
    defines = [f"-D{name}={value}" if value else f"-D{name}" for name, value in unit.defines]
    includes = [f"-I{folder}" for folder in unit.folders]
    argv = ("nvcc", "-cubin", gencode(unit.arch), f"-std={STANDARD}", *FLAVOURS["nvcc"][unit.flavour], "-Xptxas", "-v",
            *includes, *defines, "-o", str(output), str(unit.source))  # fmt: skip
    return Command(argv, TIMEOUT_S)


def nvrtc_options(unit: Unit, toolkit: Path | None) -> tuple[str, ...]:
    """NVRTC's options; `toolkit` is the folder of CUDA's own headers, which NVRTC does not carry all of."""
    defines = [f"--define-macro={name}={value}" if value else f"--define-macro={name}" for name, value in unit.defines]
    own = [toolkit, toolkit / "cccl"] if toolkit else []  # CUDA 13 keeps libcu++, which its headers include, in cccl
    folders = [*unit.folders, *own]
    return (f"--gpu-architecture={unit.arch}", f"--std={STANDARD}", *FLAVOURS["nvrtc"][unit.flavour],
            *(f"--include-path={folder}" for folder in folders), *defines)  # fmt: skip


def key(unit: Unit, compiler: Compiler) -> str:
    """The name in the cache: a hash of all that the machine code depends on, headers included."""
    options = (compiler, _version(compiler), unit.arch, unit.flavour, STANDARD, *unit.defines)
    parts = [repr(options), *(path.read_text(encoding="utf-8", errors="replace") for path in _files(unit))]
    if unit.flavour != "release":  # the code then holds the path of its source
        parts.append(str(unit.source.resolve()))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def explain(log: str) -> str | None:
    """The first error in what a compiler wrote, as `file:line: text (and 3 more)`; None if there is none to be seen."""
    found = sorted((match for pattern in ERRORS for match in pattern.finditer(log)), key=lambda match: match.start())
    if not found:
        return None
    first = found[0]
    where = f"{shown_path(first['file'].strip())}:{first['line']}" if first["line"] else first["file"]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return f"{where}: {first['text'].strip()}{more}"


def toolkit_headers() -> Path | None:
    """The folder with CUDA's headers (cuda_fp16.h): a toolkit's, or the one of NVIDIA's wheels."""
    return next((folder for folder in _toolkit_folders() if (folder / "cuda_fp16.h").is_file()), None)


def _toolkit_folders() -> Iterator[Path]:
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(name):
            yield Path(os.environ[name]) / "include"
    if nvcc := shutil.which("nvcc"):
        yield Path(nvcc).resolve().parent.parent / "include"
    yield Path("/usr/local/cuda/include")
    for wheel in wheel_folders():
        yield wheel / "include"


def wheel_folders() -> list[Path]:
    """Where NVIDIA's wheels lie (`nvidia/cu13`, `nvidia/cublas`, ...): each holds `lib` or `include`."""
    import importlib.util

    spec = importlib.util.find_spec("nvidia")
    places = spec.submodule_search_locations if spec is not None else None
    return sorted(
        (folder for place in places or () for folder in Path(place).iterdir() if folder.is_dir()), reverse=True
    )


def _check(unit: Unit) -> None:
    if not unit.source.is_file():
        raise UsageError(f"{shown_path(unit.source)} does not exist")
    if ARCH.fullmatch(unit.arch) is None:
        raise UsageError(f"{unit.arch} is no GPU architecture", hint="sm_80, sm_90a")
    if unit.flavour not in FLAVOURS["nvcc"]:
        raise UsageError(f"{unit.flavour} is no build flavour", hint=", ".join(FLAVOURS["nvcc"]))


def _files(unit: Unit) -> list[Path]:
    """The source and every header of ours that it includes, however deep; CUDA's own go with the compiler's version."""
    seen: dict[Path, None] = {}
    waiting = [unit.source.resolve()]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen[path] = None
        names = INCLUDE.findall(path.read_text(encoding="utf-8", errors="replace"))
        waiting += filter(None, (_find(name, (path.parent, *unit.folders)) for name in names))
    return list(seen)


def _find(name: str, folders: Sequence[Path]) -> Path | None:
    return next((path.resolve() for folder in folders if (path := folder / name).is_file()), None)


@functools.cache
def _version(compiler: Compiler) -> str:
    if compiler == "nvrtc":
        return repr(_nvrtc_library().getVersion())
    with tempfile.TemporaryDirectory() as folder:
        run = process.run(Command((_nvcc_path(), "--version"), 60.0), Path(folder, "version"))
        return process.tail(run.stdout, 2)


def _nvcc_path() -> str:
    path = shutil.which("nvcc")
    if path is None:
        raise ToolMissing(
            "nvcc", "to compile kernels", "apt-get install cuda-nvcc-13-0, or pip install 'probe-trt[gpu]' for NVRTC"
        )
    return path


def _nvcc(unit: Unit) -> tuple[bytes, str]:
    _nvcc_path()
    with tempfile.TemporaryDirectory() as name:
        output = Path(name, "kernel.cubin")
        run = process.run(nvcc_command(unit, output), Path(name, "nvcc"))
        log = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in (run.stdout, run.stderr)).strip()
        if run.timed_out:
            raise BuildFailed(f"{shown_path(unit.source)}: nvcc was stopped after {TIMEOUT_S:g} s")
        if not run.ok or not output.is_file():
            raise _failed(unit, "nvcc", log)
        return output.read_bytes(), log


def _nvrtc_library() -> Any:
    return load("cupy", "to compile kernels with NVRTC").cuda.nvrtc


def _nvrtc(unit: Unit) -> tuple[bytes, str]:
    nvrtc = _nvrtc_library()
    source = unit.source.read_text(encoding="utf-8")
    try:
        program = nvrtc.createProgram(source, str(unit.source), (), ())
    except RuntimeError as error:  # CuPy found no libnvrtc
        raise DependencyMissing("NVRTC", "to compile kernels", "pip install nvidia-cuda-nvrtc", str(error)) from error
    try:
        nvrtc.compileProgram(program, nvrtc_options(unit, toolkit_headers()))
        return nvrtc.getCUBIN(program), nvrtc.getProgramLog(program)
    except nvrtc.NVRTCError as error:
        raise _failed(unit, "NVRTC", nvrtc.getProgramLog(program) or str(error)) from error
    finally:
        nvrtc.destroyProgram(program)


def _failed(unit: Unit, compiler: str, log: str) -> BuildFailed:
    last = log.strip().splitlines()[-1:] or ["no output"]
    return BuildFailed(explain(log) or f"{shown_path(unit.source)}: {compiler} failed: {last[0]}")


def _from_cache(folder: Path, stem: str) -> Built | None:
    image, log = folder / f"{stem}.cubin", folder / f"{stem}.log"
    try:
        return Built(image.read_bytes(), log.read_text(encoding="utf-8"), cached=True)
    except OSError:
        return None


def _to_cache(folder: Path, stem: str, image: bytes, log: str) -> None:
    """Keep what was built; a cache that cannot be written costs time and nothing else. The image is the last to come."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in ((f"{stem}.log", log.encode()), (f"{stem}.cubin", image)):
            part = folder / f".{name}.{os.getpid()}.part"
            part.write_bytes(content)
            part.replace(folder / name)
    except OSError:
        return
