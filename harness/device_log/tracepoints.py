"""Logging of values put into a copy of a CUDA source: before chosen lines, and after assignments of floating type."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tree_sitter import Node

from harness.cuda import pruned
from harness.cuda import source as cuda_source
from harness.cuda.source import Entry, Function, Source
from harness.device_log.layout import as_text
from harness.errors import BuildFailed, UsageError

HEADER = "device_log.cuh"
VALUE = "PROBE_LOG_VALUE("
MOST_OPERANDS = 8
_READ = {
    "identifier", "qualified_identifier", "subscript_expression", "field_expression", "pointer_expression",
}  # fmt: skip
_CHANGING = {"assignment_expression", "update_expression", "new_expression", "delete_expression"}
_BUILT_IN = {"threadIdx", "blockIdx", "blockDim", "gridDim", "warpSize"}  # every row says where it comes from
_INTEGERS = re.compile(r"(?:(?:unsigned|signed|long|short|int|char|bool|size_t|u?int\d+_t|__half2?_raw)\s*)+")
_TOGETHER = re.compile(r"atomic\w+|__sync\w+|__\w+_sync|__shfl\w*|__threadfence\w*")
# How compilers name a place: g++ and clang `file:line:column: error: text`, nvcc and NVRTC `file(line): error: text`.
_MESSAGE = re.compile(
    r"^[ \t]*(?P<file>--at \d+)(?::(?P<line>\d+)(?::(?P<column>\d+))?:|\((?P<row>\d+)\):) *(?:fatal )?error[^:\n]*: (?P<text>.+)$",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Tracepoint:
    """Values to log just before the statement at a line, where `condition` holds."""

    line: int
    expressions: tuple[str, ...]
    condition: str = "true"

    @property
    def place(self) -> str:
        """The file name that the compiler is told for its text."""
        return f"--at {self.line}"


@dataclass(frozen=True)
class Instrumented:
    """The changed copy of a source; its lines keep the numbers of the original. `watched` counts assignments."""

    text: bytes
    points: tuple[Tracepoint, ...]
    watched: int = 0


@dataclass(frozen=True)
class _Edit:
    offset: int
    rank: int  # among edits at the same offset
    text: str


def parse_print(line: int, text: str, condition: str | None = None) -> Tracepoint:
    """A tracepoint from `--at LINE --print 'a, b, x[i]'`; UsageError for what is no list of expressions."""
    expressions = _expressions(f"--at {line} --print", text)
    if condition is not None and len(_expressions("--if", condition)) != 1:
        raise UsageError(f"--if {condition!r}: expected one condition", hint="--if 'mean > 10.f && i == 0'")
    return Tracepoint(line, expressions, condition or "true")


def _expressions(option: str, text: str) -> tuple[str, ...]:
    before = b"void f() { g("
    source = cuda_source.parse(before + text.encode() + b"); }")
    arguments = next(_walk(source.tree.root_node, {"argument_list"}), None)
    whole = arguments is not None and arguments.end_byte == len(source.text) - len(b"; }")
    if arguments is None or source.faults or not whole or not arguments.named_children or "\n" in text:
        column = max(0, source.faults[0].column - 1 - len(before)) if source.faults else len(text)
        raise UsageError(
            f"{option}: expected expressions with commas between, got\n  {text}\n  {' ' * column}^",
            hint="--print 'mean, x[i], __half2float(y[i])'",
        )
    if (change := next(_walk(arguments, _CHANGING), None)) is not None:
        raise UsageError(
            f"{option}: {source.of(change)} would change what the kernel computes", hint="an expression that only reads"
        )
    for call in _walk(arguments, {"call_expression"}):
        if (together := _TOGETHER.match(source.of(call))) is not None:
            raise UsageError(f"{option}: {together[0]}() writes to memory or waits for threads that are not chosen",
                             hint="--at the line after it, and print what it returned")  # fmt: skip
    return tuple(source.of(node) for node in arguments.named_children if node.type != "comment")


def instrument(source: Source, points: Iterable[Tracepoint] = (), *, watch: bool = False, operands: bool = True,
               folder: Path | None = None, entry: Entry | None = None) -> Instrumented:  # fmt: skip
    """The copy with every tracepoint in it, and with `watch` a check after each assignment and initialisation.

    `folder` is where the original's relative includes are looked for. `operands` False leaves out what an assignment
    was made from. With `entry` the bodies of all other kernels are left out, and whatever only they need is not
    compiled. Raises UsageError where a line has no statement of the GPU's.
    """
    points = tuple(points)
    dropped = pruned.other_kernels(source, entry) if entry else ()
    for point in points:
        if entry and (other := source.function_at(point.line)) in dropped and other is not None:
            raise UsageError(f"{source.name}:{point.line} is in the kernel {other.name}, and {entry.name} is run",
                             hint=f"--entry {other.qualified}")  # fmt: skip
    edits = [edit for point in points for edit in _trace(source, point)]
    watches = list(_watches(source, operands, dropped)) if watch else []
    edits += [edit for found in watches for edit in found]
    text = _apply(pruned.prune(source, entry).text, edits)
    if folder is not None:
        text = pruned.find_includes(text, folder)
    head = f"#include {_literal(HEADER)}\n#line 1 {_literal(source.name)}\n"
    return Instrumented(head.encode() + text + (pruned.instantiate(entry) if entry else b""), points, len(watches))


def statement_at(source: Source, line: int) -> tuple[Node, int]:
    """The statement at a line, and the offset before which a tracepoint goes; UsageError where there is none."""
    if not 1 <= line <= len(source.lines):
        raise UsageError(f"{source.name} has no line {line}: it has {len(source.lines)}", hint=_hint(source, line))
    while source.precedes(line) and line < len(source.lines):
        line += 1
    node = source.node_at(line)
    if node is None:
        raise _nothing(source, line, "is blank")
    kind = cuda_source.not_code(node)
    if kind is not None:
        raise _nothing(source, line, "is in a comment" if kind == "comment" else "is in a macro or a directive")
    function = source.function_at(line)
    if function is None:
        raise _nothing(source, line, "is outside every function")
    if not function.device:
        raise _nothing(source, line, f"is in {function.name}(), which runs on the host")
    found = _statement(source, node, line)
    if found is None or found[0].start_byte < function.body.start_byte:
        found = _first_within(source, function, line)
    if function.constexpr:
        raise _nothing(source, line, f"is in {function.name}(), which is constexpr: the compiler may run it")
    if (lost := cuda_source.lost_at(found[0] if found else node)) is not None:
        raise _nothing(source, line, f"is where the parser lost its way, at {source.of(lost).splitlines()[0][:40]!r}")
    if found is None:
        raise _nothing(source, line, "holds no statement" if source.shown(line) else "is left out by an #if")
    return found


def _first_within(source: Source, function: Function, line: int) -> tuple[Node, int] | None:
    """The first statement that begins somewhere in a line: behind `case 3:`, or in a function of one line; else the
    beginning of the block that does."""
    here = [statement.node for statement in cuda_source.statements(function) if statement.line == line]
    for node in here:
        if node.type != "compound_statement":
            return node, source.begin(node)
    if not here and function.body.start_point.row == line - 1:
        here = [function.body]
    return (here[0], here[0].start_byte + 1) if here else None


def _statement(source: Source, node: Node, line: int) -> tuple[Node, int] | None:
    if node.type == "else":
        following = node.next_named_sibling
        while following is not None and following.type == "comment":
            following = following.next_named_sibling
        if following is None or following.start_point.row != line - 1:
            return None
        node = following
    for at in cuda_source.ancestors(node):
        if at.type == "compound_statement":  # an opening brace: just after it; a closing one: just before
            if at.start_point.row == line - 1:
                return at, at.start_byte + 1
            return (at, at.end_byte - 1) if at.end_point.row == line - 1 else None
        if at.type in ("case_statement", "labeled_statement"):
            return None
        if cuda_source.is_statement(at):
            return at, source.begin(at)
    return None


def _nothing(source: Source, line: int, why: str) -> UsageError:
    shown = source.lines[line - 1].strip()
    return UsageError(f"{source.name}:{line} {why}{': ' + shown[:80] if shown else ''}", hint=_hint(source, line))


def _hint(source: Source, line: int) -> str:
    """The nearest line with a statement of the GPU's."""
    lines = {
        statement.line
        for function in source.functions if function.device and not function.constexpr
        for statement in cuda_source.statements(function)
        if statement.node.type != "compound_statement" and cuda_source.lost_at(statement.node) is None
    }  # fmt: skip
    if not lines:
        return "a source with a __global__ function"
    nearest = min(lines, key=lambda other: (abs(other - line), other))
    return f"--at {nearest}, the nearest statement: {source.lines[nearest - 1].strip()[:80]}"


