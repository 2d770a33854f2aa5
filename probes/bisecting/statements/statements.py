"""What can be commented out of a kernel: its statements, and expressions down to one operand; pure text in, text out.

Two texts are made of a source. `commented` has the statements of a set taken out, for people and for compilers.
`switched` has every candidate behind a switch that is read at run time, so that one build answers every query.
Neither changes the number of a line.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from tree_sitter import Node

from harness.cuda import pruned
from harness.cuda.source import Entry, Function, Source, Statement, lacks_semicolon, statements
from probes.bisecting.candidates import Candidate

MASK = "probe_keep_mask"  # the kernel's last parameter: bit k is set if candidate k stays
WORD = 32

# With `watch` the word behind the mask becomes 1 as soon as an assignment makes NaN or Inf. `v - v` is 0 for any other
# number; what has no subtraction is not looked at.
_WATCH = """\
template <class T> __device__ auto probe_not_finite(const T &v, int) -> decltype(bool(!(v - v == v - v)))
{ return !(v - v == v - v); }
template <class T> __device__ bool probe_not_finite(const T &, long) { return false; }
template <class T> __device__ const T &probe_seen(const T &v)
{ if (probe_not_finite(v, 0)) probe_keep_mask[PROBE_WORDS] = 1u; return v; }
"""

# An operand in the place of an expression, in that one's type.
_AS = """\
template <class T> struct probe_value { typedef T type; };
template <class T> struct probe_value<T &> { typedef T type; };
template <class T> struct probe_value<T &&> { typedef T type; };
template <class T, class V> __device__ auto probe_as(const V &v, int) -> decltype(static_cast<typename probe_value<T>::type>(v))
{ return static_cast<typename probe_value<T>::type>(v); }
template <class T, class V> __device__ typename probe_value<T>::type probe_as(const V &, long) { return {}; }
"""

_COMPOUND = {
    "if_statement": "if", "for_statement": "for", "for_range_loop": "for", "while_statement": "while",
    "do_statement": "do", "switch_statement": "switch", "function_definition": "macro",
}  # fmt: skip
_JUMPS = {"break_statement": "break", "continue_statement": "continue"}
_ARITHMETIC = {b"+", b"-", b"*", b"/", b"%"}
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
_REMARK = re.compile(rb"//[^\n]*|\\\r?\n")
_OPENED, _CLOSED = re.compile(rb"^[ \t]*#[ \t]*if", re.MULTILINE), re.compile(rb"^[ \t]*#[ \t]*endif", re.MULTILINE)
_CONSTANT = {"template_argument_list", "array_declarator", "static_assert_declaration"}  # what the compiler works out
_SHOWN = 60  # characters of a statement in its name


@dataclass(frozen=True)
class Piece:
    """One thing that can be taken out: a byte range of the source, what it is, and how it is taken out.

    `whole` statements become an empty statement; an `initial` value becomes that type's zero, so that what follows
    still compiles; an `operand` expression becomes the operand at `keep`.
    """

    start: int
    end: int
    kind: str
    how: str  # whole | initial | operand
    line: int
    scope: str
    name: str = ""  # initial: the variable
    target: str = ""  # what an assignment assigns to, if looking at it changes nothing
    keep: tuple[int, int] = (0, 0)


def pieces(source: Source, entry: Entry) -> list[Piece]:
    """Statements of a kernel and of the functions of its file that may run with it, outer before inner, in order."""
    functions = [function for function in pruned.compiled(source, entry) if not function.constexpr]
    found = (piece for function in functions for piece in _of_function(source, function))
    return [piece for piece in found if _whole_conditions(source.text[piece.start : piece.end])]


def _whole_conditions(text: bytes) -> bool:
    """Whether every #if that begins in a text ends in it, and the other way round."""
    return len(_OPENED.findall(text)) == len(_CLOSED.findall(text))


def operands(source: Source, within: Sequence[Piece]) -> list[Piece]:
    """Arithmetic and calls of one argument inside given pieces: each can become its (first) operand."""
    nodes = (node for piece in within for node in _inside(source.tree.root_node, piece))
    return [piece for node in nodes if (piece := _operand(source, node)) is not None]


def candidates(source: Source, parts: Sequence[Piece]) -> list[Candidate]:
    """The pieces as candidates of a search: named by line and text, scoped by the outermost statement around them."""
    named: dict[str, int] = {}
    made = []
    for number, piece in enumerate(parts):
        text = " ".join(source.text[piece.start : piece.end].decode("utf-8", "replace").split())
        text = f"{piece.name} = {text}" if piece.name else text
        key = f"line {piece.line}: {text if len(text) <= _SHOWN else text[: _SHOWN - 3] + '...'}"
        named[key] = named.get(key, 0) + 1
        key = key if named[key] == 1 else f"{key} ({named[key]})"
        made.append(Candidate(number, key, piece.kind, piece.scope, (key,)))
    return made


