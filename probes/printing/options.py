"""The options of `probe printf`, and how they become `Settings`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.errors import UsageError
from probes import options
from probes.options import FILE, FOLDER, argument, option

if TYPE_CHECKING:
    from probes.printing.running import Settings

CHECKS = "all, none, some of memory, race, init, grid, or asan, with commas between"

SECTIONS = {
    "What to log": (
        argument("source", metavar="FILE.cu", type=click.Path(path_type=Path)),
        option("--at", "lines", metavar="LINE", type=click.IntRange(min=1), multiple=True,
               help="Log just before the statement at this line; --print after it says what. May be given again."),
        option("--print", "prints", metavar="EXPRESSIONS", multiple=True, help="'mean, rstd, x[i]': the values for the --at before it."),
        option("--if", "condition", metavar="EXPRESSION", help="Log at the --at lines only where this holds."),
        option("--watch-nan", "watch", is_flag=True, help="Log the first NaN or Inf of every assignment of floating type, and its operands."),
    ),
    "Of which threads": (
        option("--thread", metavar="X,Y,Z", help="Only this thread of each block: numbers, ranges (0-7), or *."),
        option("--in-block", "in_block", metavar="X,Y,Z", help="Only this block: numbers, ranges, or *."),
        option("--warp", metavar="N", help="Only this warp of each block, or a range of them."),
    ),
    "Launch": (
        options.ENTRY,
        option("--grid", metavar="X[,Y[,Z]]", help="Blocks."),
        option("--block", "blocks", metavar="X[,Y[,Z]]", multiple=True,
               help="Threads of a block; a value with a *, a range or a 0 in it (3,*,*), or a second --block, chooses"
               " blocks instead, as --in-block does."),
        option("--smem", "--shared", "shared_bytes", metavar="BYTES", type=click.IntRange(min=0), help="Dynamic shared memory."),
        option("--args", "arguments", metavar="FILE", type=FILE, help="Arrays and scalars by name of parameter or variable: .npz or YAML."),
        option("-D", "--define", "defines", metavar="NAME[=VALUE]", multiple=True, help="A macro for the compiler."),
        option("--from-session", "from_session", metavar="DIR", type=FOLDER, help="Arguments and launch of an earlier run."),
        options.EMULATE,
        option("--check", "checks", metavar="CHECKS", default="none", show_default=True, help=f"Of the emulation: {CHECKS}."),
        option("--timeout", "timeout_s", metavar="SECONDS", type=click.FloatRange(min=0, min_open=True), default=60.0, show_default=True,
               help="For the run."),
    ),
    "Results": (
        option("--records", metavar="N", type=click.IntRange(min=1), default=1_000_000, show_default=True,
               help="Room for so many values of up to 8 bytes."),
        option("--grow", is_flag=True, help="Where it was not enough, run again with room for all."),
        options.out("printf"),
        options.JSON,
    ),
}  # fmt: skip


def to_settings(values: dict[str, Any]) -> Settings:
    """`Settings` from what click parsed (without --out and --json)."""
    from probes.printing.running import Settings

    values = dict(values)
    lines, prints = values.pop("lines"), values.pop("prints")
    if len(lines) != len(prints):
        raise UsageError(
            f"{len(lines)} --at and {len(prints)} --print: each line needs what to print there",
            hint="--at 57 --print 'mean, rstd' --at 60 --print 'x[i]'",
        )
    block, chosen = split_blocks(values.pop("blocks"), values.pop("in_block"))
    grid = values.pop("grid")
    defines = tuple(define(text) for text in values.pop("defines"))
    return Settings(
        points=tuple(zip(lines, prints, strict=True)), in_block=chosen, grid=extent("grid", grid) if grid else None,
        block=extent("block", block) if block else None, defines=defines, **values,
    )  # fmt: skip


def split_blocks(texts: tuple[str, ...], in_block: str | None) -> tuple[str | None, str | None]:
    """(threads of a block, chosen blocks) of the values of --block and the one of --in-block.

    What cannot be a size (a *, a range, a 0) chooses; the first that can be one is the size, a second one chooses.
    """
    chosen = [in_block] if in_block else []
    sizes: list[str] = []
    for text in texts:
        (chosen if re.search(r"[*-]|(?:^|,)\s*0+\s*(?:,|$)", text) else sizes).append(text)
    chosen += sizes[1:]
    if len(chosen) > 1:
        raise UsageError(f"blocks are chosen twice: {' and '.join(chosen)}", hint="--block 128 --in-block 3,0,0")
    return (sizes[0] if sizes else None), (chosen[0] if chosen else None)


def define(text: str) -> tuple[str, str]:
    """NAME or NAME=VALUE."""
    name, given, value = text.partition("=")
    if not name.isidentifier() or "\n" in text:
        raise UsageError(f"-D {text!r}: expected NAME or NAME=VALUE", hint="-D HEAD_SIZE=64")
    return name, value if given else "1"


def extent(name: str, text: str) -> tuple[int, int, int]:
    """ "4", "4,2,1" or "4x2" as x, y, z."""
    parts = re.split(r"[,x]", text)
    if not 1 <= len(parts) <= 3 or not all(part.strip().isdigit() and int(part) for part in parts):
        raise UsageError(f"--{name}: expected X, X,Y or X,Y,Z, numbers from 1, got {text!r}", hint=f"--{name} 4,2,1")
    x, y, z = [*(int(part) for part in parts), 1, 1][:3]
    return x, y, z
