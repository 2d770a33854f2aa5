"""Matrix products by cuBLASLt, through ctypes: bias and GELU fused, the algorithm chosen by its heuristic or by time."""

from __future__ import annotations

import ctypes
import functools
import math
import statistics
from collections.abc import Callable, Iterator
from ctypes import (
    POINTER,
    Structure,
    byref,
    c_char_p,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from pathlib import Path
from typing import Any

import numpy as np

from harness.cuda.compile import wheel_folders
from harness.cuda.device import Device, Event, Memory
from harness.cuda.driver import caller
from harness.cuda.gemm import ITEMSIZES, TYPES, Layout, Problem, alignment, problem, refuse
from harness.errors import DependencyMissing, LaunchFailed, UsageError
from kernels.plan import Gemm, Pointer

NAMES = ("libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so.11")
SUCCESS, NOT_SUPPORTED = 0, 15
OP_N, OP_T = 0, 1
# cublasLtMatmulDescAttributes_t and cublasLtMatmulPreferenceAttributes_t
TRANSPOSE_FIRST, TRANSPOSE_SECOND, EPILOGUE, BIAS_POINTER, BIAS_TYPE = 3, 4, 7, 8, 26
WORKSPACE_BYTES, ALIGNMENT_A, ALIGNMENT_B, ALIGNMENT_C, ALIGNMENT_D = 1, 5, 6, 7, 8

WORKSPACE = 32 << 20  # what NVIDIA recommends from Hopper on
CANDIDATES = 16  # algorithms to time
TUNING_LAUNCHES, TUNING_ROUNDS = 20, 5
ALIGNED = 256  # bytes, of every copy of an operand
FILLING = 1 << 20  # random bytes that tuning spreads over its operands


class Algorithm(Structure):
    """cublasLtMatmulAlgo_t."""

    _fields_ = (("data", c_uint64 * 8),)


class Heuristic(Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algorithm", Algorithm), ("workspace", c_size_t), ("state", c_int), ("waves", c_float), ("reserved", c_int * 4),
    )  # fmt: skip


PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "cublasLtCreate": (POINTER(c_void_p),),
    "cublasLtMatrixLayoutCreate": (POINTER(c_void_p), c_int, c_uint64, c_uint64, c_int64),
    "cublasLtMatrixLayoutDestroy": (c_void_p,),
    "cublasLtMatmulDescCreate": (POINTER(c_void_p), c_int, c_int),
    "cublasLtMatmulDescDestroy": (c_void_p,),
    "cublasLtMatmulDescSetAttribute": (c_void_p, c_int, c_void_p, c_size_t),
    "cublasLtMatmulPreferenceCreate": (POINTER(c_void_p),),
    "cublasLtMatmulPreferenceDestroy": (c_void_p,),
    "cublasLtMatmulPreferenceSetAttribute": (c_void_p, c_int, c_void_p, c_size_t),
    "cublasLtMatmulAlgoGetHeuristic": (*(c_void_p,) * 7, c_int, POINTER(Heuristic), POINTER(c_int)),
    "cublasLtMatmul": (c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p,
                       c_void_p, c_void_p, c_void_p, POINTER(Algorithm), c_void_p, c_size_t, c_void_p),
}  # fmt: skip


class Library:
    """libcublasLt with every call checked."""

    def __init__(self, library: Any) -> None:
        self._library = library
        for name, arguments in PROTOTYPES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, c_int
        library.cublasLtGetStatusName.argtypes, library.cublasLtGetStatusName.restype = (c_int,), c_char_p
        library.cublasLtGetVersion.argtypes, library.cublasLtGetVersion.restype = (), c_size_t

    def call(self, name: str, *arguments: Any, shown: str | None = None) -> None:
        """Call a function; raises LaunchFailed unless it returns CUBLAS_STATUS_SUCCESS."""
        status = getattr(self._library, name)(*arguments)
        if status != SUCCESS:
            file, line = caller()
            raise LaunchFailed(shown or f"{name}()", file, line, f"{self.status_name(status)} ({status})")

    def status(self, name: str, *arguments: Any) -> int:
        """Call a function whose refusal is an answer; its status."""
        return int(getattr(self._library, name)(*arguments))

    def made(self, name: str, *arguments: Any) -> int:
        handle = c_void_p()
        self.call(name, byref(handle), *arguments)
        return handle.value or 0

    def set(self, name: str, handle: int, attribute: int, value: Any) -> None:
        """Set an attribute of a descriptor; the value's ctypes type is the attribute's."""
        self.call(f"cublasLt{name}SetAttribute", handle, attribute, byref(value), ctypes.sizeof(value))

    def status_name(self, status: int) -> str:
        return (self._library.cublasLtGetStatusName(status) or b"unknown status").decode()

    @property
    def version(self) -> int:
        return int(self._library.cublasLtGetVersion())


