"""Run the steps of a plan on the CPU, thread for thread: the kernels' own sources, compiled by g++."""

from __future__ import annotations

import functools
import itertools
import json
import operator
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness import process
from harness.emulation.build import DYNAMIC_LIMIT, TWIN, Built, Flavour, Source, build
from harness.emulation.findings import Row, Told, line_at, product_row, rows_of
from harness.emulation.gemm import multiply
from harness.emulation.memory import Arena, Array, arena_bytes
from harness.errors import BuildFailed, ToolFailed, UsageError
from harness.record import Command
from kernels.plan import Gemm, Launch, Pointer, Step

CHECKS = {"memory": 1, "race": 2, "init": 4, "grid": 8, "asan": 16 | 1}
ALL = ("memory", "race", "init")  # "grid", races between blocks, and "asan", a build of its own, are asked for by name
MOST_THREADS = 1024
MOST_BLOCKS = (2**31 - 1, 65535, 65535)
LARGEST_BLOCK = (1024, 1024, 64)
STEP_LIMIT = 50_000_000  # waits and, where accesses are checked, accesses of one thread
MEMORY_LIMIT = 8 << 30  # bytes of address space beside the buffers
SHADOW = 72  # the most bytes that the checks keep for a byte of a buffer, and the byte itself
GRACE_S = 5.0  # the program ends itself at the time-out and says where it was; this long after, it is killed
_MISFIT, _ENDED = 4, 3


@dataclass(frozen=True)
class Printed:
    """What one call of printf wrote, in the order of the calls."""

    launch: int  # the index of the step
    kernel: str
    block: tuple[int, int, int]
    thread: tuple[int, int, int]
    text: str


@dataclass(frozen=True)
class Emulated:
    """What came out: the buffers afterwards, rows for the table `findings`, what was printed.

    `complete` is false where a finding ended the program (a deadlock, a crash, the time-out): later steps did not run,
    and the arrays are what had been written until then.
    """

    arrays: dict[str, Array]
    findings: tuple[Row, ...]
    printed: tuple[Printed, ...]
    complete: bool


@dataclass(frozen=True)
class _Program:
    """Consecutive launches of one source: (index of the step, launch)."""

    built: Built
    launches: tuple[tuple[int, Launch], ...]

    @property
    def variables(self) -> dict[str, bytes]:
        """What its variables begin with, by name."""
        return dict(itertools.chain.from_iterable(launch.variables for _, launch in self.launches))


@dataclass(frozen=True)
class _Product:
    """A matrix product, and the index of its step."""

    number: int
    step: Gemm


@dataclass(frozen=True)
class _Limits:
    seconds: float
    steps: int
    checks: int


def run(
    steps: Sequence[Step],
    arrays: Mapping[str, Array],
    *,
    checks: str | Sequence[str] = "none",
    timeout_s: float = 60.0,
    step_limit: int = STEP_LIMIT,
    uninitialised: Sequence[str] = (),
    folder: Path | None = None,
) -> Emulated:
    """Run `steps` over `arrays` (bfloat16 as uint16), which are not changed; results are in what is returned.

    `checks`: "none", "all" (memory, race, init), some of memory, race, init, grid, or "asan" alone. Barriers, deadlocks,
    time-outs and writes beyond buffers are told in any case. `timeout_s` is for each program, without its compilation.
    `uninitialised` names buffers whose contents must not be read before they are written (check `init`).
    With `folder`, the findings are written there as `emulation.jsonl`, which `probe report` reads.

    Raises BuildFailed if a source does not compile, UsageError if a launch does not fit its kernel or CUDA's limits.
    """
    wanted = parse_checks(checks)
    limits = _Limits(timeout_s, step_limit, functools.reduce(operator.or_, (CHECKS[name] for name in wanted), 0))
    for number, step in enumerate(steps):
        _check(number, step, arrays)
    programs = _programs(steps, _flavour(wanted))
    with _scratch(arena_bytes(arrays)) as place:
        arena = Arena(place / "arena", arrays, uninitialised if "init" in wanted else ())
        events: list[Told] = []
        rows: list[Row] = []
        complete = True
        for number, part in enumerate(programs):
            if isinstance(part, _Product):
                read = multiply(part.step, arena)
                rows += (product_row(part.number, one, arena.places[arena.index[one.buffer]]) for one in read)
                continue
            told, complete = _run_program(part, arena, limits, place / f"emulation-{number}")
            events += told
            if not complete:
                break
        made = arena.copies()
    names = {number: step for number, step in enumerate(steps) if isinstance(step, Launch)}
    rows += rows_of(events, names, arena.places)
    rows.sort(key=lambda row: int(row["launch_id"]))
    result = Emulated(made, tuple(rows), tuple(_printed(events, names)), complete)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_findings(result.findings, folder / "emulation.jsonl")
    return result


