"""A model with switches, run in pieces that remember their last results.

A search changes few switches from one question to the next. What lies before the first change, or beside it, has been
computed already: a piece is run again only if its switches or what it reads have changed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from harness.models.model import reads
from harness.models.runtime import Feeds, Runner, as_array, as_value, runner
from harness.models.switching import FLAGS, flag, with_flags

NODES_PER_PIECE = 32  # at least; fewer make more to remember, more make more to repeat
MOST_PIECES = 12  # each costs a session
REMEMBERED = 3  # results a piece keeps: with nothing switched, and the last ones
NEAR = 12  # nodes on either side among which the place with the fewest live tensors is taken for a cut


@dataclass(frozen=True)
class _Part:
    """Consecutive nodes as a model of their own: the tensors that it reads and makes, and its switches (their indices)."""

    proto: onnx.ModelProto
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    switches: np.ndarray

    def start(self, weights: Mapping[str, np.ndarray], options: Mapping[str, Any]) -> _Piece:
        own = {t.name for t in self.proto.graph.initializer}
        held = {name: array for name, array in weights.items() if name in own}
        return _Piece(self, runner(self.proto, held, **options))


@dataclass(frozen=True)
class _Piece:
    """A part with its session."""

    part: _Part
    runner: Runner


class Segmented:
    """Consecutive pieces of a model with `count` switches; `options` go to every piece's session.

    `dtypes` are the data types of the tensors; the model is cut only where all live tensors have one.
    """

    def __init__(
        self, proto: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], count: int, weights: Mapping[str, np.ndarray],
        dtypes: Mapping[str, int], **options: Any,
    ) -> None:  # fmt: skip
        self.outputs = [value.name for value in proto.graph.output]
        needs = [reads(node) for node in nodes]
        edge = [*proto.graph.input, *proto.graph.output]
        # Strings, sequences and what is of unknown type are no values that one session hands to the next.
        self._whole = any(v.type.tensor_type.elem_type in (TensorProto.UNDEFINED, TensorProto.STRING) for v in edge)
        inputs = {value.name for value in proto.graph.input}
        bounds = [(0, len(nodes))] if self._whole else _cuts(nodes, needs, dtypes, set(self.outputs), inputs)
        pieces = [_cut_out(proto, nodes, needs, count, dtypes, start, end) for start, end in bounds]
        self._pieces = [piece.start(weights, options) for piece in pieces if piece.outputs]  # nobody reads the others
        small = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer if t.name not in weights}
        self._constants = {name: array for name, array in {**small, **weights}.items() if name in self.outputs}

    def bind(self, feeds: Feeds) -> Bound:
        return Bound(self._pieces, self.outputs, {**self._constants, **feeds}, self._whole)


class Bound:
    """The pieces with one sample of inputs, and what they made of it last. The arrays must not be changed meanwhile."""

    def __init__(self, pieces: Sequence[_Piece], outputs: Sequence[str], feeds: Feeds, whole: bool) -> None:
        self._pieces, self._outputs, self._whole = pieces, outputs, whole
        self._feeds = dict(feeds) if whole else {name: as_value(array) for name, array in feeds.items()}
        self._memory: list[OrderedDict[Any, tuple[int, dict[str, Any]]]] = [OrderedDict() for _ in pieces]
        self._versions = 0

    def run(self, flags: np.ndarray) -> list[np.ndarray]:
        """The model's outputs with these switches (bool, one each)."""
        values: dict[str, Any] = dict(self._feeds)
        version = dict.fromkeys(values, 0)
        for piece, memory in zip(self._pieces, self._memory, strict=True):
            chosen = flags[piece.part.switches]
            key = chosen.tobytes(), tuple(version[name] for name in piece.part.inputs)
            if key in memory:
                memory.move_to_end(key)
            else:
                self._versions += 1
                memory[key] = self._versions, self._run(piece, values, chosen)
                if len(memory) > REMEMBERED:
                    memory.pop(list(memory)[1])  # the first one, with nothing switched, stays
            number, made = memory[key]
            values |= made
            version |= dict.fromkeys(made, number)
        return [_flat(values[name]) if self._whole else as_array(values[name]) for name in self._outputs]

    def _run(self, piece: _Piece, values: Mapping[str, Any], chosen: np.ndarray) -> dict[str, Any]:
        feeds, names = {name: values[name] for name in piece.part.inputs}, piece.part.outputs
        if self._whole:
            made = piece.runner.run({**feeds, FLAGS: chosen} if len(chosen) else feeds, names)
        else:
            made = piece.runner.run_values({**feeds, FLAGS: as_value(chosen)} if len(chosen) else feeds, names)
        return dict(zip(names, made, strict=True))


