"""Every plugin that we have."""

from __future__ import annotations

from harness.engines.plugin_ops.attention import AttentionFixed, AttentionInterleaved, AttentionVarlen
from harness.engines.plugin_ops.disentangled_attention import Disentangled
from harness.engines.plugin_ops.embedding import EmbeddingFixed, EmbeddingMegatron, EmbeddingVarlen
from harness.engines.plugin_ops.fully_connected import FullyConnected
from harness.engines.plugin_ops.gelu import Gelu
from harness.engines.plugin_ops.operation import Operation
from harness.engines.plugin_ops.skip_layernorm import SkipFixed, SkipInterleaved, SkipMegatron, SkipVarlen

OPERATIONS: tuple[type[Operation], ...] = (
    EmbeddingFixed, EmbeddingVarlen, EmbeddingMegatron, SkipFixed, SkipVarlen, SkipInterleaved, SkipMegatron,
    AttentionFixed, AttentionVarlen, AttentionInterleaved, FullyConnected, Gelu, Disentangled,
)  # fmt: skip
