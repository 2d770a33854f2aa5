"""Engines behind one interface: build from a model or a network, run, whichever TensorRT or ONNX Runtime is here."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness import optional
from harness.cuda.device import get
from harness.engines import api as engine_api
from harness.engines import ort as engine_ort
from harness.engines import trt as engine_trt
from harness.engines.device import present
from harness.engines.options import BACKENDS, BuildOptions, Source, Tell, build_key
from harness.engines.ort import OrtRunner
from harness.engines.runner import Runner, RunOptions
from harness.engines.trt import MODULES, header
from harness.engines.trt_run import TrtRunner, check_header
from harness.errors import DependencyMissing, UsageError

__all__ = ["Backend", "BuildOptions", "Engine", "RunOptions", "backends", "build", "choose", "facts", "key", "load"]


@dataclass(frozen=True)
class Backend:
    """One way to run a model. `builds` and `runs` say what can be done on this machine, `why` what is in the way."""

    name: str
    builds: bool
    runs: bool
    why: str = ""


def backends() -> tuple[Backend, ...]:
    """Every backend, the preferred one first, and what it can do here; nothing heavy is imported to find out."""
    gpu = present()
    found = []
    for name in BACKENDS:
        module = MODULES.get(name, "onnxruntime")
        if optional.present(optional.LIBRARIES[module]) is None:
            found.append(
                Backend(name, False, False, f"{module} is not installed: {optional.LIBRARIES[module].install}")
            )
        elif name == "ort-cpu":
            found.append(Backend(name, True, True))
        elif gpu:
            found.append(_on_gpu(name))
        else:
            found.append(Backend(name, name == "trt-rtx", False, "there is no GPU here"))
    return tuple(found)


def _on_gpu(name: str) -> Backend:
    if name == "ort-cuda":
        try:
            has = engine_ort.PROVIDERS[name] in optional.load("onnxruntime").get_available_providers()
        except DependencyMissing as error:
            return Backend(name, False, False, str(error))
        return Backend(name, has, has, "" if has else "this onnxruntime was built without CUDA")
    return Backend(name, True, True)


def choose(name: str | None = None, *, runs: bool = True) -> str:
    """The backend asked for, or the best one here; ONNX Runtime on the processor where there is no GPU.

    Raises UsageError if there is no such backend, or it cannot do what is wanted here.
    """
    found = {backend.name: backend for backend in backends()}
    if name is None:
        order = ("trt", "ort-cuda", "trt-rtx", "ort-cpu") if present() else ("ort-cpu",)
        usable = [one for one in order if found[one].runs]
        if not usable:
            raise UsageError("there is nothing here to run a model with", hint="pip install onnxruntime")
        return usable[0]
    if name not in found:
        raise UsageError(f"backend: expected one of {', '.join(found)}, got {name!r}")
    backend = found[name]
    if not (backend.runs if runs else backend.builds):
        hint = "--backend ort-cpu" if "GPU" in backend.why else backend.why.partition(": ")[2] or "probe doctor"
        raise UsageError(f"backend {name} does not {'run' if runs else 'build'} here: {backend.why}", hint=hint)
    return name


def facts(backend: str) -> dict[str, str]:
    """What a build depends on beside model and options: the backend's version and, for a GPU, the device and driver."""
    if backend in MODULES:
        found = {"backend": backend, "version": engine_api.read(optional.load(MODULES[backend])).text}
    else:
        found = {"backend": backend, "version": str(optional.load("onnxruntime").__version__)}
    if backend != "ort-cpu" and present():
        told = get().facts
        found |= {"gpu": told.name, "compute_capability": told.as_manifest()["compute_capability"], "cuda": told.driver}
    return found


def key(source: Source, options: BuildOptions) -> str | None:
    """The content hash of a build, for a cache; None for a network made by a callable."""
    return build_key(source, options, facts(choose(options.backend, runs=False)))


