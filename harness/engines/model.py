"""The ONNX model as a backend takes it: where precision lives in the model, rewritten; else the file as it is."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from harness import optional
from harness.engines.options import BuildOptions
from harness.errors import BuildFailed, UsageError
from harness.models.inputs import load_samples
from harness.models.mixed import mixed_model
from harness.models.model import Model, from_proto, load
from harness.models.opsets import at_opset, with_type_for
from harness.models.precision import Precision
from harness.models.submodel import save

QUANTISED = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # what tensor cores multiply in INT8; the rest gains nothing
CHANNELS_OPSET = 13  # from here on Q/DQ nodes have a scale for each channel
QDQ_OPSET = 19  # from here on Q/DQ nodes have FP16 forms, so that nothing need be cast around them


@dataclass(frozen=True)
class Prepared:
    """An .onnx file to be parsed, and what was done to it."""

    path: Path
    notes: tuple[str, ...] = ()


def prepare(
    source: Path | onnx.ModelProto, options: BuildOptions, folder: Path, *, rewrite: bool, lower: bool
) -> Prepared:
    """The model written to `folder` as the backend needs it, or the user's own file if nothing has to change.

    rewrite: precision lives in the model (strong typing, ONNX Runtime). lower: `int8` stores the rest in FP16.
    Q/DQ nodes are inserted for int8 on every backend, so that it means the same everywhere.
    """
    quantise = options.precision == "int8" and not _quantised(source)
    mixed = rewrite and (options.precision in ("fp16", "bf16", "int8") or bool(options.layer_precisions))
    if isinstance(source, Path) and not quantise and not mixed:
        return Prepared(source)
    notes: list[str] = []
    if quantise:
        source = _quantise(source, options, folder)
        notes.append(f"Q/DQ nodes inserted by ONNX Runtime's quantiser from {len(options.calibration)} samples")
    model = _model(source)
    proto, weights = model.proto, model.weights
    if mixed:
        proto, weights, note = _lowered(model, options, lower)
        notes += note
    return Prepared(save(proto, weights, folder / "model.onnx"), tuple(notes))


def with_outputs(path: Path, outputs: Iterable[str], folder: Path) -> Path:
    """The model with further tensors as outputs, for ONNX Runtime. Raises UsageError for a tensor that is not there."""
    model = load(path)
    made = {name for node in model.graph.node for name in node.output if name}
    for name in outputs:
        if name not in made:
            raise UsageError(f"{path.name}: no tensor {name!r} to mark as an output")
        if name not in model.outputs:
            model.graph.output.append(helper.make_tensor_value_info(name, model.dtypes.get(name, 0), None))
    return save(model.proto, model.weights, folder / "marked.onnx")


def _model(source: Path | onnx.ModelProto) -> Model:
    if isinstance(source, Path):
        return load(source)
    copy = onnx.ModelProto()
    copy.CopyFrom(source)
    return from_proto(copy, Path("model.onnx"))


def _quantised(source: Path | onnx.ModelProto) -> bool:
    proto = onnx.load(str(source), load_external_data=False) if isinstance(source, Path) else source
    return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in proto.graph.node)


# Precision in the model


def _lowered(
    model: Model, options: BuildOptions, lower: bool
) -> tuple[onnx.ModelProto, dict[str, np.ndarray], list[str]]:
    """Every node in the precision asked for; nodes whose operator has no such type, inputs and outputs stay FP32."""
    base = _stored("fp16" if options.precision == "int8" and lower else options.precision)
    wanted = _by_node(model, options.layer_precisions)
    precisions = {p for p in (base, *wanted.values()) if p is not None}
    if not precisions:
        return model.proto, model.weights, []
    if len(precisions) > 1:
        raise UsageError("FP16 and BF16 in one model: a strongly typed network is rewritten for one of them at a time")
    (precision,) = precisions
    model = with_type_for(model, precision)
    if options.precision == "int8" and model.opset < QDQ_OPSET:
        model = at_opset(model, QDQ_OPSET)
    lowered = [node.index for node in model.nodes if wanted.get(node.key, base) is not None]
    proto, weights = mixed_model(model, lowered, precision)
    return (
        proto,
        weights,
        [
            f"{precision.value} in the model itself, wherever the operator has it: {len(lowered)} of {len(model.nodes)} nodes"
        ],
    )


def _stored(precision: str) -> Precision | None:
    """The 16-bit type that a precision stores tensors in; None for those that store FP32."""
    return Precision(precision) if precision in ("fp16", "bf16") else None


def _by_node(model: Model, layer_precisions: Mapping[str, str]) -> dict[str, Precision | None]:
    keys = {name: node.key for node in model.nodes for name in (node.key, node.proto.name) if name}
    if unknown := sorted(set(layer_precisions) - set(keys)):
        raise UsageError(f"layer precision: the model has no node {unknown[0]!r}",
                         hint="names as in the ONNX file; probe bisect lists them in candidates.json")  # fmt: skip
    return {keys[name]: _stored(precision) for name, precision in layer_precisions.items()}


# INT8


def _quantise(source: Path | onnx.ModelProto, options: BuildOptions, folder: Path) -> onnx.ModelProto:
    """Symmetric Q/DQ, weights per channel, as TensorRT wants them; biases are left alone."""
    if not options.calibration:
        raise UsageError("int8: the model has no Q/DQ nodes, and there are no samples to calibrate with",
                         hint="--inputs FILE.npz, or a model exported with Q/DQ nodes")  # fmt: skip
    quantisation = optional.load("onnxruntime.quantization", "to insert Q/DQ nodes")
    path, written = folder / "float.onnx", folder / "qdq.onnx"
    model = _model(source)
    model = at_opset(model, max(model.opset, CHANNELS_OPSET))
    save(model.proto, model.weights, path)
    samples = load_samples(options.calibration)

    class Reader(quantisation.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self._left = iter(samples)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._left, None)

    # Only what a product reads is rounded: rounding what it writes as well (a sum before bias and activation) costs
    # accuracy (MiniLM: 32 % of error, 62 % with it), and TensorRT does not need it.
    extra = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False, "MatMulConstBOnly": True,
             "OpTypesToExcludeOutputQuantization": list(QUANTISED)}  # fmt: skip
    try:
        with _quiet():
            quantisation.quantize_static(
                str(path), str(written), Reader(), quant_format=quantisation.QuantFormat.QDQ, per_channel=True,
                op_types_to_quantize=list(QUANTISED),
                activation_type=quantisation.QuantType.QInt8, weight_type=quantisation.QuantType.QInt8, extra_options=extra,
            )  # fmt: skip
    except Exception as error:  # the quantiser raises bare exceptions
        reason = str(error).strip().splitlines()
        raise BuildFailed(f"int8: ONNX Runtime's quantiser failed: {reason[0] if reason else type(error).__name__}",
                          hint="samples must fit the model's inputs; or export the model with Q/DQ nodes") from error  # fmt: skip
    return onnx.load(str(written))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser prints and logs advice on the root logger."""
    root, out = logging.getLogger(), io.StringIO()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(out):
            yield
    finally:
        root.setLevel(level)