@functools.cache
def library() -> Library:
    """The newest libcublasLt there is, from NVIDIA's wheels or the system. Raises DependencyMissing without one."""
    for path in _places():
        try:
            return Library(ctypes.CDLL(str(path)))
        except OSError:  # not there, or made for another machine
            continue
    raise DependencyMissing("cuBLASLt", "to multiply matrices", "pip install nvidia-cublas", f"no {NAMES[0]}")


def _places() -> Iterator[Path | str]:
    for name in NAMES:
        yield from (path for folder in wheel_folders() if (path := folder / "lib" / name).is_file())
        yield name
        yield Path("/usr/local/cuda/lib64") / name


class Workspace:
    """cuBLASLt's handle and scratch memory for the products of one plan, which run one after the other."""

    def __init__(self, device: Device, size: int = WORKSPACE) -> None:
        self.device, self.size = device, size
        self._memory: Memory | None = None

    @property
    def address(self) -> int:
        if self._memory is None:  # a plan without products takes none
            self._memory = self.device.allocate(self.size)
        return self._memory.address

    @functools.cached_property
    def handle(self) -> int:
        return _handle(self.device)


@functools.cache
def _handle(device: Device) -> int:
    """One a device, kept for good: making one takes milliseconds and waits for the device."""
    device.use()
    return library().made("cublasLtCreate")


