"""`probe ladder bert`: every step's speed and accuracy, on every route that is here, for the user's own model and card."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.bert import calibration
from harness.bert import model as bert
from harness.bert import reference as bert_reference
from harness.bert import weights as bert_weights
from harness.bert.model import BertConfig
from harness.cuda import device as gpu
from harness.cuda.device import Device
from harness.engines.cache import digest
from harness.errors import EXIT_CLEAN, EXIT_DEFECT, EXIT_INTERRUPTED, EXIT_UNDECIDED, ProbeError, UsageError
from harness.models.precision import Precision
from harness.record import Session, restored, to_json
from kernels.attention import uniform_lengths
from probes.bisecting import running as bisecting
from probes.bisecting.settings import Settings as BisectSettings
from probes.kernels import benching as kernel_benching
from probes.laddering import routes as ladder_routes
from probes.laddering import rungs
from probes.laddering.routes import Absent, Job, Measured, Route, Taken
from probes.laddering.rungs import Rung
from probes.targets import driving
from reports.pages import page

Array = np.ndarray[Any, Any]
Tell = Callable[[str], None]
PRESET = "base"
SETTINGS = "raw/settings.json"
FILES = ("weights", "inputs", "samples")  # among the settings
CHECKED = 2  # sequences whose result is compared with float64, where a GPU computes many
GPU_SHAPE, CPU_SHAPE = (32, 128), (2, 32)  # batch and sequence, unless they are given


@dataclass(frozen=True)
class Settings:
    """What to climb. `config` is a preset or a config.json; `weights` a folder, .safetensors or .onnx (random without).

    `inputs`: an .npz with `bert.INPUTS` [B, S] of real text, which then says batch, sequence and lengths. Raises
    UsageError where something is said twice.
    """

    config: str | None = None  # base
    weights: Path | None = None
    batch: int | None = None
    sequence: int | None = None
    lengths: str | None = None  # full, or uniform: 0.2 to 1.0 of the sequence
    inputs: Path | None = None
    samples: Path | None = None  # of calibration; the inputs themselves without
    method: str = "max"
    routes: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    seconds: float = 0.3
    seed: int = 0
    bisect: bool = False
    tolerance: float = 1e-2
    out: Path | None = None

    def __post_init__(self) -> None:
        if self.inputs is not None:
            for option, value in (("batch", self.batch), ("seq", self.sequence), ("lengths", self.lengths)):
                if value is not None:
                    raise UsageError(f"--{option} {value}: the text of --inputs {self.inputs.name} says it already",
                                     hint=f"leave out --{option} or --inputs")  # fmt: skip
        if self.weights is not None and self.config is not None and not self.config_file:
            raise UsageError(f"--config {self.config}: --weights {self.weights.name} says its sizes itself",
                             hint="leave out --config, or give the weights' config.json")  # fmt: skip

    @property
    def config_file(self) -> Path | None:
        """The config.json, where `config` is one."""
        return Path(self.config) if self.config and Path(self.config).is_file() else None

    @property
    def name(self) -> str:
        """The model's, as it is shown: no folders."""
        named = self.weights or self.config_file
        return named.name if named else self.config or PRESET

    def to_json(self) -> dict[str, Any]:
        """What `from_json` takes: files by where they lie."""
        made: dict[str, Any] = json.loads(to_json({
            name: str(value.absolute()) if isinstance(value, Path) else value for name, value in asdict(self).items()
        }))  # fmt: skip
        return made | {"config": str(self.config_file.absolute()) if self.config_file else self.config, "out": None}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Settings:
        paths = {name: Path(content[name]) for name in FILES if content[name] is not None}
        lists = {name: tuple(content[name]) for name in ("routes", "steps")}
        return cls(**{**content, **paths, **lists})

    def command(self) -> list[str]:
        """The command line again, files by name only."""
        words = ["ladder", "bert"]
        texts = {"config": self.config_file.name if self.config_file else self.config, "weights": self.weights, "batch": self.batch, "seq": self.sequence, "lengths": self.lengths,
                 "inputs": self.inputs, "calibration": self.samples, "method": self.method,
                 "routes": ",".join(self.routes), "steps": ",".join(self.steps), "seconds": f"{self.seconds:g}",
                 "seed": self.seed, "tolerance": f"{self.tolerance:g}"}  # fmt: skip
        for name, value in texts.items():
            if value not in (None, ""):
                words += [f"--{name}", value.name if isinstance(value, Path) else str(value)]
        return [*words, *(["--bisect"] if self.bisect else [])]


