"""The same operations by PyTorch, plain and compiled, to stand beside ours in `probe kernels bench`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from harness.cuda import timing
from harness.cuda.device import Device
from harness.cuda.timing import Timing
from kernels.plan import Plan
from kernels.spec import size_bytes

Tensors = Sequence[Any]


@dataclass(frozen=True)
class Peer:
    """A function of tensors on the GPU, and how one set of them is made."""

    name: str
    function: Callable[..., Any]
    inputs: Callable[[], Tensors]


def time_peers(torch: Any, operation: str, case: Any, plan: Plan, device: Device, seconds: float) -> dict[str, Timing]:
    """Every peer that PyTorch has for this case; one that fails is left out (no such backend, an old card)."""
    set_bytes = sum(size_bytes(buffer) for buffer in plan.buffers)
    sets = timing.rotation(set_bytes, device.facts.l2_bytes, device.free_bytes())
    made = {}
    with torch.no_grad():
        for peer in _peers(torch, operation, case):
            inputs = [peer.inputs() for _ in range(sets)]
            try:
                made[peer.name] = timing.time_torch(torch, peer.function, inputs, seconds=seconds)
            except (RuntimeError, ImportError, torch.cuda.OutOfMemoryError):
                continue
            finally:
                del inputs
                torch.cuda.empty_cache()
    return made


def _peers(torch: Any, operation: str, case: Any) -> Iterator[Peer]:
    make = {"skip_layernorm": _skip_layernorm, "gelu": _gelu, "fully_connected": _fully_connected,
            "attention": _attention, "embedding_layernorm": _embedding}.get(operation)  # fmt: skip
    if make is None or case.dtype == "int8":
        return
    for peer in make(torch, case):
        yield peer
        if peer.name == "torch":
            yield Peer("torch.compile", torch.compile(peer.function), peer.inputs)


def _random(torch: Any, case: Any) -> Callable[..., Any]:
    return lambda *shape: torch.randn(*shape, device="cuda", dtype=getattr(torch, case.dtype))


def _skip_layernorm(torch: Any, case: Any) -> Iterator[Peer]:
    random, size = _random(torch, case), (case.hidden,)
    gamma, beta, bias = random(case.hidden), random(case.hidden), random(case.hidden) if case.bias else 0.0

    def function(x: Any, skip: Any) -> Any:
        return torch.nn.functional.layer_norm(x + skip + bias, size, gamma, beta, case.epsilon)

    yield Peer("torch", function, lambda: [random(case.rows, case.hidden) for _ in range(2)])


def _gelu(torch: Any, case: Any) -> Iterator[Peer]:
    random = _random(torch, case)
    bias = random(case.columns) if case.bias else 0.0
    form = "tanh" if case.form == "tanh" else "none"
    yield Peer("torch", lambda x: torch.nn.functional.gelu(x + bias, approximate=form),
               lambda: [random(case.rows, case.columns)])  # fmt: skip


def _fully_connected(torch: Any, case: Any) -> Iterator[Peer]:
    random = _random(torch, case)
    bias = random(case.n) if case.bias else None
    form = {"none": "", "tanh": "tanh", "erf": "none"}[case.activation]

    def function(x: Any, weights: Any) -> Any:
        product = x @ weights if bias is None else torch.addmm(bias, x, weights)
        return torch.nn.functional.gelu(product, approximate=form) if form else product

    def inputs() -> Tensors:
        return [random(case.m, case.k), random(case.k, case.n)]

    yield Peer("torch", function, inputs)
    if bias is not None or form:
        yield Peer("bare product", torch.matmul, inputs)


def _embedding(torch: Any, case: Any) -> Iterator[Peer]:
    random, rows = _random(torch, case), case.rows
    tables = [random(size, case.hidden) for size in case.table_rows]
    gamma, beta = random(case.hidden), random(case.hidden)
    positions = torch.arange(rows, device="cuda") // case.batch

    def function(ids: Any, types: Any) -> Any:
        x = tables[0][ids] + tables[1][types] + tables[2][positions]
        return torch.nn.functional.layer_norm(x, (case.hidden,), gamma, beta, case.epsilon)

    def inputs() -> Tensors:
        return [torch.randint(0, size, (rows,), device="cuda") for size in (case.words, case.token_types)]

    if not case.varlen:
        yield Peer("torch", function, inputs)


def _attention(torch: Any, case: Any) -> Iterator[Peer]:
    """Given what costs them nothing: separate, contiguous Q, K and V."""
    if case.lengths is not None or case.counts is not None:
        return
    random = _random(torch, case)
    shape = (case.batch, case.heads, case.sequence, case.head_size)
    for name, backend in (("flash", "FLASH_ATTENTION"), ("cuDNN", "CUDNN_ATTENTION")):

        def function(q: Any, k: Any, v: Any, backend: str = backend) -> Any:
            with torch.nn.attention.sdpa_kernel(getattr(torch.nn.attention.SDPBackend, backend)):
                return torch.nn.functional.scaled_dot_product_attention(q, k, v)

        yield Peer(name, function, lambda: [random(*shape) for _ in range(3)])
