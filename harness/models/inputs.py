"""Input samples of a model: from .npz files, from Polygraphy's JSON, or random with a seed."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from harness import optional
from harness.errors import ParseError, UsageError
from harness.models.runtime import check_feeds

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class RandomInputs:
    """How inputs are drawn where the user gave none. Shapes are by input name; the range is [low, high)."""

    seed: int = 0
    shapes: Mapping[str, tuple[int, ...]] | None = None
    low: float = -1.0
    high: float = 1.0
    samples: int = 1


def read_samples(paths: Sequence[Path], inputs: Sequence[onnx.ValueInfoProto]) -> list[Feeds]:
    """Every sample in the files, checked against the model's inputs. An .npz is one sample, a JSON holds several."""
    samples = []
    for path in paths:
        if not path.is_file():
            raise UsageError(f"{path} does not exist", hint="--inputs FILE.npz with one array per input name")
        for number, feeds in enumerate(_read_json(path) if path.suffix == ".json" else [_read_npz(path)]):
            origin = f"{path} (sample {number})" if number else str(path)
            check_feeds(inputs, feeds, origin)
            samples.append(feeds)
    return samples


def random_samples(inputs: Sequence[onnx.ValueInfoProto], how: RandomInputs) -> tuple[list[Feeds], list[str]]:
    """Samples drawn from a uniform distribution, and what was assumed about shapes (to be told to the user)."""
    given = dict(how.shapes or {})
    if unknown := sorted(given.keys() - {value.name for value in inputs}):
        raise UsageError(
            f"a shape of {unknown[0]!r} was given: the model has no such input; it reads {sorted(v.name for v in inputs)}"
        )
    notes, shapes = [], {}
    symbols = _symbols(inputs, given)
    for value in inputs:
        shapes[value.name], guessed = _shape(value, given.get(value.name), symbols)
        if guessed:
            text = "x".join(map(str, shapes[value.name]))
            notes.append(f"input {value.name!r} has free dimensions; {text} was assumed")
    rng = np.random.default_rng(how.seed)
    samples = [{v.name: _draw(v, shapes[v.name], how, rng) for v in inputs} for _ in range(how.samples)]
    for feeds in samples:
        check_feeds(inputs, feeds, "the shape that was given")
    return samples, notes


def save_samples(samples: Sequence[Feeds], folder: Path) -> tuple[Path, ...]:
    """Keep the samples in the session, so that a search can be resumed and repeated with the very same inputs."""
    paths = []
    for number, feeds in enumerate(samples):
        path = folder / f"sample-{number}.npz"
        np.savez(path, allow_pickle=False, **feeds)
        paths.append(path)
    return tuple(paths)


def load_samples(paths: Sequence[Path]) -> list[Feeds]:
    return [_read_npz(path) for path in paths]


def _read_npz(path: Path) -> Feeds:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ParseError(path, "content", "an .npz archive with one array per input", "a single array (.npy)")
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        got = str(error) if zipfile.is_zipfile(path) else "no archive"
        raise ParseError(path, "content", "an .npz archive of plain arrays", got) from error


def _read_json(path: Path) -> list[Feeds]:
    """Polygraphy's --save-inputs / --save-outputs format: a list of samples."""
    polygraphy = optional.load("polygraphy.json", "to read Polygraphy's JSON inputs")
    try:
        content = polygraphy.load_json(str(path))
        samples = content if isinstance(content, list) else list(content)
        return [{name: np.asarray(array) for name, array in sample.items()} for sample in samples]
    except Exception as error:  # Polygraphy raises its own kinds for each way in which a file can be wrong
        raise ParseError(path, "content", "Polygraphy's JSON of input samples", str(error).splitlines()[0]) from error


def _symbols(inputs: Sequence[onnx.ValueInfoProto], given: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """What the named dimensions are in the shapes that are given: other inputs with the same name follow."""
    dims = {value.name: value.type.tensor_type.shape.dim for value in inputs}
    return {
        dim.dim_param: size for name, shape in given.items() for dim, size in zip(dims[name], shape, strict=False) if dim.dim_param
    }  # fmt: skip


def _shape(
    value: onnx.ValueInfoProto, given: tuple[int, ...] | None, symbols: Mapping[str, int]
) -> tuple[tuple[int, ...], bool]:
    """The shape to draw, and whether something was guessed: 1 for the batch, 64 for image sides, 16 for lengths."""
    if given is not None:
        return given, False
    dims = value.type.tensor_type.shape.dim
    is_image = len(dims) == 4
    known = [d.dim_value if d.dim_value > 0 else symbols.get(d.dim_param) if d.dim_param else None for d in dims]
    shape = tuple(size if size is not None else 1 if i == 0 else 64 if is_image else 16 for i, size in enumerate(known))
    return shape, None in known


def _draw(
    value: onnx.ValueInfoProto, shape: tuple[int, ...], how: RandomInputs, rng: np.random.Generator
) -> np.ndarray:
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
    if dtype == np.bool_:
        return rng.integers(0, 2, shape).astype(bool)
    if (
        dtype.kind in "iu"
    ):  # token ids and the like: a range given for floats makes sense for them once it spans integers
        low, high = (int(how.low), int(how.high)) if how.high - how.low >= 2 and how.low >= 0 else (0, 2)
        return np.asarray(rng.integers(low, max(high, low + 1), shape), dtype=dtype)
    return np.asarray(rng.uniform(how.low, how.high, shape), dtype=dtype)
