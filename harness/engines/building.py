"""Does a model build, or pass the user's own check? Asked in a subprocess, answered with a signature of the failure.

A failure's signature stays the same from sub-model to sub-model (no names, numbers, paths), and differs from bug to bug,
so that a search for the nodes to blame never slides from one bug onto another.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import process
from harness.errors import ArtifactMissing, DependencyMissing, UsageError
from harness.models.model import Model, walk
from harness.record import Answer, Command, Outcome, ToolRun

SKIP_CODE = 125  # as for `git bisect run`
MODEL_FIELD = "{model}"


@dataclass(frozen=True)
class ParserError:
    """What TensorRT's ONNX parser says of one node. `code` and `op` are its own words; `file` and `line` its source's."""

    code: str
    desc: str
    node: str = ""
    op: str = ""
    file: str = ""
    line: int = 0
    func: str = ""


@dataclass(frozen=True)
class BuildResult:
    """How far a build came: `stage` is load, parse, build or done; `signal` and `timed_out` tell of a crash or a hang."""

    stage: str
    ok: bool
    errors: tuple[ParserError, ...] = ()
    log: tuple[str, ...] = ()  # error messages of the builder, oldest first
    names: frozenset[str] = frozenset()  # of the model's nodes and tensors: a signature leaves them out
    signal: int | None = None
    timed_out: bool = False
    returncode: int | None = 0
    version: str = ""
    engine_bytes: int | None = None
    parse_s: float | None = None
    build_s: float | None = None
    duration_s: float = 0.0  # of the whole process


@dataclass(frozen=True)
class BuildOptions:
    """What to build with. `flags` and `capability` are names of BuilderFlag and ComputeCapability members."""

    backend: str = "trt-rtx"  # or "trt"
    strongly_typed: bool = False
    flags: tuple[str, ...] = ()
    capability: str | None = None
    parse_only: bool = False
    engine: Path | None = None


def build(
    model_path: Path, options: BuildOptions, *, shapes: Mapping[str, Sequence[int]], timeout_s: float | None, folder: Path,
    values: Mapping[str, Sequence[int]] | None = None, names: Collection[str] = (),
) -> BuildResult:  # fmt: skip
    """Parse and build an .onnx file in a process of its own; its logs and its result go to `folder`, by the model's name.

    `shapes` gives the dimensions of inputs that have dynamic ones, `values` those of inputs that say a shape.
    `names` (`names_of` the whole model, whichever part of it is built) are left out of the failure's signature.
    Raises DependencyMissing if the backend is not installed, ArtifactMissing if the process could not even begin.
    """
    folder.mkdir(parents=True, exist_ok=True)
    result = folder / f"{model_path.stem}.build.json"
    result.unlink(missing_ok=True)
    arguments = _arguments(options)
    for kind, numbers in (("shapes", shapes), ("values", values or {})):
        path = folder / f"{model_path.stem}.{kind}.json"
        path.write_text(json.dumps({name: [int(n) for n in row] for name, row in numbers.items()}), encoding="utf-8")
        arguments += [f"--{kind}", str(path)]
    run = process.run(_worker(model_path, result, arguments, timeout_s), folder / f"{model_path.stem}.build")
    return _result(result, run, options, frozenset(names))


def names_of(model: Model) -> frozenset[str]:
    """The names of a model's nodes and tensors."""
    nodes = list(walk(model.graph))
    return frozenset(name for node in nodes for name in (node.name, *node.input, *node.output) if name)


def signatures(result: BuildResult) -> tuple[str, ...]:
    """The identity of every failure that a build shows, first seen first; none if it built."""
    if result.ok:
        return ()
    if result.timed_out:
        return (f"timeout at {result.stage}",)
    if result.signal is not None:
        return (f"signal {result.signal} at {result.stage}",)
    if result.errors:
        return tuple(dict.fromkeys(_parser_signature(error, result.names) for error in result.errors))
    said = [text for line in result.log if (text := normalise(line, result.names))]
    return (f"{result.stage}: {said[0]}" if said else f"exit {result.returncode} at {result.stage}",)


