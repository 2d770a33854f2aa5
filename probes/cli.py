"""The command line, and the only module that prints or exits: it assembles the verbs and turns errors into exit codes.

A verb is one short function here: options in, one call of the module that does the work, `deliver` for what came back;
it returns its exit code. Its options and its screen lie beside the work. Work modules are imported inside the verb, so
that `probe --help` costs nothing.
"""

from __future__ import annotations

import errno
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.core import ParameterSource

from harness.errors import (
    EXIT_CLEAN,
    EXIT_DEFECT,
    EXIT_INTERNAL,
    EXIT_INTERRUPTED,
    EXIT_UNDECIDED,
    EXIT_USAGE,
    ProbeError,
    UsageError,
)
from harness.record import to_json
from probes import options
from probes.bisecting import options as bisect_asked
from probes.kernels import options as kernels_asked
from probes.laddering import options as ladder_asked
from probes.options import Group, argument, option
from probes.printing import options as print_asked
from probes.profiling import options as profile_asked
from probes.sanitizing import options as sanitize_asked

if TYPE_CHECKING:
    from rich.console import Console

    from probes.screen import Shown

EXIT_BROKEN_PIPE = 141  # what a shell shows for a program whose reader went away (128 + SIGPIPE)
PIPE_WIDTH = 160  # columns, where the output is not a terminal
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # a disk's fault, and no bug
NO_ARGUMENTS = getattr(click.exceptions, "NoArgsIsHelpError", ())  # since click 8.2: what is shown is the help
HELP_WIDTH = 110  # columns at most: longer lines are hard to read


@click.group(
    cls=Group,
    titles={
        "What is wrong": {
            "bisect": "which nodes, or statements of a kernel, are to blame",
            "sanitize": "bad accesses, races, wrong barriers, and the layer they come from",
            "printf": "values of chosen threads of a kernel, at chosen lines, as a table",
        },
        "How fast is it": {
            "profile": "a model, an engine, a kernel or any program under the right tools",
            "ladder": "how fast a BERT can get, step by step, route by route",
            "kernels": "our CUDA kernels for BERT: test, time; run any .cu once",
        },
        "What was recorded": {
            "report": "a page of what nsys, ncu, compute-sanitizer, trtexec ... wrote",
            "diff": "what got slower or faster between two sets of runs",
        },
        "This machine": {"doctor": "what is here, what is lost without the rest, how to get it"},
    },
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": HELP_WIDTH},
)
@click.version_option(package_name="probe-trt", prog_name="probe")
def probe() -> None:
    """Find out what is to blame when inference with TensorRT or CUDA is wrong, slow, or does not build."""


@probe.command(sections={"Options": (options.JSON,)})
def doctor(json_file: Path | None) -> int:
    """Show which tools, libraries and GPU are here, what is lost without the rest, and the line that installs it."""
    from probes import doctoring

    with progress("looking for tools, libraries and a GPU") as tell:
        checks = doctoring.examine(tell=lambda name: tell(f"looking at {name}"))
    deliver(doctoring.to_document(checks), json_file, lambda: doctoring.show(checks))
    return EXIT_CLEAN if doctoring.healthy(checks) else EXIT_DEFECT


