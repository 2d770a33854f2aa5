"""A kernel's arguments from a file: arrays and scalars by the name of a parameter, or of a variable of the source."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.cuda import source as cuda_source
from harness.cuda import variables as cuda_variables
from harness.cuda.source import Entry, Source, below
from harness.device_log.layout import split_expressions
from harness.errors import ParseError, UsageError
from kernels.plan import Argument, Pointer

Array = np.ndarray[Any, Any]

# C's names of types, without `const` and `unsigned` in other places, as NumPy's; bfloat16 is held as uint16.
_TYPES = {
    "bool": "?", "char": "i1", "signed char": "i1", "int8_t": "i1", "unsigned char": "u1", "uint8_t": "u1",
    "short": "i2", "int16_t": "i2", "unsigned short": "u2", "uint16_t": "u2", "int": "i4", "int32_t": "i4",
    "unsigned": "u4", "unsigned int": "u4", "uint32_t": "u4", "long": "i8", "long long": "i8", "int64_t": "i8",
    "unsigned long": "u8", "unsigned long long": "u8", "uint64_t": "u8", "size_t": "u8", "float": "f4", "double": "f8",
    "__half": "f2", "half": "f2", "__nv_bfloat16": "bf16", "nv_bfloat16": "bf16", "uint": "u4", "ushort": "u2", "uchar": "u1",
}  # fmt: skip
_LANES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "longlong": "i8",
    "ulonglong": "u8", "float": "f4", "double": "f8",
}  # fmt: skip
_VECTORS = {f"{name}{lanes}": (dtype, lanes) for name, dtype in _LANES.items() for lanes in (1, 2, 3, 4)} | {
    "__half2": ("f2", 2), "half2": ("f2", 2), "__nv_bfloat162": ("bf16", 2), "nv_bfloat162": ("bf16", 2), "dim3": ("u4", 3),
}  # fmt: skip
_FILLS = ("zeros", "ones", "random", "arange", "nan")


@dataclass(frozen=True)
class Parameter:
    """A parameter of a kernel, or a variable of its source. `dtype` is that of its elements, of which a vector has `lanes`;
    it is None where the type is none of CUDA's numbers (a struct). A variable that holds an array is a `pointer` too."""

    name: str
    type: str
    pointer: bool
    dtype: str | None
    lanes: int = 1
    variable: bool = False  # __constant__ or __device__
    optional: bool = False


@dataclass(frozen=True)
class Inputs:
    """What a kernel is called with: arguments in the order of the parameters, the arrays that they point to, and what the
    variables of its source hold."""

    arguments: tuple[Argument, ...]
    names: tuple[str, ...]
    arrays: Mapping[str, Array]
    variables: Mapping[str, Array]

    @property
    def contents(self) -> tuple[tuple[str, bytes], ...]:
        """The variables as a launch has them."""
        return tuple((name, value.tobytes()) for name, value in self.variables.items())

    def save(self, path: Path) -> None:
        """As a file that `read` takes: what `--from-session` finds."""
        scalars = {name: np.asarray(value) for name, value in zip(self.names, self.arguments, strict=True)
                   if not isinstance(value, Pointer)}  # fmt: skip
        np.savez(path, **scalars, **self.arrays, **self.variables)  # type: ignore[arg-type]


def wanted_by(source: Source, entry: Entry, defines: Mapping[str, str] | None = None) -> tuple[Parameter, ...]:
    """A kernel's parameters, then the variables that the host can fill. A `__constant__` one that the kernel reads and that
    begins with no value must be given, like a parameter: the program that it is taken from fills it too."""
    first = parameters(source, entry, defines)
    taken = {parameter.name for parameter in first}
    meanings, reached = _meanings(source, entry) | dict(defines or {}), cuda_variables.reached(source, entry)
    return first + tuple(
        _parameter(one.name, one.type, one.array, meanings, variable=True,
                   optional=not one.constant or one.initialised or one.name not in reached)
        for one in cuda_variables.variables(source) if one.name not in taken and not one.pointer
    )  # fmt: skip


def parameters(source: Source, entry: Entry, defines: Mapping[str, str] | None = None) -> tuple[Parameter, ...]:
    """A kernel's parameters, in order; `defines` are the macros that it is compiled with."""
    nodes = entry.function.declarator.child_by_field_name("parameters")
    assert nodes is not None
    meanings = _meanings(source, entry) | dict(defines or {})
    made = []
    for node in nodes.named_children:
        kind, declarator = node.child_by_field_name("type"), node.child_by_field_name("declarator")
        if kind is None or declarator is None:
            continue
        name = next((at for at in below(declarator) if at.type == "identifier"), declarator)
        pointer = any(at.type in ("pointer_declarator", "array_declarator") for at in below(declarator))
        made.append(_parameter(source.of(name), " ".join(source.of(kind).split()), pointer, meanings))
    return tuple(made)


def _parameter(name: str, text: str, pointer: bool, meanings: Mapping[str, str], **more: bool) -> Parameter:
    text = _resolved(text, meanings)
    dtype, lanes = _VECTORS.get(text, (_TYPES.get(text), 1))
    return Parameter(name, text, pointer, dtype, lanes, **more)