def signature(result: BuildResult) -> str | None:
    """The identity of the first failure that a build shows; None if it built."""
    return next(iter(signatures(result)), None)


def blamed(result: BuildResult) -> frozenset[str]:
    """Names of nodes and tensors that the messages mention: a hint where to look first, never a verdict."""
    text = "\n".join([*result.log, *(error.desc for error in result.errors)])
    mentioned = (name for name in result.names if name in text and re.search(WHOLE_NAME.format(re.escape(name)), text))
    return frozenset(mentioned) | {error.node for error in result.errors if error.node}


def judge(result: BuildResult, wanted: str | None = None) -> Answer:
    """FAIL if the build shows the failure `wanted` (any, if None), PASS if it built, UNRESOLVED if it fails otherwise."""
    found = signatures(result)
    if not found:
        return Answer(Outcome.PASS)
    if wanted is None or wanted in found:
        return Answer(Outcome.FAIL, signature=wanted or found[0])
    return Answer(Outcome.UNRESOLVED, signature=found[0])


def check(argv_template: str, model_path: Path, *, timeout_s: float | None, folder: Path) -> Answer:
    """Ask the user's own command about a model file: exit 0 PASS, 125 or time-out UNRESOLVED, all else FAIL.

    The command is split into arguments as a shell would, and run without one; `{model}` in an argument becomes the
    path, which is the last argument if no argument has it. Raises UsageError if it cannot be split, ToolMissing if
    there is no such program.
    """
    run = process.run(Command(check_argv(argv_template, model_path), timeout_s), folder / f"{model_path.stem}.check")
    if run.timed_out:
        return Answer(Outcome.UNRESOLVED, signature="timeout")
    if run.ok:
        return Answer(Outcome.PASS)
    name = f"signal {run.signal}" if run.signal is not None else f"exit {run.returncode}"
    return Answer(Outcome.UNRESOLVED if run.returncode == SKIP_CODE else Outcome.FAIL, signature=name)


def check_argv(template: str, model_path: Path) -> tuple[str, ...]:
    """The argument list of the user's check on a model file; `model_path` is absolute in it, whatever the directory."""
    try:
        parts = shlex.split(template)
    except ValueError as error:
        raise UsageError(
            f"--check {template!r}: {error}", hint="quote it as for a shell: --check 'CMD {model}'"
        ) from error
    if not parts:
        raise UsageError("--check: expected a command, got nothing", hint="--check 'CMD {model}'")
    model = str(model_path.absolute())
    if not any(MODEL_FIELD in part for part in parts):
        parts.append(MODEL_FIELD)
    return tuple(part.replace(MODEL_FIELD, model) for part in parts)


# The worker


def _arguments(options: BuildOptions) -> list[str]:
    arguments = ["--backend", options.backend]
    arguments += ["--strongly-typed"] if options.strongly_typed else []
    arguments += [word for flag in options.flags for word in ("--flag", flag)]
    arguments += ["--capability", options.capability] if options.capability else []
    arguments += ["--parse-only"] if options.parse_only else []
    arguments += ["--engine", str(options.engine.absolute())] if options.engine else []
    return arguments


def _worker(model_path: Path, result: Path, arguments: Sequence[str], timeout_s: float | None) -> Command:
    words = process.module_words(
        "harness.engines.build_worker", str(model_path.absolute()), str(result.absolute()), *arguments
    )
    return Command(words, timeout_s, process.module_environment())