def resumed_alone(folder: Path, options: Iterable[str]) -> None:
    """Raise UsageError for an option beside --resume: it would be passed over."""
    context = click.get_current_context()
    more = [name for name in options if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if more:
        raise UsageError(
            f"--resume takes the model and all options from the session: {more[0]} is one too many",
            hint=f"{context.command_path} --resume {folder}",
        )


@probe.command(sections=bisect_asked.SECTIONS)
def bisect(out: Path | None, resume: Path | None, json_file: Path | None, **values: Any) -> int:
    """Find the smallest set of nodes, or of statements, that is to blame: proven minimal, with a repair and a report.

    \b
    Nodes of a model:
      which must stay in FP32?    probe bisect model.onnx --inputs real.npz
      which make NaN or Inf?      probe bisect model.onnx --fault finite
      which differ from another?  probe bisect edited.onnx --fault compare --good right.onnx
      which break the build?      probe bisect model.onnx --fault build --backend trt-rtx
      which fail my own test?     probe bisect model.onnx --fault check --check 'python t.py {model}'

    \b
    Engines (trt needs a GPU; trt-rtx builds without one):
      which must stay in FP32?    probe bisect model.onnx --backend trt --inputs real.npz
      which crash or are wrong?   probe bisect model.onnx --backend trt --fault crash
      which tensors must not be fused away?    probe bisect model.onnx --backend trt --fault fusion
      which switch of the builder cures it?    probe bisect model.onnx --backend trt --fault route

    \b
    Statements of a kernel (on the CPU):
      what do findings need?      probe bisect k.cu --grid 4 --block 128 --args in.npz
      what makes NaN or Inf?      probe bisect k.cu --grid 4 --block 128 --args in.npz --fault nan
      what makes it wrong?        probe bisect k.cu --grid 4 --block 128 --args in.npz --expect right.npz
      the smallest that fails     probe bisect k.cu --check 'python t.py {source}' --reduce

    Exit codes: 0 nothing to blame, 1 culprits found, 2 usage, 125 undecided, 130 interrupted.
    """
    from probes.bisecting import running as bisecting
    from probes.bisecting import screen

    with progress("bisecting") as tell:
        if resume is not None:
            resumed_alone(resume, (*values, "out"))
            bisection = bisecting.resume(resume, tell)
        else:
            bisection = bisecting.start(bisect_asked.to_settings(values), out, tell)
    deliver(bisection.result, json_file, lambda: screen.show(bisection.session))
    return bisection.exit_code


@probe.command(sections=profile_asked.SECTIONS)
def profile(out: Path | None, json_file: Path | None, **values: Any) -> int:
    """Measure a model, an engine, a kernel or any program with the right tools, in one report.

    \b
      probe profile model.onnx                           what is here: TensorRT and nsys, or ONNX Runtime
      probe profile model.onnx --nsys --ncu --trtexec    one after another, joined by kernel and range
      probe profile model.onnx --sweep ids:1=16..512:16  latency over one dimension, one engine
      probe profile k.cu --grid 4 --block 128 --args in.npz --ncu
      probe profile --ncu --kernel gemm -- ./app --flag  any command line

    Exit codes: 0 measured, 2 usage, or a tool that is not here, 125 a tool failed, 130 interrupted (what was recorded
    is kept).
    """
    from probes.profiling import running as profiling
    from probes.profiling import screen

    with progress("profiling") as tell:
        profiled = profiling.profile(profile_asked.to_settings(values), out, tell)
    deliver(profiled.result, json_file, lambda: screen.show(profiled.session, profiled.result))
    return profiled.exit_code


@probe.command(sections=sanitize_asked.SECTIONS)
def sanitize(out: Path | None, json_file: Path | None, **values: Any) -> int:
    """Find bad memory accesses, races, uninitialised reads and wrong barriers, and the layer that launched them.

    \b
      probe sanitize model.onnx                          memcheck; suspects also under the other checkers
      probe sanitize --tool all --leaks -- ./app --flag  any command line
      probe sanitize k.cu --entry k --grid 1 --block 32 --args k.npz --emulate   without a GPU

    Exit codes: 0 clean, 1 findings, 2 usage, or a tool that is not here, 125 a checker failed, 130 interrupted.
    """
    from probes.sanitizing import running as sanitizing
    from probes.sanitizing import screen

    with progress("sanitizing") as tell:
        checked = sanitizing.sanitize(sanitize_asked.to_settings(values), out, tell)
    deliver(checked.result, json_file, lambda: screen.show(checked.session, checked.result))
    return checked.exit_code


@probe.command(sections=print_asked.SECTIONS)
def printf(out: Path | None, json_file: Path | None, **values: Any) -> int:
    """Log chosen values of chosen threads of a kernel: at lines of the source, or where it says PROBE(tag, value...).

    \b
      probe printf k.cu --at 57 --print 'mean, x[i]' --thread 0,0,0 --grid 4 --block 128 --args in.npz
      probe printf k.cu --entry softmax --watch-nan --grid 4 --block 128 --args in.yaml
      probe printf k.cu --grid 4 --block 128 --args in.npz     its own PROBE(...) and printf

    Exit codes: 0 values were logged, 1 NaN or Inf, a crash or a finding, 2 usage, 125 undecided, 130 interrupted.
    """
    from probes.printing import running as printing
    from probes.printing import screen

    with progress("reading the source") as tell:
        made = printing.run(print_asked.to_settings(values), out, tell)
    deliver(made.result, json_file, lambda: screen.show(made.session, made.result))
    return made.exit_code


@probe.group(
    titles={
        "Ladders": {
            "bert": "from FP32 to INT8 and a CUDA graph, on every route that is here",
            "fusion": "one formula in five kernels, in three, on two streams, in one",
        }
    }
)
def ladder() -> None:
    """How fast can it get: step by step and route by route, with what each step gains and what it costs."""


@ladder.command(name="bert", sections=ladder_asked.SECTIONS)
def ladder_bert(resume: Path | None, json_file: Path | None, **values: Any) -> int:
    """Climb from FP32 to INT8 and a CUDA graph on every route that is here, against float64 at every step.

    \b
      probe ladder bert --config base                            random weights, batch 32, sequence 128
      probe ladder bert --weights DIR --inputs text.npz          the user's model on real text
      probe ladder bert --config tiny --routes kernels,onnx      without a GPU: results alone
      probe ladder bert --resume probe-runs/...-ladder           go on after Ctrl-C or kill -9

    Exit codes: 0 every step is as right as its precision lets it, 1 one is not, 2 usage, 125 nothing could be measured
    or a step of our kernels failed, 130 interrupted (what was measured is kept).
    """
    from probes.laddering import running as laddering
    from probes.laddering import screen

    with progress("climbing") as tell:
        if resume is not None:
            resumed_alone(resume, values)
            made = laddering.resume(resume, tell)
        else:
            made = laddering.climb(ladder_asked.to_settings(values), tell)
    deliver(made.document, json_file, lambda: screen.show(made.session))
    return made.exit_code


@ladder.command(name="fusion", sections=ladder_asked.FUSION)
def ladder_fusion(json_file: Path | None, **values: Any) -> int:
    """One small formula in five kernels, in three, on two streams, in one: what fusing is worth."""
    from probes.laddering import fusion as fusion_laddering
    from probes.laddering import screen

    with progress("climbing") as tell:
        made = fusion_laddering.climb(fusion_laddering.Asked(**values), tell)
    deliver(made.document, json_file, lambda: screen.show(made.session))
    return made.exit_code


REPORT = {
    "Options": (
        argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path)),
        options.HTML,
        option("--tables", metavar="DIR", type=options.FOLDER,
               help="Write every table there, as CSV and, where pyarrow is installed, as Parquet."),
        option("--perfetto", metavar="FILE", type=options.FILE,
               help="Write a trace that ui.perfetto.dev and Chrome open; gzip if FILE ends in .gz."),
        options.JSON,
    )
}  # fmt: skip


