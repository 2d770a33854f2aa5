"""The command line, and the only module that prints or exits: it assembles the verbs and turns errors into exit codes.

A verb is one short function here: options in, one call of the module that does the work, `deliver` for what came back;
it returns its exit code. Work modules are imported inside the verb, so that `probe --help` costs nothing.
"""

from __future__ import annotations

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
from harness.record import to_json
from probes.bisecting.options import bisect_options, to_settings
from probes.kernels.run_options import kernel_run_options
from probes.laddering import options as ladder_asked
from probes.printing import options as print_asked
from probes.profiling import options as profile_asked
from probes.sanitizing import options as sanitize_asked

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from harness.record import Session
    from probes.comparing import Compared
    from probes.doctoring import Check
    from probes.kernels.running import Ran as KernelRun
    from probes.kernels.testing import Tested
    from probes.laddering.running import Laddered

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
    """Find the smallest set of nodes, or of statements, that is to blame, proven minimal, with a repair and a report.

    \b
    probe bisect model.onnx --inputs real.npz          which nodes must stay in FP32?
    probe bisect model.onnx --fault finite             which nodes make NaN or Inf?
    probe bisect edited.onnx --fault compare --good original.onnx
    probe bisect model.onnx --fault build --backend trt-rtx
    probe bisect model.onnx --fault check --check 'python test.py {model}'
    probe bisect kernel.cu --grid 4 --block 128 --args in.npz --fault nan
    probe bisect kernel.cu --check 'python test.py {source}' --reduce

    Exit codes: 0 nothing to blame, 1 culprits found, 2 usage, 125 undecided, 130 interrupted.
    """
    from probes.bisecting import running as bisecting

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


@probe.command()
@profile_asked.profile_options
@json_option
def profile(out: Path | None, json_file: Path | None, **values: Any) -> int:
    """Measure a model, an engine, a kernel or any program with the right tools, in one report.

    \b
    probe profile model.onnx                           what is here: TensorRT and nsys, or ONNX Runtime
    probe profile model.onnx --nsys --ncu --trtexec    one after another, joined by kernel and range
    probe profile model.onnx --sweep ids:1=16..512:16  latency over one dimension, one engine
    probe profile --ncu --kernel gemm -- ./app --flag  any command line

    Exit codes: 0 measured, 2 usage, or a tool that is not here, 125 a tool failed, 130 interrupted (what was recorded is kept).
    """
    from probes.profiling import running as profiling

    with progress("profiling") as tell:
        profiled = profiling.profile(profile_asked.to_settings(values), out, tell)
    deliver(profiled.result, json_file, lambda: _profile_screen(profiled.session, profiled.result))
    return profiled.exit_code


def _profile_screen(session: Session, result: Mapping[str, Any]) -> Iterable[Any]:
    """How each tool's run went, what takes longest, and where everything lies."""
    from reports import units

    yield from _steps(result["tools"])
    for name, head in result["top"].items():
        for what, value in head.get("median_ns", {}).items():
            yield f"{name}: median {what.removesuffix('_ns')} {units.seconds(value / 1e9)}"
        if sizes := head.get("sweep"):
            steps = ((str(s["size"]), units.seconds(s["latency_median_ns"] / 1e9), units.significant(s["throughput_qps"] or 0, 4),
                      s["change"] or "") for s in sizes[:MOST_ROWS])  # fmt: skip
            yield table(("size", "latency", "per second", "what changed"), steps)
        if kernels := head.get("kernels"):
            rows = (
                (k["kernel"], str(k["count"]), units.seconds(k["total_ns"] / 1e9), units.seconds(k["median_ns"] / 1e9))
                for k in kernels
            )
            yield table((f"kernel ({name})", "launches", "total", "median"), rows)
    yield from _report_line(session)