def commented(source: Source, parts: Sequence[Piece], out: Collection[int]) -> bytes:
    """The source with the pieces `out` taken out, each as a comment where it stood; inner ones go with outer ones."""
    text, at = [], 0
    for number in sorted(out, key=lambda n: (parts[n].start, -parts[n].end)):
        piece = parts[number]
        if piece.start < at:
            continue  # inside what is out already
        old = source.text[piece.start : piece.end]
        text += [source.text[at : piece.start], _instead(source, piece), b" /* ", old.replace(b"*/", b"* /"), b" */"]
        at = piece.end
    return b"".join([*text, source.text[at:]])


def switched(source: Source, parts: Sequence[Piece], entry: Entry, *, watch: bool = False) -> bytes:
    """The source with every piece behind its bit of `MASK`, a new last parameter `unsigned *` of the kernel.

    The functions that the kernel calls read the mask through a global that every thread sets first, to the same value.
    With `watch`, the word behind the mask tells whether an assignment or an initial value was NaN or Inf.
    """
    kernels = [function for function in source.kernels if function.qualified == entry.function.qualified]
    inserts = [insert for function in kernels for insert in _parameter(function)]
    for number, piece in enumerate(parts):
        before, after = _switch(source, piece, number, watch)
        size = piece.end - piece.start  # of two pieces with the same range the earlier one is the outer one
        inserts += [
            _Insert(piece.start, (1, -size, number), before),
            _Insert(piece.end, (-1, size, -number), after),
        ]
    head = (
        f"__device__ unsigned *{MASK};\n#define PROBE_WORDS {words(len(parts))}\n"
        f"#define PROBE_KEPT(k) (({MASK}[(k) / {WORD}] >> ((k) % {WORD})) & 1u)\n"
        f"{_WATCH if watch else ''}{_AS}#line 1\n"
    )
    return head.encode() + _insert(source.text, inserts)


def _parameter(kernel: Function) -> tuple[_Insert, _Insert]:
    """The mask among a kernel's parameters, and its first statement, which makes it known to all functions."""
    parameters = kernel.declarator.child_by_field_name("parameters")
    assert parameters is not None
    comma = b", " if any(child.type == "parameter_declaration" for child in parameters.children) else b""
    return (
        _Insert(parameters.end_byte - 1, (0,), comma + f"unsigned *{MASK}_argument".encode()),
        _Insert(kernel.body.start_byte + 1, (0,), f" {MASK} = {MASK}_argument;".encode()),
    )


