"""Compile a `.cu` file for the CPU: g++ and the headers of `kernels/emulation`, kept in a cache by content."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import kernels
from harness import process
from harness.emulation.source import ENTRY, Kernel, Unit, features, stand_in, unit
from harness.errors import BuildFailed, ToolMissing, ToolTimeout, UsageError
from harness.record import Command, ToolRun

HEADERS = Path(kernels.__file__).resolve().parent / "emulation"
CUDA_HEADERS = HEADERS.parent / "cuda"
BUILD_LIMIT_S = 300.0
DYNAMIC_LIMIT = 227 * 1024  # bytes of shared memory that one block can ask for
STATIC_LIMIT = 48 * 1024
RED_ZONE = 64  # bytes between static shared variables

_LANGUAGE = ("-std=gnu++20", "-w", "-Wno-narrowing", "-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics")
# -ffp-contract=off: results do not depend on the machine. The TLS options make shared variables plain addresses.
_CODE = (
    "-fno-strict-aliasing", "-fwrapv", "-ffp-contract=off", "-fno-math-errno", "-fno-stack-protector",
    "-fno-omit-frame-pointer", "-fno-pie", "-ftls-model=local-exec", "-fno-extern-tls-init", "-fno-gnu-unique",
    # So that the address that a call returns to is in the line of the call.
    "-fno-optimize-sibling-calls", "-fno-tree-tail-merge", "-fno-crossjumping",
    "-g1", "-gdwarf-4",
)  # fmt: skip
_X86 = ("-fcf-protection=none",)
_MODERN = {"avx2", "fma", "f16c", "bmi1", "bmi2", "movbe", "abm"}  # what x86-64-v3 needs
# -O2 takes twice as long to compile, and runs no faster. What the sanitizers' calls go to is our runtime.
Flavour = Literal["plain", "watched", "asan"]
_AGGREGATES = ("-fno-tree-sra", "-fno-ipa-sra")  # arrays and structures stay what they are
_FLAVOURS: dict[Flavour, tuple[str, ...]] = {
    "plain": ("-O1",),
    "watched": ("-O1", "-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0", *_AGGREGATES),
    "asan": ("-O1", "-fsanitize=address,bounds,shift-exponent,alignment", "-fsanitize-recover=all",
             "--param", "asan-instrumentation-with-call-threshold=0", "--param", "asan-use-after-return=0",
             "--param", "asan-instrument-allocas=0", *_AGGREGATES),
}  # fmt: skip
# What a source may ask of before it is compiled; CUDA's words themselves are macros of `words.hpp`.
_MACROS = {
    "PROBE_EMULATION": "1", "__CUDA_ARCH__": "900", "__CUDACC__": "1", "__NVCC__": "1", "__CUDA__": "1", "__CUDACC_VER_MAJOR__": "12",
    "__CUDACC_VER_MINOR__": "8", "__CUDACC_VER_BUILD__": "0", "CUDA_VERSION": "12080", "CUDART_VERSION": "12080",
    "__CUDACC_RDC__": "1", "__CUDACC_EXTENDED_LAMBDA__": "1", "__CUDACC_RELAXED_CONSTEXPR__": "1",
}  # fmt: skip
TWIN = "give that place a twin in C++ under #ifdef PROBE_EMULATION (docs/emulation.md)"
MOST_MISSING = 64  # headers that only host code needs
LAYOUT = "5"  # of what is kept in the cache; another number makes all of it anew


@dataclass(frozen=True)
class Source:
    """What is compiled: a file, the macros it is compiled with, and the kernels that are asked for."""

    path: Path
    defines: tuple[tuple[str, str], ...] = ()
    entries: tuple[str, ...] = ()
    flavour: Flavour = "plain"


@dataclass(frozen=True)
class Built:
    """A program that runs launches of `entries`; the layout of its shared memory in bytes from its beginning."""

    program: Path
    entries: tuple[str, ...]
    anchor: int  # a variable of the runtime, whose address is known there
    extent: int
    dynamic: int  # where dynamic shared memory begins
    statics: tuple[tuple[int, int, str], ...]  # (offset, bytes, name); variables of the compiler's own have no name
    variables: tuple[tuple[int, int, str], ...]  # (address, bytes, name) of __constant__ and __device__ variables


def build(source: Source) -> Built:
    """Compile, or take from the cache.

    Raises BuildFailed with the compiler's words, UsageError if an entry point is not there, ToolMissing without g++.
    """
    if not source.path.is_file():
        raise UsageError(f"{source.path} does not exist")
    with _locks[source]:  # several threads that want the same wait for one
        known = _known.get(source)
        if known is None or not known[0].unchanged() or not known[1].program.exists():
            _known[source] = known = _build(source)
        return known[1]


@dataclass(frozen=True)
class _Stamps:
    """The files that a source was made of, each with the time of its last change and its size."""

    files: tuple[tuple[Path, int, int], ...]

    @classmethod
    def of(cls, paths: Iterable[Path]) -> _Stamps:
        return cls(tuple((path, stat.st_mtime_ns, stat.st_size) for path in paths for stat in (path.stat(),)))

    def unchanged(self) -> bool:
        try:
            return self == _Stamps.of(path for path, _, _ in self.files)
        except OSError:
            return False


_known: dict[Source, tuple[_Stamps, Built]] = {}  # in this process: saves the look at the source
_locks: defaultdict[object, threading.Lock] = defaultdict(threading.Lock)


def _build(source: Source) -> tuple[_Stamps, Built]:
    with tempfile.TemporaryDirectory(prefix="probe-build-") as folder:
        made = _read(source, Path(folder))
        stamps = _Stamps.of(path for path in made.files if path.is_file())
        for entry in source.entries:
            _find_entry(source, entry, made.kernels)
        exported = (kernel.name for kernel in made.kernels if kernel.exported)
        entries = tuple(dict.fromkeys((*exported, *source.entries)))
        asked = repr((made.headers, made.entries, entries, _asserts(source)))
        key = _digest(LAYOUT, made.text, asked, _toolchain(source.flavour))
        kept = cache() / f"{source.path.stem}-{key}"
        with _locks[key]:  # of several entry points, one program
            if not (kept / "layout.json").is_file():
                _compile(source, made, entries, Path(folder))
                _keep(Path(folder), kept)
    layout = json.loads((kept / "layout.json").read_text(encoding="utf-8"))
    layout |= {name: tuple(tuple(one) for one in layout[name]) for name in ("statics", "variables")}
    return stamps, Built(program=kept / "kernel", entries=entries, **layout)


def cache() -> Path:
    """Where programs are kept; nothing in it is needed, all of it can be deleted."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "probe" / "emulation"