def _trace(source: Source, point: Tracepoint) -> Iterator[_Edit]:
    node, offset = statement_at(source, point.line)
    row = source.text[:offset].count(b"\n") + 1
    text = as_text(point.expressions)
    # The user's own text stands on lines of its own, so that what the compiler says of it points there.
    logged = "\n".join((
        f"\n#line 1 {_literal(point.place)}",
        "do { if (::probe_log::wanted() && (", point.condition,
        f")) ::probe_log::record(PROBE_LOG_WHERE({_literal(source.name)}, {point.line}, \"\", {_literal(text)}),",
        ",\n".join(f"{VALUE}{expression})" for expression in point.expressions), "); } while (0);", f"#line {row} {_literal(source.name)}\n",
    ))  # fmt: skip
    bare = cuda_source.is_whole_body(node)
    yield _Edit(offset, 0, f"{{ {logged}" if bare else logged)
    if bare:
        yield _Edit(node.end_byte, 2, " }")


def _watches(source: Source, operands: bool, dropped: Sequence[Function]) -> Iterator[list[_Edit]]:
    for function in source.functions:
        if function.device and not function.constexpr and function not in dropped:
            for statement in cuda_source.statements(function):
                if statement.node.type == "declaration":
                    yield from _watch_declaration(source, statement.node, operands)
                elif statement.node.type == "expression_statement":
                    yield from _watch_assignment(source, statement.node, operands)