def mask(kept: Collection[int], count: int) -> list[int]:
    """The words of the mask with the bits of `kept` set."""
    made = [0] * words(count)
    for number in kept:
        made[number // WORD] |= 1 << (number % WORD)
    return made


def words(count: int) -> int:
    """How many words the mask of so many pieces has."""
    return max(1, -(-count // WORD))


# statements


def _of_function(source: Source, function: Function) -> Iterator[Piece]:
    outermost: Statement | None = None
    constants = _constants(source, function.body)
    for statement in statements(function):
        if outermost is None or statement.node.start_byte >= outermost.node.end_byte:
            outermost = statement
        scope = f"{function.name}/{_COMPOUND.get(outermost.node.type, 'statement')} line {outermost.line}"
        yield from _of_statement(source, statement, scope, constants)


def _of_statement(source: Source, statement: Statement, scope: str, constants: Collection[str]) -> Iterator[Piece]:
    node = statement.node
    if node.type == "declaration":
        yield from (piece for piece in _initial_values(source, node, scope) if piece.name not in constants)
    elif (kind := _kind(node)) is not None:
        target = _target(source, node.named_children[0]) if kind == "assignment" else ""
        yield Piece(
            source.begin(node, pragmas=False), node.end_byte, kind, "whole", statement.line, scope, target=target
        )


def _constants(source: Source, body: Node) -> set[str]:
    """Names that the compiler must know the value of, and those that their values are made of."""
    found = {name for node in _constant_nodes(body) for name in _IDENTIFIER.findall(source.of(node))}
    values = dict(_values(source, body))
    waiting = list(found)
    while waiting:
        more = set(_IDENTIFIER.findall(values.get(waiting.pop(), ""))) - found
        found |= more
        waiting += more
    return found


def _constant_nodes(node: Node) -> Iterator[Node]:
    """The size of an array, a template's arguments, a case, an assertion, the condition of an `if constexpr`."""
    field_of = {"array_declarator": "size", "case_statement": "value"}
    if node.type == "if_statement" and any(child.type == "constexpr" for child in node.children):
        field_of["if_statement"] = "condition"
    if node.type in field_of:
        found = node.child_by_field_name(field_of[node.type])
    else:
        found = node if node.type in ("template_argument_list", "static_assert_declaration") else None
    if found is not None:
        yield found
    for child in node.named_children:
        yield from _constant_nodes(child)


def _values(source: Source, node: Node) -> Iterator[tuple[str, str]]:
    name, value = node.child_by_field_name("declarator"), node.child_by_field_name("value")
    if node.type == "init_declarator" and name is not None and value is not None:
        yield source.of(name), source.of(value)
    for child in node.named_children:
        yield from _values(source, child)


def _kind(node: Node) -> str | None:
    """What a statement is, if it can be taken out without harm to what the compiler needs."""
    if node.type in _COMPOUND:
        return _COMPOUND[node.type]
    if node.type in _JUMPS:
        return _JUMPS[node.type]
    if node.type == "return_statement":  # a value is needed by whoever called
        return None if node.named_children else "return"
    if node.type != "expression_statement" or not node.named_children or lacks_semicolon(node):
        return None
    expression = node.named_children[0]
    return {"assignment_expression": "assignment", "call_expression": "call"}.get(expression.type, "expression")


def _target(source: Source, assignment: Node) -> str:
    left = assignment.child_by_field_name("left")
    harmless = left is not None and left.type in ("identifier", "subscript_expression", "field_expression")
    return source.of(left) if left is not None and harmless and not _changes(left) else ""


def _changes(node: Node) -> bool:
    return _holds(node, "update_expression", "assignment_expression", "call_expression")


def _holds(node: Node, *kinds: str) -> bool:
    return node.type in kinds or any(_holds(child, *kinds) for child in node.named_children)


def _initial_values(source: Source, node: Node, scope: str) -> Iterator[Piece]:
    """`float x = e` has a value to take out; pointers, references, `auto` and lists are let alone."""
    type_node = node.child_by_field_name("type")
    if type_node is None or type_node.type == "placeholder_type_specifier" or b"constexpr" in source.text[node.start_byte : type_node.start_byte]:  # fmt: skip
        return
    for child in node.named_children:
        if child.type != "init_declarator":
            continue
        name, value = child.child_by_field_name("declarator"), child.child_by_field_name("value")
        if (
            name is None
            or value is None
            or name.type != "identifier"
            or value.type in ("initializer_list", "argument_list")
        ):
            continue
        yield Piece(
            value.start_byte,
            value.end_byte,
            "declaration",
            "initial",
            value.start_point.row + 1,
            scope,
            source.of(name),
        )


# expressions


def _inside(node: Node, piece: Piece) -> Iterator[Node]:
    if node.end_byte <= piece.start or node.start_byte >= piece.end:
        return
    if piece.start <= node.start_byte and node.end_byte <= piece.end:
        yield node
    for child in node.named_children:
        if child.type not in _CONSTANT:
            yield from _inside(child, piece)


def _operand(source: Source, node: Node) -> Piece | None:
    if node.type == "binary_expression":
        operator, left = node.child_by_field_name("operator"), node.child_by_field_name("left")
        if operator is None or left is None or operator.text not in _ARITHMETIC:
            return None
        if left.type == "template_function":  # `i < n && r > -1` may look like one
            return None
        return _shortened(node, left, "arithmetic")
    if node.type == "call_expression":
        arguments = node.child_by_field_name("arguments")
        if (
            arguments is None
            or len(arguments.named_children) != 1
            or node.parent is None
            or node.parent.type == "expression_statement"
        ):
            return None
        return _shortened(node, arguments.named_children[0], "call")
    return None


def _shortened(node: Node, keep: Node, kind: str) -> Piece | None:
    if _holds(node, "lambda_expression"):  # its type cannot be asked for
        return None
    return Piece(node.start_byte, node.end_byte, kind, "operand", node.start_point.row + 1,
                 f"expressions line {node.start_point.row + 1}", keep=(keep.start_byte, keep.end_byte))  # fmt: skip


# text


def _instead(source: Source, piece: Piece) -> bytes:
    """What stands in the place of a piece that is out."""
    if piece.how == "whole":
        return b";"
    return b"{}" if piece.how == "initial" else source.text[slice(*piece.keep)]


def _switch(source: Source, piece: Piece, number: int, watch: bool) -> tuple[bytes, bytes]:
    """What stands before and behind a piece so that it is there only if its bit is set."""
    kept = f"PROBE_KEPT({number})"
    if piece.how == "whole" and watch and piece.target:
        return f"{{ if ({kept}) {{ ".encode(), f" probe_seen({piece.target}); }} }}".encode()
    if piece.how == "whole":
        return f"{{ if ({kept}) ".encode(), b" }"
    if piece.how == "initial":
        seen = "probe_seen" if watch else ""
        return (
            f"{kept} ? static_cast<decltype({piece.name})>({seen}(".encode(),
            f")) : decltype({piece.name})()".encode(),
        )
    whole, keep = _in_a_line(source.text[piece.start : piece.end]), _in_a_line(source.text[slice(*piece.keep)])
    return f"({kept} ? (".encode(), b") : probe_as<decltype(" + whole + b")>(" + keep + b", 0))"


def _in_a_line(expression: bytes) -> bytes:
    """A second copy of an expression must not move the lines that follow."""
    return b" ".join(_REMARK.sub(b"", expression).split())


@dataclass(frozen=True, order=True)
class _Insert:
    """New text at an offset; at the same offset what ends comes first, inner before outer, then what begins, outer first."""

    offset: int
    order: tuple[int, ...]
    new: bytes


def _insert(text: bytes, inserts: Sequence[_Insert]) -> bytes:
    made, at = [], 0
    for insert in sorted(inserts):
        made += [text[at : insert.offset], insert.new]
        at = insert.offset
    return b"".join([*made, text[at:]])
