"""The ONNX nodes that the name of a TensorRT layer or of a Myelin operation speaks of, and the steps that it adds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

DEEPEST = 8  # fusions within fusions
# What TensorRT writes around the names of nodes, and what it makes up itself.
FOREIGN = re.compile(r"^\{ForeignNode\[(.*)\]\}$", re.DOTALL)
WRAPPED = re.compile(r"^(?:PWN|Transpose)\((.*)\)$", re.DOTALL)
BY_TENSORRT = re.compile(r"Reformatting CopyNode |reformatted ", re.IGNORECASE)
SUFFIX = re.compile(r"(?: \[profile \d+\]|_myl\d+_\d+)+$")
OF_MYELIN = re.compile(r"_myl\d+_\d+(?: \[profile \d+\])?$")
MADE_UP = re.compile(
    r"^(?:Reformatting CopyNode |reformatted |\(Unnamed Layer|copied_|__mye|__myl|_gemm_|ExecutionContext::)"
    r"|__my[el]\d*|\^", re.IGNORECASE
)  # fmt: skip
# Myelin's own words for the steps of an operation: no node of the model is meant by them.
STEP = re.compile(
    r"^(?:gelu_)?(?:off_add|sr_div|sr_mul|maxred|minred|sumred|sum|sub|add|mul|div|exp|cast|max|min|erf|sqrt|neg|log|tanh"
    r"|pow|const|resh?p?|transp|xpos|slice|concat|zero|one|fill|cast_fp32|cast_16bit)(?:_?\d+)?$"
)
LEAD = re.compile(
    r"(?:[A-Za-z]+_)*?(?:output|input|before|after|of)_(?:\d+_)?_*"
)  # `shuffle_output_`, `shuffle_input_0_`, `reshape_before_`
UNNAMED = re.compile(r"^\(Unnamed Layer[*_] (\d+)\) \[(\w+)\]")
STEPS = re.compile(r"^(?:__myl|_gemm)_(\w*)$")
CAMEL = re.compile(r"[A-Z][a-z0-9]*")
UNKNOWN = "?"  # a step whose word says nothing: it may be any
# One word for each thing that a step does; what moves values without computing is not among them.
SAME = {
    "maxred": "max", "maxr": "max", "minred": "min", "minr": "min", "sumred": "sum", "sr_div": "div", "sr_mul": "mul",
    "corr": "conv", "convolution": "conv", "deco": "deconv", "deconvolution": "deconv", "fc": "product", "gemm": "product",
    "matrix_multiply": "product", "matrixmultiply": "product", "fullyconnected": "product", "mha": "product",
    "sqr": "sqrt", "mea": "mean", "squared": "pow",
}  # fmt: skip
COMPUTING = frozenset({
    "product", "conv", "deconv", "add", "sub", "mul", "div", "exp", "log", "erf", "tanh", "sqrt", "pow", "neg",
    "max", "min", "sum", "mean", "relu", "silu", "sigmoid", "abs", "normalization", "softmax",
})  # fmt: skip
MOVING = frozenset({
    "resh", "reshp", "res", "reshape", "transp", "tran", "tra", "transpose", "xpos", "move", "mov", "slice",
    "slic", "sli", "concat", "conc", "con", "cast", "cas", "const", "copy", "shuffle", "constant", "concatenation",
    "gather", "gath", "identity", "shape", "select", "sele", "fill", "zero", "one", "off_add", "pad", "expand",
    "squeeze", "unsqueeze", "resi", "resize", "gelu",
})  # fmt: skip


@dataclass(frozen=True)
class Step:
    """What an operation does beyond the nodes that it names: one of `COMPUTING`, or `UNKNOWN`.

    `layer` is TensorRT's number of a layer without a name, if it is a step of one: the same in all operations.
    """

    word: str
    layer: str = ""


class Known:
    """The nodes of a model by the names that they may be called; one that could be several of them is none."""

    def __init__(self, names: Mapping[str, str] | Iterable[str]) -> None:
        """What a node may be called -> the node; or the nodes' own names."""
        called = dict(names) if isinstance(names, Mapping) else {name: name for name in names}
        called = {name: node for name, node in called.items() if name}
        often = Counter(map(spelled, called))
        self.exact = called
        self.spelled = {spelled(name): node for name, node in called.items() if often[spelled(name)] == 1}

    def meant(self, part: str) -> str | None:
        """The node with the longest name that begins a part of an operation's name, up to an underscore."""
        if part in self.exact:
            return self.exact[part]
        if MADE_UP.search(part) or STEP.match(part):
            return None
        text = spelled(part)
        lead = LEAD.match(text)
        return self._beginning(text) or (self._beginning(text[lead.end() :]) if lead else None)

    def _beginning(self, text: str) -> str | None:
        while text:
            if text in self.spelled:
                return self.spelled[text]
            text = text.rpartition("_")[0]
        return None