class Matmul:
    """A product with its algorithm chosen, for operands anywhere on the device.

    Raises UsageError, with the reason, for a product that cuBLASLt does not do: the caller fuses it in a kernel.
    """

    def __init__(self, device: Device, gemm: Gemm, workspace: Workspace, *, tune: bool = False) -> None:
        if message := refuse(gemm):
            raise UsageError(f"{describe(gemm)}: {message}")
        self.device, self.gemm, self.workspace = device, gemm, workspace
        self.problem, self.shown = problem(gemm), f"cublasLtMatmul({describe(gemm)})"
        self.scratch = (workspace.address, workspace.size)  # allocated now: later there may be a capture under way
        self.alignments = {name: _alignment(pointer, dtype) for name, pointer, dtype in _operands(gemm)}
        self._first, self._second, self._result = (
            _layout(layout) for layout in (self.problem.first, self.problem.second, self.problem.result)
        )
        self.algorithm = self._choose(tune)

    def bind(
        self, *, a: int, b: int, d: int, c: int | None = None, bias: int | None = None
    ) -> Callable[[int], None]:  # fmt: skip
        """The launch on operands at these addresses, as a function of a stream's handle.

        Raises UsageError if an address is less aligned than the plan's offsets say.
        """
        for name, address in (("a", a), ("b", b), ("c", c), ("d", d), ("bias", bias)):
            if address is not None and name in self.alignments and address % self.alignments[name]:
                raise UsageError(
                    f"{self.shown}: {name} at {address:#x} is not aligned to {self.alignments[name]} bytes"
                )
        return self._launcher(a, b, c, d, bias, self.algorithm)

    def _launcher(
        self, a: int, b: int, c: int | None, d: int, bias: int | None, algorithm: Algorithm
    ) -> Callable[[int], None]:
        descriptor = _Descriptor(self.problem, bias)
        alpha, beta = _scalars(self.problem)
        before = (self.workspace.handle, descriptor.handle, ctypes.addressof(alpha), b, self._first.handle, a,
                  self._second.handle, ctypes.addressof(beta), c or d, self._result.handle, d, self._result.handle,
                  byref(algorithm), *self.scratch)  # fmt: skip
        lt, shown = library(), self.shown

        def invoke(stream: int, kept: Any = (self, descriptor, alpha, beta, algorithm)) -> None:
            lt.call("cublasLtMatmul", *before, stream, shown=shown)

        return invoke

    def _choose(self, tune: bool) -> Algorithm:
        if not tune:
            return self.candidates(1)[0]
        key = (self.device, self.problem, tuple(self.alignments.values()), library().version)
        if key not in _TUNED:
            _TUNED[key] = self._fastest(self.candidates(CANDIDATES))
        return _TUNED[key]

    def candidates(self, most: int) -> list[Algorithm]:
        """The algorithms that cuBLASLt holds best, best first. Raises UsageError if it has none."""
        lt, found, count = library(), (Heuristic * most)(), c_int()
        dummy = self.alignments.get("bias")  # only its alignment is looked at
        descriptor, preference = _Descriptor(self.problem, dummy), _Preference(self.alignments, self.workspace.size)
        result = self._result.handle
        status = lt.status("cublasLtMatmulAlgoGetHeuristic", self.workspace.handle, descriptor.handle,
                           self._first.handle, self._second.handle, result, result, preference.handle,
                           most, found, byref(count))  # fmt: skip
        good = [one.algorithm for one in found[: count.value] if one.state == SUCCESS]
        if status == NOT_SUPPORTED or (status == SUCCESS and not good):
            raise UsageError(
                f"{describe(self.gemm)}: cuBLASLt {lt.version} has no algorithm for it on this GPU",
                hint="without bias and epilogue, and those in a kernel of their own",
            )
        if status != SUCCESS:
            raise LaunchFailed(f"cublasLtMatmulAlgoGetHeuristic({describe(self.gemm)})", *caller(),
                               f"{lt.status_name(status)} ({status})")  # fmt: skip
        return [Algorithm.from_buffer_copy(one) for one in good]

    def _fastest(self, algorithms: list[Algorithm]) -> Algorithm:
        """Time each on operands of random bits, in turns, so that a drifting clock meets all alike.

        Every launch has another copy of B: a network's weights come from memory, its activations from the cache.
        """
        operands, stream = _Operands(self.device, self.gemm), self.device.stream()
        runnable, graphs = [], []
        for algorithm in algorithms:
            launches = [self._launcher(*addresses, algorithm) for addresses in operands.addresses]
            try:
                launches[0](stream.handle)  # loads its code, which a capture must not have to do
            except LaunchFailed:  # the heuristic promised too much
                continue
            with stream.capture() as graph:
                for number in range(TUNING_LAUNCHES):
                    launches[number % len(launches)](stream.handle)
            runnable.append(algorithm)
            graphs.append(graph)
        if not graphs:
            raise UsageError(f"{describe(self.gemm)}: none of cuBLASLt's algorithms for it runs on this GPU")
        times: list[list[float]] = [[] for _ in graphs]
        for _ in range(TUNING_ROUNDS + 1):
            for graph, taken in zip(graphs, times, strict=True):
                start, end = Event(self.device), Event(self.device)
                start.record(stream.handle)
                graph.launch(stream.handle)
                end.record(stream.handle)
                taken.append(end.since_ns(start))
        best = min(range(len(graphs)), key=lambda number: statistics.median(times[number][1:]))  # the first warms up
        return runnable[best]


_TUNED: dict[Any, Algorithm] = {}


class _Operands:
    """Memory to tune on: random operands (zeros would run faster than real data do), nobody's result overwritten.

    `addresses` are of A, B, C, D and bias, once for each copy of B, which together are twice the cache, or nearly.
    """

    def __init__(self, device: Device, gemm: Gemm) -> None:
        size, out = ITEMSIZES[gemm.dtype], ITEMSIZES[gemm.out_dtype]
        weights = math.ceil(gemm.k * gemm.n * size / ALIGNED) * ALIGNED
        copies = min(TUNING_LAUNCHES, math.ceil(2 * device.facts.l2_bytes / weights))
        sizes = (gemm.m * gemm.k * size, weights * copies, gemm.m * gemm.n * out, gemm.n * 4)
        self._kept = [device.allocate(size) for size in sizes]
        random = np.random.default_rng(0)
        for memory, dtype in zip(self._kept, (gemm.dtype, gemm.dtype, gemm.out_dtype, gemm.bias_dtype), strict=True):
            values = _random(random, dtype)
            for start in range(0, memory.size, values.nbytes):
                part = values.view(np.uint8)[: memory.size - start]
                device.write(memory.address + start, part)
        device.synchronize()  # tuning works on a stream of its own
        a, b, d, bias = (memory.address for memory in self._kept)
        c, used = d if gemm.c else None, bias if gemm.bias else None
        self.addresses = [(a, b + number * weights, c, d, used) for number in range(copies)]