@dataclass(frozen=True)
class Laddered:
    """The JSON document, where it lies, and how the command ends."""

    document: dict[str, Any]
    session: Session
    exit_code: int


def climb(settings: Settings, tell: Tell = lambda _: None) -> Laddered:
    """Take every step on every route, write session and page; what was measured is kept if it is interrupted.

    Raises UsageError for a model, inputs, steps or routes that do not exist or do not fit.
    """
    given = _given(settings)
    session = Session.create("ladder", settings.out)
    device = given.device
    session.write_json(SETTINGS, settings.to_json())
    session.write_json("manifest.json", driving.manifest("ladder", settings.command(), {
        "model": {"config": settings.name, **asdict(given.config)}, "sha256": given.sha256,
        **({"device": device.facts.as_manifest(), "clock_state_before": gpu.clock_state(device)} if device else {}),
    }))  # fmt: skip
    return _run(settings, given, session, tell)


def resume(folder: Path, tell: Tell = lambda _: None) -> Laddered:
    """Go on where a session ended; what was measured is not measured again.

    Raises UsageError where model, text or card are others than those of the session.
    """
    session = Session.open(folder)
    if not (folder / SETTINGS).is_file():
        raise UsageError(f"{folder} is no session of probe ladder bert", hint="ls probe-runs")
    settings, manifest = Settings.from_json(session.read_json(SETTINGS)), session.read_json("manifest.json")
    given = _given(settings)
    if given.sha256 != manifest["sha256"]:
        raise UsageError(f"the model or its inputs have changed since {folder} was written",
                         hint="start a new ladder: what was measured belongs to others")  # fmt: skip
    card, here = manifest.get("device", {}).get("name"), given.device.facts.name if given.device else None
    if card != here:
        raise UsageError(f"{folder} was measured on {card or 'a machine without a GPU'}; here is {here or 'none'}",
                         hint="go on where it began, or start a new ladder")  # fmt: skip
    return _run(settings, given, session, tell)


@dataclass(frozen=True)
class _Given:
    """Everything that the settings name, read: the model, inputs [B, S], samples of calibration, the card."""

    wanted: tuple[Rung, ...]
    routes: tuple[str, ...]
    config: BertConfig
    weights: dict[str, Array]
    device: Device | None
    feeds: dict[str, Array]
    samples: dict[str, Array] | None

    @property
    def sha256(self) -> str:
        """Of weights, inputs and samples."""
        parts: list[str | memoryview] = [repr(self.config)]
        for arrays in (self.weights, self.feeds, self.samples or {}):
            for name, array in sorted(arrays.items()):
                parts += [name, np.ascontiguousarray(array).data]
        return digest(*parts)


def _given(settings: Settings) -> _Given:
    wanted, routes = rungs.choose(settings.steps), rungs.choose_routes(settings.routes)
    config, weights = _model(settings)
    device = device_here()
    feeds = _feeds(settings, config, device)
    samples = read_feeds(settings.samples, config) if settings.samples else None
    return _Given(wanted, routes, config, weights, device, feeds, samples)


def _run(settings: Settings, given: _Given, session: Session, tell: Tell) -> Laddered:
    """The steps that the session has no row of yet."""
    began = time.monotonic()
    tell("computing the reference in float64, and looking at the activations")
    job = _job(settings, (given.config, given.weights), (given.feeds, given.samples), given.device, session)
    known = {(row["route"], row["rung"]): row for row in map(restored, session.steps())}
    rows: list[dict[str, Any]] = []
    blamed: list[dict[str, Any]] = []
    interrupted = False
    try:
        for route in ladder_routes.ROUTES:
            if route.name in given.routes:
                rows += _climb_route(job, route, given.wanted, session, known, tell)
        if settings.bisect:
            blamed.extend(_bisect(settings, job, rows, session, tell))
    except KeyboardInterrupt:
        interrupted = True
        rows = list(map(restored, session.steps()))
    document = _document(settings, job, rows, time.monotonic() - began)
    document |= {"bisect": blamed, "interrupted": interrupted}
    return _finish(document, session, EXIT_INTERRUPTED if interrupted else _exit_code(rows), tell)


