"""Inline PTX as C++: each instruction becomes a call of the function of its name in `kernels/emulation/ptx.hpp`."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import kernels

_FUNCTIONS = Path(kernels.__file__).resolve().parent / "emulation" / "ptx.hpp"
_TYPES = {
    "pred": "bool", "b8": "unsigned char", "u8": "unsigned char", "s8": "signed char", "b16": "unsigned short",
    "u16": "unsigned short", "s16": "short", "b32": "unsigned", "u32": "unsigned", "s32": "int", "b64": "unsigned long long",
    "u64": "unsigned long long", "s64": "long long", "f16": "__half", "bf16": "__nv_bfloat16", "f16x2": "__half2",
    "bf16x2": "__nv_bfloat162", "f32": "float", "tf32": "probe_emulation::tf32", "f64": "double",
    "e4m3": "probe_emulation::Byte<probe_emulation::E4M3>", "e5m2": "probe_emulation::Byte<probe_emulation::E5M2>",
    "e4m3x2": "probe_emulation::TwoBytes<probe_emulation::E4M3>", "e5m2x2": "probe_emulation::TwoBytes<probe_emulation::E5M2>",
}  # fmt: skip
# What tells a GPU where and how to cache, order or round means nothing to a CPU that does one thing at a time. Rounding
# to nearest is the rule; what rounds otherwise keeps its word, and is another function.
_IGNORED = re.compile(
    r"aligned|approx|ftz|rn|full|global|local|generic|const|param|cta|cluster|gpu|sys|nc|ca|cg|cs|lu|cv|wb|wt|weak|relaxed|"
    r"volatile|uni|collect|m8n8|L1|L2|evict_\w+|no_allocate|cache_hint|128B|256B|64B|L1::\w+|L2::\w+|shared::cta|noftz"
)
_ORDERED = {"acquire", "release", "acq_rel"}  # a fence beside the access
_LANES_MEET = ("mma", "ldmatrix", "stmatrix", "shfl", "vote", "match", "redux", "elect", "activemask")


class Unknown(Exception):
    """An instruction or a form of one that has no function."""


@dataclass(frozen=True)
class Operand:
    """`[name] "constraint"(value)`."""

    constraint: str
    value: str
    name: str = ""


@dataclass(frozen=True)
class Statement:
    """`asm("code" : operands, those written first)`."""

    code: str
    operands: tuple[Operand, ...]


@dataclass(frozen=True)
class _Instruction:
    guard: str  # "", "p" or "!p"
    opcode: str
    operands: str


def refusal(told: str) -> str:
    """C++ that ends the run where it is reached, and says so."""
    return f"probe_emulation::refuse({json.dumps(told)})"


def translate(statement: Statement) -> str:
    """The statement in C++; one that refuses the first instruction that there is no function for."""
    try:
        return _translate(statement)
    except Unknown as unknown:
        return refusal(f"inline PTX: `{unknown}` is not emulated")


def _translate(statement: Statement) -> str:
    names = {operand.name: number for number, operand in enumerate(statement.operands)}
    code = re.sub(r"%\[(\w+)\]", lambda found: f"%{names.get(found[1], len(names))}", statement.code)
    known = {f"%{number}": f"probe_{number}" for number in range(len(statement.operands))}
    parts = [f"auto&& probe_{i} = ({operand.value});" for i, operand in enumerate(statement.operands)]
    for line in _lines(code):
        if line.startswith(".reg"):
            made = dict(_registers(line))
            known |= {name: f"probe_r_{name}" for name in made}
            parts += [f"{kind} probe_r_{name}{{}};" for name, kind in made.items()]
        else:
            parts.append(_call(_instruction(line), known))
    return f"do {{ {' '.join(parts)} }} while (0)"


def _lines(code: str) -> Iterator[str]:
    """Instructions and declarations; braces around all of them open a scope, those within one group operands."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", " ", code, flags=re.DOTALL).replace("%%", "%")
    for part in text.split(";"):
        line = " ".join(part.split())
        while line[:1] in ("{", "}"):
            line = line[1:].strip()
        if line:
            yield line


def _registers(line: str) -> Iterator[tuple[str, str]]:
    """(name, C++ type) of `.reg .b32 a, b`."""
    found = re.fullmatch(r"\.reg\s*\.(\w+)\s+(.+)", line)
    if found is None or found[1] not in _TYPES:
        raise Unknown(line)
    for name in found[2].replace("%", "").split(","):
        if not re.fullmatch(r"\w+", name.strip()):
            raise Unknown(line)
        yield name.strip(), _TYPES[found[1]]


def _instruction(line: str) -> _Instruction:
    found = re.fullmatch(r"(?:@\s*(!?)\s*%?(\w+)\s+)?([a-z][\w.:]*)\s*(.*)", line)
    if found is None:
        raise Unknown(line)
    return _Instruction(f"{found[1]}probe_r_{found[2]}" if found[2] else "", found[3], found[4])


