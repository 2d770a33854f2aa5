"""The options of `probe ladder`, and how they become `Settings`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from probes.bisecting.options import FILE, FOLDER

if TYPE_CHECKING:
    from probes.laddering.running import Settings

METHODS = ("max", "entropy")
READABLE = click.Path(exists=True, path_type=Path)

SECONDS = click.option("--seconds", type=click.FloatRange(min=0.01), default=0.3, show_default=True,
                       help="Of measuring, for each step.")  # fmt: skip
SEED = click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of what is random.")
OUT = click.option("--out", metavar="DIR", type=FOLDER, help="The session folder to write.")

OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--config", default="base", show_default=True, metavar="tiny|base|large|FILE",
                 help="The model's sizes, or its config.json."),
    click.option("--weights", metavar="PATH", type=READABLE,
                 help="A Hugging Face folder, a .safetensors or an .onnx encoder; random weights without it."),
    click.option("--batch", type=click.IntRange(min=1), help="Sequences at once (32; 2 without a GPU)."),
    click.option("--seq", "sequence", type=click.IntRange(min=1), help="Tokens of a sequence (128; 32 without a GPU)."),
    click.option("--lengths", type=click.Choice(("full", "uniform")), default="full", show_default=True,
                 help="Valid tokens: all, or spread over 0.2 to 1.0 of the sequence."),
    click.option("--inputs", metavar="FILE.npz", type=FILE,
                 help="input_ids, token_type_ids, attention_mask [B, S] of real text, with its own lengths."),
    click.option("--calibration", "samples", metavar="FILE.npz", type=FILE,
                 help="The same, for INT8's scales; the inputs themselves without it."),
    click.option("--method", type=click.Choice(METHODS), default="max", show_default=True,
                 help="INT8's scales: by the largest value, or by least loss of information."),
    click.option("--routes", default="", metavar="A,B", help="Some of kernels, onnx, plugins, frameworks; all without it."),
    click.option("--steps", default="", metavar="A,B", help="Some of the ladder's steps, by name; all without it."),
    click.option("--bisect", is_flag=True, help="Search what is to blame where a step is over the tolerance."),
    click.option("--tolerance", type=click.FloatRange(min=0, min_open=True), default=1e-2, show_default=True,
                 help="Relative L2 error beyond which --bisect searches."),
    SECONDS, SEED, OUT,
)  # fmt: skip


def ladder_options(command: Any) -> Any:
    """All options of `probe ladder bert`, in the order of its help."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def to_settings(values: dict[str, Any]) -> Settings:
    """From what click parsed. Lists have commas between."""
    from probes.laddering.running import Settings

    for name in ("routes", "steps"):
        values[name] = tuple(filter(None, values[name].split(",")))
    return Settings(**values)
