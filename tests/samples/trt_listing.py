"""What TensorRT's Python bindings offer, one line a name, read off their own signatures: `api.txt` is that of six versions.

    python tests/samples/trt_listing.py tests/data/tensorrt/api.txt VERSION MODULE [VERSION MODULE ...]

records anew; VERSION is what the file calls it. The bindings are small wheels of their own (`tensorrt-bindings`,
`tensorrt-cu12-bindings`; `pip download --no-deps`, unpack each into a folder), and all that they take from TensorRT's
libraries are the functions in FUNCTIONS: empty ones in their place are enough to import them. MODULE is a folder that
holds `tensorrt_bindings`, or the name of a module that is installed. Every version is read in a process of its own.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser", "nvparsers")
FUNCTIONS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL", "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL", "getBuilderPluginRegistry", "getNvOnnxParserVersion",
    "getPluginRegistry", "initLibNvInferPlugins", "_ZN11nvuffparser15createUffParserEv",
    "_ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi", "_ZN14nvcaffeparser117createCaffeParserEv",
    "_ZN14nvcaffeparser123shutdownProtobufLibraryEv",
)  # fmt: skip
SIGNATURE = re.compile(r"^(?:\d+\. )?(\w+)\((.*?)\)(?: -> (.+))?$")
OVERRIDE = re.compile(r"^\s*def (\w+)\(self(?:, (.*))?\)", re.MULTILINE)  # in the text of a class to derive from


def lines_of(trt: ModuleType) -> list[str]:
    """Sorted: `Class(Base)`, `Class.method(argument, optional=) -> Type`, `Class.attribute: Type`, `Enum.MEMBER`, `function()`."""
    return sorted({line for name in dir(trt) if name[0] != "_" for line in _of(trt, name)})


def _of(trt: ModuleType, name: str) -> Iterator[str]:
    value = getattr(trt, name)
    if not inspect.isclass(value):
        kind = type(value).__name__
        if kind in ("builtin_function_or_method", "PyCapsule", "function"):
            yield from _signatures(name, value.__doc__) or (f"{name}(*)",)
        elif hasattr(type(value), "__members__") and name != "value":  # left over from a loop of the package's own
            yield f"{name}: {kind}"
        return
    if hasattr(value, "__members__"):
        yield f"{name}(enum)"
        yield from (f"{name}.{member}" for member in value.__members__)
        return
    if value.__module__.startswith(("tensorrt", "trt")) or value.__module__ == trt.__name__:
        bases = ", ".join(base.__name__ for base in value.__bases__ if base.__module__.startswith("tensorrt"))
        yield f"{name}({bases})"
        for member in ("__init__", *(known for known in vars(value) if known[0] != "_")):
            yield from _of_class(name, value, member)
        for override, arguments in OVERRIDE.findall(value.__doc__ or ""):
            if override[0] != "_" and override not in vars(value):
                yield f"{name}.{override}({arguments})"


def _of_class(owner: str, cls: type, member: str) -> Iterator[str]:
    value = inspect.getattr_static(cls, member)
    if isinstance(value, property):
        kind = (value.fget.__doc__ or "").strip().splitlines()[:1]
        yield f"{owner}.{member}: {_short(kind[0].rpartition(' -> ')[2]) if kind else ''}".rstrip(": ")
        return
    value = getattr(cls, member)
    if inspect.isclass(value) and hasattr(value, "__members__"):
        yield from (f"{owner}.{member}.{name}" for name in value.__members__)
    elif hasattr(type(value), "__members__"):
        yield f"{owner}.{member}: {type(value).__name__}"
    elif callable(value):
        found = [f"{owner}.{line}" for line in _signatures(member, value.__doc__)]
        yield from found or ([f"{owner}.{member}(*)"] if member != "__init__" else [])


def _signatures(name: str, doc: str | None) -> list[str]:
    """One for each overload. pybind11 writes them first of all, in a numbered list where there are several."""
    found = []
    for line in (doc or "").splitlines():
        match = SIGNATURE.match(line.strip())
        if match and match[1] == name and not match[2].startswith("*args"):
            arguments = [_argument(one) for one in _split(match[2]) if not re.match(r"self\b|arg0: .*\b_?Self\b", one)]
            found.append(f"{name}({', '.join(arguments)})" + (f" -> {_short(match[3])}" if match[3] else ""))
    return list(dict.fromkeys(found))


def _argument(text: str) -> str:
    name = text.partition(":")[0].strip()
    return f"{name}=" if re.search(r"[^<>=!]= ?", text) else name


def _split(text: str) -> list[str]:
    """At the commas that stand in no bracket."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[(<") - (character in "])>")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def _short(kind: str) -> str:
    """A type without the modules that it lies in."""
    return re.sub(r"(?:\w+(?:\.|::))+(\w+)", r"\1", kind.strip()).replace("List[", "list[")


# Recording


def write(path: Path, read: dict[str, list[str]]) -> None:
    """One file for all versions: each line, and the versions that have it."""
    rows: dict[str, list[str]] = {}
    for version, lines in read.items():
        for line in lines:
            rows.setdefault(line, []).append(version)
    path.write_text("".join(f"{line}\t{' '.join(rows[line])}\n" for line in sorted(rows)), encoding="utf-8")


def recorded(path: Path) -> dict[str, list[str]]:
    """Version -> its lines."""
    found: dict[str, list[str]] = {}
    for row in path.read_text(encoding="utf-8").splitlines():
        line, _, versions = row.partition("\t")
        for version in versions.split():
            found.setdefault(version, []).append(line)
    return found


def _read(module: str) -> list[str]:
    """In a process of its own, with libraries that hold nothing."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "empty.c"
        source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in FUNCTIONS))
        for major in (8, 10, 11):
            for name in LIBRARIES:
                made = f"lib{name}.so.{major}"
                command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{made}", "-o", f"{folder}/{made}", str(source)]
                subprocess.run(command, check=True)
        path, name = (module, "tensorrt_bindings") if Path(module).is_dir() else (".", module)
        environment = {**os.environ, "PYTHONPATH": path, "LD_LIBRARY_PATH": folder}
        asked = [sys.executable, __file__, "--list", name]
        return subprocess.run(asked, check=True, env=environment, capture_output=True, text=True).stdout.splitlines()


def main(arguments: list[str]) -> None:
    if arguments[0] == "--list":
        print("\n".join(lines_of(importlib.import_module(arguments[1]))))
        return
    path, *pairs = arguments
    write(Path(path), {version: _read(module) for version, module in zip(pairs[::2], pairs[1::2], strict=True)})


if __name__ == "__main__":
    main(sys.argv[1:])
