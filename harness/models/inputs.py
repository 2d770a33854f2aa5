"""Input samples of a model: from .npz files, from Polygraphy's JSON, or random with a seed."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from harness import optional
from harness.errors import ParseError, UsageError
from harness.models.runtime import check_feeds, fed_dtype, fixed_size

Feeds = dict[str, np.ndarray]
LENGTHS = (16, 64, 256, 1024, 4096, 16384)  # a sentence, a window of sound
DTYPES = "probe:dtypes"  # an entry of files that we write: the arrays that are bits of a type NumPy has not


@dataclass(frozen=True)
class RandomInputs:
    """How inputs are drawn where the user gave none. Shapes are by input name; the range is [low, high).

    `length` stands for a free dimension that is neither the batch nor a side of an image: a sequence, samples of sound.
    """

    seed: int = 0
    shapes: Mapping[str, tuple[int, ...]] | None = None
    low: float = -1.0
    high: float = 1.0
    samples: int = 1
    length: int = 16


def read_samples(paths: Sequence[Path], inputs: Sequence[onnx.ValueInfoProto]) -> list[Feeds]:
    """Every sample in the files, checked against the model's inputs. An .npz is one sample, a JSON holds several."""
    samples = []
    for path in paths:
        if not path.is_file():
            raise UsageError(f"{path} does not exist", hint="--inputs FILE.npz with one array per input name")
        for number, feeds in enumerate(_read_json(path) if path.suffix == ".json" else [_read_npz(path)]):
            origin = f"{path} (sample {number})" if number else str(path)
            feeds = _of_declared_types(inputs, feeds)
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
    symbols, assumed = _symbols(inputs, given), dict[str, int]()
    for value in inputs:
        shapes[value.name], guessed = _shape(value, given.get(value.name), symbols, assumed, how.length)
        if guessed:
            text = "x".join(map(str, shapes[value.name]))
            notes.append(f"input {value.name!r} has free dimensions; {text} was assumed")
    rng = np.random.default_rng(how.seed)
    samples = [{v.name: _draw(v, shapes[v.name], how, rng) for v in inputs} for _ in range(how.samples)]
    for feeds in samples:
        check_feeds(inputs, feeds, "the shape that was given")
    return samples, notes


def fitting_samples(
    inputs: Sequence[onnx.ValueInfoProto], how: RandomInputs, runs: Callable[[Feeds], bool]
) -> tuple[list[Feeds], list[str]]:
    """`random_samples`; where dimensions were guessed, of the first of LENGTHS that the model runs on, if there is one."""
    first, notes = random_samples(inputs, how)
    if notes:
        for length in LENGTHS:
            samples, said = random_samples(inputs, replace(how, length=length))
            if runs(samples[0]):
                return samples, said
    return first, notes


def save_samples(samples: Sequence[Feeds], folder: Path) -> tuple[Path, ...]:
    """Keep the samples in the session, so that a search can be resumed and repeated with the very same inputs."""
    paths = []
    for number, feeds in enumerate(samples):
        path = folder / f"sample-{number}.npz"
        kinds = {name: helper.np_dtype_to_tensor_dtype(a.dtype) for name, a in feeds.items() if a.dtype.isbuiltin == 2}
        noted = {DTYPES: np.array(json.dumps(kinds))} if kinds else {}
        np.savez(path, allow_pickle=False, **{name: _storable(array) for name, array in feeds.items()}, **noted)
        paths.append(path)
    return tuple(paths)


def load_samples(paths: Sequence[Path]) -> list[Feeds]:
    return [_read_npz(path) for path in paths]


def _storable(array: np.ndarray) -> np.ndarray:
    """In a type that an .npz file holds without pickling: bits for BF16 and FP8, fixed width for strings."""
    if array.dtype == object:
        return array.astype(np.str_)
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.isbuiltin == 2 else array


def _of_declared_types(inputs: Sequence[onnx.ValueInfoProto], feeds: Feeds) -> Feeds:
    """BF16 and FP8 as NumPy users have them: as FP32, or as bits of no type, which is what a file makes of them."""
    wanted = {v.name: dtype for v in inputs if v.name in feeds and (dtype := fed_dtype(v)).isbuiltin == 2}
    made = {}
    for name, dtype in wanted.items():
        array = feeds[name]
        same = array.dtype.kind == "V" and array.dtype.itemsize == dtype.itemsize
        made[name] = array.view(dtype) if same else array.astype(dtype) if array.dtype.kind == "f" else array
    return {**feeds, **made}


def _read_npz(path: Path) -> Feeds:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ParseError(path, "content", "an .npz archive with one array per input", "a single array (.npy)")
            kinds = json.loads(str(archive[DTYPES])) if DTYPES in archive.files else {}
            arrays = {name: archive[name] for name in archive.files if name != DTYPES}
            return arrays | {n: arrays[n].view(helper.tensor_dtype_to_np_dtype(kind)) for n, kind in kinds.items()}
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
    value: onnx.ValueInfoProto, given: tuple[int, ...] | None, symbols: Mapping[str, int], assumed: dict[str, int], length: int
) -> tuple[tuple[int, ...], bool]:  # fmt: skip
    """The shape to draw, and whether something was guessed: 1 for the batch, 64 for image sides, else `length`.

    What was guessed of a named dimension holds for other inputs too: it is kept in `assumed`.
    """
    if given is not None:
        return given, False
    dims, shape = value.type.tensor_type.shape.dim, []
    guesses = 0
    for index, dim in enumerate(dims):
        size = symbols.get(dim.dim_param) if dim.dim_param else fixed_size(dim)
        if size is None:
            guesses += 1
            is_batch = index == 0 or "batch" in dim.dim_param.lower()
            size = 1 if is_batch else 64 if len(dims) == 4 else length
            size = assumed.setdefault(dim.dim_param, size) if dim.dim_param else size
        shape.append(size)
    return tuple(shape), guesses > 0


def _draw(
    value: onnx.ValueInfoProto, shape: tuple[int, ...], how: RandomInputs, rng: np.random.Generator
) -> np.ndarray:
    dtype = fed_dtype(value)
    if dtype == np.bool_:
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.kind == "O":  # strings
        return rng.integers(0, 2, shape).astype(str)
    if (
        dtype.kind in "iu"
    ):  # token ids and the like: a range given for floats makes sense for them once it spans integers
        low, high = (int(how.low), int(how.high)) if how.high - how.low >= 2 and how.low >= 0 else (0, 2)
        return np.asarray(rng.integers(low, max(high, low + 1), shape), dtype=dtype)
    return np.asarray(rng.uniform(how.low, how.high, shape), dtype=dtype)