def parse_checks(checks: str | Sequence[str]) -> tuple[str, ...]:
    """The names of the checks: "all", "none", "memory,race", or a sequence of names."""
    names = checks.split(",") if isinstance(checks, str) else list(checks)
    if names in (["none"], []):
        return ()
    names = list(itertools.chain.from_iterable(ALL if name == "all" else (name,) for name in names))
    if unknown := sorted(set(names) - CHECKS.keys()):
        raise UsageError(
            f"no such check: {', '.join(unknown)}",
            hint=f"all, none, or some of {', '.join(CHECKS)}, with commas between",
        )
    if "asan" in names and (others := set(names) - {"asan", "memory"}):
        raise UsageError(f"asan is a build of its own, which cannot look for {', '.join(sorted(others))} as well",
                         hint="two runs: --check asan, and --check all")  # fmt: skip
    return tuple(dict.fromkeys(names))


def _flavour(wanted: Sequence[str]) -> Flavour:
    return "asan" if "asan" in wanted else "watched" if wanted else "plain"


def write_findings(findings: Sequence[Row], path: Path) -> None:
    """One JSON object a line, the first says what the file is; `probe report` reads it."""
    lines = [{"tool": "emulation", "findings": len(findings)}, *findings]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


# ---- before the run


def _check(number: int, step: Step, arrays: Mapping[str, Array]) -> None:
    """Refuse what a launch on the GPU would refuse, and pointers to nothing."""
    for pointer in _pointers(step):
        if pointer.buffer is not None and pointer.buffer not in arrays:
            raise UsageError(f"step {number}: no array is given for buffer {pointer.buffer!r}",
                             hint=f"there are: {', '.join(arrays) or 'none'}")  # fmt: skip
    if isinstance(step, Gemm):
        return
    where = f"step {number} ({step.entry})"
    for what, got, most in (("grid", step.grid, MOST_BLOCKS), ("block", step.block, LARGEST_BLOCK)):
        for axis, size, limit in zip("xyz", got, most, strict=True):
            if not 1 <= size <= limit:
                raise UsageError(f"{where}: {what}.{axis}: expected 1 to {limit}, got {size}")
    if (threads := int(np.prod(step.block))) > MOST_THREADS:
        raise UsageError(f"{where}: block: expected at most {MOST_THREADS} threads, got {threads}")
    if not 0 <= step.shared_bytes <= DYNAMIC_LIMIT:
        raise UsageError(
            f"{where}: dynamic shared memory: expected at most {DYNAMIC_LIMIT} bytes, got {step.shared_bytes}"
        )


def _pointers(step: Step) -> Iterator[Pointer]:
    if isinstance(step, Gemm):
        yield from (pointer for pointer in (step.a, step.b, step.c, step.d, step.bias) if pointer is not None)
    else:
        yield from (argument for argument in step.arguments if isinstance(argument, Pointer))


def sources(steps: Sequence[Step], checks: str | Sequence[str] = "none") -> tuple[Source, ...]:
    """What `run` compiles of these steps, each by `harness.emulation.build.build`: to have it done beforehand, side by side."""
    return tuple(_sources(steps, _flavour(parse_checks(checks))).values())


