"""One trial: an engine built and run on every sample in a process of its own; what came of it, or how the process died."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness import process
from harness.engines import options as engine_options
from harness.engines.building import normalise
from harness.engines.cache import EngineCache, digest
from harness.engines.options import BuildOptions, to_json
from harness.errors import ArtifactMissing, DependencyMissing, ProbeError, UsageError
from harness.record import Command, ToolRun
from harness.tools import sanitizer
from harness.tools import tool as tools

WORKER = process.module_words("probes.bisecting.engines.worker")
STAGES = ("load", "survey", "build", "deserialize", "infer", "measure", "done")
PLAN, OUTPUTS = "engine.plan", "outputs-{}.npz"
REPEATABLE = ("BuildFailed", "LaunchFailed", "Finding")
SAID = re.compile(r"<text>([^<]+)<")
MEMORY = re.compile(r"out.?of.?memory", re.IGNORECASE)
CUDA_STATUS = re.compile(r"CUDA_ERROR_\w+")


@dataclass(frozen=True)
class Trial:
    """What to build and to run. Paths are absolute.

    source: an .onnx file. plan: the engine, if it was built before. samples: .npz files, one inference each; none: the engine is only built. measure: iterations
    that are timed after that. memory_bytes: of the process on the host, beyond which it is stopped.
    """

    source: Path
    options: BuildOptions
    samples: tuple[Path, ...] = ()
    measure: int = 0
    layers: bool = False  # the time of each layer as well
    memory_bytes: int | None = None
    plan: Path | None = None
    survey: bool = False  # parse, and say what is there; nothing is built

    def to_json(self) -> dict[str, Any]:
        made: dict[str, Any] = to_json(self)
        return made

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Trial:
        plan = Path(content["plan"]) if content["plan"] else None
        paths = {"source": Path(content["source"]), "samples": tuple(map(Path, content["samples"])), "plan": plan}
        return cls(**{**content, **paths, "options": engine_options.from_json(content["options"])})


@dataclass(frozen=True)
class Result:
    """How far a trial came. `signature` names the failure: the stage and what was said, without names and numbers.

    `outputs`: for each sample an .npz by output name. `facts` are of the build; times are in ns.
    """

    stage: str
    ok: bool
    signature: str | None = None
    message: str = ""
    hint: str | None = None
    error: str = ""  # class of the exception, where there was one
    timed_out: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)
    latency_ns: float | None = None  # median of the computation
    layers: tuple[tuple[str, float], ...] = ()  # name, median ns
    information: str = ""  # of the inspector, JSON
    outputs: tuple[Path, ...] = ()
    cached: bool = False  # nothing was run
    built: bool = True  # the engine was made for this trial, and not found
    duration_s: float = 0.0

    def load(self) -> list[dict[str, np.ndarray]]:
        """The outputs of every sample by name."""
        found = []
        for path in self.outputs:
            with np.load(path, allow_pickle=False) as content:
                found.append({name: content[name] for name in content.files})
        return found


@dataclass(frozen=True)
class Bench:
    """Where trials run: the worker's command, GPUs that take one trial each at a time, the cache, the machine's facts.

    `facts` say what an engine depends on beside model and options; without them nothing is cached.
    """

    folder: Path
    worker: tuple[str, ...] = WORKER
    cache: Path | None = None
    facts: tuple[tuple[str, str], ...] = ()
    gpus: tuple[str, ...] = ()  # for CUDA_VISIBLE_DEVICES; none: as it is
    timeout_s: float | None = None
    checker: str | None = None  # of compute-sanitizer, around every trial

    def run(self, trial: Trial, folder: Path) -> Result:
        """The result from the cache, else of a process; `folder` takes its files and must outlive the outputs' use."""
        cache = self.engines
        if cache is None or trial.survey:
            return self.alone(trial, folder)
        build = self.build_key(trial)
        key = digest(build, json.dumps([trial.measure, trial.layers, self.checker]), *trial.samples)
        with cache.locked(build):  # one whose search was killed may still be building this very engine
            for store in (cache, self.failures):
                if (known := store.read(key)) is not None:
                    return _result(known, store.file(key, "x").parent, cached=True)
            built = cache.read(build)
            plan = cache.file(build, PLAN) if built is not None else None
            result = self.alone(replace(trial, plan=plan), folder)
            result = replace(result, facts=built or result.facts, built=plan is None)
            if result.facts and (folder / PLAN).is_file():
                cache.write(build, result.facts, [folder / PLAN])
            if not result.ok and not _repeatable(result):
                self.failures.write(key, _document(result))
                return result
            cache.write(key, _document(result), result.outputs)
            return replace(result, outputs=tuple(cache.file(key, path.name) for path in result.outputs))

    @property
    def engines(self) -> EngineCache | None:
        """Where results are kept; None where they are not."""
        return EngineCache(self.cache) if self.cache is not None and self.facts else None

    @property
    def failures(self) -> EngineCache:
        """Failures that may be the machine's: kept for this session, asked again in the next."""
        return EngineCache(self.folder / "failures")

    def build_key(self, trial: Trial) -> str:
        """The hash of all that the engine depends on."""
        return str(engine_options.build_key(trial.source, trial.options, dict(self.facts)))

    def alone(self, trial: Trial, folder: Path) -> Result:
        """The result of a process of its own, whatever the cache holds."""
        folder.mkdir(parents=True, exist_ok=True)
        spec, answer = folder / "trial.json", folder / "trial.result.json"
        spec.write_text(json.dumps(trial.to_json()), encoding="utf-8")
        answer.unlink(missing_ok=True)
        with self._gpu() as gpu:
            environment = {**process.module_environment(), **({"CUDA_VISIBLE_DEVICES": gpu} if gpu is not None else {})}
            command = Command((*self.worker, str(spec), str(answer)), self.timeout_s, environment)
            if self.checker is None:
                return _ended(answer, process.run(command, folder / "trial"), folder)
            return self._sanitized(command, answer, folder)

    def _sanitized(self, command: Command, answer: Path, folder: Path) -> Result:
        """The same under compute-sanitizer; a finding fails what went well otherwise."""
        assert self.checker is not None
        options = sanitizer.Options(self.checker, timeout_s=self.timeout_s)
        tool = tools.find(sanitizer.WANTED)
        ran = process.run(sanitizer.command(tool, options, command, folder / "sanitizer.xml"), folder / "trial")
        result = _ended(answer, replace(ran, returncode=0) if ran.returncode == sanitizer.FOUND_CODE else ran, folder)
        if ran.returncode != sanitizer.FOUND_CODE or not result.ok:
            return result
        return replace(
            result, ok=False, error="Finding", signature=f"{self.checker}: {_finding(folder / 'sanitizer.xml')}"
        )

    @contextlib.contextmanager
    def _gpu(self) -> Iterator[str | None]:
        """A GPU of this machine that no other trial uses, be it of this search or of another one."""
        if not self.gpus:
            yield None
            return
        folder = Path(tempfile.gettempdir()) / f"probe-gpus-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        with contextlib.ExitStack() as held:
            streams = {gpu: held.enter_context((folder / f"{_file_name(gpu)}.lock").open("w")) for gpu in self.gpus}
            for gpu, stream in streams.items():
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    yield gpu
                    return
            gpu = self.gpus[os.getpid() % len(self.gpus)]
            fcntl.flock(streams[gpu], fcntl.LOCK_EX)
            yield gpu


