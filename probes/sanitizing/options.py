"""The options of `probe sanitize`, and how they become `Settings`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from probes import options
from probes.options import option
from probes.profiling.options import KERNEL, MODEL, TARGET, TIMEOUT, nvtx_range

if TYPE_CHECKING:
    from probes.sanitizing.settings import Settings

# Spelt out here so that `probe --help` need not load the libraries behind them; a test holds them together.
CHECKERS = ("memcheck", "racecheck", "initcheck", "synccheck", "all")

SECTIONS = {
    "What to look for": (
        TARGET,
        option("--tool", "checker", type=click.Choice(CHECKERS), metavar="CHECKER", default="memcheck", show_default=True,
               help="memcheck: accesses out of bounds or misaligned; racecheck: races in shared memory; initcheck: reads of"
               " uninitialised memory; synccheck: wrong barriers; or all."),
        option("--leaks", is_flag=True, help="memcheck: also memory that was never freed."),
        option("--emulate", is_flag=True, help="Check a kernel on the processor: no GPU needed, and what is done without one."),
        option("--kernel", metavar="PART", help="Only kernels with this in their (mangled) name."),
        option("--range", "range_", metavar="NAME[@DOMAIN]", help="Only launches inside this NVTX range (compute-sanitizer 2026.4)."),
    ),
    "How far to go": (
        option("--follow/--no-follow", default=True, show_default=True, help="Re-run suspect kernels under the other checkers."),
        option("--locate/--no-locate", default=True, show_default=True, help="Find the launch by halving, and its layer and nodes."),
        option("--iterations", type=click.IntRange(min=1), metavar="N", default=2, show_default=True, help="Inferences under the checker."),
        TIMEOUT,
    ),
    "A model or engine": MODEL,
    "A kernel (FILE.cu)": KERNEL,
    "Results": (options.out("sanitize"), options.JSON),
}  # fmt: skip


def to_settings(values: dict[str, Any]) -> Settings:
    """`Settings` from what click parsed (without --out and --json)."""
    from probes.sanitizing.settings import Settings
    from probes.targets.target import parse

    values = dict(values)
    target = parse(values.pop("words"), "sanitize")
    values["shapes"] = tuple(pair for group in values["shapes"] for pair in group)
    values["range"] = nvtx_range(values.pop("range_"))
    settings = Settings(target, **values)
    settings.check_consistency()
    return settings