def _meanings(source: Source, entry: Entry) -> dict[str, str]:
    """What stands for a type: a template's parameters, and the names that the file gives to types."""
    named: dict[str, str] = {}
    for node in below(source.tree.root_node):
        if node.type == "alias_declaration" and len(node.named_children) == 2:
            name, value = node.named_children
        elif node.type == "type_definition" and len(node.named_children) == 2:
            value, name = node.named_children
        elif node.type == "preproc_def" and len(node.named_children) == 2:
            name, value = node.named_children
        else:
            continue
        named[source.of(name)] = source.of(value).strip()
    given = split_expressions(entry.arguments[1:-1], angles=True)
    return named | dict(zip(entry.function.parameters, given, strict=False))


def _resolved(text: str, meanings: Mapping[str, str]) -> str:
    for _ in range(len(meanings)):
        if text not in meanings:
            break
        text = meanings[text]
    return text.removeprefix("::").removeprefix("std::")


def bind(wanted: tuple[Parameter, ...], given: Mapping[str, Any]) -> Inputs:
    """Arguments of these parameters; UsageError for one that is missing, not known, or of another type."""
    _check_names(wanted, given)
    arguments: list[Argument] = []
    arrays: dict[str, Array] = {}
    variables: dict[str, Array] = {}
    for parameter in wanted:
        if parameter.name not in given:
            continue  # a variable that begins with a value
        value = given[parameter.name]
        if parameter.variable:
            variables[parameter.name] = _content(parameter, value)
        elif not parameter.pointer:
            arguments.append(_scalar(parameter, value))
        else:
            array = _array(parameter, value)
            if array is not None:
                arrays[parameter.name] = array
            arguments.append(Pointer(None if array is None else parameter.name))
    names = tuple(parameter.name for parameter in wanted if not parameter.variable)
    return Inputs(tuple(arguments), names, arrays, variables)


def _check_names(wanted: tuple[Parameter, ...], given: Mapping[str, Any]) -> None:
    parameters = [one.name for one in wanted if not one.variable]
    variables = [one.name for one in wanted if one.variable]
    there = f"the parameters are {', '.join(parameters) or 'none'}"
    if variables:
        there += f"; the variables are {', '.join(variables)}"
    if missing := [one for one in wanted if one.name not in given and not one.optional]:
        example = "{shape: [4, 128], fill: random}" if missing[0].pointer else "1"
        raise UsageError(f"no value for {', '.join(one.name for one in missing)}: {there}",
                         hint=f"{missing[0].name}: {example} in --args FILE.yaml")  # fmt: skip
    if unknown := [name for name in given if name not in {*parameters, *variables}]:
        raise UsageError(f"the kernel has no parameter {', '.join(unknown)}: {there}")


def _content(parameter: Parameter, value: Any) -> Array:
    """What a variable holds."""
    made = _array(parameter, value) if parameter.pointer else np.asarray(_scalar(parameter, value))
    if made is None:
        raise UsageError(f"{parameter.name}: expected what the variable holds, got nothing")
    return made


def read(path: Path) -> dict[str, Any]:
    """Values by name; ParseError for a file that is neither .npz nor YAML with a mapping."""
    if zipfile.is_zipfile(path):
        try:
            with np.load(path, allow_pickle=False) as content:
                return {name: content[name] for name in content.files}
        except (ValueError, OSError) as error:
            raise ParseError(path, "content", "arrays without pickled objects", str(error)) from error
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ParseError(path, "file", "arguments, .npz or YAML", error.strerror or str(error)) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParseError(path, "content", "arguments, .npz or YAML", str(error).splitlines()[0]) from error
    if not isinstance(content, dict):
        got = "nothing" if content is None else type(content).__name__
        raise ParseError(path, "content", "a mapping of names to values", got,
                         hint="a line for each parameter: `x: {shape: [4, 128], fill: random}`, `n: 100`")  # fmt: skip
    return {str(name): value for name, value in content.items()}


def _scalar(parameter: Parameter, value: Any) -> Any:
    if parameter.lanes > 1:
        return _vector(parameter, value)
    if isinstance(value, np.ndarray):
        if value.size != 1:
            raise UsageError(f"{parameter.name}: expected one {parameter.type}, got an array of shape {value.shape}")
        value = value.reshape(())[()]
    if isinstance(value, str):
        value = _number(parameter, value)
    if not isinstance(value, bool | int | float | np.generic):
        raise UsageError(f"{parameter.name}: expected one {parameter.type}, got {value!r}")
    if parameter.dtype is None:
        return value if isinstance(value, np.generic) else np.asarray(value)[()]
    if parameter.dtype == "bf16":
        return value if isinstance(value, np.uint16) else _bfloat16(np.float32(value))[()]
    made = np.asarray(value).astype(parameter.dtype)[()]
    if np.isfinite(value) and made != value and np.dtype(parameter.dtype).kind in "iub":
        raise UsageError(f"{parameter.name}: expected {parameter.type}, got {value}, which does not fit it")
    return made