def _flat(value: Any) -> np.ndarray:
    """A sequence of tensors as one row of their elements, so that it can be compared; nothing for an absent optional."""
    if isinstance(value, np.ndarray):
        return value
    parts = value if isinstance(value, list) else []
    return np.concatenate([np.ravel(part) for part in parts]) if parts else np.zeros(0, np.float32)


def _cuts(
    nodes: Sequence[onnx.NodeProto], needs: Sequence[Sequence[str]], dtypes: Mapping[str, int], outputs: set[str],
    inputs: set[str],
) -> list[tuple[int, int]]:  # fmt: skip
    """Where each piece starts and ends: pieces of about NODES_PER_PIECE nodes, cut where few tensors are live."""
    last = {name: index for index, names in enumerate(needs) for name in names}
    live: set[str] = set()
    counts: list[int | None] = []  # tensors alive after each node; None where one has no known type
    dying: dict[int, list[str]] = {}
    for name, index in last.items():
        dying.setdefault(index, []).append(name)
    for index, node in enumerate(nodes):
        live.update(name for name in node.output if last.get(name, -1) > index)
        live.difference_update(name for name in dying.get(index, []))
        crossing = live - inputs - outputs
        counts.append(len(crossing) if all(name in dtypes for name in crossing) else None)
    size = max(NODES_PER_PIECE, -(-len(nodes) // MOST_PIECES))
    bounds, start = [], 0
    while len(nodes) - start > size + NEAR:
        target = start + size
        near = [at for at in range(max(start + 1, target - NEAR), target + NEAR) if counts[at - 1] is not None]
        if not near:
            break
        end = min(near, key=lambda at: (counts[at - 1], abs(at - target)))
        bounds.append((start, end))
        start = end
    return [*bounds, (start, len(nodes))]


def _cut_out(
    proto: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], needs: Sequence[Sequence[str]], count: int,
    dtypes: Mapping[str, int], start: int, end: int,
) -> _Part:  # fmt: skip
    chosen = nodes[start:end]
    made = {name for node in chosen for name in node.output if name}
    read = {name for names in needs[start:end] for name in names} - made
    wanted = {name for names in needs[end:] for name in names} | {value.name for value in proto.graph.output}
    constants = {t.name: t for t in proto.graph.initializer}
    numbers = {flag(i): i for i in range(count)}
    switches = sorted(numbers[name] for name in read if name in numbers)
    inputs = tuple(sorted(name for name in read if name not in constants and name not in numbers))
    outputs = tuple(sorted(made & wanted))
    part = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import)
    part.graph.name = proto.graph.name or "piece"
    part.graph.initializer.extend(constants[name] for name in sorted(read & constants.keys()))
    given = {value.name: value for value in (*proto.graph.input, *proto.graph.output)}
    for names, values in ((inputs, part.graph.input), (outputs, part.graph.output)):
        values.extend(given.get(name) or helper.make_tensor_value_info(name, dtypes[name], None) for name in names)
    renumbered = {flag(number): flag(position) for position, number in enumerate(switches)}
    woven = with_flags(part, [_with_conditions(node, renumbered) for node in chosen], len(switches))
    return _Part(woven, inputs, outputs, np.array(switches, dtype=np.intp))


def _with_conditions(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    """The node with its switches, and those inside its branches, under the numbers that they have in its piece."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    _rename_conditions(copy, names)
    return copy


def _rename_conditions(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    if node.op_type != "If" or not node.input or node.input[0] not in names:
        return
    node.input[0] = names[node.input[0]]
    for attribute in node.attribute:
        for inner in attribute.g.node:
            _rename_conditions(inner, names)