@functools.cache
def functions() -> frozenset[str]:
    """The names of the functions that there are."""
    return frozenset(_names(_FUNCTIONS.read_text(encoding="utf-8")))


_MACRO = re.compile(r"^#define (PROBE_\w+)\((\w+)[^)]*\)((?:.*\\\n)*.*)", re.MULTILINE)


def _names(header: str) -> Iterator[str]:
    """Of the functions of the header, those that its macros make among them."""
    yield from re.findall(r"\bvoid (\w+)_\(", header)
    for macro, parameter, body in _MACRO.findall(header):
        for pasted in re.findall(r"\bvoid ((?:\w|##)+)_\(", body):
            for given in re.findall(rf"^{macro}\((\w+)", header, re.MULTILINE):
                yield "".join(given if part == parameter else part for part in pasted.split("##"))


def _call(instruction: _Instruction, known: Mapping[str, str]) -> str:
    name, types, ordered = _function(instruction.opcode)
    name += _form(name, instruction.operands)
    if name not in functions():
        raise Unknown(instruction.opcode)
    operands = ", ".join(_operands(instruction, known))
    template = f"<{', '.join(types)}>" if types else ""
    fence = "__threadfence(); " if ordered else ""
    guard = f"if ({instruction.guard}) " if instruction.guard else ""
    return f"{guard}{{ {fence}probe_emulation::ptx::{name}_{template}({operands}); {fence}}}"


def _form(name: str, operands: str) -> str:
    """What the operands look like is a part of some functions' names: `mov.b32 {a, b}, c`, `shfl ... d|p`."""
    if name == "mov" and "{" in operands:
        return "_unpack" if operands.startswith("{") else "_pack"
    return "_p" if "|" in operands else ""


def _function(opcode: str) -> tuple[str, tuple[str, ...], bool]:
    """`ld.acquire.global.v4.f32` is the function ld_v4 of float, with fences."""
    base, *rest = opcode.split(".")
    words, types, ordered = [base], [], False
    for word in rest:
        ordered |= word in _ORDERED and base in ("ld", "st", "atom", "red")
        if word in _TYPES:
            types.append(_TYPES[word])
        elif word == "sync" and base in _LANES_MEET:
            continue
        elif not (_IGNORED.fullmatch(word) or word in _ORDERED or (word == "shared" and base != "cvta")):
            words.append(word.replace("::", "_"))
    if base in ("fence", "membar"):
        words = ["fence"] if "proxy" not in rest else ["fence", "proxy"]
    return "_".join(words), tuple(types), ordered


def _operands(instruction: _Instruction, known: Mapping[str, str]) -> Iterator[str]:
    shared = "shared" in re.split(r"\.|::", instruction.opcode)
    for text in re.findall(r"\[[^\]]*\]|[^,{}\[\]|]+", instruction.operands):
        if not (text := text.strip()):
            continue
        if text.startswith("["):
            base, _, offset = text[1:-1].replace(" ", "").partition("+")
            kind = "in_shared" if shared else "in_global"
            yield f"probe_emulation::ptx::{kind}({_value(base, known)}, {offset or 0})"
            shared = shared and not instruction.opcode.startswith("cp.async")  # the source is global
        else:
            yield _value(text, known)


_SPECIAL = {
    "laneid": "probe_emulation::lane()", "warpid": "probe_emulation::warp()", "clock": "(unsigned)clock64()",
    "clock64": "clock64()", "globaltimer": "__globaltimer()", "smid": "0u", "nsmid": "1u", "gridid": "0ull",
    "lanemask_eq": "(1u << probe_emulation::lane())", "lanemask_lt": "__lanemask_lt()",
    "lanemask_le": "(__lanemask_lt() << 1 | 1u)", "lanemask_gt": "(~1u << probe_emulation::lane())",
    "lanemask_ge": "(~0u << probe_emulation::lane())", "dynamic_smem_size": "probe_emulation::dynamic_shared_bytes()",
    "WARP_SZ": "32",
} | {f"{ptx}.{axis}": f"{cuda}.{axis}" for ptx, cuda in
     {"tid": "threadIdx", "ntid": "blockDim", "ctaid": "blockIdx", "nctaid": "gridDim"}.items() for axis in "xyz"}  # fmt: skip


def _value(text: str, known: Mapping[str, str]) -> str:
    if text.startswith("!"):
        return f"!({_value(text[1:].strip(), known)})"
    for name in (text, text.removeprefix("%")):
        if name in known or name in _SPECIAL:
            return known.get(name) or _SPECIAL[name]
    if text == "_":
        return "probe_emulation::ptx::nowhere"
    if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)[uU]?", text):
        return text
    if found := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})", text):
        return f"__uint_as_float(0x{found[1]}u)"
    if re.fullmatch(r"-?\d+\.\d*(e-?\d+)?", text):
        return f"{text}f"
    raise Unknown(text)