def nodes_of_layer(name: str) -> tuple[str, ...]:
    """The nodes named in a layer: all of a fusion `A + B`, the first and the last of a `{ForeignNode[A...B]}`.

    None for what TensorRT added by itself, such as a reformat.
    """
    parts = [name]
    for _ in range(DEEPEST):
        parts = [inner for part in parts for inner in _opened(part)]
    return _unique(part for part in parts if part and not MADE_UP.search(part))


def is_span(layer: str) -> bool:
    """Whether a layer's name says no more than between which nodes it lies."""
    return FOREIGN.match(SUFFIX.sub("", layer)) is not None


def _opened(name: str) -> list[str]:
    """What a fusion was made of; a name that is none stands for itself."""
    fused = r" \+ | \|\| |\+" if OF_MYELIN.search(name) else r" \+ | \|\| "
    name = SUFFIX.sub("", name)
    if MADE_UP.match(name):
        return []
    if foreign := FOREIGN.match(name):
        return foreign[1].split("...")
    if wrapped := WRAPPED.match(name):
        return _arguments(wrapped[1])
    return re.split(fused, name)


def nodes_of_operation(name: str, known: Known | Sequence[str] = ()) -> tuple[str, ...]:
    """The nodes that a fused operation of Myelin came from.

    Myelin of TensorRT 8 spells a node with underscores and adds what it did (`l0.qk` gives `l0_qk_matrix_multiply`), so
    the node itself can be told only among `known` ones; without these its parts are given as Myelin spells them, less
    those that it made up.
    """
    parts = _parts(name)
    if not known:
        return _unique(part for part in parts if not (MADE_UP.search(part) or STEP.match(part)))
    known = known if isinstance(known, Known) else Known(known)
    return _unique(node for part in parts if (node := known.meant(part)))


def steps_of(name: str, known: Known) -> tuple[Step, ...]:
    """What an operation or a layer computes beyond the nodes that its name tells."""
    if BY_TENSORRT.match(name):
        return ()
    found = [step for part in _parts(name) if known.meant(part) is None for step in _steps(part)]
    return tuple(step for step in found if step.word not in MOVING)


def _parts(name: str) -> list[str]:
    """What stands between the plus signs, of a fused layer too."""
    return [part for part in re.split(r" \+ | \|\| |\+", SUFFIX.sub("", name)) if part]


def _steps(part: str) -> list[Step]:
    if unnamed := UNNAMED.match(part):
        return [Step(_word(unnamed[2]), unnamed[1])]
    if listed := STEPS.match(part):
        return [Step(_word(word)) for word in CAMEL.findall(listed[1]) or listed[1].split("_")]
    return [Step(_word(re.sub(r"(?:__mye\w*|\^\w*)$", "", part).removeprefix("gelu_")))]


def _word(text: str) -> str:
    word = re.sub(r"_?(?:\d+|v\d+|hvar|fp32|16bit)$", "", text.lower())
    word = SAME.get(word, word)
    return word if word in COMPUTING or word in MOVING else UNKNOWN


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


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
