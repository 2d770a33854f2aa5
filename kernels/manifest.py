"""Every operation that there is, by name."""

from __future__ import annotations

from typing import Any

from kernels import (
    attention,
    disentangled_attention,
    embedding_layernorm,
    fully_connected,
    gelu,
    quantise,
    skip_layernorm,
)
from kernels.spec import KernelSpec

SPECS: tuple[KernelSpec[Any], ...] = (
    embedding_layernorm.SPEC,
    attention.SPEC,
    skip_layernorm.SPEC,
    fully_connected.SPEC,
    gelu.SPEC,
    quantise.SPEC,
    disentangled_attention.SPEC,
)

BY_NAME = {spec.name: spec for spec in SPECS}
