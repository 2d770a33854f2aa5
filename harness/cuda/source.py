"""CUDA C++ read by a real parser: functions, kernels and statements with their lines; the text is never changed here."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path

from tree_sitter import Language, Node, Parser, Tree

from harness.cuda.readable import Readable, one_branch, readable
from harness.errors import ParseError, UsageError

_REMARK = re.compile(rb"//.*|/\*.*?\*/")
_DIRECTIVE = re.compile(rb"^[ \t]*#[^\n]*\n?", re.MULTILINE)
_OTHER_DIRECTIVE = re.compile(rb"^[ \t]*#(?![ \t]*pragma\b)[^\n]*\n?", re.MULTILINE)
_NOT_CODE = {"comment", "preproc_def", "preproc_function_def", "preproc_include", "preproc_call"}
_BLOCKS = {"compound_statement", "case_statement", "else_clause"}
_NAMING = {"alias_declaration", "type_definition", "static_assert_declaration", "using_declaration"}
_LABELS = {"case_statement", "labeled_statement"}
_NO_STATEMENT = {*_LABELS, "init_statement"}
_WITH_BODY = {"if_statement", "else_clause", "for_statement", "for_range_loop", "while_statement", "do_statement"}


@dataclass(frozen=True)
class Function:
    """A function definition; lines count from 1, and `end_line` is that of its closing brace.

    `name` is without namespaces, which are in `scope`, and without the arguments of a specialisation; `parameters` are
    the names of a template's.
    """

    name: str
    scope: tuple[str, ...]  # namespaces around it, those without a name left out
    kernel: bool  # __global__
    device: bool  # runs on the GPU: __global__ or __device__
    member: bool  # of a class
    constexpr: bool  # may be needed by the compiler
    template: bool
    parameters: tuple[str, ...]
    extern_c: bool
    line: int
    end_line: int
    node: Node = field(repr=False, compare=False)

    @property
    def qualified(self) -> str:
        """The name with the namespaces before it."""
        return "::".join((*self.scope, self.name))

    @property
    def whole(self) -> Node:
        """The definition with the `template <...>` before it."""
        around = self.node.parent
        return around if around is not None and around.type == "template_declaration" else self.node

    @property
    def declarator(self) -> Node:
        """The node of type function_declarator: name and parameter list."""
        found = _function_declarator(self.node)
        assert found is not None  # or this would be no Function
        return found

    @property
    def body(self) -> Node:
        found = self.node.child_by_field_name("body")
        assert found is not None
        return found


@dataclass(frozen=True)
class Statement:
    """A statement of a function. `braced` is False for one that is the whole un-braced body of an if, else or loop."""

    line: int
    end_line: int
    depth: int  # statements around it, the function's body not counted
    braced: bool
    node: Node = field(repr=False, compare=False)


@dataclass(frozen=True)
class SyntaxFault:
    """Where the parser lost its way: a place, and the text that it could not place."""

    line: int
    column: int
    text: str


@dataclass(frozen=True)
class Source:
    """The text of a file and its tree. Byte offsets of the nodes are offsets into `text`."""

    name: str  # for messages
    text: bytes
    tree: Tree = field(repr=False, compare=False)
    parsed: Readable = field(repr=False, compare=False)  # what the tree was made of

    @cached_property
    def lines(self) -> tuple[str, ...]:
        return tuple(self.text.decode("utf-8", "replace").splitlines())

    @cached_property
    def functions(self) -> tuple[Function, ...]:
        """Every function definition, in order, with those inside namespaces, `extern "C"` and templates."""
        return tuple(_functions(self, self.tree.root_node))

    @property
    def kernels(self) -> tuple[Function, ...]:
        return tuple(function for function in self.functions if function.kernel)

    @cached_property
    def faults(self) -> tuple[SyntaxFault, ...]:
        """What the parser could not place, from the top; macros of the user's own may cause some in good code."""
        return tuple(_fault(self, node) for node in _lost(self.tree.root_node))

    def of(self, node: Node) -> str:
        """The text of a node."""
        return self.text[node.start_byte : node.end_byte].decode("utf-8", "replace")

    def function_at(self, line: int) -> Function | None:
        """The function whose definition covers a line."""
        return next((f for f in self.functions if f.line <= line <= f.end_line), None)

    def node_at(self, line: int) -> Node | None:
        """The smallest node of a line's first character that is neither blank nor of a comment before code; None for a
        blank line or none at all."""
        if not 1 <= line <= len(self.lines):
            return None
        row = self.text.split(b"\n")[line - 1]
        column = len(row) - len(row.lstrip())
        node = self._at(line, column) if column < len(row) else None
        while node is not None and node.type == "comment" and node.end_point.row == line - 1:
            rest = row[node.end_point.column :]
            if not rest.strip():
                break
            node = self._at(line, len(row) - len(rest.lstrip()))
        return node

    def shown(self, line: int) -> bool:
        """Whether the parser was shown something of a line."""
        return bool(self.parsed.text.split(b"\n")[line - 1].strip())

    def precedes(self, line: int) -> bool:
        """Whether a line is a pragma, or a macro for one, which belongs to the statement after it."""
        row, parsed = (_REMARK.sub(b"", text.split(b"\n")[line - 1]).strip() for text in (self.text, self.parsed.text))
        return not parsed and re.match(rb"#[ \t]*pragma\b|\w+$", row) is not None

    def _at(self, line: int, column: int) -> Node | None:
        return self.tree.root_node.descendant_for_point_range((line - 1, column), (line - 1, column + 1))

    def begin(self, node: Node, *, pragmas: bool = True) -> int:
        """Where a statement or function begins, with the macros and specifiers before it that the parser was not shown,
        and with its pragmas."""
        directive = _OTHER_DIRECTIVE if pragmas else _DIRECTIVE
        best = at = node.start_byte
        before = node.prev_sibling
        while True:
            gap = len(self.parsed.text[:at].rstrip())
            hidden = self.text[gap:at]
            if others := list(directive.finditer(hidden)):
                hidden = hidden[others[-1].end() :]
            if hidden.strip():
                best = at - len(hidden.lstrip())
            if others or before is None or before.type != "comment" or before.end_byte != gap:
                return best
            at, before = before.start_byte, before.prev_sibling


