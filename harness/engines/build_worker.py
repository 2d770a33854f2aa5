"""The process that parses and builds one model with TensorRT, and says in a file how far it came.

`python -m harness.engines.build_worker MODEL.onnx RESULT.json --backend trt-rtx|trt`. A builder may crash or hang, so RESULT.json
is written before each stage as well as at the end: who reads it knows in which stage the process died.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from harness import optional
from harness.errors import DependencyMissing

BACKENDS = {"trt-rtx": "tensorrt_rtx", "trt": "tensorrt"}
RTX_CAPABILITY = "SM89"  # what to build for if not told: RTX needs no GPU then, and gives the same answer everywhere
LOG_LINES = 200


class Report:
    """RESULT.json while it grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, Any] = {"stage": "load", "ok": False, "errors": [], "log": []}

    def write(self, **news: Any) -> None:
        self.content |= news
        part = self.path.with_name(f".{self.path.name}.part")
        part.write_text(json.dumps(self.content), encoding="utf-8")
        part.replace(self.path)


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    report = Report(options.result)
    report.write()
    try:
        trt = _load(options.backend)
    except DependencyMissing as error:
        report.write(missing=str(error), hint=error.hint)
        return 2
    report.write(stage="parse", version=trt.__version__)
    log: list[str] = report.content["log"]
    builder = trt.Builder(_logger(trt, log))
    network = builder.create_network(_creation_flags(trt, options))
    parser = trt.OnnxParser(network, builder.logger)
    start = time.perf_counter()
    parsed = parser.parse_from_file(str(options.model))
    errors = [_error(parser.get_error(index)) for index in range(parser.num_errors)]
    report.write(parse_s=time.perf_counter() - start, errors=errors)
    if not parsed or options.parse_only:
        report.write(ok=parsed, stage="done" if parsed else "parse")
        return 0 if parsed else 1
    log.clear()
    report.write(stage="build")
    start = time.perf_counter()
    engine = builder.build_serialized_network(network, _config(trt, builder, network, options))
    report.write(build_s=time.perf_counter() - start)
    if engine is None:
        return 1
    if options.engine is not None:
        options.engine.write_bytes(engine)
    report.write(ok=True, stage="done", engine_bytes=engine.nbytes)
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m harness.engines.build_worker", description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--backend", choices=BACKENDS, required=True)
    parser.add_argument("--shapes", type=Path, help="JSON: input name -> dimensions, for inputs with dynamic ones")
    parser.add_argument("--values", type=Path, help="JSON: input name -> values, for inputs that say a shape")
    parser.add_argument("--strongly-typed", action="store_true", help="TensorRT 10; RTX and 11 always are")
    parser.add_argument("--flag", action="append", default=[], help="a BuilderFlag by name, FP16 for instance")
    parser.add_argument("--capability", help=f"a ComputeCapability by name (RTX; {RTX_CAPABILITY} if not given)")
    parser.add_argument("--parse-only", action="store_true")
    parser.add_argument("--engine", type=Path, help="write the engine here")
    return parser.parse_args(arguments)


def _load(backend: str) -> ModuleType:
    return optional.load(BACKENDS[backend])


def _logger(trt: ModuleType, log: list[str]) -> Any:
    """A logger that keeps the errors in `log`, and passes them to stderr at once: they outlive a crash there."""
    severe = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]  # the base is known at run time only
        def log(self, severity: Any, message: str) -> None:
            if severity in severe:
                print(f"[E] {message}", file=sys.stderr, flush=True)  # noqa: T201  this process's own log file
                log.append(message)
                del log[LOG_LINES:]  # the first ones say what went wrong, the rest what followed

    return Logger()


def _creation_flags(trt: ModuleType, options: argparse.Namespace) -> int:
    """By name: numbers have shifted between versions, and a flag that became the only way has gone."""
    known = trt.NetworkDefinitionCreationFlag.__members__
    wanted = ["EXPLICIT_BATCH"] if "EXPLICIT_BATCH" in known else []
    if options.strongly_typed or options.backend == "trt-rtx":
        wanted.append("STRONGLY_TYPED")
    return sum(1 << int(known[name]) for name in wanted if name in known)


def _config(trt: ModuleType, builder: Any, network: Any, options: argparse.Namespace) -> Any:
    config = builder.create_builder_config()
    for name in options.flag:
        config.set_flag(trt.BuilderFlag.__members__[name])
    if hasattr(config, "set_compute_capability"):
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.__members__[options.capability or RTX_CAPABILITY], 0)
    shapes, values = _read(options.shapes), _read(options.values)
    profile = builder.create_optimization_profile()
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    sized = [tensor for tensor in inputs if -1 in tuple(tensor.shape)]
    valued = [tensor for tensor in inputs if tensor.is_shape_tensor and tensor.name in values]
    for tensor in sized:
        shape = shapes.get(tensor.name) or [max(size, 1) for size in tensor.shape]
        profile.set_shape(tensor.name, shape, shape, shape)  # least, optimal and greatest
    for tensor in valued:
        profile.set_shape_input(tensor.name, *[values[tensor.name]] * 3)
    if sized or valued:
        config.add_optimization_profile(profile)
    return config


def _read(path: Path | None) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
    return content


def _error(error: Any) -> dict[str, Any]:
    """A parser error as data; older versions know neither the node's name nor its op."""
    return {
        "code": str(error.code()).rpartition(".")[2], "desc": error.desc(), "file": error.file(), "line": error.line(),
        "func": error.func(), "node": error.node_name() if hasattr(error, "node_name") else "",
        "op": error.node_operator() if hasattr(error, "node_operator") else "",
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
