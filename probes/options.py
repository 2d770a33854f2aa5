"""What the verbs' options have in common: headings in the help, types of values, and those that several verbs take.

click has no headings of its own. The libraries that add them cost every start of the command more than click itself
(cloup, rich-click: 50 ms and more), and these two classes are all that is needed of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

WIDEST = 26  # columns of an option with its value; what is wider stands on a line of its own
Sections = Mapping[str, Sequence[click.Parameter]]

FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
HERE = click.Path(exists=True, dir_okay=False, path_type=Path)


def option(*names: str, **attributes: Any) -> click.Option:
    return click.Option(list(names), **attributes)


def argument(name: str, **attributes: Any) -> click.Argument:
    return click.Argument([name], **attributes)


class Command(click.Command):
    """A command that takes what is in `sections`, and shows it in its help under their titles, in their order."""

    def __init__(self, *args: Any, sections: Sections, **attributes: Any) -> None:
        attributes["params"] = [parameter for parameters in sections.values() for parameter in parameters]
        super().__init__(*args, **attributes)
        self.sections = sections

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own = self.get_help_option(ctx)
        *_, last = self.sections
        rows = {}
        for title, parameters in self.sections.items():
            shown = [*parameters, own] if title == last else parameters
            rows[title] = [row for one in shown if isinstance(one, click.Option) and (row := one.get_help_record(ctx))]
        width = max((len(name) for table in rows.values() for name, _ in table if len(name) <= WIDEST), default=0)
        for title, table in rows.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, text in table], col_max=WIDEST)


class Group(click.Group):
    """Commands under titles, each with what it is for: title -> name -> text."""

    command_class = Command
    group_class = type

    def __init__(self, *args: Any, titles: Mapping[str, Mapping[str, str]], **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.titles = titles

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, texts in self.titles.items():
            with formatter.section(title):
                formatter.write_dl(list(texts.items()))


class Shape(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.2 only
    """NAME:1x128, as in trtexec."""

    name = "NAME:1x128"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return self.name  # click would write it in capitals

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[int, ...]]:
        if isinstance(value, tuple):
            return value
        name, colon, dims = str(value).rpartition(":")
        try:
            shape = tuple(int(d) for d in dims.replace(",", "x").split("x") if d)
        except ValueError:
            shape = (-1,)
        if not colon or not name or any(d < 0 for d in shape):
            self.fail(f"{value!r}: expected an input's name, a colon and its dimensions, such as ids:1x128", param, ctx)
        return name, shape


class Shapes(Shape):
    """NAME:1x128, or several with commas between, as in trtexec."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        return tuple(super(Shapes, self).convert(part, param, ctx) for part in str(value).split(","))


class Extent(click.ParamType):  # type: ignore[type-arg]
    """4, 4,2 or 4,2,1: x, y, z."""

    name = "X[,Y[,Z]]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int, int]:
        if isinstance(value, tuple):
            return value
        if not re.fullmatch(r"[1-9]\d*(?:[,x][1-9]\d*){0,2}", str(value)):
            self.fail(f"{value!r}: expected one to three positive numbers, such as 128 or 32,4", param, ctx)
        parts = [int(part) for part in re.split("[,x]", str(value))]
        x, y, z = (*parts, 1, 1)[:3]
        return x, y, z


class Words(click.ParamType):  # type: ignore[type-arg]
    """Words with commas between."""

    name = "A,B"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        words = tuple(word.strip() for word in str(value).split(",") if word.strip())
        if not words or not all(re.fullmatch(r"[\w-]+", word) for word in words):
            self.fail(f"{value!r}: expected words with commas between, such as cuda,nvtx", param, ctx)
        return words


class Define(click.ParamType):  # type: ignore[type-arg]
    """NAME or NAME=VALUE."""

    name = "NAME[=VALUE]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, given, text = str(value).partition("=")
        if not name.isidentifier() or "\n" in text:
            self.fail(f"{value!r}: expected NAME or NAME=VALUE, such as HEAD_SIZE=64", param, ctx)
        return name, text if given else "1"


def _json_target(context: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    """Refuse a file that cannot be written before the work is done, not after."""
    if value is not None and not value.parent.is_dir():
        raise click.BadParameter(f"the folder {value.parent} does not exist")
    return value


JSON = option("--json", "json_file", metavar="FILE", callback=_json_target,
              type=click.Path(dir_okay=False, writable=True, allow_dash=True, path_type=Path),
              help="Write the result as JSON; '-' is standard output, and then nothing else goes there.")  # fmt: skip
HTML = option("-o", "--html", metavar="FILE", type=FILE, help="Write the page to FILE.")
ENTRY = option("--entry", metavar="NAME", help="The kernel; not needed where the file has one only.")
EMULATE = option("--emulate/--gpu", "emulate", default=None,
                 help="Run on the CPU, thread for thread, or on the GPU. By itself: the GPU if there is one.")  # fmt: skip


def out(verb: str) -> click.Option:
    return option(
        "--out", metavar="DIR", type=FOLDER, help=f"The session's folder (default: probe-runs/<UTC time>-{verb})."
    )
