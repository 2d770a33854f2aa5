"""A CUDA source as its parser can read it: what the grammar does not know, and a file's own macros, replaced byte for byte."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_NOT_NEWLINE = re.compile(rb"[^\n]")
_TO_THE_END = rb"(?:\\\r?\n|[^\n])*"  # of a line, and of those that it goes on in
_SKIPPED = (
    rb"//" + _TO_THE_END + rb"|/\*[\s\S]*?\*/|\"(?:\\[\s\S]|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'"
    rb"|^[ \t]*\#(?![ \t]*pragma\b)" + _TO_THE_END
)  # fmt: skip
# What means nothing to us. Macros of headers that we do not see are told by the names that they commonly have.
_UNKNOWN = (
    rb"\b(?:__align__|alignas|__maxnreg__|__cluster_dims__|__block_size__)\s*\([^()]*(?:\([^()]*\)[^()]*)*\)"
    rb"|\b(?:__grid_constant__|__noinline__|__inline_hint__|__managed__)\b"
    rb"|^[ \t]*\#[ \t]*pragma" + _TO_THE_END +  # where it stands between an `if (...)` and its statement
    rb"|\b[A-Z][A-Z0-9_]*UNROLL[A-Z0-9_]*\b(?:\([^()\n]*\))?(?=\s+(?:for|while|do)\b)"
    rb"|\b[A-Z][A-Z0-9_]*(?:DEVICE|INLINE|RESTRICT)[A-Z0-9_]*\b(?=\s+[A-Za-z_])"
)  # fmt: skip
_DEFINE = re.compile(rb"^[ \t]*\#[ \t]*define[ \t]+(\w+)(\([^)\n]*\))?(" + _TO_THE_END + rb")", re.MULTILINE)
_NO_CODE = re.compile(rb"//[^\n]*|/\*[\s\S]*?\*/|\\\r?\n")
_HEAD = re.compile(rb"\s*(_Pragma|for|while|if(?:\s+constexpr)?)\s*\(")
_SPECIFIERS = re.compile(
    rb"(?:(?:__(?:device|host|global|shared|constant|forceinline|inline|noinline|restrict)__|__restrict|static|inline"
    rb"|constexpr|const|volatile|extern(?:\s*\"C\")?|void|_Pragma\s*\([^()]*\)|__launch_bounds__\s*\([^()]*\)"
    rb"|__attribute__\s*\(\([^()]*\)\)|\[\[[^\]]*\]\])\s*)*"
)
_KEYWORD = {b"else": b"else", b"return": b"return"}
_CONDITIONAL = re.compile(rb"[ \t]*#[ \t]*(if|ifdef|ifndef|elif|else|endif)\b(.*)")
_OURS = {b"__CUDA_ARCH__", b"__CUDACC__", b"__NVCC__", b"__cplusplus"}  # what a compiler for the GPU defines


@dataclass(frozen=True)
class Readable:
    """The text for the parser, as long as the source; `specifiers` holds what the macros for them stand for."""

    text: bytes
    specifiers: Mapping[bytes, bytes] = field(default_factory=dict)

    def spelled_out(self, text: bytes) -> bytes:
        """What macros in a text say of a function: whether it runs on the GPU, whether it is a kernel."""
        words = re.findall(rb"\w+", text)
        common = (b"__device__" for word in words if b"DEVICE" in word and word.isupper())
        return b" ".join((*(self.specifiers.get(word, b"") for word in words), *common))


def readable(text: bytes) -> Readable:
    """Pragmas and unknown specifiers become blanks, and so do macros that stand for such; a macro that is the head of a
    loop or a condition becomes an `if`, the call of one that is a whole statement an empty one. What replaces a macro
    stands at its end, so that nothing of it is left behind."""
    macros = dict(_macros(text))
    names = rb"|".join(map(re.escape, macros)) or rb"(?!)"
    pattern = re.compile(rb"(%s)|(%s)|\b(?:%s)\b" % (_SKIPPED, _UNKNOWN, names), re.MULTILINE)
    made, done = bytearray(text), 0
    for match in pattern.finditer(text):
        start, end = match.span()
        if match[1] is not None or start < done:
            continue
        instead = macros.get(match[0], b"") if match[2] is None else b""
        if instead == b";":  # with its arguments
            opening = re.compile(rb"\s*\(").match(text, end)
            end = _closing(text, opening.end() - 1) if opening else 0
            if not end:
                continue
            made[start:end] = _NOT_NEWLINE.sub(b" ", text[start : end - 1]) + b";"
        else:
            made[start:end] = _NOT_NEWLINE.sub(b" ", text[start : end - len(instead)]) + instead
        done = end
    specifiers = {name: body for name, _, body in _definitions(text) if _SPECIFIERS.fullmatch(body)}
    return Readable(bytes(made), specifiers)


def one_branch(text: bytes) -> bytes:
    """The text with one branch of every `#if` and without the directives: for sources whose braces only match so."""
    defined = _OURS | {name for name, _, _ in _definitions(text)}
    rows, kept, chosen = [], [True], [True]  # whether the rows here are kept, and whether a branch was
    for row in text.split(b"\n"):
        found = _CONDITIONAL.match(row)
        if found is None:
            rows.append(row if all(kept) else _NOT_NEWLINE.sub(b" ", row))
            continue
        word, condition = found[1], found[2]
        if word.startswith(b"if"):
            kept.append(_holds(word, condition, defined))
            chosen.append(kept[-1])
        elif word == b"endif" and len(kept) > 1:
            kept.pop(), chosen.pop()
        elif len(kept) > 1:
            kept[-1] = not chosen[-1] and (word == b"else" or _holds(b"if", condition, defined))
            chosen[-1] = chosen[-1] or kept[-1]
        rows.append(_NOT_NEWLINE.sub(b" ", row))
    return b"\n".join(rows)


def _holds(word: bytes, condition: bytes, defined: set[bytes]) -> bool:
    """Whether a condition is likely true: names count, comparisons are taken to hold."""
    condition = _NO_CODE.sub(b" ", condition).strip()
    name = re.fullmatch(rb"(!?)\s*(?:defined\s*\(?\s*)?(\w+)\s*\)?", condition)
    if name is None or name[2].isdigit():
        return condition != b"0"
    return (name[2] in defined) != (word == b"ifndef" or bool(name[1]))


def _macros(text: bytes) -> Iterator[tuple[bytes, bytes]]:
    """What stands for a macro's name; those that have two meanings, or need no other name, are let alone."""
    found: dict[bytes, set[bytes | None]] = {}
    for name, parameters, body in _definitions(text):
        found.setdefault(name, set()).add(_instead(parameters, body))
    for name, meanings in found.items():
        instead = meanings.pop() if len(meanings) == 1 else None
        if instead is not None and len(instead) <= len(name):
            yield name, instead