def _result(path: Path, run: ToolRun, options: BuildOptions, names: frozenset[str]) -> BuildResult:
    if not path.is_file():
        raise ArtifactMissing(f"{path}: the build process ended before it began: {process.tail(run.stderr, 3)}",
                              hint=f"see {run.stderr}")  # fmt: skip
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if "missing" in content:
        raise DependencyMissing(options.backend, "to build engines", str(content["hint"]), str(content["missing"]))
    crashed = run.timed_out or run.signal is not None
    return BuildResult(
        stage=content["stage"], ok=content["ok"] and not crashed, names=names,
        errors=tuple(ParserError(**error) for error in content["errors"]),
        log=tuple(content["log"]) or _logged(run), signal=None if run.timed_out else run.signal, timed_out=run.timed_out,
        returncode=run.returncode, version=content.get("version", ""), engine_bytes=content.get("engine_bytes"),
        parse_s=content.get("parse_s"), build_s=content.get("build_s"), duration_s=run.duration_s,
    )  # fmt: skip


def _logged(run: ToolRun) -> tuple[str, ...]:
    """What a process said that died before it could report."""
    return () if run.ok else tuple(process.tail(run.stderr).splitlines())


# Signatures

NOISE = re.compile(r"CUDA driver version is insufficient|no CUDA-capable device")  # of a builder without a GPU
BOILERPLATE = re.compile(r"^(?:\[E\]|ERROR:|Invalid Node - .*)\s*")
DTYPE = re.compile(r"k?(?:u?int|fp|float|bf|bfloat)\d+\w*", re.IGNORECASE)
RULES: tuple[tuple[re.Pattern[str], str], ...] = (
    # Source files keep their own name, without folder and line.
    (re.compile(r"(?:[\w.+-]*/)*([\w+-]+\.(?:cpp|cc|cu|cuh|h|hpp|py))\b(?::+\d+)?"), r"\1"),
    (re.compile(r"\{[^{}]*\}"), "*"),  # {ForeignNode[a...b]}
    (re.compile(r"(['\"`])(?:(?!\1)\S)*(?: (?:(?!\1)\S)+)?\1"), "*"),  # quoted words; three and more are a sentence
    (re.compile(r"\bnode_of_[^\s,;()\[\]]*\w"), "*"),  # the parser's name for a node without one
    (re.compile(r"::\d+\b"), ""),  # [file.cpp::function::line]
    # Paths, and names that hold a module path.
    (re.compile(r"(?:[\w.:@~+-]*/){2,}[\w.:@~+-]*|(?<!\w)/[\w.:@~+-]+"), "*"),
    (re.compile(r"\[\s*-?\d*(?:\s*,\s*-?\d+)*\s*\]"), "#"),  # dimensions, however many
)
# A name as a word of its own, also as TensorRT alters it for the layers and tensors that it adds.
WHOLE_NAME = r"(?<![\w/])(?<!\w\.)(?:node_of_)?{}(?:_output|_\d+)*(?![\w/]|\.\w)"
WITH_DIGIT = re.compile(r"[\w.$]*\d[\w.$]*")
RUN_OF_NUMBERS = re.compile(r"-?#(?:[\s,x*#-]*#)+|-#")


def normalise(message: str, names: Collection[str] = ()) -> str:
    """What the first line of a message says, less names, numbers, addresses, paths and quotes; "" if it is mere noise."""
    lines = (BOILERPLATE.sub("", line.strip()) for line in message.splitlines() if not NOISE.search(line))
    text = next((line for line in lines if line), "")
    for name in sorted((name for name in names if name and name in text), key=len, reverse=True):
        text = re.sub(WHOLE_NAME.format(re.escape(name)), "*", text)
    for pattern, replacement in RULES:
        text = pattern.sub(replacement, text)
    text = WITH_DIGIT.sub(lambda word: word[0] if DTYPE.fullmatch(word[0]) else "#", text)
    return RUN_OF_NUMBERS.sub("#", text)


def _parser_signature(error: ParserError, names: Collection[str]) -> str:
    said = "" if error.desc == "false" else normalise(error.desc, {*names, error.node})  # an operator without importer
    return " ".join(part for part in ("parse:", error.code, error.op, error.func, said) if part)
