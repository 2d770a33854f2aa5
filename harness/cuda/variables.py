"""Variables of a source in the GPU's memory, which the host fills before a launch: `__constant__` and `__device__` ones."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from tree_sitter import Node

from harness.cuda.source import Entry, Source, below

_INSIDE = {"compound_statement", "field_declaration_list"}  # of functions and classes


@dataclass(frozen=True)
class Variable:
    """A variable outside of all functions and classes. `name` is without its namespaces, `type` that of an element."""

    name: str
    type: str
    array: bool
    pointer: bool
    constant: bool  # __constant__: no kernel can write it
    initialised: bool


def variables(source: Source) -> tuple[Variable, ...]:
    """Those that the file defines, in order; what it only declares (`extern`) is left out."""
    return tuple(made for node in _declarations(source.tree.root_node) for made in _declared(source, node))


def reached(source: Source, entry: Entry) -> set[str]:
    """Every name in the kernel's code, and in that of the functions and macros of this file which stand in it."""
    meanings: defaultdict[str, list[Node]] = defaultdict(list)
    for function in source.functions:
        meanings[function.name].append(function.node)
    for at in below(source.tree.root_node):
        if at.type in ("preproc_def", "preproc_function_def") and (name := at.child_by_field_name("name")) is not None:
            meanings[source.of(name)].append(at)
    names: set[str] = set()
    waiting = [entry.function.node]
    while waiting:
        fresh = {word for at in below(waiting.pop()) for word in _words(source, at)} - names
        names |= fresh
        waiting += [node for name in fresh for node in meanings[name]]
    return names


def _words(source: Source, node: Node) -> list[str]:
    """A name, or those in the text that a macro stands for, which is not taken apart."""
    if node.type == "identifier":
        return [source.of(node)]
    return re.findall(r"[A-Za-z_]\w*", source.of(node)) if node.type == "preproc_arg" else []


def _declarations(node: Node) -> Iterator[Node]:
    for child in node.named_children:
        if child.type == "declaration":
            yield child
        elif child.type not in _INSIDE:
            yield from _declarations(child)


def _declared(source: Source, node: Node) -> Iterator[Variable]:
    words, kind = {source.of(child) for child in node.children}, node.child_by_field_name("type")
    if kind is None or "extern" in words or not words & {"__constant__", "__device__"}:
        return
    for declarator in node.children_by_field_name("declarator"):
        *around, name = _parts(declarator)
        forms = {part.type for part in around}
        if name.type == "identifier" and "function_declarator" not in forms:
            yield Variable(
                source.of(name), " ".join(source.of(kind).split()), "array_declarator" in forms,
                "pointer_declarator" in forms, "__constant__" in words, "init_declarator" in forms,
            )  # fmt: skip


def _parts(declarator: Node) -> Iterator[Node]:
    """From the outside to the name: neither the sizes of an array nor the value that it begins with."""
    at: Node | None = declarator
    while at is not None:
        yield at
        at = at.child_by_field_name("declarator")