@probe.command(sections=REPORT)
def report(paths: tuple[Path, ...], json_file: Path | None, **outputs: Path | None) -> int:
    """Read what nsys, ncu, compute-sanitizer, trtexec, ONNX Runtime or probe wrote, and draw it as one offline page.

    \b
      probe report trace.sqlite profile.ncu-rep          files: the kind is told by the content
      probe report probe-runs/20260102-030405-profile    a session folder, or a folder of files

    Without -o, --json, --tables or --perfetto the page is report.html, in the session or here.
    """
    from probes import reporting

    with progress("reading") as tell:
        made = reporting.report(reporting.Wanted(paths, **outputs), tell, only_json=json_file is not None)
    deliver(made.document, json_file, lambda: made.lines)
    return EXIT_CLEAN


DIFF = {
    "Options": (
        argument("before", metavar="A"),
        argument("after", metavar="B"),
        option("--threshold", default="5%", metavar="PERCENT", show_default=True, help="What is slower by no more than this is let pass."),
        options.HTML,
        options.JSON,
    )
}  # fmt: skip


@probe.command(sections=DIFF)
def diff(before: str, after: str, threshold: str, html: Path | None, json_file: Path | None) -> int:
    """Compare two sides, A before and B after: each kernel, range and layer, and how sure a change is.

    \b
      probe diff old.sqlite new.sqlite --threshold 3%
      probe diff a1.sqlite,a2.sqlite,a3.sqlite b1.sqlite,b2.sqlite,b3.sqlite     several runs a side: surer

    A and B are files, session folders, folders of sessions, or several of them with commas between.
    Exit codes: 0 nothing got slower beyond the threshold, 1 something did, 125 too little data to tell.
    """
    from probes import comparing

    with progress("reading") as tell:
        made = comparing.diff(before, after, comparing.parse_threshold(threshold), html, tell)
    deliver(made.document, json_file, lambda: comparing.show(made, html))
    return made.exit_code