def _keep(folder: Path, kept: Path) -> None:
    """Move what was built into the cache at once; whoever was first wins, and both are the same."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".", dir=kept.parent))
    try:
        for name in ("kernel", "layout.json"):
            shutil.copy2(folder / name, beside / name)
        try:
            beside.rename(kept)
        except OSError:
            if not (kept / "layout.json").is_file():
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


# ---- the compiler


@functools.cache
def _compiler() -> str:
    if sys.platform != "linux":
        raise UsageError(f"kernels run on the CPU under Linux alone (ELF, GNU g++), and this is {platform.system()}",
                         hint="in a container, such as python:3.12 with g++")  # fmt: skip
    found = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("g++")
    if found is None:
        raise ToolMissing("g++", "to run kernels on the CPU", "apt-get install g++ (12 or later)")
    return found


@functools.cache
def _flags(flavour: Flavour) -> tuple[str, ...]:
    """All options that decide what the code does."""
    machine: tuple[str, ...] = ()
    if platform.machine() == "x86_64":
        machine = (*_X86, *(("-march=x86-64-v3",) if _modern() else ()))
    return (*_LANGUAGE, *_CODE, *machine, *_FLAVOURS[flavour])


def _modern() -> bool:
    try:
        words = set(re.findall(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[0].split())
    except (OSError, IndexError):
        return False
    return words >= _MODERN


@functools.cache
def _toolchain(flavour: Flavour) -> str:
    """A digest of everything but the source: compiler, options, our headers and runtime."""
    files = [path for path in sorted(HEADERS.iterdir()) if path.is_file()]
    with tempfile.TemporaryDirectory(prefix="probe-build-") as folder:
        version = _run((_compiler(), "--version"), Path(folder)).stdout.read_text(encoding="utf-8", errors="replace")
    # Where the headers lie is in the debug information, by which their lines are told from the user's.
    return _digest(version, str(HEADERS), repr(_flags(flavour)), *(path.read_text(encoding="utf-8") for path in files))


def _run(argv: Sequence[str], folder: Path, stem: str = "compiler") -> ToolRun:
    """Run a tool of the toolchain; its words are English whatever the locale."""
    return process.run(Command(tuple(argv), BUILD_LIMIT_S, {"LC_ALL": "C"}), folder / stem)


def _must(run: ToolRun, what: str) -> None:
    if run.timed_out:
        raise ToolTimeout(f"{what} took longer than {BUILD_LIMIT_S:g} s", run)
    if not run.ok:
        words = process.tail(run.stderr, 40) or process.tail(run.stdout, 40)
        raise BuildFailed(
            f"{what} failed:\n{_shorten(words)}", hint="mend the first error; the rest may follow from it"
        )


def _shorten(words: str) -> str:
    return words.replace(f"{HEADERS}{os.sep}", "").strip()


def _macro_lines(source: Source) -> str:
    return "".join(f"#define {name} {value}\n" for name, value in (*_MACROS.items(), *source.defines))


def _stand_ins(folder: Path) -> tuple[str, ...]:
    return ("-isystem", str(HEADERS), "-isystem", str(folder / "empty"))


def _asserts(source: Source) -> bool:
    return all(name != "NDEBUG" for name, _ in source.defines)


def _instances(source: Source) -> list[str]:
    """The entry points that are templates with their arguments. Other names leave the text as it is, and so the program
    that is kept: of all kernels that are `extern "C"` there is one."""
    return [entry for entry in source.entries if "<" in entry]


# ---- looking at the source


def _read(source: Source, folder: Path) -> Unit:
    """The source with its own headers and macros expanded, CUDA's words left as they are."""
    probe, out, empty = folder / "scan.cpp", folder / "scan.ii", folder / "empty"
    wanted = "".join(
        f"{ENTRY} {entry}\n" for entry in _instances(source)
    )  # whose arguments may be macros of the source
    text = f'{_macro_lines(source)}#include "{source.path.resolve()}"\n{wanted}'
    probe.write_text(text, encoding="utf-8")
    argv = (_compiler(), *_LANGUAGE, "-E", "-I", str(source.path.resolve().parent), "-I", str(CUDA_HEADERS),
            *_stand_ins(folder), str(probe), "-o", str(out))  # fmt: skip
    for header in _INCLUDE.findall(source.path.read_text(encoding="utf-8", errors="replace")):
        _stand_in(header, empty)
    for _ in range(MOST_MISSING):  # those that other files include are learnt one by one
        run = _run(argv, folder)
        words = run.stderr.read_text(encoding="utf-8", errors="replace")
        missing = re.search(r"fatal error: (\S+): No such file or directory", words)
        if run.ok or missing is None or not _stand_in(missing[1], empty):
            break
    if not run.ok and missing is not None:
        raise _no_header(source, missing[1], words)
    _must(run, f"preprocessing {source.path}")
    return unit(out.read_text(encoding="utf-8", errors="replace"), folder)


