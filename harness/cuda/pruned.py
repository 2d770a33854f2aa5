"""What of a source is needed for one of its kernels, with the rest blanked out: lines and columns stay as they are."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tree_sitter import Node

from harness.cuda.source import Entry, Function, Source

_INCLUDE = re.compile(rb'^([ \t]*#[ \t]*include[ \t]*)"([^"\n]+)"', re.MULTILINE)
_HOST_ONLY = re.compile(rb"<<<|\bcuda[A-Z]\w+\s*\(")
_NOT_NEWLINE = re.compile(rb"[^\n]")
_WORD = re.compile(rb"\w+")


def other_kernels(source: Source, entry: Entry) -> tuple[Function, ...]:
    """The kernels that are not run; the specialisations of the one that is, belong to it."""
    return tuple(function for function in source.kernels if function.qualified != entry.function.qualified)


def prune(source: Source, entry: Entry | None) -> Source:
    """The source, its tree as it was, with everything blanked that is not compiled here: what only the host needs, what
    launches kernels or calls CUDA's runtime, the bodies of other kernels, and what is said of kernels beforehand."""
    text = _without(source, _for_the_host(source))
    for function in other_kernels(source, entry) if entry else ():
        text = _blank(text, function.body.start_byte + 1, function.body.end_byte - 1)
    for node in _announcements(source.tree.root_node) if entry else ():
        text = _blank(text, node.start_byte, node.end_byte)
    return replace(source, text=text)


def compiled(source: Source, entry: Entry) -> list[Function]:
    """The functions that `prune` leaves."""
    left_out = (*_for_the_host(source), *other_kernels(source, entry))
    return [function for function in source.functions if function not in left_out]


def instantiate(entry: Entry) -> bytes:
    """What a compiler for the GPU must be told, so that the kernel of a template is in its output."""
    if not entry.arguments:
        return b""
    return f"\n#ifndef PROBE_EMULATION\ntemplate __global__ decltype({entry.name}) {entry.name};\n#endif\n".encode()


def find_includes(text: bytes, folder: Path) -> bytes:
    """The text with includes relative to its folder found from anywhere."""
    return _INCLUDE.sub(lambda match: _absolute(match, folder), text)


def _absolute(match: re.Match[bytes], folder: Path) -> bytes:
    path = folder / match[2].decode("utf-8", "replace")
    return match[1] + json.dumps(path.resolve().as_posix()).encode() if path.is_file() else match[0]


def _for_the_host(source: Source) -> list[Function]:
    """Functions that no code of the GPU names: `main`, references, what they are made of."""
    host = [function for function in source.functions if not function.device]
    unused = [function for function in host if not _may_run_on_the_gpu(source, function)]
    others = [function for function in host if function not in unused and not function.member]
    while True:
        words = set(_WORD.findall(_without(source, (*unused, *others))))
        named = [function for function in others if function.name.encode() in words]
        if not named:
            return [*unused, *others]
        others = [function for function in others if function not in named]


def _may_run_on_the_gpu(source: Source, function: Function) -> bool:
    node = function.node
    return function.name != "main" and not _HOST_ONLY.search(source.text, node.start_byte, node.end_byte)


def _without(source: Source, functions: Sequence[Function]) -> bytes:
    text = source.text
    for function in functions:
        text = _blank(text, source.begin(function.whole), function.node.end_byte)
    return text


def _announcements(node: Node) -> list[Node]:
    """Instantiations and declarations of kernels, which a copy with other parameters would contradict."""
    said = node.named_children[-1] if node.type == "template_declaration" else node
    if said.type == "template_instantiation":
        return [node]
    if said.type == "declaration" and any(child.type == "__global__" for child in said.children):
        return [node]
    inner = ("translation_unit", "namespace_definition", "declaration_list", "linkage_specification")
    return [found for child in node.named_children for found in _announcements(child)] if node.type in inner else []


def _blank(text: bytes, start: int, end: int) -> bytes:
    return text[:start] + _NOT_NEWLINE.sub(b" ", text[start:end]) + text[end:]