def _definitions(text: bytes) -> Iterator[tuple[bytes, bytes | None, bytes]]:
    """Name, parameters, and body of each macro."""
    for match in _DEFINE.finditer(text):
        yield match[1], match[2], _NO_CODE.sub(b" ", match[3]).strip()


def _instead(parameters: bytes | None, body: bytes) -> bytes | None:
    if parameters is None:
        void = b"void" if re.search(rb"\bvoid\b", body) else b""
        return void if _SPECIFIERS.fullmatch(body) else b"if(1)" if _is_head(body) else _KEYWORD.get(body)
    if _is_head(body):
        return b"if"
    return b";" if body.endswith((b";", b"}")) else None


def _is_head(body: bytes) -> bool:
    """Whether a text is all that stands before a statement: `for (...)`, `_Pragma("unroll") for (...) if (...)`."""
    at, heads = 0, 0
    while found := _HEAD.match(body, at):
        at = _closing(body, found.end() - 1)
        if not at:
            return False
        heads += found[1] != b"_Pragma"
    return heads > 0 and not body[at:].strip()


def _closing(text: bytes, at: int) -> int:
    """The offset behind the parenthesis that closes the one at `at`; 0 if there is none."""
    depth = 0
    for found in re.compile(rb"\"(?:\\.|[^\"\\\n])*\"|[()]").finditer(text, at):
        depth += {b"(": 1, b")": -1}.get(found[0], 0)
        if not depth:
            return found.end()
    return 0
