"""Base values to display text, last of all: counts, percents, seconds, bytes, and names that can be trusted on a page."""

from __future__ import annotations

import math
import sys
from datetime import UTC, datetime

ABSENT = "–"
NOT_FINITE = "not finite"
_LARGEST = sys.float_info.max
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def count(number: float | None) -> str:
    """12345 -> `12,345`."""
    if number is None or not math.isfinite(number):
        return ABSENT if number is None else NOT_FINITE
    return f"{number:,.0f}"


def plural(number: int, noun: str) -> str:
    """3, `node` -> `3 nodes`."""
    return f"{count(number)} {noun}" if number == 1 else f"{count(number)} {noun}s"


def significant(number: float, digits: int = 3) -> str:
    """`digits` significant digits, no trailing zeros; powers of ten outside 0.0001 .. 1,000,000."""
    if number == 0:
        return "0"
    mantissa, _, exponent = f"{number:.{digits - 1}e}".partition("e")
    power = int(exponent)
    if -4 <= power < 6:
        text = f"{float(f'{mantissa}e{exponent}'):,.{max(0, digits - 1 - power)}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    times = "" if mantissa == "1" else f"{mantissa} × "
    return f"{times}10{str(power).translate(_SUPERSCRIPTS)}"


def percent(fraction: float | None, digits: int = 3) -> str:
    """A relative error as text: 0.061 -> `6.1 %`, inf and NaN -> `not finite`, None -> a dash."""
    if fraction is None or not math.isfinite(fraction):
        return ABSENT if fraction is None else NOT_FINITE
    percents = min(max(100 * fraction, -_LARGEST), _LARGEST)  # a finite fraction stays one
    return f"{significant(percents, digits)} %"


def seconds(duration: float | None) -> str:
    """0.04 -> `40 ms`, 3.2 -> `3.2 s`, 75 -> `1 min 15 s`."""
    if duration is None or not math.isfinite(duration):
        return ABSENT if duration is None else NOT_FINITE
    if duration < 59.95:
        for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
            if duration * scale >= 1 or unit == "µs":
                return f"{significant(duration * scale)} {unit}"
    minutes, rest = divmod(round(duration), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{count(hours)} h {minutes} min" if hours else f"{minutes} min {rest} s"


def size(number: float | None) -> str:
    """Bytes in decimal units: 90_000_000 -> `90 MB`."""
    if number is None or not math.isfinite(number):
        return ABSENT if number is None else NOT_FINITE
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(number) >= 0.9995 * scale:
            return f"{significant(number / scale)} {unit}"
    return f"{significant(number)} B"


def moment(text: str) -> str:
    """A time of a manifest, to the minute: `2026-02-03 09:15 UTC`; any other text as it is."""
    try:
        at = datetime.fromisoformat(text)
        return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if at.tzinfo else text
    except (ValueError, OverflowError):
        return text


def visible(text: str) -> str:
    """Characters that print nothing or reorder what is around them, as escapes: a newline becomes backslash-n."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def shorten(text: str, width: int, head: float = 1 / 3) -> str:
    """At most `width` characters, `head` of them from the start: the end of a node name tells more than its middle."""
    if len(text) <= width:
        return text
    first = int((width - 1) * head)
    return f"{text[:first]}…{text[len(text) - (width - 1 - first) :]}"
