"""Our BERT encoder in plain PyTorch: the peer, eager, compiled, as a CUDA graph, with 2:4 sparse weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from harness.bert import model as bert
from harness.bert.model import BertConfig, Weights

DTYPES = {"fp32": "float32", "tf32": "float32", "fp16": "float16", "bf16": "bfloat16"}
Forward = Callable[[], Any]


class Model:
    """The encoder's weights as tensors; `forward` is written as Hugging Face's is, with the fused attention of PyTorch."""

    def __init__(self, torch: Any, config: BertConfig, weights: Weights, precision: str, where: str) -> None:
        self.torch, self.config, self.dtype = torch, config, getattr(torch, DTYPES[precision])
        bert.check_weights(config, weights)
        self.weights = {
            name: torch.from_numpy(np.array(weights[name], np.float32)).to(where, self.dtype)
            for name in bert.weight_shapes(config)
        }

    def sparse(self) -> None:
        """Turn the linear layers' weights, pruned already, into PyTorch's 2:4 form (cuSPARSELt or CUTLASS)."""
        for name, tensor in self.weights.items():
            if name.startswith("encoder.") and tensor.dim() == 2:
                self.weights[name] = self.torch.sparse.to_sparse_semi_structured(tensor)

    def forward(self, ids: Any, types: Any, mask: Any) -> Any:
        """[B, S, E]; `mask` is bool [B, 1, 1, S], or None where every token counts."""
        w, f = self.weights, self.torch.nn.functional
        x = f.embedding(ids, w["embeddings.word_embeddings.weight"])
        x = x + f.embedding(types, w["embeddings.token_type_embeddings.weight"])
        x = self.norm(x + w["embeddings.position_embeddings.weight"][: ids.shape[1]], "embeddings.LayerNorm")
        for number in range(self.config.layers):
            scope = f"encoder.layer.{number}"
            attended = self.linear(
                self.attention(x, mask, f"{scope}.attention.self"), f"{scope}.attention.output.dense"
            )
            x = self.norm(attended + x, f"{scope}.attention.output.LayerNorm")
            tanh = "tanh" if self.config.activation == "gelu_tanh" else "none"
            hidden = f.gelu(self.linear(x, f"{scope}.intermediate.dense"), approximate=tanh)
            x = self.norm(self.linear(hidden, f"{scope}.output.dense") + x, f"{scope}.output.LayerNorm")
        return x

    def attention(self, x: Any, mask: Any, scope: str) -> Any:
        b, s, e = x.shape
        q, k, v = (self.linear(x, f"{scope}.{part}").view(b, s, self.config.heads, -1).transpose(1, 2)
                   for part in ("query", "key", "value"))  # fmt: skip
        made = self.torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return made.transpose(1, 2).reshape(b, s, e)

    def linear(self, x: Any, name: str) -> Any:
        return self.torch.nn.functional.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, x: Any, name: str) -> Any:
        scale, shift = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return self.torch.nn.functional.layer_norm(
            x, (self.config.hidden_size,), scale, shift, self.config.layer_norm_eps
        )

    def inputs(self, feeds: Mapping[str, Any], where: str) -> tuple[Any, Any, Any]:
        """Tensors for `forward` from `bert.INPUTS`, [B, S]."""
        ids, types, mask = (self.torch.from_numpy(np.ascontiguousarray(feeds[name])).to(where) for name in bert.INPUTS)
        return ids, types, None if bool(mask.all()) else (mask != 0)[:, None, None, :]


def as_graph(torch: Any, call: Forward) -> tuple[Forward, Any, Any]:
    """A replay of what `call` launches, the stream that it was recorded on, and the output's tensor."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        output = call()

    def replay() -> None:
        with torch.cuda.stream(side):
            graph.replay()

    return replay, side, output