def _random(random: np.random.Generator, dtype: str) -> np.ndarray[Any, Any]:
    """A mebibyte of small numbers of a type."""
    if dtype in ("int8", "int32"):
        return random.integers(-8, 8, FILLING // ITEMSIZES[dtype]).astype(dtype)
    values = random.uniform(-1, 1, FILLING // ITEMSIZES[dtype]).astype(np.float32)
    if dtype == "bfloat16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype("float32" if dtype == "tf32" else dtype)


class _Owned:
    """A handle of cuBLASLt, destroyed with the object."""

    def __init__(self, kind: str, *arguments: Any) -> None:
        self._kind = kind
        self.handle = library().made(f"cublasLt{kind}Create", *arguments)

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            library().status(f"cublasLt{self._kind}Destroy", self.handle)


def _layout(layout: Layout) -> _Owned:
    return _Owned("MatrixLayout", layout.dtype, layout.rows, layout.columns, layout.leading)


class _Descriptor(_Owned):
    """What is computed; `bias` is the address that its epilogue reads."""

    def __init__(self, asked: Problem, bias: int | None) -> None:
        super().__init__("MatmulDesc", asked.compute, asked.scale)
        self._set(TRANSPOSE_FIRST, c_int32(OP_T if asked.transpose_first else OP_N))
        self._set(TRANSPOSE_SECOND, c_int32(OP_N))
        self._set(EPILOGUE, c_uint32(asked.epilogue))
        if asked.bias is not None:
            self._set(BIAS_TYPE, c_int32(asked.bias))
            self._set(BIAS_POINTER, c_void_p(bias))

    def _set(self, attribute: int, value: Any) -> None:
        library().set("MatmulDesc", self.handle, attribute, value)


class _Preference(_Owned):
    """What an algorithm may use: workspace, and how the operands are aligned."""

    def __init__(self, alignments: dict[str, int], workspace: int) -> None:
        super().__init__("MatmulPreference")
        values = ((ALIGNMENT_A, alignments["b"]), (ALIGNMENT_B, alignments["a"]),  # the operands change places
                  (ALIGNMENT_C, alignments.get("c", alignments["d"])), (ALIGNMENT_D, alignments["d"]))  # fmt: skip
        library().set("MatmulPreference", self.handle, WORKSPACE_BYTES, c_uint64(workspace))
        for attribute, value in values:
            library().set("MatmulPreference", self.handle, attribute, c_uint32(value))


def describe(gemm: Gemm) -> str:
    """A product in a line: `4096x3072x768 float16 -> float16, B transposed, bias float16, gelu_tanh`."""
    parts = [f"{gemm.m}x{gemm.n}x{gemm.k} {gemm.dtype} -> {gemm.out_dtype}"]
    parts += ["B transposed"] if gemm.b_transposed else []
    parts += ["C added"] if gemm.c else []
    parts += [f"bias {gemm.bias_dtype}"] if gemm.bias else []
    parts += [gemm.epilogue] if gemm.epilogue != "none" else []
    return ", ".join(parts)


def _operands(gemm: Gemm) -> list[tuple[str, Pointer, str]]:
    known = [("a", gemm.a, gemm.dtype), ("b", gemm.b, gemm.dtype), ("d", gemm.d, gemm.out_dtype)]
    known += [("c", gemm.c, gemm.out_dtype)] if gemm.c else []
    return [*known, ("bias", gemm.bias, gemm.bias_dtype)] if gemm.bias else known


def _alignment(pointer: Pointer, dtype: str) -> int:
    return alignment(pointer.offset * ITEMSIZES[dtype])


def _scalars(asked: Problem) -> tuple[Any, Any]:
    """Alpha and beta, of the type that they are read as."""
    if asked.scale == TYPES["int32"]:
        return c_int32(int(asked.alpha)), c_int32(int(asked.beta))
    return c_float(asked.alpha), c_float(asked.beta)
