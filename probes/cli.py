"""The command line, and the only module that prints or exits: it assembles the verbs and turns errors into exit codes.

A verb is one short function here: options in, one call of the module that does the work, `deliver` for what came back;
it returns its exit code. Work modules are imported inside the verb, so that `probe --help` costs nothing.
"""

from __future__ import annotations

import json
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from harness.errors import (
    EXIT_CLEAN,
    EXIT_DEFECT,
    EXIT_INTERNAL,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    ProbeError,
    UsageError,
)
from probes.bisect_options import bisect_options, to_settings

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from harness.record import Session
    from probes.comparing import Compared
    from probes.doctoring import Check

EXIT_BROKEN_PIPE = 141  # what a shell shows for a program whose reader went away (128 + SIGPIPE)
MOST_ROWS = 40  # of culprits on the screen
PIPE_WIDTH = 160  # columns, where the output is not a terminal


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="probe-trt", prog_name="probe")
def probe() -> None:
    """Find out what is to blame when inference with TensorRT or CUDA is wrong, slow, or does not build."""


def _json_target(context: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    """Refuse a file that cannot be written before the work is done, not after."""
    if value is not None and not value.parent.is_dir():
        raise click.BadParameter(f"the folder {value.parent} does not exist")
    return value


json_option = click.option(
    "--json", "json_file", metavar="FILE", callback=_json_target,
    type=click.Path(dir_okay=False, writable=True, allow_dash=True, path_type=Path),
    help="Write the result as JSON to FILE; '-' is standard output, and then nothing else goes there.",
)  # fmt: skip


@probe.command()
@json_option
def doctor(json_file: Path | None) -> int:
    """Show which tools, libraries and GPU are here, what is lost without the rest, and the line that installs it."""
    from probes import doctoring

    with progress("looking for tools, libraries and a GPU") as tell:
        checks = doctoring.examine(tell=lambda name: tell(f"looking at {name}"))
    deliver(doctoring.to_document(checks), json_file, lambda: [_doctor_table(checks), doctoring.summarise(checks)])
    return EXIT_CLEAN if doctoring.healthy(checks) else EXIT_DEFECT


def _doctor_table(checks: Sequence[Check]) -> Table:
    rows = (
        (check.name, "yes" if check.works else "broken" if check.found else "no", check.version or "",
         check.purpose, "; ".join(part for part in (check.note, "" if check.works else check.install) if part))
        for check in checks
    )  # fmt: skip
    return table(("what", "here", "version", "what for", "note, or the line that installs it"), rows)


@probe.command()
@bisect_options
@json_option
def bisect(out: Path | None, resume: Path | None, json_file: Path | None, **values: Any) -> int:
    """Find the smallest set of nodes that is to blame, proven minimal, with a repaired model and a report.

    \b
    probe bisect model.onnx --inputs real.npz          which nodes must stay in FP32?
    probe bisect model.onnx --fault finite             which nodes make NaN or Inf?
    probe bisect edited.onnx --fault compare --good original.onnx
    probe bisect model.onnx --fault build --backend trt-rtx
    probe bisect model.onnx --fault check --check 'python test.py {model}'

    Exit codes: 0 nothing to blame, 1 culprits found, 2 usage, 125 undecided, 130 interrupted.
    """
    from probes import bisecting

    if resume is not None and (values["model"] is not None or out is not None):
        raise UsageError(
            "--resume takes the model and all options from the session", hint=f"probe bisect --resume {resume}"
        )
    with progress("bisecting") as tell:
        if resume is not None:
            bisection = bisecting.resume(resume, tell)
        else:
            bisection = bisecting.start(to_settings(values), out, tell)
    deliver(bisection.result, json_file, lambda: _bisect_screen(bisection.session))
    return bisection.exit_code


def _bisect_screen(session: Session) -> Iterable[Any]:
    """The verdict, the culprits, and where everything lies."""
    from reports import bisection as told
    from reports import units

    run = told.read(session)
    yield run.headline
    yield run.facts
    if run.culprits:
        shown = run.culprits[:MOST_ROWS]
        rows = (
            (c.node, c.op_type, c.scope, "" if c.sensitivity is None else units.percent(c.sensitivity)) for c in shown
        )
        yield table(("node", "op", "scope", "sensitivity"), rows)
        if len(shown) < len(run.culprits):
            yield f"{len(shown)} of {len(run.culprits)} shown; all of them are in the report"
    if undecided := run.texts("undecided"):
        yield f"{len(undecided)} could not be judged: {', '.join(undecided[:3])}{' ...' if len(undecided) > 3 else ''}"
    yield from run.texts("notes")
    if model_out := run.text("model_out"):
        yield f"model:  {session.folder / model_out}"
    yield f"report: {session.folder / 'report.html'}"


html_option = click.option(
    "-o", "--html", metavar="FILE", help="Write the page to FILE.",
    type=click.Path(dir_okay=False, path_type=Path),
)  # fmt: skip


@probe.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path))
@html_option
@click.option("--tables", metavar="DIR", type=click.Path(file_okay=False, path_type=Path),
              help="Write every table there, as CSV and, where pyarrow is installed, as Parquet.")  # fmt: skip