def _watch_declaration(source: Source, node: Node, operands: bool) -> Iterator[list[_Edit]]:
    kind = node.child_by_field_name("type")
    if node.has_error or kind is None or _INTEGERS.fullmatch(source.of(kind)):
        return
    for declarator in node.children_by_field_name("declarator"):
        name, value = declarator.child_by_field_name("declarator"), declarator.child_by_field_name("value")
        if declarator.type != "init_declarator" or name is None or value is None or name.type != "identifier":
            continue
        read = _operands(source, value) if operands else []
        texts = [source.of(name), *read]
        given = ", ".join([source.of(name), *(f"PROBE_LOG_VALUE({text})" for text in read)])
        yield [_Edit(node.end_byte, 1, f" {_watch(source, declarator, texts)}{given});")]


def _watch_assignment(source: Source, node: Node, operands: bool) -> Iterator[list[_Edit]]:
    expression = node.named_children[0] if node.named_children else None
    if node.has_error or expression is None or expression.type != "assignment_expression":
        return
    left, right = expression.child_by_field_name("left"), expression.child_by_field_name("right")
    operator = expression.child_by_field_name("operator")
    if (
        left is None
        or right is None
        or operator is None
        or source.of(operator) in ("%=", "<<=", ">>=", "&=", "|=", "^=")
    ):
        return
    read = []
    if operands:
        changes_itself = source.of(operator) != "=" and not any(_walk(left, _CHANGING))
        read = [*([source.of(left)] if changes_itself else []), *_operands(source, right)]
    read = list(dict.fromkeys(read))[:MOST_OPERANDS]
    # Read beforehand: the assignment may change what it was made from.
    kept = "".join(f"const auto probe_{number} = {text}; " for number, text in enumerate(read))
    after = "".join(f", probe_{number}" for number in range(len(read)))
    yield [
        _Edit(node.start_byte, 1, f"{{ {kept}{_watch(source, node, [source.of(left), *read])}("),
        _Edit(expression.end_byte, 0, f"){after})"),
        _Edit(node.end_byte, 1, " }"),
    ]