_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*[<"]([\w./]+)[>"]', re.MULTILINE)


def _stand_in(header: str, folder: Path) -> bool:
    """Make what stands for a header of CUDA's or of a library; whether anything does."""
    content = stand_in(header)
    if content is None or ".." in header.split("/") or (HEADERS / header).exists():
        return False
    (folder / header).parent.mkdir(parents=True, exist_ok=True)
    (folder / header).write_text(content, encoding="utf-8")
    return True


def _no_header(source: Source, header: str, words: str) -> BuildFailed:
    place = re.search(rf"([^/\s:]+:\d+):\d+: fatal error: {re.escape(header)}", words)
    return BuildFailed(
        f"{place[1] if place else source.path.name}: {header}: there is no such header, and the emulation has none",
        hint="leave the #include out under #ifndef PROBE_EMULATION, with what needs it (docs/emulation.md)",
    )


def _find_entry(source: Source, entry: str, kernels: Sequence[Kernel]) -> None:
    if not re.fullmatch(r"[A-Za-z_:][\w:]*(<[\w\s:,<>+*&-]*>)?", entry):
        raise UsageError(f"{entry!r} is no name of a kernel")
    name = entry.partition("<")[0]
    found = [kernel for kernel in kernels if f"::{kernel.name}".endswith(f"::{name.removeprefix('::')}")]
    if not found:
        listed = ", ".join(dict.fromkeys(kernel.name for kernel in kernels)) or "none"
        raise UsageError(f"{source.path.name} has no kernel {entry}", hint=f"its kernels: {listed}")
    if len(found) > 1 and "<" not in entry and len({kernel.name for kernel in found}) == 1:
        raise UsageError(
            f"{source.path.name} has {len(found)} kernels called {entry}, which its name does not tell apart",
            hint='a name of its own: extern "C" __global__ void NAME(...), which does the same',
        )


