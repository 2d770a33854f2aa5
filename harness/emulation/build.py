"""Compile a `.cu` file for the CPU: g++ and the headers of `kernels/emulation`, kept in a cache by content."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import kernels
from harness import process
from harness.errors import BuildFailed, ToolMissing, ToolTimeout, UsageError
from harness.record import Command, ToolRun

HEADERS = Path(kernels.__file__).resolve().parent / "emulation"
CUDA_HEADERS = HEADERS.parent / "cuda"
BUILD_LIMIT_S = 300.0
DYNAMIC_LIMIT = 227 * 1024  # bytes of shared memory that one block can ask for
STATIC_LIMIT = 48 * 1024
RED_ZONE = 64  # bytes between static shared variables

_LANGUAGE = ("-std=gnu++17", "-w", "-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics")
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
ARCHITECTURE = "900"  # __CUDA_ARCH__
LAYOUT = "3"  # of what is kept in the cache; another number makes all of it anew


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
    statics: tuple[tuple[int, int, str], ...]  # (offset, bytes, name) of each static variable


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
        text = _preprocess(source, Path(folder))
        _refuse_assembly(text)
        stamps = _Stamps.of(path for path in _files(text) if path.is_file())
        there = entry_points(text)
        entries = tuple(dict.fromkeys((*(name for name, c_linkage in there.items() if c_linkage), *source.entries)))
        _check_entries(source, tuple(there))
        key = _digest(LAYOUT, text, repr(entries), repr(sorted(source.defines)), _toolchain(source.flavour))
        kept = cache() / f"{source.path.stem}-{key}"
        if not (kept / "layout.json").is_file():
            _compile(source, entries, Path(folder))
            _keep(Path(folder), kept)
    layout = json.loads((kept / "layout.json").read_text(encoding="utf-8"))
    layout["statics"] = tuple(tuple(one) for one in layout["statics"])
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


def _must(argv: Sequence[str], folder: Path, what: str) -> None:
    run = _run(argv, folder)
    if run.timed_out:
        raise ToolTimeout(f"{what} took longer than {BUILD_LIMIT_S:g} s", run)
    if not run.ok:
        words = process.tail(run.stderr, 40) or process.tail(run.stdout, 40)
        raise BuildFailed(
            f"{what} failed:\n{_shorten(words)}", hint="mend the first error; the rest may follow from it"
        )


def _shorten(words: str) -> str:
    return words.replace(f"{HEADERS}{os.sep}", "").strip()


def _includes(source: Source) -> tuple[str, ...]:
    return ("-I", str(HEADERS), "-I", str(source.path.resolve().parent), "-I", str(CUDA_HEADERS))


def _define_lines(source: Source) -> str:
    return "".join(f"#define {name} {value}\n" for name, value in source.defines)


# ---- looking at the source


def _preprocess(source: Source, folder: Path) -> str:
    """The source with its own headers and macros expanded, CUDA's words left as they are."""
    probe = folder / "scan.cpp"
    macros = f"#define PROBE_EMULATION 1\n#define PROBE_EMULATION_SCAN 1\n#define __CUDA_ARCH__ {ARCHITECTURE}\n"
    macros += "#define __CUDACC__ 1\n"
    probe.write_text(f'{macros}{_define_lines(source)}#include "{source.path.resolve()}"\n', encoding="utf-8")
    out = folder / "scan.ii"
    _must(
        (_compiler(), *_LANGUAGE, "-E", *_includes(source), str(probe), "-o", str(out)),
        folder,
        f"preprocessing {source.path}",
    )
    return out.read_text(encoding="utf-8", errors="replace").replace(str(folder), "")


_MARKER = re.compile(r'^# (\d+) "((?:[^"\\]|\\.)*)"([ \d]*)$')


def _own_lines(text: str) -> Iterator[tuple[str, int, str]]:
    """(file, line, text) of the lines that are not of the system's headers."""
    file, number, system = "", 0, False
    for line in text.splitlines():
        if found := _MARKER.match(line):
            file, number, system = found[2], int(found[1]), "3" in found[3].split()
            continue
        if not system and line.strip():
            yield file, number, line
        number += 1


def _files(text: str) -> list[Path]:
    """The files that the text was made of, also those of which nothing but macros came."""
    return sorted({Path(found[2]) for line in text.splitlines() if (found := _MARKER.match(line))})


def _refuse_assembly(text: str) -> None:
    for file, number, line in _own_lines(text):
        if re.search(r"\b(asm|__asm__)\b\s*(volatile|__volatile__)?\s*\(", line):
            raise BuildFailed(
                f"{Path(file).name}:{number}: inline PTX cannot be run on the CPU",
                hint="give that place a twin in C++ under #ifdef PROBE_EMULATION (docs/emulation.md)",
            )


_ENTRY = re.compile(r"__global__\b((?:(?!__global__)[^;{}])*?)\b([A-Za-z_]\w*)\s*\(")
_ATTRIBUTES = re.compile(r"\b(__launch_bounds__|__maxnreg__|__cluster_dims__|__attribute__|alignas|__align__)\s*(?=\()")


def entry_points(text: str) -> dict[str, bool]:
    """The kernels in a preprocessed source, and whether each has C linkage and is no template."""
    flat = _without_attributes("\n".join(line for _, _, line in _own_lines(text)))
    found: dict[str, bool] = {}
    for match in _ENTRY.finditer(flat):
        before = flat[max(0, match.start() - 40) : match.start()]
        c_linkage = re.search(r'extern\s*"C"\s*(static\s+|inline\s+)?$', before) is not None
        found[match[2]] = found.get(match[2], False) or c_linkage
    return found


