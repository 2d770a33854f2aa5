"""What an emulated program reported, as rows of the table `findings`: addresses become files, lines and sentences."""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import process
from harness.emulation.build import HEADERS, Built
from harness.emulation.gemm import Unwritten
from harness.emulation.memory import Place
from harness.record import Command
from kernels.plan import Launch

Row = dict[str, Any]
_INDEX = "Index out of bounds"


@dataclass(frozen=True)
class Told:
    """A line that a program wrote."""

    built: Built
    event: Mapping[str, Any]

    @property
    def program(self) -> Path:
        return self.built.program


@dataclass(frozen=True)
class Line:
    """A place in a source; without a file it is not known."""

    file: str | None = None  # its name, without the folder
    line: int | None = None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.file else "an unknown place"


def rows_of(events: Sequence[Told], launches: Mapping[int, Launch], buffers: Sequence[Place]) -> tuple[Row, ...]:
    """The findings in the order in which they were met, each with how often it was."""
    lines = _Lines(events)
    rows: dict[tuple[Path, int], Row] = {}
    stack: tuple[int, ...] = ()
    for number, one in enumerate(events):
        program, event = one.program, one.event
        if event["event"] == "stack":
            stack = tuple(event["pcs"][1:])
        elif event["event"] == "count":
            if (found := rows.get((program, event["id"]))) is not None:
                found["count"] = event["count"]
        elif event["event"] == "finding" and not _same_line(lines, program, event):
            key = (program, event["id"] if event["id"] >= 0 else -1 - number)
            rows[key] = _row(one, launches[event["launch"]], buffers, lines.places(program, event, stack))
    return tuple(_without_echoes(list(rows.values())))


def _without_echoes(rows: Sequence[Row]) -> Iterator[Row]:
    """An index out of bounds is left out where the access that it led to is told too: that says more."""
    accesses = {line_of(row) for row in rows if row["access"] is not None}
    return (row for row in rows if row["kind"] != _INDEX or line_of(row) not in accesses)


def line_at(told: Told) -> Line:
    """Where the event that has a `pc` comes from."""
    pc = told.event["pc"]
    return next(iter(_frames(told.program, [pc]).get(pc, ())), Line())


def line_of(row: Row) -> tuple[Any, ...]:
    """Launch, kernel, file and line of a finding."""
    return tuple(row[name] for name in ("launch_id", "kernel", "file", "line"))


def product_row(number: int, read: Unwritten, buffer: Place) -> Row:
    """A matrix product that reads what nothing has written, as a row: there is no line, and no thread, to name."""
    kind = "Uninitialized __global__ memory read"
    message = (
        f"{kind} at byte {read.offset} of buffer {buffer.name!r} of {buffer.size} bytes: nothing was written there before, "
        f"and it is {read.operand} of a matrix product"
    )
    places = dict.fromkeys(("file", "line", *(f"{what}_{axis}" for what in ("block", "thread") for axis in "xyz")))
    return {
        "tool": "emulation", "severity": "error", "kind": kind, "kernel": "matrix product", **places, "address": None,
        "access": "read", "size_bytes": None, "message": message, "count": 1, "launch_id": number,
    }  # fmt: skip


def _same_line(lines: _Lines, program: Path, event: Mapping[str, Any]) -> bool:
    """The compiler makes two of one barrier at times: threads at both are at the same place."""
    places = [lines.first(program, (event[name],)) for name in ("pc", "other_pc")]
    return event["kind"] == "barrier-places" and places[0] == places[1]


def _row(told: Told, launch: Launch, buffers: Sequence[Place], places: tuple[Line, Line]) -> Row:
    event, (place, other) = told.event, places
    kind, message = _WORDS[event["kind"]](_Context(event, told.built, buffers, place, other))
    row: Row = {
        "tool": "emulation", "severity": "warning" if event["warning"] else "error", "kind": kind,
        "kernel": launch.entry, "file": place.file, "line": place.line,
    }  # fmt: skip
    for what in ("block", "thread"):
        for axis, value in zip("xyz", event.get(what, (None,) * 3), strict=True):
            row[f"{what}_{axis}"] = value
    access = {1: "write", 0: "read"}.get(event["write"])
    row |= {
        "address": f"{event['address']:#x}" if event["address"] else None, "access": access,
        "size_bytes": event["size"] or None, "message": message, "count": 1, "launch_id": event["launch"],
    }  # fmt: skip
    return row


# ---- sentences


