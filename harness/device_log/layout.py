"""The device log that device_log.cuh writes: layout of its buffer, which threads it is for, its content as rows."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.device_log.gpu import GpuLog

HEADERS = Path(__file__).resolve().parents[2] / "kernels" / "cuda"
DEFINE = ("PROBE_ON", "1")
VARIABLE = "PROBE_DEVICE_LOG"  # the environment names the file to a process under emulation
SYMBOL = "probe_device_log"
BETWEEN = "\t"  # behind each expression of a site, where it was not the preprocessor that wrote them down
WATCH = "watch-nan"  # the tag of a watched assignment: its value, then what it was made from

# The layouts of device_log.cuh.
SLOT = np.dtype([("site", "u4"), ("check", "u4"), ("block", "u8"), ("thread", "u4"), ("meta", "u4"), ("bits", "u8")])
SITES = 1024
SITE = np.dtype([("hash", "u4"), ("line", "u4"), ("text", "V504")])
CONTROL = np.dtype([("next", "u8"), ("lost", "u8"), ("launch", "u4"), ("printed", "u4"),
                    ("sites", "u4", SITES), ("fired", "u4", SITES)])  # fmt: skip
RANGE = np.dtype([("low", "u4"), ("span", "u4")])
LOG = np.dtype([("control", "u8"), ("slots", "u8"), ("site_table", "u8"), ("capacity", "u8"), ("epoch", "u4"),
                ("blind", "u4"), ("block", RANGE, 3), ("thread", RANGE, 3), ("warp", RANGE)])  # fmt: skip

# Where each part stands in the buffer, in bytes.
CONTROL_AT = 4096
SITES_AT = 16384
SLOTS_AT = SITES_AT + SITES * SITE.itemsize

TYPES: tuple[tuple[str, np.dtype[Any]], ...] = tuple(
    (name, np.dtype(code))
    for name, code in (
        ("bool", "?"), ("int8", "i1"), ("uint8", "u1"), ("int16", "i2"), ("uint16", "u2"), ("int32", "i4"),
        ("uint32", "u4"), ("int64", "i8"), ("uint64", "u8"), ("float16", "f2"), ("bfloat16", "u2"),
        ("float32", "f4"), ("float64", "f8"), ("pointer", "u8"),
    )
)  # fmt: skip
UNKNOWN = ("?", np.dtype("u8"))
LARGEST = 2**32 - 1

_FACTORS = tuple(map(np.uint64, (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F)))
_AT_A_TIME = 1 << 14  # slots: what the caches hold
_ANGLE = re.compile(r"(?<=\w)<(?![\s=<])")

Range = tuple[int, int]  # first and last
EVERY: Range = (0, LARGEST)
Value = bool | int | float | str | list[Any]


@dataclass(frozen=True)
class Selection:
    """Which threads write: a range on each axis of block and thread, and of warps within the block."""

    block: tuple[Range, Range, Range] = (EVERY, EVERY, EVERY)
    thread: tuple[Range, Range, Range] = (EVERY, EVERY, EVERY)
    warp: Range = EVERY

    @classmethod
    def of(cls, block: str | None = None, thread: str | None = None, warp: str | None = None) -> Selection:
        """From texts as on the command line: "3,*,*", "0-7,0,0", "5" (x = 5, the other axes 0); no text is every one."""
        return cls(_axes("block", block), _axes("thread", thread), _range("warp", warp) if warp else EVERY)

    def check(self, grid: Sequence[int], block: Sequence[int]) -> None:
        """UsageError if no thread of such a launch can be meant."""
        for name, ranges, sizes in (("block", self.block, grid), ("thread", self.thread, block)):
            for axis, (low, _), size in zip("xyz", ranges, sizes, strict=True):
                if low >= size:
                    extent = "x".join(map(str, sizes))
                    of = "grid" if name == "block" else "block"
                    raise UsageError(
                        f"--{name}: {axis} = {low} is outside the {of}, which is {extent}",
                        hint=f"{axis} counts from 0 to {size - 1}",
                    )
        warps = -(-int(np.prod(block)) // 32)
        if self.warp[0] >= warps:
            raise UsageError(f"--warp: {self.warp[0]} is outside the block, which has {warps} warps",
                             hint=f"warps count from 0 to {warps - 1}")  # fmt: skip

    def write(self, log: np.ndarray[Any, Any]) -> None:
        """Into a LOG."""
        for name, ranges in (("block", self.block), ("thread", self.thread)):
            log[name]["low"] = [low for low, _ in ranges]
            log[name]["span"] = [high - low for low, high in ranges]
        log["warp"] = (self.warp[0], self.warp[1] - self.warp[0])


EVERYTHING = Selection()


def _axes(name: str, text: str | None) -> tuple[Range, Range, Range]:
    if text is None:
        return (EVERY, EVERY, EVERY)
    parts = text.split(",")
    if len(parts) > 3:
        raise UsageError(f"--{name} {text}: expected X,Y,Z, got {len(parts)} parts", hint=f"--{name} 0,0,0")
    x, y, z = (_range(name, part) for part in [*parts, "0", "0"][:3])
    return x, y, z


def _range(name: str, text: str) -> Range:
    if text.strip() == "*":
        return EVERY
    match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", text)
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if not low <= high <= LARGEST:
        raise UsageError(
            f"--{name}: expected a number, a range (0-7) or *, got {text!r}",
            hint=f"--{name} 0" + ",*,*" * (name != "warp"),
        )
    return low, high


@dataclass(frozen=True)
class Site:
    """A PROBE in the source, as the kernel told it."""

    file: str
    line: int
    tag: str
    expressions: tuple[str, ...]

    def name(self, value: int) -> str:
        """The tag of one of its values: its own if it is the only one, else with the expression."""
        if self.tag == WATCH:
            made = f"{WATCH}: {self.expressions[0]}"
            return f"{made} <- {self.expressions[value]}" if 0 < value < len(self.expressions) else made
        if self.tag and len(self.expressions) <= 1:
            return self.tag
        expression = self.expressions[value] if value < len(self.expressions) else f"value {value}"
        return f"{self.tag}: {expression}" if self.tag else expression


@dataclass(frozen=True)
class Recorded:
    """What stood in a buffer. `lost` values found no room (None: the kernel died before that could be read); `needed`
    slots would have held all; `torn` slots were claimed and never finished; `printed` counts calls of printf (None:
    not known)."""

    slots: np.ndarray[Any, Any] = field(repr=False)  # SLOT, whole ones only, in the order of their claims
    sites: dict[int, Site]
    lost: int | None
    needed: int
    torn: int
    printed: int | None = None
    first: int = 0  # the sequence number of its first value: of a part, not 0

    def __len__(self) -> int:
        return len(self._starts)

    @cached_property
    def _starts(self) -> np.ndarray[Any, Any]:
        """Where each value begins: its first piece."""
        return np.flatnonzero((self.slots["meta"] >> 23) & 63 == 0)

    @property
    def _firsts(self) -> np.ndarray[Any, Any]:
        """The first slot of each value; nothing is copied where values have one slot each."""
        return self.slots if len(self._starts) == len(self.slots) else self.slots[self._starts]

    def part(self, start: int, stop: int) -> Recorded:
        """The values from `start` up to `stop`, with the sequence numbers that they have."""
        ends = [*self._starts[start : stop + 1][[0, -1]], len(self.slots)] if start < len(self) else [0, 0, 0]
        slots = self.slots[ends[0] : ends[1] if stop < len(self) else ends[2]]
        return replace(self, slots=slots, first=self.first + start)

    def parts(self, size: int = 1 << 16) -> Iterator[Recorded]:
        """All values, so many at a time: what is made of them takes little memory."""
        return (self.part(start, start + size) for start in range(0, len(self), size))

    @cached_property
    def columns(self) -> dict[str, np.ndarray[Any, Any]]:
        """Numbers of each value, shape [rows]: sequence, site, launch_id, value_index, type, block_x .. thread_z."""
        first = self._firsts
        block, thread, meta = first["block"], first["thread"], first["meta"]
        return {
            "sequence": np.arange(self.first, self.first + len(first)),
            "site": first["site"],
            "launch_id": (meta & 0x3FFFF).astype(np.int32),
            "value_index": ((meta >> 18) & 31).astype(np.uint8),
            "type": ((thread >> 26) & 15).astype(np.uint8),
            "block_x": (block & 0x7FFFFFFF).astype(np.int32),
            "block_y": ((block >> np.uint64(31)) & np.uint64(0xFFFF)).astype(np.int32),
            "block_z": ((block >> np.uint64(47)) & np.uint64(0xFFFF)).astype(np.int32),
            "thread_x": (thread & 1023).astype(np.int32),
            "thread_y": ((thread >> 10) & 1023).astype(np.int32),
            "thread_z": ((thread >> 20) & 63).astype(np.int32),
        }

    def numbers(self, tag: str) -> np.ndarray[Any, Any]:
        """All values of a tag as an array, shape [rows] (bfloat16 as float32), without a text in between; scalars only."""
        wanted = [
            (site, index) for site, place in self.sites.items()
            for index in range(max(1, len(place.expressions))) if place.name(index) == tag
        ]  # fmt: skip
        columns = self.columns
        rows = np.zeros(len(self), bool)
        for site, index in wanted:
            rows |= (columns["site"] == site) & (columns["value_index"] == index)
        kinds = set(columns["type"][rows].tolist())
        if len(kinds) != 1:
            raise UsageError(
                f"{tag}: expected values of one type, got {len(kinds)}", hint=", ".join(self.tags()) or None
            )
        name, dtype = _type(kinds.pop())
        made = _elements(self._firsts["bits"][rows], dtype)
        return (made.astype("u4") << 16).view("f4") if name == "bfloat16" else made

    def tags(self) -> list[str]:
        return sorted(
            {site.name(index) for site in self.sites.values() for index in range(max(1, len(site.expressions)))}
        )

    def values(self) -> list[tuple[str, Value]]:
        """Type and value of each row: numbers as the shortest decimal that is the same value in its type, lists of them
        for vectors and arrays, pointers as hexadecimal texts."""
        made: list[tuple[str, Value]] = [("?", "")] * len(self)
        ends = np.append(self._starts[1:], len(self.slots))
        counts = ((self.slots["meta"] >> 29) & 7) + 1
        simple = (ends - self._starts == 1) & (counts[self._starts] == 1)
        kinds = self.columns["type"]
        for kind in np.unique(kinds[simple]):
            rows = np.flatnonzero(simple & (kinds == kind))
            name, dtype = _type(int(kind))
            elements = _elements(self._firsts["bits"][rows], dtype)
            for row, value in zip(rows.tolist(), _plain(name, elements), strict=True):
                made[row] = (name, value)
        for row in np.flatnonzero(~simple).tolist():
            pieces = self.slots[self._starts[row] : ends[row]]
            name, dtype = _type(int(kinds[row]))
            size = counts[self._starts[row] : ends[row]]
            data = b"".join(
                int(bits).to_bytes(8, "little")[: int(count) * dtype.itemsize]
                for bits, count in zip(pieces["bits"], size, strict=True)
            )
            made[row] = (f"{name}[{int(size.sum())}]", _plain(name, np.frombuffer(data, dtype)))
        return made

    @cached_property
    def places(self) -> dict[tuple[int, int], tuple[str, str, int]]:
        """Tag, file and line of each site's values, by site and place among them."""
        found = np.unique(self.columns["site"].astype("u8") << np.uint64(8) | self.columns["value_index"])
        pairs = [(int(pair) >> 8, int(pair) & 255) for pair in found]
        unknown = {site: Site("", 0, f"site {site:#010x}", ()) for site, _ in pairs if site not in self.sites}
        sites = {**self.sites, **unknown}
        return {(site, at): (sites[site].name(at), sites[site].file, sites[site].line) for site, at in pairs}

    def rows(self, kernel: str = "") -> list[dict[str, Any]]:
        """One dictionary a value, as in result.json: sequence, launch_id, kernel, tag, file, line, block, thread, type,
        value; in order of the claims, which for each thread is the order of its own."""
        columns = {name: column.tolist() for name, column in self.columns.items()}
        places, made = self.places, []
        for row, (kind, value) in enumerate(self.values()):
            at = {name: column[row] for name, column in columns.items()}
            tag, file, line = places[at["site"], at["value_index"]]
            made.append({
                "sequence": at["sequence"], "launch_id": at["launch_id"], "kernel": kernel,
                "tag": tag, "file": file, "line": line,
                "block": [at["block_x"], at["block_y"], at["block_z"]],
                "thread": [at["thread_x"], at["thread_y"], at["thread_z"]],
                "type": kind, "value": value,
            })  # fmt: skip
        return made

    def watched(self, kernel: str = "") -> list[dict[str, Any]]:
        """The rows of watched assignments, without what they were made from."""
        sites = [number for number, site in self.sites.items() if site.tag == WATCH]
        found = np.isin(self.columns["site"], sites) & (self.columns["value_index"] == 0)
        return [row for at in np.flatnonzero(found) for row in self.part(int(at), int(at) + 1).rows(kernel)]