@dataclass(frozen=True)
class Engine:
    """What a build gave: a plan's bytes, or the model that ONNX Runtime makes a session from.

    `facts` are JSON values: version, precision, typing, seconds of parsing and building, notes.
    """

    backend: str
    content: bytes | Path
    options: BuildOptions = field(default_factory=BuildOptions)
    facts: Mapping[str, Any] = field(default_factory=dict)
    name: str = "the engine"

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self.facts.get("notes", ()))

    def save(self, path: Path) -> Path:
        """Write plan or model, whole or not at all."""
        content = self.content if isinstance(self.content, bytes) else self.content.read_bytes()
        part = path.with_name(f".{path.name}.part")
        part.write_bytes(content)
        part.replace(path)
        return path

    def runner(self, options: RunOptions | None = None) -> Runner:
        """`with engine.runner() as runner: outputs = runner.infer(feeds)`."""
        options = options or RunOptions()
        if not options.plugins:
            options = replace(options, plugins=self.options.plugins)
        if self.backend in MODULES:
            plan = self.content if isinstance(self.content, bytes) else self.content.read_bytes()
            return TrtRunner(plan, self.backend, options, self.name)
        return OrtRunner(self.content, self.backend, options, tf32=self.options.precision == "tf32")

    def layer_information(self) -> str | None:
        """The inspector's JSON text of the engine on its default shapes; None where there is no inspector, or no GPU."""
        if self.backend not in MODULES or not _runs(self.backend):
            return None
        with self.runner() as runner:
            return runner.layer_information()


def _runs(backend: str) -> bool:
    return any(one.name == backend and one.runs for one in backends())


def build(
    source: Source, options: BuildOptions | None = None, tell: Tell = lambda _: None, *, folder: Path | None = None
) -> Engine:
    """Build an engine from an .onnx file, a ModelProto, or a callable that fills a network: `(trt, network) -> kept`.

    `folder` keeps what is written on the way (rewritten models); without it, it is gone afterwards.
    Raises UsageError for options or a model that do not fit, BuildFailed with what the builder said.
    """
    options = options or BuildOptions()
    backend = choose(options.backend, runs=False)
    if isinstance(source, Path) and not source.is_file():
        raise UsageError(f"{source} does not exist", hint="give the path of an .onnx file")
    name = source.name if isinstance(source, Path) else "the network"
    with _room(folder) as room:
        start = time.perf_counter()
        if backend in MODULES:
            built = engine_trt.build(source, options, backend, tell, room)
            told = {
                "version": built.version, "typing": "strong" if built.strongly_typed else "weak",
                "parse_s": built.parse_s, "build_s": built.build_s, "network_layers": built.layers, "notes": built.notes,
                "engine_bytes": len(built.plan),
            }  # fmt: skip
            return Engine(
                backend, built.plan, options, {**told, "precision": options.precision}, f"the engine of {name}"
            )
        path, notes = engine_ort.build(source, options, tell, room)
        kept: bytes | Path = path if folder is not None or path == source else _read(path)
        told = {"version": facts(backend)["version"], "precision": options.precision,
                "build_s": time.perf_counter() - start, "notes": notes}  # fmt: skip
        return Engine(backend, kept, options, told, name)


def load(path: Path, backend: str | None = None, options: BuildOptions | None = None) -> Engine:
    """An engine file (TensorRT's or RTX's, told by its first bytes) or an .onnx file as ONNX Runtime takes it.

    Raises UsageError if it is neither, or belongs to another backend than the one asked for.
    """
    if not path.is_file():
        raise UsageError(f"{path} does not exist", hint="give the path of an engine or an .onnx file")
    with path.open("rb") as stream:
        made = header(stream.read(28))
    if made is None and path.suffix == ".onnx":
        return Engine(choose(backend or "ort-cpu"), path, options or BuildOptions(), {}, path.name)
    plan = path.read_bytes()
    check_header(plan, backend or (made[0] if made else "trt"), path.name)
    assert made is not None
    return Engine(made[0], plan, options or BuildOptions(), {"version": made[1], "engine_bytes": len(plan)}, path.name)


@contextlib.contextmanager
def _room(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="probe-") as scratch:
        yield Path(scratch)


def _read(path: Path) -> bytes:
    """A rewritten model into memory; one with data beside it needs a folder that stays."""
    if path.with_name(path.name + ".data").exists():
        raise UsageError("the rewritten model is too large to be held in memory: build with a folder to keep it in")
    return path.read_bytes()
