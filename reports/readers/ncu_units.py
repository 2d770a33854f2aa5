"""Units and numbers as ncu prints them, of every version and locale, to base units and floats."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

PREFIXES = {"": 1.0, "K": 1e3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
# What a time word is in nanoseconds. Old versions spell `usecond`, newer ones `us`.
NANOSECONDS = {"s": 1e9, "second": 1e9, "ms": 1e6, "us": 1e3, "µs": 1e3, "μs": 1e3, "ns": 1.0, "ps": 1e-3}
NANOSECONDS |= {f"{word}second": NANOSECONDS[f"{word}s"] for word in "munp"}
NANOSECONDS |= {f"{word}s": factor for word, factor in NANOSECONDS.items() if word.endswith("second")}
SCALED = {"byte": "byte", "bytes": "byte", "B": "byte", "hz": "hz", "Hz": "hz"}
PLURALS = {"sectors": "sector", "branches": "branch", "cycles": "cycle", "warps": "warp", "threads": "thread",
           "blocks": "block", "requests": "request", "insts": "inst", "bytes": "byte"}  # fmt: skip
SCALED |= {word: word for word in PLURALS.values()} | PLURALS


@lru_cache(maxsize=4096)
def base_unit(unit: str) -> tuple[str, float]:
    """The base unit and the factor to it: `usecond` -> (`ns`, 1000), `Gbyte/s` -> (`byte/s`, 1e9), `%` -> (`%`, 1).

    Base units are ncu's own (`--print-units base`): ns, byte, hz, %, cycle, inst ...; rates are per second. A unit that
    is not known stays as it is printed.
    """
    unit = unit.strip()
    above, slash, below = unit.partition("/")
    if not slash:
        return ("ns", NANOSECONDS[unit]) if unit in NANOSECONDS else _scaled(unit)
    word, factor = _scaled(above)
    if below in NANOSECONDS:
        return ("hz" if word == "cycle" else f"{word}/s"), factor * 1e9 / NANOSECONDS[below]
    per, divisor = _scaled(below)
    return f"{word}/{per}", factor / divisor


def _scaled(word: str) -> tuple[str, float]:
    for prefix, factor in (PREFIXES | BINARY).items():
        rest = word[len(prefix) :]
        if word.startswith(prefix) and rest in SCALED:
            return SCALED[rest], factor
    return word, 1.0


# Cells that say that there is no value. ncu marks a failed metric with "(!)".
MISSING = ("", "n/a", "N/A", "nan", "-nan", "NaN", "no data", "(!) nan", "(!) n/a", "(!) no data", "(!)")


@dataclass(frozen=True)
class NumberFormat:
    """How a locale writes numbers: what stands between groups of three digits, and before the fraction."""

    thousands: str
    decimal: str

    @property
    def number(self) -> re.Pattern[str]:
        return _number(self.thousands, self.decimal)


POINT = NumberFormat(thousands=",", decimal=".")
COMMA = NumberFormat(thousands=".", decimal=",")
_SPACES = str.maketrans("", "", "\u00a0\u202f '’")  # what other locales put between groups


@lru_cache(maxsize=2)
def _number(thousands: str, decimal: str) -> re.Pattern[str]:
    group, point = re.escape(thousands), re.escape(decimal)
    return re.compile(rf"[-+]?(?:\d{{1,3}}(?:{group}\d{{3}})+|\d+)(?:{point}\d+)?(?:[eE][-+]?\d+)?|[-+]?inf", re.ASCII)


@lru_cache(maxsize=2)
def _evidence(thousands: str, decimal: str) -> re.Pattern[str]:
    """Numbers that only this format can have written; `1,234` and `1.234` say nothing."""
    group, point = re.escape(thousands), re.escape(decimal)
    return re.compile(
        rf"[-+]?(?:\d{{1,3}}(?:{group}\d{{3}})+{point}\d+|\d{{1,3}}(?:{group}\d{{3}}){{2,}}"
        rf"|\d+{point}(?:\d{{1,2}}|\d{{4,}})|0{point}\d+|\d{{4,}}{point}\d+)",
        re.ASCII,
    )


def number_format(cells: Collection[str]) -> NumberFormat:
    """The format that the cells were written in, the point for fractions if nothing tells; ValueError for a mixture."""
    seen: dict[NumberFormat, str] = {}
    for written in (POINT, COMMA):
        tells = _evidence(written.thousands, written.decimal).fullmatch
        if (cell := next(filter(tells, cells), None)) is not None:
            seen[written] = cell
    if len(seen) == 2:
        raise ValueError(f"{seen[POINT]} and {seen[COMMA]}")
    return next(iter(seen), POINT)


def parse_number(cell: str, written: NumberFormat) -> float | None:
    """A cell's number; NaN where it says that there is none, None where it is some other text.

    Of a metric with instances, `12 (3; 9)`, the first number is the value.
    """
    cell = cell.strip()
    if cell in MISSING:
        return float("nan")
    head, _, rest = cell.removeprefix("(!)").strip().partition(" (")
    head = head.translate(_SPACES)
    if (rest and not rest.endswith(")")) or not written.number.fullmatch(head):
        return None
    return float(head.replace(written.thousands, "").replace(written.decimal, "."))


def parse_numbers(cells: Sequence[str], written: NumberFormat) -> tuple[list[float], list[bool]]:
    """The cells' numbers, and for each whether it is a text instead (its number is NaN then)."""
    parsed = [parse_number(cell, written) for cell in cells]
    return [float("nan") if value is None else value for value in parsed], [value is None for value in parsed]