def _type(code: int) -> tuple[str, np.dtype[Any]]:
    return TYPES[code] if code < len(TYPES) else UNKNOWN


def _elements(bits: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """The values of a type in words of 8 bytes."""
    return np.ascontiguousarray(bits).view(dtype)[:: 8 // dtype.itemsize]


def _plain(name: str, elements: np.ndarray[Any, Any]) -> list[Any]:
    """Python values; a float of few bits is the shortest decimal that reads back as the same value."""
    if name == "pointer":
        return [f"{value:#x}" for value in elements.tolist()]
    if name == "bfloat16":
        wide = (elements.astype("u4") << 16).view("f4")
        return [float(f"{value:.4g}") for value in wide.tolist()]
    if name in ("float16", "float32"):
        return list(map(float, elements.astype("U")))
    return list(elements.tolist())


def size_of(capacity: int) -> int:
    """Bytes of a buffer for so many slots."""
    return SLOTS_AT + capacity * SLOT.itemsize


def describe(capacity: int, selection: Selection, epoch: int = 1) -> np.ndarray[Any, Any]:
    """A LOG, shape [1], whose pointers are offsets into the buffer."""
    log = np.zeros(1, LOG)
    log["control"], log["slots"], log["site_table"] = CONTROL_AT, SLOTS_AT, SITES_AT
    log["capacity"], log["epoch"] = capacity, epoch
    selection.write(log[0])
    return log


def create(path: Path, capacity: int, selection: Selection | None = None) -> Path:
    """Make the file that a process under emulation logs into; UsageError if there is no room for it."""
    if not 1 <= capacity <= 2**32:
        raise UsageError(f"expected room for 1 to 4294967296 records, got {capacity}", hint="--records 1000000")
    try:
        with path.open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, size_of(capacity))
            stream.write(describe(capacity, selection or Selection()).tobytes())
    except OSError as error:
        raise UsageError(
            f"{size_of(capacity)} bytes for the device log: {error.strerror}",
            hint="a smaller --records, or another TMPDIR",
        ) from error
    return path


def select(path: Path, selection: Selection) -> None:
    """Other threads for the next run into the same file; what stands in it is forgotten."""
    with path.open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as content:
        old = np.frombuffer(content, LOG, 1)[0]
        new = describe(int(old["capacity"]), selection, int(old["epoch"]) + 1)
        claimed = int(np.frombuffer(content, CONTROL, 1, CONTROL_AT)[0]["next"])
        del old  # or the map cannot be closed
        end = min(size_of(claimed), len(content))
        content[CONTROL_AT:end] = bytes(end - CONTROL_AT)
        content[: LOG.itemsize] = new.tobytes()


def shrink(path: Path, recorded: Recorded) -> None:
    """Cut off what was never written; the file still reads the same."""
    os.truncate(path, size_of(max(1, recorded.needed)) if not recorded.lost else path.stat().st_size)


def read(path: Path) -> Recorded:
    """What a file holds, at any time, also after the process that wrote it was killed."""
    if path.stat().st_size <= SLOTS_AT:
        raise UsageError(f"{path}: expected a device log, got {path.stat().st_size} bytes")
    return decode(np.memmap(path, "u1", "r"))


def decode(
    buffer: np.ndarray[Any, Any], control: np.ndarray[Any, Any] | None = None, *, alive: bool = True
) -> Recorded:
    """The content of a buffer, bytes [n]. `control` is a CONTROL, shape [1], if it stood elsewhere; if it could not be
    read (`alive` is False), the slots alone tell what was written."""
    log = buffer[: LOG.itemsize].view(LOG)[0]
    alive = alive and not log["blind"]
    capacity = min(int(log["capacity"]), (len(buffer) - SLOTS_AT) // SLOT.itemsize)
    if control is None:
        control = buffer[CONTROL_AT : CONTROL_AT + CONTROL.itemsize].view(CONTROL)
    slots = buffer[SLOTS_AT : SLOTS_AT + capacity * SLOT.itemsize].view(SLOT)
    claimed = min(int(control[0]["next"]), capacity) if alive else capacity
    slots = slots[:claimed]
    whole = _check(slots, int(log["epoch"])) == slots["check"]
    whole &= slots["site"] != 0
    used = int(np.flatnonzero(whole)[-1]) + 1 if whole.any() else 0
    kept = _complete(slots[:used], whole[:used])
    filled = alive and int(control[0]["next"]) <= capacity  # else some at the end were left empty on purpose
    torn = int((~whole if filled else slots.view("u8").reshape(-1, 4).any(axis=1) & ~whole).sum())
    if not alive:
        return Recorded(kept, _sites(buffer, kept), 0 if used < capacity else None, used, torn, None)
    told = control[0]
    return Recorded(kept, _sites(buffer, kept), int(told["lost"]), int(told["next"]), torn, int(told["printed"]))


def _complete(slots: np.ndarray[Any, Any], whole: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The whole slots, without those of values of which another piece is missing: a crash came between."""
    places = np.flatnonzero(whole)
    slots = slots if len(places) == len(slots) else slots[places]
    if not len(slots):
        return slots
    piece, last = (slots["meta"] >> 23) & 63, slots["block"] >> np.uint64(63) == 1
    if last.all() and not piece.any():  # of one slot each
        return slots
    follows = np.zeros(len(slots), bool)
    follows[1:] = (piece[1:] == piece[:-1] + 1) & ~last[:-1] & (np.diff(places) == 1)
    starts = np.flatnonzero(~follows)
    sizes = np.diff(np.append(starts, len(slots)))
    kept: np.ndarray[Any, Any] = slots[np.repeat((piece[starts] == 0) & last[starts + sizes - 1], sizes)]
    return kept


def _check(slots: np.ndarray[Any, Any], epoch: int) -> np.ndarray[Any, Any]:
    """The check word of each slot, as device_log.cuh works it out."""
    words = slots.view("u8").reshape(-1, 4)  # site and check, block, thread and meta, bits
    made = np.empty(len(slots), np.uint32)
    for at in range(0, len(words), _AT_A_TIME):
        some = words[at : at + _AT_A_TIME]
        total = (some[:, 0] & np.uint64(0xFFFFFFFF) | np.uint64(epoch << 32)) * _FACTORS[0]
        for column, factor in enumerate(_FACTORS[1:], 1):
            total += some[:, column] * factor
        made[at : at + _AT_A_TIME] = total >> np.uint64(32)
    return made


def _sites(buffer: np.ndarray[Any, Any], slots: np.ndarray[Any, Any]) -> dict[int, Site]:
    table = buffer[SITES_AT:SLOTS_AT].view(SITE)
    made = {}
    for entry in table[table["hash"] != 0]:
        file, tag, said = (
            (entry["text"].tobytes().split(b"\0") + [b""] * 3)[at].decode("utf-8", "replace") for at in range(3)
        )
        own = slots["meta"][slots["site"] == entry["hash"]]
        count = int((own >> 18 & 31).max()) + 1 if len(own) else 0
        made[int(entry["hash"])] = Site(_shown(file), int(entry["line"]), tag, _expressions(said, count))
    return made


def _shown(path: str) -> str:
    """A path without what it says about the machine."""
    if not Path(path).is_absolute():
        return path
    try:
        return Path(path).relative_to(Path.cwd()).as_posix()
    except ValueError:
        return Path(path).name


def as_text(expressions: Iterable[str]) -> str:
    """Expressions as one text that is told from what the preprocessor makes of PROBE's arguments."""
    return "".join(" ".join(expression.split()) + BETWEEN for expression in expressions)


def _expressions(text: str, count: int) -> tuple[str, ...]:
    """The `count` expressions in the text of a site."""
    if BETWEEN in text:
        return tuple(text.split(BETWEEN)[:-1])
    plain = tuple(split_expressions(text))
    templates = tuple(split_expressions(text, angles=True))  # `<` may be a bracket, or less than
    return templates if len(plain) != count == len(templates) else plain


def split_expressions(text: str, *, angles: bool = False) -> Iterator[str]:
    """The expressions between the commas of an argument list: "a, f(b, c)" gives "a" and "f(b, c)"; with `angles`, `<`
    and `>` that stand close to a name are brackets, too: "f<a, b>(c)" is one."""
    depth, start, open_angles = 0, 0, 0
    quote = ""
    for at, character in enumerate(text):
        if quote:
            quote = "" if character == quote and text[at - 1] != "\\" else quote
        elif character in "\"'":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif angles and _ANGLE.match(text, at):
            open_angles += 1
        elif character == ">" and open_angles:
            open_angles -= 1
        elif character == "," and depth == open_angles == 0:
            yield text[start:at].strip()
            start = at + 1
    if last := text[start:].strip():
        yield last


def capture(*modules: Any, records: int = 1_000_000, block: str | None = None, thread: str | None = None,
            warp: str | None = None, fast: bool = False) -> AbstractContextManager[GpuLog]:  # fmt: skip
    """Log what kernels of `modules` write while the block runs; they were compiled with `-DPROBE_ON=1`, `-I HEADERS`.

    A module is what CuPy (RawModule) or PyCUDA loaded, a handle of the driver, or a library opened by ctypes that
    exports `probe_attach`. `records` is how many values there is room for; the texts choose threads, as `Selection.of`.
    `fast` keeps the records on the GPU: for kernels that are timed, and do not crash.
    """
    from harness.device_log import gpu as gpu_log

    return gpu_log.capture(modules, records, Selection.of(block, thread, warp), fast)
