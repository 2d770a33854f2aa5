"""Write an ONNX model with a real upstream fault: NVIDIA's attention plugin, version 1, reads out of bounds without a mask.

    python examples/gpu/plugin_fault.py plugin_fault.onnx
    probe sanitize plugin_fault.onnx --backend trt --precision fp16

Two attention layers of `CustomQKVToContextPluginDynamic` stand one behind the other, with FP16, S=128, B=1, N=12, H=64.
`/encoder/layer.0/attention/context` is told of its mask and is right; `/encoder/layer.1/attention/context` has
`has_mask=0`, which TensorRT 8.6 answers with an illegal memory access (CUDA error 700).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

S, B, N, H = 128, 1, 12, 64
E = N * H
PACKED_MASK = 512  # 32-bit words a sequence: the fused kernels' mask for S up to 128


def attention(scope: str, x: str, mask: str | None, has_mask: int) -> tuple[onnx.NodeProto, str]:
    """The plugin's node, x [S, B, 3E, 1, 1] -> [S, B, E, 1, 1]."""
    name = f"/encoder/{scope}/attention/context"
    node = helper.make_node(
        "CustomQKVToContextPluginDynamic", [x] if mask is None else [x, mask], [f"{name}_output_0"], name=name,
        plugin_version="1", plugin_namespace="", type_id=1, hidden_size=E, num_heads=N, has_mask=has_mask,
    )  # fmt: skip
    return node, f"{name}_output_0"


def build(seed: int = 0) -> onnx.ModelProto:
    rng = np.random.default_rng(seed)
    kernel = (rng.standard_normal((E, 3 * E)) / np.sqrt(E)).astype(np.float32)
    scope = "/encoder/layer.1/attention/qkv"
    first, context = attention("layer.0", "qkv", "mask", 1)
    second, out = attention("layer.1", f"{scope}/merged", None, 0)
    nodes = [
        first,
        helper.make_node("Reshape", [context, "rows"], [f"{scope}/flat"], name=f"{scope}/Reshape"),
        helper.make_node("MatMul", [f"{scope}/flat", "kernel"], [f"{scope}/product"], name=f"{scope}/MatMul"),
        helper.make_node("Reshape", [f"{scope}/product", "five"], [f"{scope}/merged"], name=f"{scope}/Reshape_1"),
        second,
        helper.make_node("Identity", [out], ["context"], name="/encoder/Identity"),
    ]
    constants = {
        "kernel": kernel,
        "rows": np.array([S * B, E], np.int64),
        "five": np.array([S, B, 3 * E, 1, 1], np.int64),
    }
    graph = helper.make_graph(
        nodes, "plugin_fault",
        [helper.make_tensor_value_info("qkv", TensorProto.FLOAT, [S, B, 3 * E, 1, 1]),
         helper.make_tensor_value_info("mask", TensorProto.INT32, [B, PACKED_MASK])],
        [helper.make_tensor_value_info("context", TensorProto.FLOAT, [S, B, E, 1, 1])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="probe")


if __name__ == "__main__":
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "plugin_fault.onnx")
    onnx.save(build(), path)
    rng = np.random.default_rng(1)
    qkv = rng.standard_normal((S, B, 3 * E, 1, 1), dtype=np.float32)
    np.savez(path.with_suffix(".npz"), qkv=qkv, mask=np.full((B, PACKED_MASK), -1, np.int32))
    print(f"{path} and {path.with_suffix('.npz')}")