@probe.command()
@sanitize_asked.sanitize_options
@json_option
def sanitize(out: Path | None, json_file: Path | None, **values: Any) -> int:
    """Find bad memory accesses, races, uninitialised reads and wrong barriers, and the layer that launched them.

    \b
    probe sanitize model.onnx                          memcheck; suspects also under the other checkers
    probe sanitize --tool all --leaks -- ./app --flag  any command line
    probe sanitize k.cu --entry k --grid 1 --block 32 --args k.npz --emulate   without a GPU

    Exit codes: 0 clean, 1 findings, 2 usage, or a tool that is not here, 125 a checker failed, 130 interrupted.
    """
    from probes.sanitizing import running as sanitizing

    with progress("sanitizing") as tell:
        checked = sanitizing.sanitize(sanitize_asked.to_settings(values), out, tell)
    deliver(checked.result, json_file, lambda: _sanitize_screen(checked.session, checked.result))
    return checked.exit_code


def _sanitize_screen(session: Session, result: Mapping[str, Any]) -> Iterable[Any]:
    """How each checker's run went, the findings with where they come from, and where everything lies."""
    yield from _steps(result["ran"])
    if code := result["program_exit_code"]:
        yield f"the program itself ended with exit code {code}"
    rows = (
        (f["kind"], f["kernel"] or f["api"] or "", f"{f['file']}:{f['line']}" if f["file"] else "", str(f["count"]),
         "" if f["launch"] is None else str(f["launch"]), f["layer"] or f["range"] or "", ", ".join(f["onnx_nodes"][:3]))
        for f in result["findings"][:MOST_ROWS]
    )  # fmt: skip
    if result["findings"]:
        yield table(("finding", "kernel or call", "where", "count", "launch", "layer or range", "nodes"), rows)
        if len(result["findings"]) > MOST_ROWS:
            yield f"{MOST_ROWS} of {len(result['findings'])} shown; all of them are in result.json"
        yield from dict.fromkeys(f"{f['kernel']}: {f['how']}" for f in result["findings"] if f["kernel"] and f["how"])
    elif result["status"] == "clean":
        yield "nothing was found"
    yield from _report_line(session)


def _steps(steps: Iterable[Mapping[str, Any]]) -> Iterable[Any]:
    """One line a tool's run, and what to type next where it failed."""
    for step in steps:
        version = f" {step['version']}" if step["version"] else ""
        yield (
            f"{step['name']}{version}: {step['status']}, {step['duration_s']:.1f} s"
            if step["duration_s"]
            else step["name"]
        )
        yield from (f"  {note}" for note in step["notes"])
        if step.get("error"):
            yield f"  {step['error']}"
        if step.get("hint"):
            yield f"  try: {step['hint']}"


def _report_line(session: Session) -> Iterable[str]:
    page = session.folder / "report.html"
    yield f"report: {page}" if page.is_file() else f"nothing to draw a report of; the logs are in {session.folder}"


@probe.command()
@print_asked.print_options
@json_option
def printf(out: Path | None, json_file: Path | None, **values: Any) -> int:
    """Log chosen values of chosen threads of a kernel: at lines of the source, or where it says PROBE(tag, value...).

    \b
    probe printf k.cu --at 57 --print 'mean, x[i]' --thread 0,0,0 --grid 4 --block 128 --args in.npz
    probe printf k.cu --entry softmax --watch-nan --grid 4 --block 128 --args in.yaml
    probe printf k.cu --grid 4 --block 128 --args in.npz     its own PROBE(...) and printf

    Exit codes: 0 values were logged, 1 NaN or Inf, a crash or a finding, 2 usage, 125 undecided, 130 interrupted.
    """
    from probes.printing import running as printing

    with progress("reading the source") as tell:
        made = printing.run(print_asked.to_settings(values), out, tell)
    deliver(made.result, json_file, lambda: _printf_screen(made.session, made.result))
    return made.exit_code