@click.option("--perfetto", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path),
              help="Write a trace that ui.perfetto.dev and Chrome open; gzip if FILE ends in .gz.")  # fmt: skip
@json_option
def report(paths: tuple[Path, ...], json_file: Path | None, **outputs: Path | None) -> int:
    """Read what nsys, ncu, compute-sanitizer, trtexec, ONNX Runtime or probe wrote, and draw it as one offline page.

    \b
    PATH is a session folder, a raw file, or a folder of them; the kind is told by the content.
    Without -o, --json, --tables or --perfetto the page is report.html, in the session or here.
    """
    from probes import reporting

    with progress("reading") as tell:
        made = reporting.report(reporting.Wanted(paths, **outputs), tell, only_json=json_file is not None)
    deliver(made.document, json_file, lambda: made.lines)
    return EXIT_CLEAN


@probe.command()
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
@click.option("--threshold", default="5%", show_default=True, help="What is slower by no more than this is let pass.")
@html_option
@json_option
def diff(before: str, after: str, threshold: str, html: Path | None, json_file: Path | None) -> int:
    """Compare two sides, A before and B after: each kernel, range and layer, and how sure a change is.

    \b
    A and B are files, session folders, folders of sessions, or several of them with commas between.
    Exit codes: 0 nothing got slower beyond the threshold, 1 something did, 125 too little data to tell.
    """
    from probes import comparing

    with progress("reading") as tell:
        made = comparing.diff(before, after, comparing.parse_threshold(threshold), html, tell)
    deliver(made.document, json_file, lambda: _diff_screen(made, html))
    return made.exit_code


def _diff_screen(made: Compared, html: Path | None) -> Iterable[Any]:
    yield made.document["headline"]
    yield from (f"not the same on both sides: {warning}" for warning in made.document["warnings"])
    for level, rows in made.changes():
        yield table((level, "verdict", "change", "95 % interval", "before", "after"), rows)
    if html is not None:
        yield f"report: {html}"


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table of plain texts; nothing in them is taken for markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(*headers, box=box.SIMPLE_HEAD)
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def deliver(result: Mapping[str, Any], json_file: Path | None, show: Callable[[], Iterable[Any]]) -> None:
    """Write the result where it was asked for, and what `show` returns (texts, tables) on the screen."""
    text = json.dumps(result, indent=2) + "\n"
    if json_file == Path("-"):
        click.echo(text, nl=False)
        return
    if json_file is not None:
        json_file.write_text(text, encoding="utf-8")
    console = _console()
    for item in show():
        console.print(item, markup=False, highlight=False)


@contextmanager
def progress(text: str) -> Iterator[Callable[[str], None]]:
    """Show on a terminal's standard error what is going on; the yielded function changes the text."""
    from rich.text import Text

    with _console(stderr=True).status(Text(text)) as status:
        yield lambda now: status.update(Text(now))


def _console(stderr: bool = False) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else PIPE_WIDTH)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (arguments default to the process's own)."""
    try:
        code = probe.main(args=arguments, prog_name="probe", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return EXIT_USAGE
    except ProbeError as error:
        _complain(str(error), error.hint)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted", None)
        return EXIT_INTERRUPTED
    except SystemExit:  # nothing of ours exits below this line: rich and click do when standard output's reader is gone
        return EXIT_BROKEN_PIPE
    except Exception:  # noqa: BLE001
        traceback.print_exc()
        _complain("this is a bug in probe, not in your model", "report it with the traceback above")
        return EXIT_INTERNAL
    return code if isinstance(code, int) else EXIT_CLEAN


def _complain(message: str, hint: str | None) -> None:
    click.echo(f"probe: error: {message}", err=True)
    if hint:
        click.echo(f"try: {hint}", err=True)


def main() -> NoReturn:
    """The console script. SIGTERM ends a run as Ctrl-C does: tools are stopped, the best answer so far is kept."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run())
