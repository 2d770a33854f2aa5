"""An NVTX range by name and domain, as users and reports write it, and as each tool wants it written."""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.errors import UsageError

ANY = "*"  # in place of a domain
_SIGNS = re.compile(r"[\\@,\[\]/*+]")  # what has a meaning of its own in a filter of ncu and compute-sanitizer


@dataclass(frozen=True)
class NvtxRange:
    """All ranges of one name in one domain; None is the default domain, `ANY` every domain."""

    name: str
    domain: str | None = None

    @classmethod
    def parse(cls, text: str) -> NvtxRange:
        r"""NAME or NAME@DOMAIN, divided at the last @; `\@` is part of a name. Raises UsageError if either is empty."""
        head, at, domain = text.rpartition("@")
        alone = not at or head.endswith("\\")
        name = text if alone else head
        if not name or not (alone or domain):
            raise UsageError(f"--range {text}: expected NAME or NAME@DOMAIN", hint="--range measure@probe")
        return cls(name.replace("\\@", "@"), None if alone else domain)

    def __str__(self) -> str:
        """As it is typed: `parse` reads it back."""
        return _quoted(self.name) + ("" if self.domain is None else f"@{self.domain}")

    @property
    def for_nsys(self) -> str:
        """NAME@DOMAIN, where * may be the domain; without one, the default domain's."""
        return str(self)

    @property
    def for_filters(self) -> tuple[str, str]:
        """As ncu and compute-sanitizer select it: as one that is pushed and popped, and as one that is started and ended.

        Raises UsageError for a range of any domain, which they cannot select.
        """
        if self.domain == ANY:
            raise UsageError(f"--range {self}: only nsys takes a range of any domain", hint=f"--range {_quoted(self.name)}@DOMAIN")  # fmt: skip
        parts = [self.name] if self.domain is None else [self.domain, self.name]
        spelt = "@".join(_SIGNS.sub(r"\\\g<0>", part) for part in parts)
        return f"{spelt}/", spelt


def _quoted(name: str) -> str:
    return name.replace("@", "\\@")