def _sources(steps: Sequence[Step], flavour: Flavour) -> dict[tuple[Any, ...], Source]:
    entries: dict[tuple[Any, ...], dict[str, None]] = {}
    for step in steps:
        if isinstance(step, Launch):
            entries.setdefault((step.source, step.defines), {})[step.entry] = None
    return {key: Source(key[0], key[1], tuple(names), flavour) for key, names in entries.items()}


def _programs(steps: Sequence[Step], flavour: Flavour) -> list[_Program | _Product]:
    """The steps as programs: consecutive launches of one source run in one process."""
    built = {key: build(source) for key, source in _sources(steps, flavour).items()}
    parts: list[_Program | _Product] = []
    for key, group in itertools.groupby(enumerate(steps), lambda item: _key(item[1])):
        if key is None:
            parts += [_Product(number, step) for number, step in group if isinstance(step, Gemm)]
        else:
            launches = tuple((number, step) for number, step in group if isinstance(step, Launch))
            parts.append(_Program(built[key], launches))
    for part in parts:
        if isinstance(part, _Program):
            _check_shared(part)
            _check_variables(part)
    return parts


def _key(step: Step) -> tuple[Any, ...] | None:
    return (step.source, step.defines) if isinstance(step, Launch) else None


def _check_shared(program: _Program) -> None:
    static = sum(
        size for _, size, name in program.built.statics if name
    )  # of all kernels of the source: what one has is not known
    for number, launch in program.launches:
        if len(program.built.entries) == 1 and static + launch.shared_bytes > DYNAMIC_LIMIT:
            raise UsageError(
                f"step {number} ({launch.entry}): shared memory: expected at most {DYNAMIC_LIMIT} bytes, got "
                f"{static} static and {launch.shared_bytes} dynamic"
            )


def _check_variables(program: _Program) -> None:
    there = {name: size for _, size, name in program.built.variables}
    for name, content in program.variables.items():
        if name not in there:
            raise UsageError(
                f"no __constant__ or __device__ variable is called {name}",
                hint=f"there are: {', '.join(there) or 'none'}",
            )
        if len(content) != there[name]:
            raise UsageError(f"the variable {name}: expected {there[name]} bytes, got {len(content)}")


# ---- the run