@probe.group(
    titles={
        "Commands": {
            "list": "operations, formats, the plugins that they stand behind",
            "test": "every case against float64, on the CPU or the GPU",
            "run": "a kernel of any .cu file, once, with arguments from a file",
            "bench": "times on the GPU, beside what physics allows and PyTorch",
        }
    }
)
def kernels() -> None:
    """Our CUDA kernels for the BERT plugins: list them, test them against float64, time them; run any kernel once."""


@kernels.command(name="list", sections=kernels_asked.LIST)
def list_kernels(cases: bool, json_file: Path | None) -> int:
    """Show what there is: operations, formats, and the plugins that they stand behind."""
    from probes.kernels import screen, testing

    deliver(testing.list_document(), json_file, lambda: screen.show_list(cases))
    return EXIT_CLEAN


@kernels.command(name="test", sections=kernels_asked.TEST)
def test_kernels(json_file: Path | None, **values: Any) -> int:
    """Run every case against float64: odd shapes, extreme values, poisoned outputs, guarded buffers.

    \b
      probe kernels test                                 all of them
      probe kernels test gelu --check race,memory        one, with the checks of the emulation

    Exit codes: 0 all right, 1 a wrong result or a finding, 2 usage, 125 some could not be run.
    """
    from probes.kernels import screen, testing

    with progress("testing") as tell:
        tested = testing.run_all(testing.Settings(**values), tell)
    deliver(tested.document, json_file, lambda: screen.show_test(tested))
    return tested.exit_code


@kernels.command(name="run", sections=kernels_asked.RUN)
def run_kernel(json_file: Path | None, **values: Any) -> int:
    """Launch a kernel of a .cu file once, with arguments from a file; look for defects on the way.

    \b
      probe kernels run scale.cu --grid 4 --block 128 --args inputs.npz --emulate
      probe kernels run sum.cu --entry 'sum<float>' --block 256 --shared 1024 --args a.yaml --check race

    Exit codes: 0 nothing found, 1 a defect, 2 usage, 125 it does not compile.
    """
    from probes.kernels import running, screen

    with progress("compiling") as tell:
        ran = running.run(running.Settings(**values), tell)
    deliver(ran.document, json_file, lambda: screen.show_run(ran))
    return ran.exit_code


@kernels.command(name="bench", sections=kernels_asked.BENCH)
def bench_kernels(json_file: Path | None, **values: Any) -> int:
    """Time the kernels on the GPU, beside what physics allows and beside PyTorch, with a roofline in a report."""
    from probes.kernels import benching, screen

    with progress("timing") as tell:
        benched = benching.bench(benching.Settings(**values), tell)
    deliver(benched.document, json_file, lambda: screen.show_bench(benched))
    return EXIT_CLEAN


def deliver(result: Mapping[str, Any], json_file: Path | None, show: Callable[[], Shown]) -> None:
    """Write the result where it was asked for, and what `show` returns (texts, tables) on the screen."""
    text = to_json(result, indent=2) + "\n"
    if json_file == Path("-"):
        click.echo(text, nl=False)
        return
    if json_file is not None:
        json_file.write_text(text, encoding="utf-8")
    console = _console()
    for item in show():
        whole = isinstance(item, str)  # a line that is not broken can be copied, and found by programs
        console.print(item, markup=False, highlight=False, soft_wrap=whole)


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
    except NO_ARGUMENTS as error:
        error.show()
        return EXIT_USAGE
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        _complain(error.format_message(), f"{context.command_path if context else 'probe'} --help")
        return EXIT_USAGE
    except ProbeError as error:
        _complain(str(error), error.hint)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted", None)
        return EXIT_INTERRUPTED
    except SystemExit:  # nothing of ours exits below this line: rich and click do when standard output's reader is gone
        return EXIT_BROKEN_PIPE
    except Exception as error:  # noqa: BLE001
        if isinstance(error, OSError) and error.errno in FULL:
            _complain(
                f"{error.filename or 'a file'} cannot be written: {error.strerror}", "--out FOLDER, on a disk with room"
            )
            return EXIT_UNDECIDED
        traceback.print_exc()
        _complain("this is a bug in probe, not in your model", "report it with the traceback above")
        return EXIT_INTERNAL
    return code if isinstance(code, int) else EXIT_CLEAN


def _complain(message: str, hint: str | None) -> None:
    click.echo(f"probe: error: {message}", err=True)
    if hint:
        click.echo(f"try: {hint}", err=True)


def main() -> NoReturn:
    """Run the process's own arguments and exit. SIGTERM ends a run as Ctrl-C does: tools are stopped, the best answer so far is kept."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(run())