def _finish(document: dict[str, Any], session: Session, exit_code: int, tell: Tell) -> Laddered:
    session.write_json("result.json", document)
    driving.close(session, ())
    tell("drawing the page")
    page.write(session)
    return Laddered(document, session, exit_code)


# What is computed


def _model(settings: Settings) -> tuple[BertConfig, dict[str, Array]]:
    written = BertConfig.from_json(settings.config_file) if settings.config_file else None
    if settings.weights is not None:
        return bert_weights.read(settings.weights, written)
    config = written or BertConfig.preset(settings.config or PRESET)
    return config, bert.random_weights(config, settings.seed)


def device_here() -> Device | None:
    try:
        return gpu.get()
    except ProbeError:
        return None


def _feeds(settings: Settings, config: BertConfig, device: Device | None) -> dict[str, Array]:
    """The inputs [B, S]: those of the file, or random ids with the lengths that are asked for."""
    if settings.inputs is not None:
        return read_feeds(settings.inputs, config)
    batch, sequence = (given or usual for given, usual in zip(
        (settings.batch, settings.sequence), GPU_SHAPE if device else CPU_SHAPE, strict=True))  # fmt: skip
    if not 1 <= sequence <= config.max_position:
        raise UsageError(f"--seq {sequence}: expected 1 to {config.max_position}, the positions that the model has")
    lengths = uniform_lengths(batch, sequence) if settings.lengths == "uniform" else (sequence,) * batch
    rng = np.random.default_rng(settings.seed)
    shape = (batch, sequence)
    mask = np.arange(sequence)[None, :] < np.array(lengths)[:, None]
    return {"input_ids": rng.integers(0, config.vocab_size, shape), "token_type_ids": np.zeros(shape, np.int64),
            "attention_mask": mask.astype(np.int64)}  # fmt: skip


def read_feeds(path: Path, config: BertConfig) -> dict[str, Array]:
    """`bert.INPUTS` of an .npz, int64 [B, S]. Raises UsageError if one is missing or does not fit."""
    content = _arrays(path)
    found = {name: np.asarray(content[name], np.int64) for name in bert.INPUTS if name in content}
    shapes = {array.shape for array in found.values()}
    if len(found) < len(bert.INPUTS) or len(shapes) != 1 or len(shape := next(iter(shapes))) != 2 or 0 in shape:
        got = ", ".join(f"{name} {list(array.shape)}" for name, array in content.items()) or "nothing"
        raise UsageError(f"{path}: expected {', '.join(bert.INPUTS)} of one shape [B, S], got {got}")
    ids, types, mask = (found[name] for name in bert.INPUTS)
    if ids.min() < 0 or ids.max() >= config.vocab_size or ids.shape[1] > config.max_position:
        raise UsageError(f"{path}: expected input_ids of 0 to {config.vocab_size - 1} and at most {config.max_position} tokens,"
                         f" got {ids.min()} to {ids.max()} and {ids.shape[1]}")  # fmt: skip
    if types.min() < 0 or types.max() >= config.type_vocab:
        raise UsageError(
            f"{path}: expected token_type_ids of 0 to {config.type_vocab - 1}, got {types.min()} to {types.max()}"
        )
    counts = mask.sum(axis=1)
    if not np.array_equal(mask != 0, np.arange(mask.shape[1])[None, :] < counts[:, None]) or not counts.all():
        raise UsageError(f"{path}: attention_mask: expected ones, then zeros, in every sequence")
    return found


def _arrays(path: Path) -> dict[str, Array]:
    if not path.is_file():
        raise UsageError(f"{path} does not exist", hint=f"an .npz with {', '.join(bert.INPUTS)}")
    try:
        with np.load(path, allow_pickle=False) as content:
            return dict(content)
    except (ValueError, TypeError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} is no .npz of arrays", hint=f"numpy.savez(FILE, {', '.join(bert.INPUTS)})") from error