@contextmanager
def _scratch(size: int) -> Iterator[Path]:
    """A folder in memory where that has room: a shared mapping on a disk is written back all the time."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 4 * size
    with tempfile.TemporaryDirectory(prefix="probe-emulation-", dir=memory if roomy else None) as made:
        yield Path(made)


def _run_program(program: _Program, arena: Arena, limits: _Limits, stem: Path) -> tuple[list[Told], bool]:
    plan, events = stem.with_suffix(".plan"), stem.with_suffix(".events")
    plan.write_text("\n".join(_plan_lines(program, arena, limits)) + "\n", encoding="ascii")
    events.unlink(missing_ok=True)
    files = (plan, events, arena.path, *((arena.marks,) if arena.marks else ()))
    argv = (str(program.built.program), *map(str, files))
    done = process.run(Command(argv, limits.seconds + GRACE_S), stem)
    told = list(_events(events, program))
    for one in told:
        if one.event["event"] == "misfit":
            raise _misfit(one.event, dict(program.launches)[one.event["launch"]])
        if one.event["event"] == "refused":
            raise BuildFailed(f"{line_at(one)}: {one.event['text']}", hint=TWIN)
    if done.returncode == 0:
        return told, True
    if done.returncode != _ENDED and not done.timed_out and done.signal is None:
        raise ToolFailed(f"the emulation failed: {process.tail(done.stderr) or 'no message'}", done)
    if not any(_fatal(one.event) for one in told):  # killed from outside, or too far gone to say anything
        told.append(_died(program, told, "timeout" if done.timed_out else "killed", done.signal))
    return told, False


def _fatal(event: Mapping[str, Any]) -> bool:
    return event["event"] == "finding" and not event["warning"]


def _died(program: _Program, told: Sequence[Told], kind: str, signal: int | None) -> Told:
    started = [one.event["launch"] for one in told if one.event["event"] == "launch"]
    launch = started[-1] if started else program.launches[0][0]
    event = {"event": "finding", "id": -1, "launch": launch, "kind": kind, "pc": 0, "other_pc": 0, "warning": 0,
             "number": signal or 0, "address": 0, "size": 0, "write": -1, "space": "", "buffer": -1, "offset": 0,
             "text": ""}  # fmt: skip
    return Told(program.built, event)


def _events(path: Path, program: _Program) -> Iterator[Told]:
    """Whole lines only: the last may have been torn by a kill."""
    if not path.exists():
        return
    for line in path.read_bytes().split(b"\n")[:-1]:
        yield Told(program.built, json.loads(line))


def _plan_lines(program: _Program, arena: Arena, limits: _Limits) -> Iterator[str]:
    built = program.built
    yield f"{limits.seconds:.6f} {limits.steps} {MEMORY_LIMIT + SHADOW * arena.bytes} {limits.checks} {arena.bytes}"
    yield str(len(arena.places))
    for place in arena.places:
        yield f"{place.offset} {place.size} {int(place.name not in arena.undefined)}"
    yield f"{built.anchor} {built.extent} {built.dynamic} {len(built.statics)}"
    yield from (f"{begin} {size} {int(not name)}" for begin, size, name in built.statics)
    contents = program.variables
    given = [(address, contents[name]) for address, _, name in built.variables if name in contents]
    yield str(len(given))
    yield from (f"{address} {len(content)} {content.hex(' ')}" for address, content in given)
    yield str(len(program.launches))
    for number, launch in program.launches:
        sizes = " ".join(map(str, (*launch.grid, *launch.block, launch.shared_bytes, len(launch.arguments))))
        yield f"{number} {built.entries.index(launch.entry)} {sizes}"
        yield from (_argument(argument, arena) for argument in launch.arguments)


_KINDS = {"i": "i", "u": "i", "b": "i", "f": "f"}


def _argument(argument: Pointer | np.generic, arena: Arena) -> str:
    if isinstance(argument, Pointer):
        if argument.buffer is None:
            return "n"
        item = arena[argument.buffer].dtype.itemsize
        return f"p {arena.index[argument.buffer]} {argument.offset * item}"
    raw = argument.tobytes()
    kind = "b" if argument.dtype == np.uint16 else _KINDS.get(argument.dtype.kind, "s")  # uint16: may be a bfloat16
    return f"v {kind} {len(raw)} {raw.hex(' ')}"


_WORDS = {"i": "an integer", "f": "a floating-point number", "p": "a pointer", "s": "a structure"}


def _misfit(event: Mapping[str, Any], launch: Launch) -> UsageError:
    where = f"{launch.source.name}: {launch.entry}"
    if event["what"] == "count":
        return UsageError(f"{where}: expected {event['expected']} arguments, got {event['got']}")
    position = event["parameter"]
    argument = launch.arguments[position]
    name = launch.names[position] if position < len(launch.names) else f"parameter {position}"
    got = "a pointer" if isinstance(argument, Pointer) else f"{argument.dtype} of {event['got']} bytes"
    return UsageError(f"{where}: {name}: expected {_WORDS[event['kind']]} of {event['expected']} bytes, got {got}")


def _printed(events: Sequence[Told], launches: Mapping[int, Launch]) -> Iterator[Printed]:
    for event in (one.event for one in events):
        if event["event"] == "print":
            text = event["text"].encode("latin-1").decode("utf-8", errors="replace")
            block, thread = tuple(event.get("block", (0, 0, 0))), tuple(event.get("thread", (0, 0, 0)))
            yield Printed(event["launch"], launches[event["launch"]].entry, block, thread, text)