# ---- compiling


def _compile(source: Source, made: Unit, entries: tuple[str, ...], folder: Path) -> None:
    """Writes `kernel` and `layout.json` into the folder."""
    code, assembly = folder / "unit.cpp", folder / "unit.s"
    headers = "".join(f'#include "{header}"\n' for header in (*made.headers, HEADERS / "words.hpp"))
    expanded = dict(zip(_instances(source), made.entries, strict=True))
    names = "".join(
        f"static const probe_emulation::Enlisted<&{expanded.get(entry, entry)}> probe_entry_{number}({json.dumps(entry)});\n"
        for number, entry in enumerate(entries)
    )
    switch = "" if _asserts(source) else "#define NDEBUG\n"
    code.write_text(f'{switch}{headers}{made.text}#line 1 "entries"\n{names}', encoding="utf-8")
    runtime = _runtime(source.flavour)
    argv = (_compiler(), *_flags(source.flavour), "-I", str(HEADERS), "-include", str(runtime / "probe_emulation.hpp"),
            "-S", str(code), "-o", str(assembly))  # fmt: skip
    run = _run(argv, folder)
    if not run.ok and not run.timed_out:
        _tell_of_features(made, run)
        if not made.changed:  # as the user wrote it: the compiler then speaks of the user's macros and columns
            code.write_text(f'{switch}#include "words.hpp"\n{_macro_lines(source)}#include "{source.path.resolve()}"\n')
            own = _run(
                (*argv, "-I", str(source.path.resolve().parent), "-I", str(CUDA_HEADERS), *_stand_ins(folder)),
                folder,
                "own",
            )
            run = run if own.ok else own
    _must(run, f"compiling {source.path}")
    assembly.write_text(_arrange_shared(assembly.read_text(encoding="utf-8")), encoding="utf-8")
    objects = (str(assembly), *(str(runtime / f"{name}.o") for name in _RUNTIME))
    _must(_run((_compiler(), "-no-pie", "-o", str(folder / "kernel"), *objects), folder), f"linking {source.path}")
    (folder / "layout.json").write_text(json.dumps(_layout(folder, source)), encoding="utf-8")


def _tell_of_features(made: Unit, run: ToolRun) -> None:
    """The compiler's words about something that it does not know are of no help where we do know what it is."""
    words = run.stderr.read_text(encoding="utf-8", errors="replace")
    for place, word, what in features(made):
        if f"{place}:" in words:
            raise BuildFailed(f"{place}: {word}: {what}: not emulated", hint=TWIN)


_RUNTIME = ("runtime", "checks", "locals", "copies")


def _runtime(flavour: Flavour) -> Path:
    """The folder with the compiled runtime and the precompiled header, both of them kept in the cache."""
    with _locks["runtime"]:
        return _runtime_folder(flavour)


def _runtime_folder(flavour: Flavour) -> Path:
    kept = cache() / f"runtime-{_digest(LAYOUT, _toolchain(flavour))}"
    if (kept / "runtime.o").is_file():
        return kept
    plain = tuple(flag for flag in _flags("plain") if flag != "-O1")
    kept.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".", dir=kept.parent))
    try:
        for name in _RUNTIME:
            argv = (*plain, "-O2", "-c", str(HEADERS / f"{name}.cpp"), "-o", str(beside / f"{name}.o"))
            _must(_run((_compiler(), *argv), beside), f"compiling the emulation's {name}")
        (beside / "probe_emulation.hpp").write_text(f'#include "{HEADERS / "probe_emulation.hpp"}"\n', encoding="utf-8")
        header = str(beside / "probe_emulation.hpp")
        argv = (*_flags(flavour), "-x", "c++-header", header, "-o", f"{header}.gch")
        _must(_run((_compiler(), *argv), beside), "compiling the emulation's header")
        try:
            beside.rename(kept)
        except OSError:
            if not (kept / "runtime.o").is_file():
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return kept