@dataclass(frozen=True)
class _Context:
    event: Mapping[str, Any]
    built: Built
    buffers: Sequence[Place]
    place: Line
    other: Line

    @property
    def access(self) -> str:
        return "write" if self.event["write"] == 1 else "read"

    @property
    def number(self) -> int:
        return int(self.event["number"])

    def where(self) -> str:
        """Where an address lies, told from the buffer that it is nearest to."""
        offset, index = self.event["offset"], self.event["buffer"]
        if self.event["space"] in ("local", "variable"):
            return str(self.event["text"])
        if self.event["space"] == "shared":
            return self._where_shared(offset)
        if index < 0:
            return f"at {self.event['address']:#x}"
        buffer = self.buffers[index]
        if offset < 0:
            return f"{-offset} bytes before buffer {buffer.name!r} of {buffer.size} bytes"
        if offset >= buffer.size:
            return f"{offset - buffer.size} bytes after the end of buffer {buffer.name!r} of {buffer.size} bytes"
        return f"at byte {offset} of buffer {buffer.name!r} of {buffer.size} bytes"

    def _where_shared(self, offset: int) -> str:
        if offset >= self.built.dynamic:
            return f"at byte {offset - self.built.dynamic} of dynamic shared memory"
        before = [static for static in self.built.statics if static[0] <= offset and static[2]]
        if not before:
            return "before all shared variables"
        begin, size, name = before[-1]
        if offset >= begin + size:
            return f"{offset - begin - size} bytes after the end of shared variable {name!r} of {size} bytes"
        return f"at byte {offset - begin} of shared variable {name!r} of {size} bytes"

    def thread(self, name: str) -> str:
        x, y, z = self.event.get(name, (0, 0, 0))
        return f"({x},{y},{z})"


def _invalid(c: _Context) -> tuple[str, str]:
    space, text = c.event["space"], c.event["text"]
    kind = f"Invalid __{'global' if space in ('', 'variable') else space}__ {c.access}"
    reason = f": {text}" if text and space not in ("local", "variable") else ""
    return kind, f"{kind} of size {c.event['size']} bytes {c.where()}{reason}"


def _uninitialised(c: _Context) -> tuple[str, str]:
    kind = f"Uninitialized __{c.event['space']}__ memory read"
    return kind, f"{kind} of size {c.event['size']} bytes {c.where()}: nothing was written there before"


def _race(c: _Context) -> tuple[str, str]:
    first, second = c.event["text"].split(",")
    who = f"block {c.event['other_block']}" if "other_block" in c.event else f"thread {c.thread('other_thread')}"
    return "Race", (
        f"Race reported between {second} access by thread {c.thread('thread')} in {c.place} and {first} access by {who} "
        f"in {c.other}, {c.where()}: no barrier orders them"
    )


def _copying(c: _Context) -> tuple[str, str]:
    return "Race", (
        f"Race reported between Read access by thread {c.thread('thread')} in {c.place} and a copy in the background by "
        f"thread {c.thread('other_thread')} in {c.other}, {c.where()}: it has not been waited for"
    )


def _guard(c: _Context) -> tuple[str, str]:
    return "Invalid __global__ write", (
        f"Invalid __global__ write {c.where()}, found after the launch; run it with the check `memory` to learn where"
    )


def _exited(c: _Context) -> tuple[str, str]:
    return "Barrier error", (
        f"Barrier error: {c.number} threads of the block have returned, thread {c.thread('other_thread')} for one, and "
        f"the others wait at {c.place}"
    )


def _places(c: _Context) -> tuple[str, str]:
    return "Barrier error", (
        f"Barrier error: divergent threads in the block: thread {c.thread('thread')} is at {c.place}, thread "
        f"{c.thread('other_thread')} at {c.other}"
    )


def _deadlock(c: _Context) -> tuple[str, str]:
    if c.event["kind"] == "deadlock-warp":
        what = f"a warp operation for the lanes {c.event['offset']:#010x}"
    else:
        what = "the barrier of the block" if c.event["offset"] == 0 else f"barrier {c.event['offset']}"
    rest = (
        ", and no other thread will come: the others wait elsewhere" if c.event["text"] else ", and nobody else comes"
    )
    return "Deadlock", f"Deadlock: {c.number} threads wait at {c.place} for {what}{rest}"


def _crash(c: _Context) -> tuple[str, str]:
    if c.event["address"] or c.event["text"] in ("SIGSEGV", "SIGBUS"):
        at = f"at {c.event['address']:#x}" if c.event["address"] else "at a null or misaligned address"
        return "Invalid __global__ access", f"Invalid access {at}: {c.event['text']}"
    return "Crash", f"the kernel died of {c.event['text']}"