def _watch(source: Source, node: Node, texts: Sequence[str]) -> str:
    said = _literal(as_text(texts))
    return f"PROBE_LOG_WATCH({_literal(source.name)}, {node.start_point.row + 1}, {said}, "


def _operands(source: Source, node: Node) -> list[str]:
    """What an expression is made from and may be read again: names, elements, members; none if it changes something."""
    if node.type in _CHANGING or any(_walk(node, _CHANGING | {"lambda_expression", "initializer_list"})):
        return []
    return list(dict.fromkeys(_leaves(source, node)))[:MOST_OPERANDS]


def _leaves(source: Source, node: Node) -> Iterator[str]:
    if node.type in _READ:
        text = source.of(node)
        if (
            text.split(".")[0] not in _BUILT_IN
            and not text.startswith("&")
            and not any(_walk(node, {"call_expression"}))
        ):
            yield text
    elif node.type == "conditional_expression":  # an arm that is not taken must not be read
        if (condition := node.child_by_field_name("condition")) is not None:
            yield from _leaves(source, condition)
    elif node.type == "binary_expression" and source.of(node.children[1]) in ("&&", "||"):
        yield from _leaves(source, node.children[0])
    elif node.type == "call_expression":
        if (arguments := node.child_by_field_name("arguments")) is not None:
            yield from _leaves(source, arguments)
    elif node.type not in ("type_descriptor", "template_argument_list", "sizeof_expression", "comment"):
        for child in node.named_children:
            yield from _leaves(source, child)


def _walk(node: Node, kinds: set[str]) -> Iterator[Node]:
    """The nodes of these kinds below a node, itself included."""
    if node.type in kinds:
        yield node
    for child in node.named_children:
        yield from _walk(child, kinds)


def _apply(text: bytes, edits: Sequence[_Edit]) -> bytes:
    parts, done = [], 0
    for edit in sorted(edits, key=lambda edit: (edit.offset, edit.rank)):
        parts += [text[done : edit.offset], edit.text.encode()]
        done = edit.offset
    return b"".join([*parts, text[done:]])


def _literal(text: str) -> str:
    """A string literal of C++."""
    return json.dumps(text, ensure_ascii=False)


def explain(error: BuildFailed, points: Sequence[Tracepoint]) -> BuildFailed | UsageError:
    """The compiler's first message about a tracepoint's own text, with that text under it; else the error as it was."""
    by_place = {point.place: point for point in points}
    for match in _MESSAGE.finditer(str(error)):
        point = by_place.get(match["file"])
        said = _said(point, int(match["line"] or match["row"])) if point else None
        if said is not None:
            column = int(match["column"] or 0) - 1 - (len(VALUE) if said[0] == "--print" else 0)
            caret = f"\n  {' ' * column}^" if 0 <= column < len(said[1]) else ""
            return UsageError(
                f"{match['file']} {said[0]}: does not compile: {match['text']}\n  {said[1]}{caret}",
                hint="an expression of what is in scope just before that line: what it declares itself is there on the next one",
            )
    return error


def _said(point: Tracepoint | None, line: int) -> tuple[str, str] | None:
    """Option and text of a line of what was put in; lines as in `_trace`."""
    if point is None:
        return None
    if line == 2:
        return "--if", point.condition
    if 0 <= line - 4 < len(point.expressions):
        return "--print", point.expressions[line - 4]
    return "--print", ", ".join(point.expressions)
