"""The text of compute-sanitizer and cuda-memcheck: statements found wherever they stand, put together to records."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from reports.readers.decoding import lines
from reports.readers.sanitizer_record import (
    NOWHERE,
    Detail,
    Place,
    Record,
    Triple,
    address_of,
    classify,
    race_message,
    tidy,
    whole,
)

MARK = re.compile(r"(?<!=)={9}(?!=)")
WIDTH = 80  # of a Windows console


@dataclass(frozen=True)
class Summary:
    """One summary line: which one (`ERROR`, `LEAK`, `RACECHECK`) and its counts."""

    kind: str
    reported: int | None = None
    not_printed: int | None = None
    displayed: int | None = None
    errors: int | None = None
    warnings: int | None = None
    leaked_bytes: int | None = None
    leaked_allocations: int | None = None


@dataclass
class Log:
    """All that the tool said in one file."""

    records: list[Record] = field(default_factory=list)
    summaries: list[Summary] = field(default_factory=list)
    banners: list[str] = field(default_factory=list)
    notices: Counter[str] = field(default_factory=Counter)
    orphans: int = 0  # detail lines without a record
    cut_off: bool = False  # the file ends within a record


# --- lines -> statements -------------------------------------------------------------------------------------------


def statements(text: str) -> Iterator[tuple[str, str]]:
    """(stream, statement) for each marked line, whatever stands before the mark; wrapped lines are put together."""
    all_lines = lines(text)
    pieces = [_pieces(line) for line in all_lines]
    wrapped = _is_wrapped(all_lines, pieces)
    tags = _tags(pieces)
    for at, (before, contents) in enumerate(pieces):
        for content in contents[:-1]:
            yield tags.get(before, ""), content
        if contents:
            yield tags.get(before, ""), _continued(contents[-1], at, all_lines, pieces, wrapped)


def _pieces(line: str) -> tuple[str, list[str]]:
    """What stands before the first mark of a line, and what follows each mark; rulers of pytest and others have none.

    A record can begin in the middle of a line of the program's own output.
    """
    if "=========" not in line:
        return "", []
    bare = line.rstrip()
    if bare.endswith("==") and bare[bare.index("=") :].strip("= "):
        return "", []  # `===== 5 passed in 1.00s =====`
    before, *contents = MARK.split(line)
    return (before.strip(), contents) if contents else ("", [])


_STAMP = re.compile(r"\d{4}-\d\d-\d\d[T ]\S*|\[?\d\d:\d\d:\d\d(?:[.,]\d+)?Z?\]?")


def _tags(pieces: list[tuple[str, list[str]]]) -> dict[str, str]:
    """Prefix -> stream, for prefixes that details bear too (`[1,0]<stdout>:`): they tell processes apart.

    What a program printed before a record that begins mid-line stands before its first line alone.
    """
    keys = {before: _STAMP.sub("", before).strip() for before, _ in pieces if before}
    bearing = Counter(keys[before] for before, contents in pieces if before and contents[0].startswith("   "))
    return {before: key for before, key in keys.items() if key and bearing[key] > 1}


def _is_wrapped(all_lines: list[str], pieces: list[tuple[str, list[str]]]) -> bool:
    """Whether a console cut the lines: none is wider than 80 columns, and one of exactly 80 goes on unmarked."""
    marked = [at for at, (_, contents) in enumerate(pieces) if contents]
    widths = [len(all_lines[at]) for at in marked]
    return bool(widths) and max(widths) == WIDTH


_OPEN_ENDED = (  # a statement that begins so is complete only if it reads so
    (re.compile(r"\s*Program hit "), re.compile(r"on CUDA API call to \w+")),
    (re.compile(r"\s*by thread "), re.compile(r"in block \(\d+, ?\d+, ?\d+\)")),
    (re.compile(r"\s*(?:Error: |Warning: )?Race reported "), re.compile(r" access at \S")),
)


def _is_whole(content: str) -> bool | None:
    for start, end in _OPEN_ENDED:
        if start.match(content):
            return end.search(content) is not None
    return None


def _continued(content: str, at: int, all_lines: list[str], pieces: list[tuple[str, list[str]]], wrapped: bool) -> str:
    """A statement with the unmarked lines that it was broken into."""
    width = len(all_lines[at])
    for following in range(at + 1, min(at + 6, len(all_lines))):
        rest = all_lines[following].strip()
        if not rest or pieces[following][1]:
            break
        if wrapped and width == WIDTH:
            content += all_lines[following].rstrip()  # cut within a word
        elif _is_whole(content) is False and _is_whole(f"{content.rstrip()} {rest}"):
            content = f"{content.rstrip()} {rest}"
        else:
            break
        width = len(all_lines[following])
    return content


# --- places --------------------------------------------------------------------------------------------------------

_PC_FIRST = re.compile(r"(0x[0-9a-fA-F]+) in (.*)")
_FILE_FIRST = re.compile(r"((?:[A-Za-z]:[\\/])?[^:]+):(\d+)(?::(?!:)(.+))?$")
_PC_LAST = re.compile(r"(.*)\+(0x[0-9a-fA-F]+)$")
_LINE_LAST = re.compile(r"((?:[A-Za-z]:[\\/])?[^:]+):(\d+)$")
_OLD_PC = re.compile(r"(.*) \(.* : (0x[0-9a-fA-F]+)\)$")  # f(int*) (f(int*) : 0x60)


def place(text: str) -> Place:
    """A place in any of the layouts of CUDA 9 to 13.

    `0x20 in f(int*)`, `0x20 in a.cu:3:f(int*)`, `0x20 in a.cu:3`, `f(int *)+0x20 in a.cu:3`, `f(int *)+0x20`,
    `a.cu:3:f(int*)`, `f(int*) (f(int*) : 0x60)`.
    """
    text = text.strip()
    if old := _OLD_PC.match(text):
        return replace(place(old.group(1)), pc=_pc(old.group(2)))
    if first := _PC_FIRST.match(text):
        return replace(_named(first.group(2)), pc=_pc(first.group(1)))
    head, found, tail = text.rpartition(" in ")
    if found and (where := _LINE_LAST.match(tail.strip())):
        return replace(_named(head), file=where.group(1), line=int(where.group(2)))
    return _named(text)


def _named(text: str) -> Place:
    """`a.cu:3:f(int)`, `a.cu:3`, `f(int)+0x20` or `f(int)`."""
    text = text.strip()
    if found := _FILE_FIRST.match(text):
        file, line, function = found.groups()
        return replace(_named(function) if function else Place(), file=file, line=int(line))
    if found := _PC_LAST.match(text):
        return Place(found.group(1) or None, pc=_pc(found.group(2)))
    return Place(pc=_pc(text)) if re.fullmatch(r"0x[0-9a-fA-F]+", text) else Place(text or None)


def _pc(text: str) -> str:
    return hex(int(text, 16))


_FRAME = re.compile(r"(.*?)\s*\[(0x[0-9a-fA-F]+)\](?:\s+in (.+))?$")
_OLD_FRAME = re.compile(r"(.+) \((.+) \+ (0x[0-9a-fA-F]+)\)$")  # /lib/libcuda.so.1 (cuLaunchKernel + 0x346)


def host_frame(text: str) -> Detail:
    """A host frame: `main [0x8f] in bugs`, `main.cc:3:main [0x8f]`, `lib.so (f + 0x3) [0x8f]`, `./bugs [0x8f]`."""
    found = _FRAME.match(text.strip())
    body, pc, module = found.groups() if found else (text.strip(), None, None)
    if old := _OLD_FRAME.match(body):
        return Detail("host", place=Place(old.group(2), pc=pc), module=old.group(1))
    if module is None and re.match(r"[./]", body) and not _FILE_FIRST.match(body):
        return Detail("host", place=Place(pc=pc), module=body)
    return Detail("host", place=replace(place(body), pc=pc), module=module)


# --- statements -> records -----------------------------------------------------------------------------------------

_SEVERITY = re.compile(r"(error|warn(?:ing)?|info)\s*:\s*(\([^)]*\))?\s*", re.IGNORECASE)
_TRIPLE = r"\(\s*(\d+),\s*(\d+),\s*(\d+)\)"
_THREAD = re.compile(rf"by threads? {_TRIPLE}(?: in block {_TRIPLE})?")
_BLOCK = re.compile(rf"in block {_TRIPLE}")
_HAZARD = re.compile(rf"(Read|Write|Atomic) Thread {_TRIPLE} at (.*)")
_ACCESS = re.compile(r"(?:and )?(\w+) access at (.*?)(?: \[([\d.,]+) hazards?\])?$")
_ADDRESS = re.compile(r"(?:Address|Access (?:to|at)) (0x[0-9a-fA-F]+)(?: (is .+))?$")
_HOST = re.compile(r"Host Frame:\s*(.*)")
_DEVICE = re.compile(r"Device Frame:\s*(.*)")
_MODULE = re.compile(r"in ([^\s:]\S*)$")


@dataclass
class _Draft:
    """A record that is being read."""

    record: Record
    known: bool  # its first line is one of a record; else it becomes one by having a place
    expects: bool = False  # a record of this kind has a place
    located: bool = False
    threaded: bool = False
    addressed: bool = False

    @property
    def is_record(self) -> bool:
        return self.known or self.located or self.threaded or self.addressed

    def add(self, detail: Detail) -> None:
        self.record = replace(self.record, details=(*self.record.details, detail))


_PLACED = ("Invalid ", "Uninitialized ", "Barrier error")


def _triple(found: re.Match[str], first: int) -> Triple:
    groups = found.groups()[first : first + 3]
    return (int(groups[0]), int(groups[1]), int(groups[2])) if groups[0] is not None else NOWHERE


def draft(statement: str) -> _Draft:
    """A record from its first line."""
    severity, rest = "error", statement.strip()
    if found := _SEVERITY.match(rest):
        severity = {"w": "warning", "i": "info"}.get(found.group(1)[0].lower(), "error")
        rest = rest[found.end() :]
    known = classify(rest) is not None
    record = Record(message=tidy(rest), severity=severity)
    if rest.startswith("Race reported between "):
        if first := _ACCESS.match(rest.removeprefix("Race reported between ")):
            detail = Detail("access", first.group(1), place(first.group(2)))
            record = replace(record, place=detail.place, details=(detail,), message=race_message((detail,)))
    elif not rest.startswith("Program hit"):
        block = _BLOCK.search(rest)
        record = replace(record, address=address_of(rest), block=_triple(block, 0) if block else NOWHERE)
    return _Draft(record, known, expects=rest.startswith(_PLACED))


def _at(to: _Draft, found: re.Match[str]) -> None:
    to.record, to.located = replace(to.record, place=place(found.group(1))), True


def _by(to: _Draft, found: re.Match[str]) -> None:
    to.record = replace(to.record, thread=_triple(found, 0), block=_triple(found, 3))
    to.threaded = True


def _address(to: _Draft, found: re.Match[str]) -> None:
    message = to.record.message + (f" {found.group(2).rstrip('.')}" if found.group(2) else "")
    to.record, to.addressed = replace(to.record, address=found.group(1).lower(), message=message), True


def _hazard(to: _Draft, found: re.Match[str]) -> None:
    where, thread = place(found.group(5)), _triple(found, 1)
    if not to.located:
        to.record, to.located = replace(to.record, place=where, thread=thread), True
    to.add(Detail("access", found.group(1), where))


def _race(to: _Draft, found: re.Match[str]) -> None:
    count = whole(found.group(3)) if found.group(3) else None
    to.add(Detail("access", found.group(1), place(found.group(2)), count=count))
    accesses = (detail for detail in to.record.details if detail.role == "access")
    to.record = replace(to.record, message=race_message(accesses))


def _host(to: _Draft, found: re.Match[str]) -> None:
    to.add(host_frame(found.group(1)))


def _device(to: _Draft, found: re.Match[str]) -> None:
    framed = _FRAME.match(found.group(1))  # `f(int) [0x310]`, as CUDA 11 wrote it
    where = place(framed.group(1) if framed else found.group(1))
    to.add(Detail("device", place=replace(where, pc=where.pc or _pc(framed.group(2))) if framed else where))


def _module(to: _Draft, found: re.Match[str]) -> None:
    details = to.record.details
    if details and details[-1].role == "host" and details[-1].module is None:
        to.record = replace(to.record, details=(*details[:-1], replace(details[-1], module=found.group(1))))
    else:
        to.add(Detail("remark", found.group()))


def _remark(to: _Draft, found: re.Match[str]) -> None:
    to.add(Detail("remark", found.group()))


Handler = Callable[[_Draft, re.Match[str]], None]

# Which line of a record it is, what it does, and the flag that says that the record has one already.
_LINES: tuple[tuple[re.Pattern[str], Handler, str | None], ...] = (
    (_THREAD, _by, "threaded"),
    (_ADDRESS, _address, "addressed"),
    (_HAZARD, _hazard, None),
    (re.compile(r"at (.+)"), _at, "located"),
    (re.compile(r"(?=and \w+ access at )" + _ACCESS.pattern), _race, None),
    (_HOST, _host, None),
    (_DEVICE, _device, None),
    (_MODULE, _module, None),
    (
        re.compile(
            r"(?:and is |Saved host backtrace|Current Value|Not written|[\d.,]+ ?% of allocation|Uninitialized access at|"
            r"during |Barrier is located|Launched by|Allocated|Freed|Hint).*"
        ),
        _remark,
        None,
    ),
)

_BANNER = re.compile(r"(COMPUTE-SANITIZER|CUDA-MEMCHECK)\b")
_COUNT = r"([\d.,]+)"
_SUMMARY = re.compile(rf"(?:(\w+) )?SUMMARY: {_COUNT} (\w+)(.*)")
_NOT_PRINTED = re.compile(r"were not printed")
_DISPLAYED = re.compile(rf"displayed \({_COUNT} errors?, {_COUNT} warnings?(?:, {_COUNT} infos?)?")
_LEAKED = re.compile(rf"leaked in {_COUNT} allocations?")


def summary_line(content: str) -> Summary | None:
    """A summary line in figures, or None."""
    found = _SUMMARY.match(content.strip())
    if not found:
        return None
    kind, count, noun, rest = found.group(1) or "ERROR", whole(found.group(2)), found.group(3), found.group(4)
    if noun == "bytes":
        leaked = _LEAKED.search(rest)
        return Summary(kind, leaked_bytes=count, leaked_allocations=whole(leaked.group(1)) if leaked else None)
    if _NOT_PRINTED.search(rest):
        return Summary(kind, not_printed=count)
    if shown := _DISPLAYED.search(rest):
        errors, warnings, infos = (whole(group) if group else 0 for group in shown.groups())
        counted = (errors or 0) + (warnings or 0) + (infos or 0)
        return Summary(kind, reported=counted, displayed=count, errors=errors, warnings=warnings)
    return Summary(kind, reported=count)


def parse(text: str) -> Log:
    """Everything that the tool said in a text, record by record."""
    log, drafts = Log(), []
    current: dict[str, list[_Draft]] = {}
    for stream, statement in statements(text):
        content = statement.strip()
        mine = current.setdefault(stream, [])
        log.cut_off = bool(content)
        if not content:
            _close(mine)
        elif banner := _BANNER.match(content):
            _close(mine)
            log.banners.append(banner.group(1))
            log.cut_off = False
        elif summary := summary_line(content):
            _close(mine)
            log.summaries.append(summary)
            log.cut_off = False
        elif not _detail(statement, mine, log):
            _close(mine, keep=lambda one: one.expects and not one.located)  # then two are interleaved
            drafts.append(draft(content))
            mine.append(drafts[-1])
    log.cut_off = log.cut_off and any(mine and mine[-1].is_record for mine in current.values())
    _sort(drafts, log)
    return log


def _close(drafts: list[_Draft], keep: Callable[[_Draft], bool] = lambda one: False) -> None:
    drafts[:] = [one for one in drafts[-8:] if keep(one)]


def _detail(statement: str, drafts: list[_Draft], log: Log) -> bool:
    """Give a line to the record it belongs to; False if it begins one."""
    content = statement.strip()
    for pattern, handle, flag in _LINES:
        if found := pattern.match(content):
            to = _owner(drafts, flag)
            if to is None:
                log.orphans += 1
            else:
                handle(to, found)
            return True
    if statement.startswith("   ") and drafts:
        drafts[-1].add(Detail("remark", content))
        return True
    return False


def _owner(drafts: list[_Draft], flag: str | None) -> _Draft | None:
    """The record that a line belongs to: where two are interleaved, the older that still lacks such a line."""
    if flag is None:
        return drafts[-1] if drafts else None
    return next((one for one in drafts if not getattr(one, flag)), None)


def _sort(drafts: list[_Draft], log: Log) -> None:
    """Tell records from what the tool says of itself and of the target."""
    for one in drafts:
        if one.is_record:
            log.records.append(one.record)
        else:
            log.notices[one.record.message] += 1