def _printf_screen(session: Session, result: Mapping[str, Any]) -> Iterable[Any]:
    """The verdict, the values thread by thread beside the source, what printf wrote, and where everything lies."""
    from reports import printed, units

    view = printed.read(session)
    yield view.headline
    yield from filter(None, (result["message"], *view.notes))
    if view.rows:
        rows = (
            (
                printed.triple(row.block),
                printed.triple(row.thread),
                str(row.line),
                row.tag,
                units.shorten(row.value, 60),
                row.type,
                view.line(row),
            )
            for row in view.rows[:MOST_ROWS]
        )
        yield table(("block", "thread", "line", "what", "value", "type", "source"), rows)
        if len(view.rows) > MOST_ROWS:
            yield f"{MOST_ROWS} of {len(view.rows)} shown; all of them are in {session.folder / 'device_log.csv'}"
    yield from (f"{view.said(one)}{one['text']}" for one in view.printed[:MOST_ROWS])
    if len(view.printed) > MOST_ROWS:
        yield f"{MOST_ROWS} of {len(view.printed)} outputs of printf shown; all of them are in {session.raw / 'printed.txt'}"
    for one in view.findings:
        yield f"{one['kind']} at {one.get('file') or 'an unknown place'}:{one.get('line') or '?'}: {one['message']}"
    yield f"report: {session.folder / 'report.html'}"


@probe.group()
def ladder() -> None:
    """How fast can it get: step by step and route by route, with what each step gains and what it costs."""


@ladder.command(name="bert")
@ladder_asked.ladder_options
@json_option
def ladder_bert(json_file: Path | None, **values: Any) -> int:
    """Climb from FP32 to INT8 and a CUDA graph on every route that is here, against float64 at every step.

    \b
    probe ladder bert --config base                            random weights, batch 32, sequence 128
    probe ladder bert --weights DIR --inputs text.npz          the user's model on real text
    probe ladder bert --config tiny --routes kernels,onnx      without a GPU: results alone

    Exit codes: 0 every step is as right as its precision lets it, 1 one is not, 2 usage, 125 nothing could be measured,
    130 interrupted (what was measured is kept).
    """
    from probes.laddering import running as laddering

    with progress("climbing") as tell:
        made = laddering.climb(ladder_asked.to_settings(values), tell)
    deliver(made.document, json_file, lambda: _ladder_screen(made))
    return made.exit_code


@ladder.command(name="fusion")
@ladder_asked.SECONDS
@ladder_asked.SEED
@ladder_asked.OUT
@json_option
def ladder_fusion(json_file: Path | None, **values: Any) -> int:
    """One small formula in five kernels, in three, on two streams, in one: what fusing is worth."""
    from probes.laddering import fusion as fusion_laddering

    with progress("climbing") as tell:
        made = fusion_laddering.climb(fusion_laddering.Asked(**values), tell)
    deliver(made.document, json_file, lambda: _ladder_screen(made))
    return made.exit_code


def _ladder_screen(made: Laddered) -> Iterable[Any]:
    """Every step as a row, the headline, and where everything lies."""
    from reports import ladder as told

    view = told.read(made.session)
    yield table(told.HEADERS, (row.texts for row in view.rows))
    yield from (f"{row.title} ({row.route_title}): {row.note}" for row in view.rows if row.status != "measured")
    yield view.headline
    yield f"report: {made.session.folder / 'report.html'}"


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


@probe.group()
def kernels() -> None:
    """Our CUDA kernels for the BERT plugins: list them, test them against float64, time them."""


emulate_option = click.option(
    "--emulate/--gpu", "emulate", default=None,
    help="Run on the CPU, thread for thread, or on the GPU. By itself: the GPU if there is one.",
)  # fmt: skip
out_option = click.option(
    "--out", metavar="DIR", type=click.Path(file_okay=False, path_type=Path), help="The session folder to write."
)


@kernels.command(name="list")
@click.option("--cases", is_flag=True, help="Also the cases that `probe kernels test` runs.")
@json_option
def list_kernels(cases: bool, json_file: Path | None) -> int:
    """Show what there is: operations, formats, and the plugins that they stand behind."""
    from probes.kernels import testing as kernel_testing

    document = kernel_testing.list_document()

    def show() -> Iterable[Any]:
        yield table(("kernel", "computes", "formats", "plugin, versions", "cases"), kernel_testing.list_rows())
        if cases:
            rows = ((kernel["name"], label) for kernel in document["kernels"] for label in kernel["cases"])
            yield table(("kernel", "case"), rows)

    deliver(document, json_file, show)
    return EXIT_CLEAN


@kernels.command(name="test")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@emulate_option
@click.option("--check", "checks", default="none", show_default=True,
              help="What the emulation looks for besides: all, or some of memory, race, init, grid.")  # fmt: skip