def _job(
    settings: Settings, model: tuple[BertConfig, dict[str, Array]], texts: tuple[dict[str, Array], dict[str, Array] | None],
    device: Device | None, session: Session,
) -> Job:  # fmt: skip
    """The reference's results, INT8's scales, the card's rates. `texts`: what is computed, and what tells the scales."""
    (config, weights), (feeds, samples) = model, texts
    batch = len(feeds["input_ids"])
    checked = min(batch, CHECKED) if device else batch
    part = {name: array[:checked] for name, array in feeds.items()}
    layers: list[Array] = []

    def observe(name: str, values: Array) -> None:
        if name.startswith("layer.") and name.count(".") == 1:
            layers.append(values)

    reference = bert_reference.forward(config, weights, part, observe, np.float64)
    calibrated = calibration.calibrate(config, weights, [samples or part])
    roofs = kernel_benching.measure_roofs(device, {"fp16", "int8", "fp32"}, 0.2) if device else None
    return Job(config, weights, feeds, checked, reference, tuple(layers), calibrated, settings.method, session.raw,
               settings.seconds, device, roofs)  # fmt: skip


# The steps


def _climb_route(
    job: Job, route: Route, wanted: tuple[Rung, ...], session: Session,
    known: Mapping[tuple[str, str], dict[str, Any]], tell: Tell,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of a route. A step that this route does not have is left out; a route that is not here is said once."""
    rows: list[dict[str, Any]] = []
    for rung in wanted:
        if (before := known.get((route.name, rung.name))) is not None:
            rows.append(before)
            if before["whole_route"]:
                break
            continue
        tell(f"{route.title}: {rung.title}")
        taken = _take(job, route, rung)
        absent = taken if isinstance(taken, Absent) else None
        if absent and absent.status == "not available" and not absent.whole and route.name != "kernels":
            continue
        row = _row(job, route, rung, taken, rows)
        session.append_step(row)
        rows.append(row)
        if absent and absent.whole:
            break
    return rows


def _take(job: Job, route: Route, rung: Rung) -> Taken:
    try:
        return route.take(job, rung)
    except ProbeError as error:
        return Absent("failed", _in_short(str(error), job.folder / f"{route.name}-failed.txt"))


def _in_short(said: str, log: Path) -> str:
    """A failure in a line or two: what failed and the first error; all that a compiler said goes into the log."""
    first, _, rest = said.strip().partition("\n")
    if not rest:
        return first
    with log.open("a", encoding="utf-8") as stream:
        stream.write(said + "\n\n")
    errors = (line.strip() for line in rest.splitlines() if "error" in line.lower())
    return " ".join(filter(None, (first, next(errors, ""), f"(raw/{log.name})")))


def _row(job: Job, route: Route, rung: Rung, taken: Taken, before: list[dict[str, Any]]) -> dict[str, Any]:
    """A row of `rungs` in result.json."""
    row: dict[str, Any] = {"rung": rung.name, "title": rung.title, "route": route.name, "route_title": route.title,
                           "aside": rung.aside, "bound": bound if (bound := rungs.bound_of(rung)) else None}  # fmt: skip
    found = taken if isinstance(taken, Measured) else Measured()
    row["status"] = taken.status if isinstance(taken, Absent) else "measured"
    row["whole_route"] = isinstance(taken, Absent) and taken.whole
    median = float(np.median(found.times_ns)) if found.times_ns else None
    p99 = float(np.percentile(found.times_ns, 99)) if found.times_ns else None
    row |= {"latency_ns": {"median": median, "p99": p99}, "throughput": job.batch / median * 1e9 if median else None}
    row |= _speedups(median, before)
    row |= accuracy(found.output, job.reference, job.valid)
    row["layers"] = [
        accuracy(got, expected, job.valid) for got, expected in zip(found.layers, job.layers, strict=False)
    ]
    row |= {name: getattr(found, name) for name in
            ("memory_bytes", "weight_bytes", "activation_bytes", "build_s", "bound_ns", "flops", "bytes", "emulated_s")}  # fmt: skip
    row["roofline_pct"] = 100 * found.bound_ns / median if found.bound_ns and median else None
    row["operations"] = [dict(one) for one in found.operations]
    notes = [
        rung.note if route.name == "kernels" and isinstance(taken, Measured) else "",
        *found.notes,
        taken.note if isinstance(taken, Absent) else "",
    ]
    row["note"] = "; ".join(note for note in notes if note)
    row["verdict"] = _verdict(row)
    return row


def _speedups(median: float | None, before: list[dict[str, Any]]) -> dict[str, float | None]:
    """Against the last step that others build on, and against the first, of the same route."""
    known = [row["latency_ns"]["median"] for row in before if row["latency_ns"]["median"] and not row["aside"]]
    if median is None or not known:
        return {"speedup_previous": None, "speedup_total": 1.0 if median else None}
    return {"speedup_previous": known[-1] / median, "speedup_total": known[0] / median}


def accuracy(got: Array | None, expected: Array, valid: Array) -> dict[str, float | None]:
    """Relative L2 error and cosine over the tokens that count, and the least cosine of a sequence's mean."""
    if got is None:
        return {"relative_l2": None, "cosine": None, "embedding_cosine": None}
    a, b = got[valid], expected[valid]
    if not np.isfinite(a).all():
        return {"relative_l2": float("inf"), "cosine": float("nan"), "embedding_cosine": float("nan")}
    share = valid / valid.sum(axis=1, keepdims=True)
    means = [np.einsum("bs,bse->be", share, x) for x in (got * valid[..., None], expected)]
    return {"relative_l2": float(np.linalg.norm(a - b) / np.linalg.norm(b)), "cosine": _cosine(a.ravel(), b.ravel()),
            "embedding_cosine": min(_cosine(x, y) for x, y in zip(*means, strict=True))}  # fmt: skip


def _cosine(a: Array, b: Array) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def _verdict(row: Mapping[str, Any]) -> str:
    """pass, fail (beyond what its precision explains), or unresolved."""
    if row["status"] != "measured" or row["relative_l2"] is None:
        return "unresolved"
    limit = row["bound"]
    return "pass" if limit is None or row["relative_l2"] <= limit else "fail"


def _exit_code(rows: list[dict[str, Any]]) -> int:
    """Undecided if nothing was measured, or a step of our own kernels failed; that a peer's did is no answer of ours."""
    if any(row["verdict"] == "fail" for row in rows):
        return EXIT_DEFECT
    ours_failed = any(row["status"] == "failed" and row["route"] == "kernels" for row in rows)
    measured = any(row["status"] == "measured" for row in rows)
    return EXIT_CLEAN if measured and not ours_failed else EXIT_UNDECIDED


def _document(settings: Settings, job: Job, rows: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    lengths = job.lengths
    return {
        "kind": "bert",
        "model": {"name": settings.name, "random_weights": settings.weights is None, **asdict(job.config)},
        "batch": job.batch, "sequence": job.sequence, "tokens": sum(lengths), "lengths": list(lengths),
        "checked": job.checked, "device": job.device.facts.name if job.device else None, "seconds": seconds,
        "roofs": {"bytes_per_s": job.roofs.bytes_per_s, "flop_per_s": dict(job.roofs.flop_per_s)} if job.roofs else None,
        "calibration": {"method": settings.method, "real": settings.samples is not None or settings.inputs is not None},
        "rungs": rows,
    }  # fmt: skip


# When a rung loses accuracy


def _bisect(
    settings: Settings, job: Job, rows: list[dict[str, Any]], session: Session, tell: Tell
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """The nodes to blame in every precision whose error is over the tolerance, by `probe bisect` on our ONNX."""
    seen: set[str] = set()
    for row in rows:
        over = row["relative_l2"] is not None and row["relative_l2"] > settings.tolerance
        precision = rungs.options_of(rungs.BY_NAME[row["rung"]])["precision"]
        if not over or precision in seen:
            continue
        seen.add(precision)
        told = {"rung": row["rung"], "route": row["route"], "precision": precision, "relative_l2": row["relative_l2"]}
        if precision not in {one.value for one in Precision}:
            note = f"probe bisect lowers to FP16 and BF16, not to {precision}"
            yield {**told, "culprits": [], "note": note}
            continue
        tell(f"bisecting {row['title']}")
        try:
            yield told | _culprits(settings, job, Precision(precision), session, tell)
        except ProbeError as error:  # the steps were measured all the same
            yield {**told, "culprits": [], "note": str(error)}
            if error.exit_code == EXIT_INTERRUPTED:
                raise KeyboardInterrupt from error


def _culprits(settings: Settings, job: Job, precision: Precision, session: Session, tell: Tell) -> dict[str, Any]:
    folder = session.folder / f"bisect-{precision}"
    asked = BisectSettings(job.model, precision=precision, tolerance=settings.tolerance, inputs=(job.samples,))
    begun = (folder / "manifest.json").is_file()
    result = (bisecting.resume(folder, tell) if begun else bisecting.start(asked, folder, tell)).result
    culprits = [one["node"] if isinstance(one, Mapping) else str(one) for one in result.get("culprits", ())]
    return {"culprits": culprits, "note": f"{folder.name}/report.html"}
