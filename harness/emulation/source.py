"""A `.cu` file as g++ is to see it: macros expanded, host functions left out, inline PTX and launches as C++ calls."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tree_sitter import Node

from harness.cuda import source as cuda_source
from harness.emulation import ptx

# Headers that are not there: of CUDA's, and of libraries that only host code, which is left out, can use.
_KNOWN_ANYWAY = re.compile(
    r"(cuda(_(runtime|runtime_api|fp16|bf16|pipeline|pipeline_primitives|device_runtime_api|profiler_api|stdint))?|"
    r"(driver|builtin|vector|library)_types|(vector|math|common|device)_functions|math_constants|channel_descriptor|"
    r"sm_\d+_\w+|crt/\w+|host_defines|device_launch_parameters|device_\w+)\.h|"
    r"(torch|ATen|c10|pybind11|thrust|nvtx3|opencv2?|npp|gtest|glog|benchmark|fmt)/|"
    r"(cublas|cudnn|cusparse|cufft|cusolver|cutensor|curand\.h|nccl|npp|NvInfer|NvOnnx|nvToolsExt|nvml|nvrtc|"
    r"cudaProfiler|cudaTypedefs|helper_|mpi)"
)
_PARTS = (  # what is not known before a file asks for it
    (r"cuda/std/(\w+)", r"\1", "cuda_atomic.hpp"),
    (r"cuda/(atomic|barrier|pipeline)", r"cuda_\1.hpp"),
    (r"cub/.*", "cub.hpp"),
    (r"cooperative_groups/\w+\.h", "cooperative_groups.h"),
)
_FOREIGN = ("torch", "at", "c10", "pybind11", "py", "thrust", "nvinfer1", "cv", "nvcuda::experimental")
_DEVICE = re.compile(rb"\b(__device__|__global__|constexpr|consteval)\b")
_MARKER = re.compile(r'^# (\d+) "((?:[^"\\]|\\.)*)"([ \d]*)$')
_FOREIGN_NAME = re.compile(rf"\b(?:{'|'.join(_FOREIGN)})::")
_USING = re.compile(rb"using\s+namespace\s+(\w+)")


ENTRY = "probe_entry_is"  # begins a line that names an entry point


class Place(NamedTuple):
    """A line of a file."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{Path(self.file).name}:{self.line}"


@dataclass(frozen=True)
class Kernel:
    """A kernel of a source; `exported` are those with C linkage, whose name is enough to call them by."""

    name: str
    exported: bool


@dataclass(frozen=True)
class Unit:
    """What is compiled: `text` with its `#line`s, after the library's `headers`; `files` are all that it was made of."""

    text: str
    headers: tuple[str, ...]
    files: tuple[Path, ...]
    kernels: tuple[Kernel, ...]
    entries: tuple[str, ...]  # the templates that were asked for, their macros expanded
    changed: bool  # it would not compile as it was written
    lines: tuple[tuple[Place, str], ...]  # the user's own, as they were before anything was left out


def stand_in(header: str) -> str | None:
    """What stands for a header that is not there; None where nothing does."""
    for pattern, *parts in _PARTS:
        if found := re.fullmatch(pattern, header):
            return "".join(f"#include <{found.expand(part)}>\n" for part in parts)
    return "" if _KNOWN_ANYWAY.match(header) else None


def unit(preprocessed: str, scratch: Path) -> Unit:
    """Of the preprocessor's output, in which CUDA's words still stand; headers in `scratch` are ours, and empty."""
    all_own, headers, files = _split(preprocessed, scratch)
    own = [one for one in all_own if not Path(one[0].file).is_relative_to(scratch)]
    asked = (line for place, line in all_own if Path(place.file).is_relative_to(scratch))
    text = "\n".join(line for _, line in own)
    source = cuda_source.parse(text.encode())
    edits = _Edits(source.text, tuple(place for place, _ in own))
    edits.leave_out_host_code(source)
    edits.translate(source.tree.root_node)
    return Unit(
        _with_places(edits.apply().split("\n"), [place for place, _ in own]),
        tuple(header for header in headers if not Path(header).is_relative_to(scratch)),
        tuple(sorted(file for file in files if not file.is_relative_to(scratch))),
        tuple(_kernels(source)),
        tuple(line.removeprefix(ENTRY).strip() for line in asked if line.startswith(ENTRY)),
        edits.needed,
        tuple(own),
    )


def _kernels(source: cuda_source.Source) -> Iterator[Kernel]:
    for function in source.kernels:
        yield Kernel(function.qualified, function.extern_c and not function.template)


# ---- the preprocessor's output


