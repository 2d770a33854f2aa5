"""What trtexec is given: the shapes and inputs that every other tool gets, in its own words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from harness.errors import UsageError
from harness.models import inputs as samples_of
from harness.models import model as models
from harness.models.inputs import RandomInputs
from harness.tools import trtexec
from probes.profiling.settings import Settings
from probes.targets import workloads
from probes.targets.inferring import Feeds, fed
from probes.targets.target import Kind

Shapes = Mapping[str, tuple[int, ...]]


def for_trtexec(settings: Settings, shapes: Shapes, folder: Path) -> tuple[trtexec.Options, tuple[str, ...]]:
    """The options, and what is to be said of the inputs; `shapes` is what runs, `folder` takes the inputs as files.

    By itself trtexec would make free dimensions 1, and token ids any number.
    """
    declared, feeds = _feeds(settings, shapes)
    given = _free(declared, feeds) if declared else workloads.shapes(settings)
    least, best, most = (
        {name: bounds.get(name, shape) for name, shape in given.items()} for bounds in workloads.opt_profiles(settings)
    )
    options = trtexec.Options(
        settings.target.path.absolute(), settings.target.kind is Kind.ENGINE, settings.precision or workloads.PRECISION,
        given, least, best, most, _raw(feeds, folder, given=settings.inputs is not None),
        tuple(path.absolute() for path in settings.plugins), settings.iterations, cuda_graph=settings.cuda_graph,
        timeout_s=settings.timeout,
    )  # fmt: skip
    return options, (fed(_files(settings), feeds),) if feeds else ()


def _files(settings: Settings) -> tuple[Path, ...]:
    return () if settings.inputs is None else (settings.inputs,)


def _feeds(settings: Settings, shapes: Shapes) -> tuple[Sequence[onnx.ValueInfoProto], Feeds]:
    """A model's inputs as declared, and a sample; of an engine, whose inputs only TensorRT can tell, what was given."""
    if settings.target.kind is Kind.ENGINE:
        return (), samples_of.load_samples(_files(settings))[0] if settings.inputs else {}
    declared = models.load(settings.target.path).inputs
    if settings.inputs:
        return declared, samples_of.read_samples(_files(settings), declared)[0]
    return declared, samples_of.random_samples(declared, RandomInputs(shapes=shapes))[0][0]


def _free(declared: Sequence[onnx.ValueInfoProto], feeds: Feeds) -> dict[str, tuple[int, ...]]:
    """The shapes of the inputs that have free dimensions: trtexec takes none for the others."""
    return {
        value.name: feeds[value.name].shape
        for value in declared if any(dim.dim_value <= 0 for dim in value.type.tensor_type.shape.dim)
    }  # fmt: skip


def _raw(feeds: Feeds, folder: Path, *, given: bool) -> dict[str, Path]:
    """The bytes of each array in a file of its own, in the type the model declares.

    Where trtexec cannot read them, those that were made up are left out; UsageError for those that were given.
    """
    if "," in str(folder.absolute()):
        if given:
            raise UsageError(
                f"trtexec cannot read inputs from {folder}: its path holds a comma", hint="--out FOLDER without one"
            )
        return {}
    folder.mkdir(exist_ok=True)
    files = {}
    for number, (name, array) in enumerate(feeds.items()):
        path = folder / f"{number}.bin"
        path.write_bytes(np.ascontiguousarray(array).tobytes())
        files[name] = path.absolute()
    return files