def read(path: Path) -> Source:
    """Parse a file; ParseError if it cannot be read, is not text, or holds no function of CUDA or C++."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ParseError(path, "file", "a CUDA source", error.strerror or str(error),
                         hint="give the path of a .cu file") from error  # fmt: skip
    if b"\0" in text:
        raise ParseError(path, "content", "a CUDA source", "a binary file")
    source = parse(text, path.name)
    if not source.functions:
        raise ParseError(path, "content", "a CUDA source with a __global__ function", "no function at all",
                         hint="give the file that holds the kernel")  # fmt: skip
    return source


def parse(text: bytes, name: str = "<text>") -> Source:
    if text.startswith(codecs.BOM_UTF8):  # in a copy it would not be the first thing
        text = b" " * len(codecs.BOM_UTF8) + text[len(codecs.BOM_UTF8) :]
    shown = readable(text)
    tree = _parser().parse(shown.text)
    if tree.root_node.has_error:  # an #if and its #else may each open a brace that is closed once
        other = readable(one_branch(text))
        again = _parser().parse(other.text)
        if _size_lost(again) < _size_lost(tree):
            shown, tree = other, again
    return Source(name, text, tree, shown)


@dataclass(frozen=True)
class Entry:
    """A kernel of a source, and if it is a template the arguments that it is wanted with, as in `<float, 4>`."""

    function: Function
    arguments: str = ""

    @property
    def name(self) -> str:
        return self.function.qualified + self.arguments


def entry_of(source: Source, text: str | None = None) -> Entry:
    """The kernel called `name`, `space::name` or `name<float, 4>`; without a text the only one there is.

    Raises UsageError that says which kernels there are, or which arguments a template wants.
    """
    if text is None:
        return _whole(source, Entry(_only(source)))
    name, bracket, arguments = text.strip().removeprefix("::").partition("<")
    found = [f for f in source.kernels if f"::{f.qualified}".endswith(f"::{name.strip()}")]
    if not found:
        there = ", ".join(_names(source))
        raise UsageError(
            f"{source.name} has no kernel {text}" + (f"; it has {there}" if there else ""),
            hint=f"--entry {_names(source)[0]}" if there else "a source with a __global__ function",
        )
    return _whole(source, Entry(found[0], bracket + arguments))


def _names(source: Source) -> list[str]:
    return list(dict.fromkeys(function.qualified for function in source.kernels))


def _only(source: Source) -> Function:
    names = _names(source)
    if len(names) != 1:
        raise UsageError(f"{source.name} has {len(names)} kernels: {', '.join(names) or 'none'}",
                         hint=f"--entry {names[0]}" if names else "a source with a __global__ function")  # fmt: skip
    return source.kernels[0]


def _whole(source: Source, entry: Entry) -> Entry:
    if entry.function.template and not entry.arguments:
        name, wanted = entry.function.name, ", ".join(entry.function.parameters)
        used = re.search(rf"\b{name}\s*(<[^<>;{{}}()]+>)\s*(?:<<<|\()".encode(), source.text)
        given = used[1].decode("utf-8", "replace") if used else f"<{wanted}>"
        raise UsageError(
            f"{name} is a template: {wanted or 'no arguments'} must be given", hint=f"--entry '{name}{given}'"
        )
    return entry


def statements(function: Function) -> Iterator[Statement]:
    """Every statement and declaration inside a function's body, outer before inner, in order."""
    yield from _statements(function.body, 0)