def _without_attributes(text: str) -> str:
    """The text without __launch_bounds__(...) and the like, whose parentheses would be taken for parameters."""
    parts, at = [], 0
    for match in _ATTRIBUTES.finditer(text):
        if match.start() < at:
            continue
        parts.append(text[at : match.start()])
        at, depth = match.end(), 0
        while at < len(text):
            depth += (text[at] == "(") - (text[at] == ")")
            at += 1
            if depth == 0:
                break
    return "".join((*parts, text[at:]))


def _check_entries(source: Source, there: tuple[str, ...]) -> None:
    for entry in source.entries:
        if not re.fullmatch(r"[A-Za-z_:][\w:]*(<[\w\s:,<>+*-]*>)?", entry):
            raise UsageError(f"{entry!r} is no name of a kernel")
        name = entry.partition("<")[0].rpartition("::")[2]
        if name not in there:
            listed = ", ".join(there) or "none"
            raise UsageError(f"{source.path.name} has no kernel {entry}", hint=f"its kernels: {listed}")


# ---- compiling


def _compile(source: Source, entries: tuple[str, ...], folder: Path) -> None:
    """Writes `kernel` and `layout.json` into the folder."""
    unit, assembly = folder / "unit.cpp", folder / "unit.s"
    names = "".join(
        f"static const probe_emulation::Enlisted<&{entry}> probe_entry_{number}({json.dumps(entry)});\n"
        for number, entry in enumerate(entries)
    )
    unit.write_text(
        f'#include "probe_emulation.hpp"\n#define __CUDA_ARCH__ {ARCHITECTURE}\n{_define_lines(source)}'
        f'#include "{source.path.resolve()}"\n#undef alignas\n#line 1 "entries"\n{names}',
        encoding="utf-8",
    )  # fmt: skip
    runtime = _runtime(source.flavour)
    _must((_compiler(), *_flags(source.flavour), *_includes(source), "-include", str(runtime / "probe_emulation.hpp"),
           "-S", str(unit), "-o", str(assembly)), folder, f"compiling {source.path}")  # fmt: skip
    assembly.write_text(_arrange_shared(assembly.read_text(encoding="utf-8")), encoding="utf-8")
    objects = (str(assembly), *(str(runtime / f"{name}.o") for name in _RUNTIME))
    _must((_compiler(), "-no-pie", "-o", str(folder / "kernel"), *objects), folder, f"linking {source.path}")
    (folder / "layout.json").write_text(json.dumps(_layout(folder, source)), encoding="utf-8")


_RUNTIME = ("runtime", "checks", "locals")


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
            _must((_compiler(), *plain, "-O2", "-c", str(HEADERS / f"{name}.cpp"), "-o", str(beside / f"{name}.o")),
                  beside, f"compiling the emulation's {name}")  # fmt: skip
        (beside / "probe_emulation.hpp").write_text(f'#include "{HEADERS / "probe_emulation.hpp"}"\n', encoding="utf-8")
        header = str(beside / "probe_emulation.hpp")
        _must((_compiler(), *_flags(flavour), "-x", "c++-header", header, "-o", f"{header}.gch"),
              beside, "compiling the emulation's header")  # fmt: skip
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
    _must(("nm", "-S", "--defined-only", str(folder / "kernel")), folder, "reading symbols")
    symbols = _thread_local(folder)
    anchor = symbols.pop("_ZN15probe_emulation6anchorE")[0]
    dynamic = symbols.pop("probe_dynamic_shared")[0]
    statics = sorted((begin, size, plain_name(name)) for name, (begin, size) in symbols.items() if size)
    if (total := sum(size for _, size, _ in statics)) > STATIC_LIMIT:
        raise BuildFailed(
            f"{source.path.name}: static shared memory: expected at most {STATIC_LIMIT} bytes, got {total}",
            hint="extern __shared__, which can be larger",
        )
    extent = max((begin + size for begin, size, _ in (*statics, (dynamic, DYNAMIC_LIMIT, "")))) + RED_ZONE
    return asdict(_Layout(anchor, extent, dynamic, tuple(statics)))


@dataclass(frozen=True)
class _Layout:
    anchor: int
    extent: int
    dynamic: int
    statics: tuple[tuple[int, int, str], ...]


def plain_name(symbol: str) -> str:
    """The variable's own name in a mangled one: `_ZZ4raceE4tile` is `tile`; each part stands behind its length."""
    name, at = symbol, 0
    while symbol.startswith("_Z") and (found := re.compile(r"\d+").search(symbol, at)):
        at = found.end() + int(found[0])
        name = symbol[found.end() : at]
    return name


def _thread_local(folder: Path) -> dict[str, tuple[int, int]]:
    """name -> (offset, bytes), of `readelf`'s symbols of type TLS."""
    run = _run(("readelf", "-sW", str(folder / "kernel")), folder, "symbols")
    places = {}
    for line in run.stdout.read_text(encoding="utf-8", errors="replace").splitlines():
        words = line.split()
        if len(words) >= 8 and words[3] == "TLS" and words[6] != "UND":
            places[words[7]] = (int(words[1], 16), int(words[2], 0))
    return places
