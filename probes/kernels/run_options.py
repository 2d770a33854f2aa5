"""The options of `probe kernels run`, and what they become."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from probes.profiling.options import Extent, Words

F = TypeVar("F", bound=Callable[..., Any])


class Define(click.ParamType):  # type: ignore[type-arg]
    """NAME or NAME=VALUE."""

    name = "NAME[=VALUE]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, given, text = str(value).partition("=")
        if not name.isidentifier() or "\n" in text:
            self.fail(f"{value!r}: expected NAME or NAME=VALUE", param, ctx)
        return name, text if given else "1"


_OPTIONS = (
    click.argument("source", metavar="FILE.cu", type=click.Path(exists=True, dir_okay=False, path_type=Path)),
    click.option("--entry", metavar="NAME", help="The kernel; not needed where there is only one. NAME<float, 4> instantiates a template."),
    click.option("--grid", type=Extent(), default="1", show_default=True, help="Blocks."),
    click.option("--block", type=Extent(), required=True, help="Threads of a block."),
    click.option("--shared", type=click.IntRange(min=0), default=0, help="Bytes of dynamic shared memory."),
    click.option("--args", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path),
                 help="Arguments by parameter name: .npz, or YAML with values and {shape, fill}."),
    click.option("-D", "--define", "defines", type=Define(), multiple=True, help="A macro for the compiler."),
    click.option("--check", "checks", default="all", show_default=True,
                 help="What the emulation looks for: all, none, or some of memory, race, init, grid."),
    click.option("--undefined", type=Words(), default=(), help="Arrays whose contents mean nothing before the launch."),
    click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=60.0, show_default=True, help="Seconds."),
    click.option("--out-npz", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path),
                 help="Where the arrays go; arrays.npz of the session without it."),
)  # fmt: skip


def kernel_run_options(function: F) -> F:
    """All options of the verb, in this order."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