def ancestors(node: Node) -> Iterator[Node]:
    """The node itself, then what is around it."""
    at: Node | None = node
    while at is not None:
        yield at
        at = at.parent


def below(node: Node) -> Iterator[Node]:
    """The node itself, then everything that is named inside of it."""
    yield node
    for child in node.named_children:
        yield from below(child)


def lost_at(node: Node) -> Node | None:
    """Where the parser lost its way around a statement or just before it: there the tree may be wrong about it."""
    for at in ancestors(node):
        before = at.prev_sibling
        while before is not None and before.type == "comment":
            before = before.prev_sibling
        if before is not None and before.is_error:
            return before
        if at.parent is None or at.parent.type not in _LABELS:
            break
    return next((at for at in ancestors(node) if at.is_error), None)


def not_code(node: Node) -> str | None:
    """The kind of comment or directive that a node is part of, or None."""
    return next((at.type for at in ancestors(node) if at.type in _NOT_CODE), None)


@cache
def _parser() -> Parser:
    import tree_sitter_cuda  # 40 ms: only when something is parsed

    return Parser(Language(tree_sitter_cuda.language()))


@dataclass(frozen=True)
class _Around:
    """What a definition stands in."""

    scope: tuple[str, ...] = ()
    member: bool = False
    template: tuple[str, ...] | None = None  # the parameters of the template that it is
    extern_c: bool = False

    def inside(self, node: Node) -> _Around:
        if node.type == "template_declaration":
            return replace(self, template=_template_parameters(node))
        if node.type == "namespace_definition" and (name := node.child_by_field_name("name")) is not None:
            return replace(self, scope=(*self.scope, *_text(name).replace(" ", "").split("::")))
        if node.type == "field_declaration_list":
            return replace(self, member=True, template=None)
        return replace(self, extern_c=True) if _is_extern_c(node) else self


def _functions(source: Source, node: Node, around: _Around = _Around()) -> Iterator[Function]:
    for child in node.named_children:
        if child.type == "function_definition":
            if (made := _function(source, child, around)) is not None:
                yield made
        elif child.type != "compound_statement":
            yield from _functions(source, child, around.inside(child))


def _function(source: Source, node: Node, around: _Around) -> Function | None:
    declarator, body = _function_declarator(node), node.child_by_field_name("body")
    name = declarator.child_by_field_name("declarator") if declarator else None
    if declarator is None or name is None or body is None or name.text is None:
        return None
    scope, last = _parts(name)
    before = source.text[source.begin(node) : declarator.start_byte]
    words = {_text(child) for child in node.children} | set(source.parsed.spelled_out(before).decode().split())
    kernel = "__global__" in words
    return Function(
        last, (*around.scope, *scope), kernel, kernel or "__device__" in words, around.member, "constexpr" in words, around.template is not None,
        around.template or (), around.extern_c, node.start_point.row + 1, node.end_point.row + 1, node,
    )  # fmt: skip


