"""The options of `probe ladder`, and how they become `Settings`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from probes import options
from probes.options import FILE, option

if TYPE_CHECKING:
    from probes.laddering.running import Settings

METHODS = ("max", "entropy")
READABLE = click.Path(exists=True, path_type=Path)

SECONDS = option("--seconds", type=click.FloatRange(min=0.01), metavar="SECONDS", default=0.3, show_default=True,
                 help="Of measuring, for each step.")  # fmt: skip
SEED = option(
    "--seed", type=click.IntRange(min=0), metavar="N", default=0, show_default=True, help="Of what is random."
)
RESULTS = (options.out("ladder"), options.JSON)

SECTIONS = {
    "The model": (
        option("--config", metavar="tiny|base|large|FILE", help="Its sizes (base), or its config.json."),
        option("--weights", metavar="PATH", type=READABLE,
               help="A Hugging Face folder, a .safetensors or an .onnx encoder; random weights without it."),
    ),
    "Its inputs": (
        option("--batch", type=click.IntRange(min=1), metavar="N", help="Sequences at once (32; 2 without a GPU)."),
        option("--seq", "sequence", type=click.IntRange(min=1), metavar="N", help="Tokens of a sequence (128; 32 without a GPU)."),
        option("--lengths", type=click.Choice(("full", "uniform")),
               help="Valid tokens: all (full), or spread over 0.2 to 1.0 of the sequence."),
        option("--inputs", metavar="FILE.npz", type=FILE,
               help="input_ids, token_type_ids, attention_mask [B, S] of real text, with its own lengths."),
        SEED,
    ),
    "What is measured": (
        option("--routes", default="", metavar="A,B", help="Some of kernels, onnx, plugins, frameworks (or torch, torch-tensorrt, tvm); all without it."),
        option("--steps", default="", metavar="A,B", help="Some of the ladder's steps, by name; all without it."),
        SECONDS,
        option("--calibration", "samples", metavar="FILE.npz", type=FILE,
               help="The same as --inputs, for INT8's scales; the inputs themselves without it."),
        option("--method", type=click.Choice(METHODS), default="max", show_default=True,
               help="INT8's scales: by the largest value, or by least loss of information."),
    ),
    "Where it is wrong": (
        option("--bisect", is_flag=True, help="Search what is to blame where a step is over the tolerance."),
        option("--tolerance", type=click.FloatRange(min=0, min_open=True), metavar="ERROR", default=1e-2, show_default=True,
               help="Relative L2 error beyond which --bisect searches."),
    ),
    "Results": (
        option("--resume", metavar="DIR", type=options.FOLDER, help="Go on with an interrupted session; nothing is measured twice."),
        *RESULTS,
    ),
}  # fmt: skip

FUSION = {"What is measured": (SECONDS, SEED), "Results": RESULTS}


def to_settings(values: dict[str, Any]) -> Settings:
    """From what click parsed. Lists have commas between."""
    from probes.laddering.running import Settings

    for name in ("routes", "steps"):
        values[name] = tuple(filter(None, values[name].split(",")))
    return Settings(**values)
