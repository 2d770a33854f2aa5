"""The ONNX nodes that the name of a TensorRT layer or of a Myelin operation speaks of."""

from __future__ import annotations

import re
from collections.abc import Sequence

DEEPEST = 8  # fusions within fusions
# What TensorRT writes around the names of nodes, and what it makes up itself.
FOREIGN = re.compile(r"^\{ForeignNode\[(.*)\]\}$", re.DOTALL)
WRAPPED = re.compile(r"^(?:PWN|Transpose)\((.*)\)$", re.DOTALL)
SUFFIX = re.compile(r"(?: \[profile \d+\]|_myl\d+_\d+)+$")
MADE_UP = re.compile(
    r"^(?:Reformatting CopyNode |reformatted |\(Unnamed Layer|copied_|__mye|__myl|ExecutionContext::)"
    r"|__my[el]\d*|\^", re.IGNORECASE
)  # fmt: skip
# Myelin's own words for the steps of an operation: no node of the model is meant by them.
STEP = re.compile(
    r"^(?:off_add|sr_div|sr_mul|maxred|minred|sumred|sum|sub|add|mul|div|exp|cast|max|min|erf|sqrt|neg|log|tanh|pow"
    r"|const|resh?p?|transp|xpos|slice|concat|zero|one|fill)\d*$"
)


def nodes_of_layer(name: str) -> tuple[str, ...]:
    """The nodes named in a layer: all of a fusion `A + B`, the first and the last of a `{ForeignNode[A...B]}`.

    None for what TensorRT added by itself, such as a reformat.
    """
    parts = [name]
    for _ in range(DEEPEST):
        parts = [inner for part in parts for inner in _opened(part)]
    return _unique(part for part in parts if part and not MADE_UP.search(part))


def _opened(name: str) -> list[str]:
    """What a fusion was made of; a name that is none stands for itself."""
    name = SUFFIX.sub("", name)
    if MADE_UP.match(name):
        return []
    if foreign := FOREIGN.match(name):
        return foreign[1].split("...")
    if wrapped := WRAPPED.match(name):
        return _arguments(wrapped[1])
    return re.split(r" \+ | \|\| ", name)


def nodes_of_operation(name: str, known: Sequence[str] = ()) -> tuple[str, ...]:
    """The nodes that a fused operation of Myelin came from.

    Myelin spells a node with underscores and adds what it did (`l0.qk` gives `l0_qk_matrix_multiply`), so the node
    itself can be told only among `known` ones; without these its parts are given as Myelin spells them, less those
    that it made up.
    """
    parts = [part for part in name.split("+") if part]
    if known:
        return _unique(node for part in parts for node in _meant(part, known))
    return _unique(part for part in parts if not (MADE_UP.search(part) or STEP.match(part)))


def _meant(part: str, known: Sequence[str]) -> list[str]:
    """Of the known nodes the one with the longest name that stands in the part, between underscores."""
    around = f"_{part}_"
    there = [node for node in known if node and f"_{spelled(node)}_" in around]
    return [max(there, key=len)] if there else []


def spelled(node: str) -> str:
    """How Myelin spells a node's name."""
    return re.sub(r"\W", "_", node).strip("_")


def _arguments(text: str) -> list[str]:
    """Split at the commas outside all brackets: `PWN(a, b), c` are two."""
    parts, depth, start = [], 0, 0
    for at, sign in enumerate(text):
        depth += (sign in "([{") - (sign in ")]}")
        if sign == "," and depth == 0:
            parts.append(text[start:at].strip())
            start = at + 1
    return [*parts, text[start:].strip()]


def _unique(names: object) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))  # type: ignore[call-overload]