def _plain(kind: str, sentence: str) -> Callable[[_Context], tuple[str, str]]:
    return lambda c: (
        kind,
        sentence.format(number=c.number, mask=f"{c.number:#010x}", text=c.event["text"], place=c.place),
    )


_WORDS: dict[str, Callable[[_Context], tuple[str, str]]] = {
    "access": _invalid,
    "uninitialised": _uninitialised,
    "race": _race,
    "copying": _copying,
    "guard": _guard,
    "barrier-exited": _exited,
    "barrier-places": _places,
    "deadlock-warp": _deadlock,
    "deadlock-barrier": _deadlock,
    "crash": _crash,
    "barrier-arguments": _plain("Barrier error", "Barrier error: no such barrier or number of threads: {number}"),
    "mask": _plain("Warp error", "the mask {mask} of a warp operation does not name the lane that calls it"),
    "shuffle": _plain(
        "Warp error", "a shuffle reads lane {number}, which does not take part: what it gives is undefined"
    ),
    "index": _plain(_INDEX, "{text} is out of its bounds"),
    "shift": _plain("Undefined shift", "{text}: more than the type has bits, for which C++ defines no result"),
    "leading": _plain(
        "Warp error",
        "a matrix of wmma has rows of {number} bytes: its leading dimension must be a multiple of 16 bytes",
    ),
    "trap": _plain("Trap", "the kernel called __trap()"),
    "assert": _plain("Device-side assert", "Assertion `{text}` failed"),
    "stack": _plain("Stack overflow", "a thread used more than 256 KiB of stack"),
    "exchange": _plain("Warp error", "an exchange of {number} bytes a thread: at most 512"),
    "spin": _plain("Hang", "the threads spin at {place} and none achieves anything: waited for {number} rounds"),
    "steps": _plain("Hang", "a thread took more than {number} steps"),
    "timeout": _plain("Hang", "the time was up, and the kernel was still running at {place}"),
    "no-memory": _plain("Crash", "there is no memory for what the checks keep of each byte"),
    "killed": _plain("Crash", "the program was ended by signal {number}"),
}


# ---- lines


class _Lines:
    """Addresses in programs as lines of the user's sources, asked of addr2line once a program."""

    def __init__(self, events: Sequence[Told]) -> None:
        wanted: defaultdict[Path, set[int]] = defaultdict(set)
        for one in events:
            if one.event["event"] == "stack":
                wanted[one.program] |= set(one.event["pcs"][1:])
            elif one.event["event"] == "finding":
                wanted[one.program] |= {one.event["pc"], one.event["other_pc"]}
        self._frames = {program: _frames(program, sorted(pcs - {0})) for program, pcs in wanted.items()}

    def places(self, program: Path, event: Mapping[str, Any], stack: tuple[int, ...]) -> tuple[Line, Line]:
        """Of the access and of the other one. In a library's function, the place is that of a call on the stack."""
        return self.first(program, (event["pc"], *stack)), self.first(program, (event["other_pc"],))

    def first(self, program: Path, pcs: Iterable[int]) -> Line:
        """The innermost line, of the first address that has one, that is not of our headers."""
        for pc in pcs:
            for frame in self._frames.get(program, {}).get(pc, ()):
                return frame
        return Line()


_ADDRESS = re.compile(r"^0x([0-9a-f]+)$")


def _frames(program: Path, pcs: Sequence[int]) -> dict[int, list[Line]]:
    """Address -> lines in the user's files, innermost first. An address is that after a call: one byte before is in it."""
    if not pcs:
        return {}
    with tempfile.TemporaryDirectory(prefix="probe-lines-") as folder:
        argv = ("addr2line", "-a", "-i", "-e", str(program), *(f"{pc - 1:#x}" for pc in pcs))
        text = process.run(Command(argv, 60.0), Path(folder) / "addr2line").stdout.read_text(
            encoding="utf-8", errors="replace"
        )
    frames: dict[int, list[Line]] = {}
    current: list[Line] = []
    for line in text.splitlines():
        if found := _ADDRESS.match(line):
            current = frames.setdefault(int(found[1], 16) + 1, [])
        elif (place := _user_line(line)) is not None:
            current.append(place)
    return frames


def _user_line(text: str) -> Line | None:
    path, _, number = text.partition(" ")[0].rpartition(":")
    if not number.isdigit() or path in ("??", "") or Path(path).parent == HEADERS:
        return None
    if path.startswith(("/usr/", "entries")) or "/../" in path:
        return None
    return Line(Path(path).name, int(number))