def _split(preprocessed: str, scratch: Path) -> tuple[list[tuple[Place, str]], list[str], set[Path]]:
    """The user's own lines with their places; the library's headers that they include; all files."""
    own: list[tuple[Place, str]] = []
    headers: dict[str, None] = {}
    files: set[Path] = set()
    place, system = Place("<none>", 0), True
    for line in preprocessed.splitlines():
        if (found := _MARKER.match(line)) is None:
            if not system and line.strip():
                _append(own, place, line)
            place = Place(place.file, place.line + 1)
            continue
        entered, flags = found[2], found[3].split()
        if (
            entered != place.file
        ):  # the same file with the mark of a system's: a macro of the system's in the user's line
            from_own = not system or Path(place.file).is_relative_to(scratch)  # a header of ours may only name another
            system = "3" in flags
            if system and from_own and "1" in flags and not place.file.startswith("<"):
                headers[entered] = None
            if not entered.startswith("<"):
                files.add(Path(entered))
        place = Place(entered, int(found[1]))
    return own, list(headers), files


def _append(own: list[tuple[Place, str]], place: Place, line: str) -> None:
    """A line that the preprocessor has broken is one again, so that no directive falls into the middle of a call."""
    if own and own[-1][0] == place:
        own[-1] = (place, f"{own[-1][1]} {line.strip()}")
    else:
        own.append((place, line))


def _with_places(lines: Sequence[str], places: Sequence[Place]) -> str:
    made: list[str] = []
    next_place: Place | None = None
    for line, place in zip(lines, places, strict=True):
        if line.strip():
            if place != next_place:
                made.append(f'#line {place.line} "{place.file}"')
            made.append(line)
            next_place = Place(place.file, place.line + 1)
    return "\n".join((*made, ""))


# ---- what is changed


class _Edits:
    """Changes of a text, none of which changes the number of its lines."""

    def __init__(self, text: bytes, places: Sequence[Place]) -> None:
        self._text = text
        self._places = places
        self._changes: list[tuple[int, int, bytes]] = []
        self.needed = False  # without them the text could not be compiled

    def apply(self) -> str:
        parts, at = [], 0
        for begin, end, new in sorted(self._changes):
            if begin < at:
                continue  # inside of what is left out
            parts += [self._text[at:begin], new, b"\n" * self._text.count(b"\n", begin, end)]
            at = end
        return b"".join((*parts, self._text[at:])).decode("utf-8", "replace")

    def _change(self, begin: int, end: int, new: bytes = b"") -> None:
        self._changes.append((begin, end, new))

    # Host code needs libraries and a runtime that are not there. What a kernel calls is none, whatever its words: the twin
    # of a place that the emulation does not have may be plain C++.

    def leave_out_host_code(self, source: cuda_source.Source) -> None:
        host = [f for f in source.functions if not _DEVICE.search(self._text, f.node.start_byte, f.body.start_byte)]
        named = _named_by_kernels(source, host)
        for function in host:
            only_host = _HOST_ONLY.search(source.of(function.node)) is not None
            if function.member and only_host:
                initial = [child for child in function.node.children if child.type == "field_initializer_list"]
                self._change((initial or [function.body])[0].start_byte, function.body.end_byte, b";")
            elif not function.member and (only_host or not _is_named(function, named)):
                node = _outermost(function.node)
                self._change(node.start_byte, node.end_byte)
            self.needed |= only_host
        for node in _at_namespace_scope(source.tree.root_node):
            if self._is_for_the_host(node, named):
                self._change(node.start_byte, node.end_byte)

    def _is_for_the_host(self, node: Node, named: set[str]) -> bool:
        text = self._text[node.start_byte : node.end_byte]
        if node.type == "template_instantiation":
            return True  # what is used is instantiated
        if _DEVICE.search(text):
            return False
        if found := _USING.match(text):
            return found[1].decode() in _FOREIGN and not re.search(
                rb"namespace\s+" + found[1] + rb"\s*[:{]", self._text
            )
        if (name := _prototype(node)) is not None and name not in named:
            return True
        return node.type != "namespace_definition" and _FOREIGN_NAME.search(_text(node)) is not None

    # What is written in another language than C++.

    def translate(self, root: Node) -> None:
        for node in _all(root, ("gnu_asm_expression", "kernel_call_syntax")):
            self.needed = True
            if node.type == "gnu_asm_expression":
                self._change(node.start_byte, node.end_byte, ptx.translate(_statement(node)).encode())
            elif (call := _around(node, "call_expression")) is not None:
                told = ptx.refusal("a launch from a kernel (dynamic parallelism) is not emulated")
                self._change(call.start_byte, call.end_byte, told.encode())


_HOST_ONLY = re.compile(rf"<<<|\b(cuda[A-Z]\w*|cublas\w*|cudnn\w*|throw|try|main)\b|{_FOREIGN_NAME.pattern}")


def _named_by_kernels(source: cuda_source.Source, host: Sequence[cuda_source.Function]) -> set[str]:
    """Names in what is no host function, and in the host's functions that have such a name, and so on."""
    text = bytearray(source.text)
    for function in host:
        begin, end = function.node.start_byte, function.node.end_byte
        text[begin:end] = b" " * (end - begin)
    named, new = set[str](), _names(text.decode("utf-8", "replace"))
    while new:
        named |= new
        new = set[str]().union(*(_names(source.of(f.body)) for f in host if f.name in new)) - named
    return named