def _repeatable(result: Result) -> bool:
    """Whether a failure is worth keeping: a crash, a hang, too little memory may be the machine's."""
    return not result.timed_out and result.error in REPEATABLE and not MEMORY.search(result.message)


def visible_gpus(count: int) -> tuple[str, ...]:
    """What CUDA_VISIBLE_DEVICES calls the GPUs that this process may use, `count` as the driver says."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    named = tuple(part.strip() for part in given.split(",") if part.strip())
    return named[:count] or tuple(map(str, range(count)))


def refuse(result: Result) -> None:
    """Raise what the user can act on: a missing library, options or a model that do not fit."""
    if result.error == "DependencyMissing":
        raise DependencyMissing("TensorRT", "to build engines", result.hint or "probe doctor", result.message)
    if result.error == "UsageError":
        raise UsageError(result.message, hint=result.hint)
    if not result.ok:
        raise ProbeError(f"{result.signature}: {result.message}", hint=result.hint)


# How a process ended


def _ended(answer: Path, ran: ToolRun, folder: Path) -> Result:
    if not answer.is_file():
        raise ArtifactMissing(f"the trial's process ended before it began: {process.tail(ran.stderr, 3)}",
                              hint=f"see {ran.stderr}")  # fmt: skip
    content = json.loads(answer.read_text(encoding="utf-8"))
    result = replace(_result(content, folder, cached=False), duration_s=ran.duration_s)
    died = ran.timed_out or ran.signal is not None or (not ran.ok and result.ok)
    return replace(
        result, ok=result.ok and not died, timed_out=ran.timed_out,
        signature=signature(result, ran, process.tail(ran.stderr, 3)),
        message=result.message or ("" if ran.ok else process.tail(ran.stderr, 3)),
    )  # fmt: skip


def signature(result: Result, ran: ToolRun, said: str = "") -> str | None:
    """The identity of a failure: it stays the same from trial to trial, and differs from bug to bug."""
    if ran.timed_out:
        return f"timeout at {result.stage}"
    if ran.signal is not None:
        return f"signal {ran.signal} at {result.stage}"
    if result.ok and ran.ok:
        return None
    if status := CUDA_STATUS.search(result.message):
        return f"{status.group()} at {result.stage}"
    return f"{result.stage}: {normalise(result.message or said) or f'exit {ran.returncode}'}"


def _finding(xml: Path) -> str:
    """What the first record says."""
    found = SAID.search(xml.read_text(encoding="utf-8", errors="replace")) if xml.is_file() else None
    return normalise(found.group(1)) if found else "a finding"


def _document(result: Result) -> dict[str, Any]:
    made: dict[str, Any] = to_json(replace(result, outputs=tuple(Path(path.name) for path in result.outputs)))
    return made


def _result(content: Mapping[str, Any], folder: Path, *, cached: bool) -> Result:
    outputs = tuple(folder / Path(name).name for name in content.get("outputs", ()))
    layers = tuple((str(name), float(time)) for name, time in content.get("layers", ()))
    known = {name: content[name] for name in Result.__dataclass_fields__ if name in content}
    return Result(**{**known, "outputs": outputs, "layers": layers, "cached": cached, "built": not cached})


def _file_name(gpu: str) -> str:
    return re.sub(r"\W", "_", gpu)