def _parts(name: Node) -> tuple[tuple[str, ...], str]:
    """What stands before a name, and the name, without the arguments of a specialisation: `a::b::k<float>`."""
    scope: tuple[str, ...] = ()
    while name.type in ("qualified_identifier", "template_function"):
        if (before := name.child_by_field_name("scope")) is not None:
            scope = (*scope, _text(before))
        inner = name.child_by_field_name("name")
        if inner is None:
            break
        name = inner
    return scope, _text(name)


def _template_parameters(node: Node) -> tuple[str, ...]:
    found = node.child_by_field_name("parameters")
    names = (_last_name(child) for child in (found.named_children if found else ()))
    return tuple(name for name in names if name)


def _last_name(parameter: Node) -> str:
    """The name that a template's parameter has: `T` of `typename T`, `N` of `int N = 4`."""
    names = [child for child in parameter.named_children if child.type in ("type_identifier", "identifier")]
    if parameter.type in ("optional_parameter_declaration", "optional_type_parameter_declaration"):
        names = names[:1]
    return _text(names[-1]) if names else ""


def _text(node: Node) -> str:
    return (node.text or b"").decode("utf-8", "replace")


def _function_declarator(node: Node) -> Node | None:
    """Through the pointers and references of the return type."""
    at = node.child_by_field_name("declarator")
    while at is not None and at.type != "function_declarator":
        at = at.child_by_field_name("declarator") or next(
            (child for child in at.named_children if child.type.endswith("declarator")), None
        )
    return at


def _is_extern_c(node: Node) -> bool:
    return node.type == "linkage_specification" and bool(node.named_children) and node.named_children[0].text == b'"C"'


def _lost(node: Node) -> Iterator[Node]:
    """Where the parser lost its way, outermost nodes only."""
    if node.is_error or node.is_missing:
        yield node
    elif node.has_error:
        for child in node.children:
            yield from _lost(child)


def _size_lost(tree: Tree) -> int:
    """Bytes that the parser could not place."""
    return sum(node.end_byte - node.start_byte + 1 for node in _lost(tree.root_node))


def _fault(source: Source, node: Node) -> SyntaxFault:
    row, column = node.start_point
    return SyntaxFault(row + 1, column + 1, f"missing {node.type}" if node.is_missing else source.of(node)[:80])


def _statements(node: Node, depth: int) -> Iterator[Statement]:
    for child in node.named_children:
        if is_statement(child):
            line, end_line = child.start_point.row + 1, child.end_point.row + 1
            yield Statement(line, end_line, depth, not is_whole_body(child), child)
        if child.type not in _NOT_CODE:  # in an else_clause, a case, an #ifdef the depth is that around it
            yield from _statements(child, depth + is_statement(child))


def is_statement(node: Node) -> bool:
    """Whether a node is a statement before which another may stand: no case, no label, no part of `for (...)`."""
    if node.type == "declaration":
        return node.parent is None or node.parent.type not in (*_WITH_BODY, "condition_clause", "init_statement")
    if node.type == "function_definition":
        return is_macro_with_body(node)
    if node.parent is not None and node.parent.type == "attributed_statement":
        return False  # it begins with its attribute
    if node.type == "attributed_statement":
        return node.named_children[-1].type != "compound_statement"
    if node.type in _NAMING:
        return node.parent is not None and node.parent.type in _BLOCKS
    return node.type == "for_range_loop" or (node.type.endswith("_statement") and node.type not in _NO_STATEMENT)


def is_macro_with_body(node: Node) -> bool:
    """Whether what looks like a function inside a function is a macro with its body: `FOR_EACH(i, n) { ... }`."""
    return node.type == "function_definition" and node.parent is not None and node.parent.type in _BLOCKS


def is_whole_body(node: Node) -> bool:
    """Whether a statement is the un-braced body of an if, else or loop, or of a macro: `FOR_EACH(i, n) f(i);`."""
    if node.type == "compound_statement" or node.parent is None:
        return False
    if node.parent.type == "labeled_statement":
        return is_whole_body(node.parent)
    return node.parent.type in _WITH_BODY or (node.type != "declaration" and _after_macro(node))


def _after_macro(node: Node) -> bool:
    before = node.prev_named_sibling
    return before is not None and lacks_semicolon(before)


def lacks_semicolon(node: Node) -> bool:
    """Whether a statement is a macro's call that ends without one: what follows may be its body."""
    return node.type == "expression_statement" and bool(node.children) and node.children[-1].is_missing
