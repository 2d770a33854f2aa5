"""trtexec on the command line, TensorRT 8.6 to 11: one set of options that measures the same thing on all of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.errors import UsageError
from harness.record import Command, ToolRun
from harness.tools import tool as tools
from harness.tools.tool import Recorded, Symptom, Tell, Tool, Wanted

STEM = "trtexec"
WANTED = Wanted(
    "trtexec", "to time an engine", "apt-get install libnvinfer-bin", floor=(8, 5), version=("--help",)
)  # fmt: skip
FLAGS = {"fp16": ("--fp16",), "bf16": ("--bf16",), "int8": ("--int8",), "tf32": (), "fp32": ("--noTF32",)}
SYMPTOMS = (
    Symptom(r"does not satisfy any optimization profile|not in range of (?:the )?optimization profile|Shape.{0,60}out of (?:range|bounds)"
            r"|dimension.{0,80}(?:profile|kMIN|kMAX)",
            "the shape lies outside the opt_profile of the engine", "--min, --opt and --max that hold --shapes"),
    Symptom(r"[Vv]ersion tag does not match|engine plan file is not compatible|incompatible.{0,30}(?:version|TensorRT|device)"
            r"|magicTag|Serialization assertion.*[Vv]ersion|Platform specific tag mismatch",
            "the engine was built by another version of TensorRT, or for another GPU", "build it again here, from the model"),
    Symptom(r"[Uu]nable to find plugin: (?P<a>\w+)|[Cc]annot find plugin: (?P<b>\w+)|[Pp]lugin not found.{0,80}?(?P<c>\w+Plugin\w*)"
            r"|No importer registered for op: (?P<d>\w+)|plugin (?P<e>\w+).{0,20} not found"
            r"|While parsing node number \d+ \[(?P<f>\w+)[\s\S]{0,4000}Plugin not found"
            r"|could not find plugin:? (?P<g>\w+) version",
            "there is no plugin or importer for {a}{b}{c}{d}{e}{f}{g}", "--plugin LIBRARY.so that holds it"),
    Symptom(r"[Nn]etwork has dynamic or shape inputs, but no optimization profile|profile is missing values for shape input",
            "the model has free dimensions that no shape was given for", "--shapes NAME:1x128 for each of its inputs"),
    Symptom(r"Target GPU SM (?P<sm>\d+) is not supported|Unsupported SM", "this TensorRT does not support the GPU",
            "an older TensorRT: probe doctor shows both"),
    Symptom(r"[Ff]ailed to parse (?:onnx|ONNX)|ModelImporter.*ERROR|could not parse|Could not open file",
            "the model could not be parsed", "probe bisect MODEL --fault build names the node"),
    Symptom(r"Unknown option: (?P<option>\S+)", "it does not know {option}", "probe doctor shows its version"),
    Symptom(r"an illegal memory access|Cuda Runtime \(|CUDA error 700", "a kernel of the engine failed",
            "probe sanitize on the same model finds which"),
    Symptom(r"[Cc]ould not find any implementation for node (?P<node>.{1,80}?)(?:\.?\)|$|\n)",
            "TensorRT has no kernel for {node}, or none that fits into the memory", "probe bisect MODEL --fault build"),
    Symptom(r"[Ee]ngine could not be created|Building? (?:engine|failed)|Engine set up failed", "the engine could not be built",
            "probe bisect MODEL --fault build"),
)  # fmt: skip

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Options:
    """What to time. `model` is an .onnx file or an engine; a shape is that of one input."""

    model: Path
    engine: bool = False
    precision: str | None = None  # one of FLAGS; None: as the model is
    shapes: Shapes = field(default_factory=dict)
    minimum: Shapes = field(default_factory=dict)
    optimum: Shapes = field(default_factory=dict)
    maximum: Shapes = field(default_factory=dict)
    inputs: Mapping[str, Path] = field(default_factory=dict)  # raw bytes of each
    plugins: tuple[Path, ...] = ()
    iterations: int = 100
    warmup_ms: int = 200
    cuda_graph: bool = False
    spin_wait: bool = False
    transfers: bool = True  # to the GPU and back, in every iteration
    timeout_s: float | None = None


def command(tool: Tool, options: Options, report: Path) -> Command:
    """trtexec with its exports beside `report`: `.times.json`, `.profile.json`, `.layers.json`.

    What is measured is always said, whatever the version's defaults. Raises UsageError if this version cannot do it.
    """
    words = [f"--loadEngine={options.model}"] if options.engine else [f"--onnx={options.model}", *_build(tool, options)]
    if options.shapes:
        words.append(f"--shapes={_spell(options.shapes)}")
    if options.inputs:
        words.append("--loadInputs=" + ",".join(f"{_quoted(name)}:{path}" for name, path in options.inputs.items()))
    words += [_plugin(tool, path) for path in options.plugins]
    words += [f"--iterations={options.iterations}", "--duration=0", f"--warmUp={options.warmup_ms}", "--avgRuns=1"]
    words += _measuring(tool, options)
    words += ["--profilingVerbosity=detailed", "--dumpProfile"]
    base = str(report.absolute())
    words += [f"--exportTimes={base}.times.json", f"--exportProfile={base}.profile.json",
              f"--exportLayerInfo={base}.layers.json"]  # fmt: skip
    return Command((str(tool.path), *words), options.timeout_s)


def _build(tool: Tool, options: Options) -> list[str]:
    words: list[str] = []
    if options.precision is not None:
        words += _precision(tool, options.precision)
    for name, shapes in (("min", options.minimum), ("opt", options.optimum), ("max", options.maximum)):
        if shapes:
            words.append(f"--{name}Shapes={_spell(shapes)}")
    return words


def _precision(tool: Tool, precision: str) -> Sequence[str]:
    flags = FLAGS[precision]
    if missing := [flag for flag in flags if not tool.has(flag)]:
        raise UsageError(
            f"trtexec {tool.version_text} has no {missing[0]}: the precision of a network lies in the model there",
            hint="leave --precision out and give a model in that precision; or without --trtexec",
        )
    return flags


def _measuring(tool: Tool, options: Options) -> list[str]:
    """The switches whose defaults changed with 11: what is on there has a switch to turn it off, and the reverse.

    Layers are timed in a run of their own, as TensorRT-RTX's documentation says that --dumpProfile does there by itself.
    """
    wanted = (
        (options.cuda_graph, "--useCudaGraph", "--noCudaGraph"),
        (options.spin_wait, "--useSpinWait", "--noSpinWait"),
        (options.transfers, "--includeDataTransfers", "--noDataTransfers"),
    )
    words = []
    for on, to_turn_on, to_turn_off in wanted:
        words.append(to_turn_on if on else to_turn_off)
    return [word for word in (*words, "--separateProfileRun") if tool.has(word)]


def _plugin(tool: Tool, path: Path) -> str:
    return f"--staticPlugins={path}" if tool.has("--staticPlugins") else f"--plugins={path}"


def _spell(shapes: Shapes) -> str:
    return ",".join(f"{_quoted(name)}:{'x'.join(map(str, dims)) or 'scalar'}" for name, dims in shapes.items())


def _quoted(name: str) -> str:
    """A name with a colon or a comma in single quotes, as trtexec takes it."""
    return f"'{name}'" if re.search(r"[:,]", name) else name


def run(options: Options, folder: Path, tell: Tell, *, stem: str = STEM) -> Recorded:
    """Build (from a model) and time an engine; log and exports go to `folder`.

    Raises ToolMissing, UsageError, ToolTimeout, or ToolFailed with the reason where trtexec gives one.
    """
    tool = tools.find(WANTED)
    report = folder / stem
    ran = tools.drive(tool, command(tool, options, report), report, tell)
    text = tools.said(ran)
    if ran.ok and not _ended(ran):
        raise tools.empty(
            tool, "said neither PASSED nor FAILED: its output is cut, or it is no trtexec", tools.where(ran), text
        )
    if not ran.ok or not passed(ran):
        raise tools.failure(tool, ran, text, SYMPTOMS, quoted=_errors(text))
    return Recorded(tool, ran, (ran.stdout, *_exports(report)), None, _remarks(tool, options))


def passed(ran: ToolRun) -> bool:
    """Whether it said so: a run that was cut short has an end of its own neither way."""
    return _ended(ran) and "&&&& FAILED" not in ran.stdout.read_text("utf-8", "replace")


def _ended(ran: ToolRun) -> bool:
    return re.search("&&&& (?:PASSED|FAILED)", ran.stdout.read_text("utf-8", "replace")) is not None


def _errors(text: str) -> str:
    """The lines of errors alone, where there are some: on a failure hundreds of others stand around them."""
    return "\n".join(line for line in text.splitlines() if "[E]" in line or "&&&& FAILED" in line)


def _exports(report: Path) -> list[Path]:
    written = (report.with_name(f"{report.name}.{name}.json") for name in ("times", "profile", "layers"))
    return [path for path in written if path.is_file() and path.stat().st_size]


def _remarks(tool: Tool, options: Options) -> tuple[str, ...]:
    state = {True: "on", False: "off"}
    facts = (f"CUDA graph {state[options.cuda_graph]}", f"spin-wait {state[options.spin_wait]}",
             f"data transfers {state[options.transfers]}")  # fmt: skip
    return (f"trtexec {tool.version_text} timed with {', '.join(facts)}; layers in a run of their own",)