def _vector(parameter: Parameter, value: Any) -> Any:
    """`[1, 2, 3, 4]` for a float4: its bytes as one value, which an earlier session kept it as."""
    array = np.asarray(value)
    if array.size == 1 and array.dtype.kind == "V" and array.nbytes == _size(parameter):
        return array.reshape(())[()]
    if array.size != parameter.lanes or array.dtype.kind not in "biuf":
        raise UsageError(
            f"{parameter.name}: expected {parameter.lanes} numbers for one {parameter.type}, got {value!r}"
        )
    raw = _as(parameter, array).tobytes()
    return np.frombuffer(raw, np.dtype((np.void, len(raw))))[0]


def _size(parameter: Parameter) -> int:
    """Bytes of one."""
    element = "u2" if parameter.dtype == "bf16" else parameter.dtype
    return parameter.lanes * np.dtype(element).itemsize


def _number(parameter: Parameter, text: str) -> float:
    try:
        return float(text)  # YAML takes 1e-12, without a point, for a text
    except ValueError:
        raise UsageError(f"{parameter.name}: expected one {parameter.type}, got {text!r}") from None


def _array(parameter: Parameter, value: Any) -> Array | None:
    if value is None:
        return None  # a null pointer
    if isinstance(value, Mapping):
        return _made(parameter, value)
    if isinstance(value, list):
        return _as(parameter, np.asarray(value, np.float64 if parameter.dtype != "i8" else None))
    if not isinstance(value, np.ndarray) or value.ndim == 0:
        raise UsageError(f"{parameter.name}: expected an array for {parameter.type}*, got {value!r}",
                         hint=f"{parameter.name}: {{shape: [4, 128], fill: random}}")  # fmt: skip
    wanted = {"bf16": "u2"}.get(parameter.dtype or "", parameter.dtype)
    if wanted is not None and not _holds(value.dtype, np.dtype(wanted)):
        raise UsageError(
            f"{parameter.name}: expected an array of {np.dtype(wanted)} for {parameter.type}*, got {value.dtype}",
            hint=f"{parameter.name}.astype({str(np.dtype(wanted))!r}) before np.savez",
        )
    return np.ascontiguousarray(value)


def _holds(given: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """Whether elements of one type are those of another: numbers of the same kind and size, or its bits."""
    integers = "biu"
    same = given.kind == wanted.kind or (given.kind in integers and wanted.kind in integers)
    return given.itemsize == wanted.itemsize and (same or given.kind in "uV")


def _made(parameter: Parameter, value: Mapping[str, Any]) -> Array:
    """`{shape: [4, 128], fill: random, seed: 0, low: -1, high: 1}`; a fill is a word or a number. A shape counts
    elements, also where these are vectors."""
    if unknown := set(value) - {"shape", "fill", "seed", "low", "high"}:
        raise UsageError(
            f"{parameter.name}: no such key: {', '.join(sorted(unknown))}", hint="shape, fill, seed, low, high"
        )
    shape, fill = value.get("shape"), value.get("fill", "zeros")
    dims: list[Any] = shape if isinstance(shape, list) else [shape]
    if not dims or not all(isinstance(size, int) and size >= 0 for size in dims):
        raise UsageError(f"{parameter.name}: shape: expected whole numbers, got {shape!r}", hint="shape: [4, 128]")
    if parameter.lanes > 1:
        dims = [*dims, parameter.lanes]
    if fill == "random":
        low, high = float(value.get("low", -1)), float(value.get("high", 1))
        return _as(parameter, np.random.default_rng(value.get("seed", 0)).uniform(low, high, dims))
    if fill == "arange":
        return _as(parameter, np.arange(int(np.prod(dims)), dtype=np.float64).reshape(dims))
    known = {"zeros": 0.0, "ones": 1.0, "nan": np.nan}
    if not isinstance(fill, int | float) and fill not in known:
        raise UsageError(f"{parameter.name}: fill: expected a number or one of {', '.join(_FILLS)}, got {fill!r}")
    return _as(parameter, np.full(dims, known[fill] if isinstance(fill, str) else float(fill)))


def _as(parameter: Parameter, array: Array) -> Array:
    if parameter.dtype is None:
        raise UsageError(
            f"{parameter.name}: what a {parameter.type}* points to is not known here", hint="--args FILE.npz"
        )
    return _bfloat16(array.astype("f4")) if parameter.dtype == "bf16" else array.astype(parameter.dtype)


def _bfloat16(values: Any) -> Array:
    """float32 to the bits of bfloat16, to the nearest, ties to even."""
    bits = np.asarray(values, "f4").view("u4")
    rounded: Array = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("u2")
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def read_kernel(
    path: Path, entry: str | None, defines: Mapping[str, str] | None = None
) -> tuple[str, tuple[Parameter, ...]]:
    """Full name of a kernel of a file, or of its only one, and what it wants."""
    source = cuda_source.read(path)
    found = cuda_source.entry_of(source, entry)
    return found.name, wanted_by(source, found, defines)