@click.option("--case", "only", default="", metavar="TEXT", help="Only cases with TEXT in their label.")
@click.option("--seed", type=click.IntRange(min=0), help="Of the random inputs; fresh ones without it.")
@out_option
@json_option
def test_kernels(json_file: Path | None, **values: Any) -> int:
    """Run every case against float64: odd shapes, extreme values, poisoned outputs, guarded buffers.

    Exit codes: 0 all right, 1 a wrong result or a finding, 2 usage, 125 some could not be run.
    """
    from probes.kernels import testing as kernel_testing

    with progress("testing") as tell:
        tested = kernel_testing.run_all(kernel_testing.Settings(**values), tell)
    deliver(tested.document, json_file, lambda: _kernel_test_screen(tested))
    return tested.exit_code


def _kernel_test_screen(tested: Tested) -> Iterable[Any]:
    from probes.kernels import testing as kernel_testing

    document = tested.document
    headers = ("kernel", "cases", "right", "worst error / bound", "usual formula's", "findings", "seconds")
    yield table(headers, kernel_testing.summary_rows(tested.results))
    if wrong := kernel_testing.wrong_rows(tested.results):
        yield table(("kernel", "case", "outcome", "what"), wrong[:MOST_ROWS])
        if len(wrong) > MOST_ROWS:
            yield f"{MOST_ROWS} of {len(wrong)} shown; all of them are in the session"
    yield f"{document['pass']} of {document['cases']} right on {document['device']}, seed {document['seed']}"
    if left_out := len(document["left_out"]):
        yield f"{left_out} left out: they are for compute capability 9.0 alone"
    yield f"session: {tested.session.folder}"


@kernels.command(name="run")
@kernel_run_options
@emulate_option
@out_option
@json_option
def run_kernel(json_file: Path | None, **values: Any) -> int:
    """Launch a kernel of a .cu file once, with arguments from a file; look for defects on the way.

    \b
    probe kernels run scale.cu --grid 4 --block 128 --args inputs.npz --emulate
    probe kernels run sum.cu --entry 'sum<float>' --block 256 --shared 1024 --args a.yaml --check race

    Exit codes: 0 nothing found, 1 a defect, 2 usage, 125 it does not compile.
    """
    from probes.kernels import running as kernel_running

    with progress("compiling") as tell:
        ran = kernel_running.run(kernel_running.Settings(**values), tell)
    deliver(ran.document, json_file, lambda: _kernel_run_screen(ran))
    return ran.exit_code


def _kernel_run_screen(ran: KernelRun) -> Iterable[Any]:
    yield from ran.printed[-MOST_ROWS:]
    if rows := ran.rows():
        yield table(("what", "where", "block", "thread", "times", "message"), rows[:MOST_ROWS])
    document = ran.document
    checked = f", checked for {document['checks']}" if document["checks"] else ""
    yield f"{document['entry']} on {document['device']}{checked}: {len(rows) or 'no'} findings"
    yield f"session: {ran.session.folder}"


@kernels.command(name="bench")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--case", "only", default="", metavar="TEXT", help="Only cases with TEXT in their label.")
@click.option("--seconds", type=click.FloatRange(min=0.01), default=0.5, show_default=True,
              help="Of measuring, for each implementation of each case.")  # fmt: skip
@click.option("--peers/--no-peers", default=True, show_default=True, help="Time PyTorch's too, where it is installed.")
@out_option
@json_option
def bench_kernels(json_file: Path | None, **values: Any) -> int:
    """Time the kernels on the GPU, beside what physics allows and beside PyTorch, with a roofline in a report."""
    from probes.kernels import benching as kernel_benching

    with progress("timing") as tell:
        benched = kernel_benching.bench(kernel_benching.Settings(**values), tell)
    headers = ("kernel", "case", "median", "10 % .. 90 %", "bound", "of bound", "memory", "TFLOP/s", "peers")
    deliver(benched.document, json_file, lambda: [
        table(headers, kernel_benching.rows(benched.document)), f"report: {benched.report}",
    ])  # fmt: skip
    return EXIT_CLEAN


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
    text = to_json(result, indent=2) + "\n"
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
