"""The options of `probe kernels`."""

from __future__ import annotations

import click

from probes import options
from probes.options import EMULATE, FILE, Define, Extent, Words, argument, option

NAMES = argument("names", metavar="[NAME]...", nargs=-1)
CASE = option("--case", "only", default="", metavar="TEXT", help="Only cases with TEXT in their label.")

LIST = {
    "Options": (
        option("--cases", is_flag=True, help="Also the cases that `probe kernels test` runs."),
        options.JSON,
    )
}
TEST = {
    "What is tested": (
        NAMES,
        CASE,
        EMULATE,
        option("--check", "checks", default="none", metavar="CHECKS", show_default=True,
               help="What the emulation looks for besides: all, some of memory, race, init, grid, or asan."),
        option("--seed", type=click.IntRange(min=0), metavar="N", help="Of the random inputs; fresh ones without it."),
    ),
    "Results": (options.out("kernels"), options.JSON),
}  # fmt: skip
RUN = {
    "Launch": (
        argument("source", metavar="FILE.cu", type=FILE),
        option("--entry", metavar="NAME", help="The kernel; not needed where there is only one. NAME<float, 4> instantiates a template."),
        option("--grid", type=Extent(), default="1", show_default=True, help="Blocks."),
        option("--block", type=Extent(), required=True, help="Threads of a block."),
        option("--shared", "--smem", type=click.IntRange(min=0), metavar="BYTES", default=0, help="Dynamic shared memory."),
        option("--args", metavar="FILE", type=FILE, help="Arrays and scalars by name of parameter or variable: .npz, or YAML with values and {shape, fill}."),
        option("-D", "--define", "defines", type=Define(), multiple=True, help="A macro for the compiler."),
        option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", default=60.0, show_default=True,
               help="For the run."),
    ),
    "What is looked for": (
        EMULATE,
        option("--check", "checks", default="all", metavar="CHECKS", show_default=True,
               help="By the emulation: all, none, some of memory, race, init, grid, or asan (local arrays too)."),
        option("--undefined", type=Words(), default=(), help="Arrays whose contents mean nothing before the launch."),
    ),
    "Results": (
        option("--out-npz", metavar="FILE", type=FILE, help="Where the arrays go; arrays.npz of the session without it."),
        options.out("kernels"),
        options.JSON,
    ),
}  # fmt: skip
BENCH = {
    "What is measured": (
        NAMES,
        CASE,
        option("--seconds", type=click.FloatRange(min=0.01), metavar="SECONDS", default=0.5, show_default=True,
               help="Of measuring, for each implementation of each case."),
        option("--peers/--no-peers", default=True, show_default=True, help="Time PyTorch's too, where it is installed."),
    ),
    "Results": (options.out("kernels"), options.JSON),
}  # fmt: skip