def _is_named(function: cuda_source.Function, named: set[str]) -> bool:
    return function.name in named or function.name.startswith("operator")


def _names(text: str) -> set[str]:
    return set(re.findall(r"\b[A-Za-z_]\w*", text))


def _statement(node: Node) -> ptx.Statement:
    code = node.child_by_field_name("assembly_code")
    operands = []
    for field in ("output_operands", "input_operands"):
        found = node.child_by_field_name(field)
        for operand in found.named_children if found else ():
            constraint, value, name = (operand.child_by_field_name(what) for what in ("constraint", "value", "symbol"))
            if constraint is not None and value is not None:
                operands.append(ptx.Operand(_literal(constraint), _text(value), _text(name) if name else ""))
    return ptx.Statement(_literal(code) if code else "", tuple(operands))


def _literal(node: Node) -> str:
    """The text that string literals in a row stand for."""
    parts = re.findall(r'"((?:[^"\\]|\\.)*)"', _text(node), re.DOTALL)
    return re.sub(r"\\(.)", lambda found: {"n": "\n", "t": "\t"}.get(found[1], found[1]), "".join(parts))


def _text(node: Node) -> str:
    return (node.text or b"").decode("utf-8", "replace")


# ---- the tree


_SCOPES = ("translation_unit", "namespace_definition", "declaration_list", "linkage_specification")


def _at_namespace_scope(node: Node) -> Iterator[Node]:
    """Declarations outside of functions and classes; those in `extern "C" { }` too."""
    for child in node.named_children:
        scoped = child.type in _SCOPES and any(
            part.type == "declaration_list" for part in (child, *child.named_children)
        )
        if scoped:
            yield from _at_namespace_scope(child)
        elif child.type not in ("function_definition", "string_literal", "namespace_identifier", "comment"):
            yield child


def _prototype(node: Node) -> str | None:
    """The name in `int run(int);`, also of a template or with C linkage; None for a variable, and all else."""
    while node.type in ("template_declaration", "linkage_specification"):
        node = node.named_children[-1]
    if node.type != "declaration":
        return None
    at = node.child_by_field_name("declarator")
    while at is not None and at.type in ("pointer_declarator", "reference_declarator"):
        at = at.child_by_field_name("declarator") or (at.named_children[-1] if at.named_children else None)
    name = at.child_by_field_name("declarator") if at is not None and at.type == "function_declarator" else None
    if name is None or name.type == "parenthesized_declarator":
        return None
    return str(re.findall(r"\w+", _text(name).partition("<")[0])[-1])


def _outermost(node: Node) -> Node:
    while node.parent is not None and node.parent.type in ("template_declaration", "linkage_specification"):
        node = node.parent
    return node


def _around(node: Node, kind: str) -> Node | None:
    return next((at for at in cuda_source.ancestors(node) if at.type == kind), None)


def _all(node: Node, kinds: Sequence[str]) -> Iterator[Node]:
    if node.type in kinds:
        yield node
    for child in node.children:
        yield from _all(child, kinds)


# ---- what the compiler's words may mean

_FEATURES = (
    (r"\b(tex[123]D\w*|texCubemap\w*|surf[123]D\w*|cudaTextureObject_t|cudaSurfaceObject_t)\b", "textures and surfaces"),
    (r"\b(this_cluster|cluster_group|map_shared_rank|__cluster_\w+)\b", "clusters of blocks"),
    (r"\bcurand\w*", "cuRAND"),
    (r"\b(cutlass|cute|raft|thrust|cub|torch|at|c10)\s*::\s*\w+", "a library's device code"),
    (r"\bcuda::(ptx|experimental|device|annotated_ptr|access_property)\b", "this part of libcu++"),
    (r"\bwmma::experimental\b|\bnvcuda::experimental\b|\bbmma_sync\b", "matrices of less than 8 bits"),
    (r"\bcuda(Malloc|Free|Memcpy|Launch|Stream|Event|DeviceSynchronize)\w*\s*\(", "the CUDA runtime inside of a kernel"),
)  # fmt: skip


def features(unit: Unit) -> Iterator[tuple[Place, str, str]]:
    """(place, the word, what it belongs to) of what the emulation does not have, as far as words tell."""
    for pattern, what in _FEATURES:
        for number, line in enumerate(unit.text.split("\n")):
            if not line.startswith("#line") and (found := re.search(pattern, line)):
                yield _place_of(unit.text, number), found[0].rstrip("( "), what
                break


def _place_of(text: str, number: int) -> Place:
    lines = text.split("\n")
    for back in range(number, -1, -1):
        if found := re.match(r'#line (\d+) "(.*)"', lines[back]):
            return Place(found[2], int(found[1]) + number - back - 1)
    return Place("", 0)