_TLS_NAME = re.compile(r"([\w.][\w.$]*)@(?:tpoff|gottpoff)|:tprel_\w+:([\w.][\w.$]*)")
_LABEL = re.compile(r"^([\w.$]+):", re.MULTILINE)


def _arrange_shared(assembly: str) -> str:
    """Put a red zone behind each static shared variable, and define the dynamic ones: all at one place."""
    lines, shared = [], False
    for line in assembly.split("\n"):
        if line.startswith("\t.section\t"):
            shared = line.startswith("\t.section\t.tbss")
        elif re.match(r"\t\.(text|data|bss|previous)\b", line):
            shared = False
        lines.append(line)
        if shared and line.startswith("\t.zero\t"):
            lines.append(f"\t.zero\t{RED_ZONE}")
    named = {first or second for first, second in _TLS_NAME.findall(assembly)}
    dynamic = sorted(named - set(_LABEL.findall(assembly)))
    lines += ['\t.section\t.tbss.probe_dynamic,"awT",@nobits', "\t.balign\t1024"]
    for name in (*dynamic, "probe_dynamic_shared"):
        lines += [f"\t.globl\t{name}", f"\t.type\t{name}, %object", f"{name}:"]
    lines += [f"\t.size\tprobe_dynamic_shared, {DYNAMIC_LIMIT}", f"\t.zero\t{DYNAMIC_LIMIT + RED_ZONE}", ""]
    return "\n".join(lines)


def _layout(folder: Path, source: Source) -> dict[str, object]:
    """Where the thread-local variables, which are the shared ones, lie."""
    symbols, variables = _symbols(folder, "TLS"), _symbols(folder, "OBJECT")
    anchor = symbols.pop("_ZN15probe_emulation6anchorE")[0]
    dynamic = symbols.pop("probe_dynamic_shared")[0]
    statics = sorted((begin, size, plain_name(name)) for name, (begin, size) in symbols.items() if size)
    if (total := sum(size for _, size, name in statics if name)) > STATIC_LIMIT:
        raise BuildFailed(
            f"{source.path.name}: static shared memory: expected at most {STATIC_LIMIT} bytes, got {total}",
            hint="extern __shared__, which can be larger",
        )
    extent = max((begin + size for begin, size, _ in (*statics, (dynamic, DYNAMIC_LIMIT, "")))) + RED_ZONE
    known = tuple(
        (begin, size, plain_name(name)) for name, (begin, size) in variables.items() if size and not _OURS.search(name)
    )
    return asdict(_Layout(anchor, extent, dynamic, tuple(statics), known))


_OURS = re.compile(r"probe_|^(_[^Z]|[a-z]\w*\.)|threadIdx|blockIdx|blockDim|gridDim")  # and the C library's


@dataclass(frozen=True)
class _Layout:
    anchor: int
    extent: int
    dynamic: int
    statics: tuple[tuple[int, int, str], ...]
    variables: tuple[tuple[int, int, str], ...]


def plain_name(symbol: str) -> str:
    """The variable's own name in a mangled one: `_ZZ4raceE4tile` is `tile`; each part stands behind its length.

    None, as text, for the compiler's mark that a variable has been initialised."""
    if symbol.startswith("_ZGV"):
        return ""
    name, at = symbol, 0
    while symbol.startswith("_Z") and (found := re.compile(r"\d+").search(symbol, at)):
        at = found.end() + int(found[0])
        name = symbol[found.end() : at]
    return name


def _symbols(folder: Path, kind: str) -> dict[str, tuple[int, int]]:
    """name -> (offset or address, bytes), of `readelf`'s symbols of a kind."""
    run = _run(("readelf", "-sW", str(folder / "kernel")), folder, "symbols")
    places = {}
    for line in run.stdout.read_text(encoding="utf-8", errors="replace").splitlines():
        words = line.split()
        if len(words) >= 8 and words[3] == kind and words[6] != "UND":
            places[words[7]] = (int(words[1], 16), int(words[2], 0))
    return places
