"""A user's BERT from disk: a Hugging Face folder (safetensors, config.json), or the initialisers of an ONNX encoder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from harness.bert import model as bert
from harness.bert.model import BertConfig
from harness.errors import ParseError, UsageError

Array = np.ndarray[Any, Any]
WEIGHTS, CONFIG = "model.safetensors", "config.json"
FORMATS = (".safetensors", ".onnx")
LAYER = re.compile(r"encoder\.layer\.(\d+)\.")


def read(path: Path, config: BertConfig | None = None) -> tuple[BertConfig, dict[str, Array]]:
    """Sizes and float32 weights by Hugging Face names, from a folder, a .safetensors or an .onnx file.

    `config` says the sizes where the file does not. Raises UsageError if something is missing, ParseError for a file
    that is not what it should be.
    """
    if path.is_dir():
        path = path / WEIGHTS
    wanted = f"a folder with {WEIGHTS} and {CONFIG}, or an .onnx encoder"
    if not path.is_file():
        raise UsageError(f"{path} does not exist", hint=wanted)
    if path.suffix not in FORMATS:
        raise UsageError(f"{path}: expected {' or '.join(FORMATS)}, got {path.suffix or 'no suffix'}", hint=wanted)
    if path.suffix == ".onnx":
        graph = onnx.load(str(path)).graph
        weights = dict(_from_graph(graph))
        config = config or _config_of(path, graph, weights)
    else:
        weights = bert.read_weights(path)
        config = config or BertConfig.from_json(path.with_name(CONFIG))
    bert.check_weights(config, weights)
    return config, weights


def _from_graph(graph: onnx.GraphProto) -> Iterator[tuple[str, Array]]:
    """By the names that exporters keep; a linear layer's kernel, whose name they lose, by the name of its node."""
    held = {tensor.name: tensor for tensor in graph.initializer}
    for name, tensor in held.items():
        if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16) and name.endswith(
            (".weight", ".bias")
        ):
            yield _short(name), np.asarray(numpy_helper.to_array(tensor), np.float32)
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in held and "/" in node.name:
            scope = node.name.rpartition("/")[0].strip("/").replace("/", ".")
            yield f"{_short(scope)}.weight", np.asarray(numpy_helper.to_array(held[node.input[1]]).T, np.float32)


def _short(name: str) -> str:
    """Names begin at the encoder, whatever model it is in."""
    found = re.search(r"(?:^|\.)(embeddings|encoder)\.", name)
    return name[found.start(1) :] if found else name


def _config_of(path: Path, graph: onnx.GraphProto, weights: dict[str, Array]) -> BertConfig:
    """The sizes from the shapes; the number of heads from the Reshape that splits them."""
    try:
        words, positions, types = (
            weights[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")
        )
        inner = weights["encoder.layer.0.intermediate.dense.weight"]
    except KeyError as error:
        raise ParseError(
            path, "initialisers", f"a BERT encoder's, {error} among them", f"{len(weights)} others"
        ) from None
    layers = 1 + max(int(found[1]) for name in weights if (found := LAYER.match(name)))
    e = words.shape[1]
    erf = any(node.op_type in ("Erf", "Gelu") for node in graph.node)
    return BertConfig(e, layers, _heads(path, graph, e), len(inner), len(words), len(positions), len(types),
                      activation="gelu_erf" if erf else "gelu_tanh")  # fmt: skip


def _heads(path: Path, graph: onnx.GraphProto, hidden: int) -> int:
    constants = [numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.dims == [4]]
    constants += [numpy_helper.to_array(node.attribute[0].t) for node in graph.node
                  if node.op_type == "Constant" and node.attribute[0].HasField("t")]  # fmt: skip
    for shape in constants:
        if shape.dtype == np.int64 and shape.shape == (4,) and shape[2] > 0 and shape[2] * shape[3] == hidden:
            return int(shape[2])
    raise ParseError(path, "heads", f"a Reshape to [.., .., N, H] with N * H = {hidden}", "none", hint="--config FILE")
