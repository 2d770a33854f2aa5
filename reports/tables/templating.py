"""Names that differ only in a running number become one: `request #17` and `request #18` are `request #`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

NUMBER = re.compile(r"#?(?:0[xX][0-9a-fA-F]+|\d+(?:\.\d+)*)")
ORDINAL = re.compile(r"#(?=\d)\d+(?:\.\d+)*")
FEW = 32  # names that differ in a number alone, and yet are a thing each: `layer 0` to `layer 23`


def template(name: str) -> str:
    """The name with every number in it written `#`."""
    return NUMBER.sub("#", name)


def templated(names: Sequence[str], few: int = FEW) -> list[str]:
    """What to group each of these distinct names under.

    An ordinal that is written as one (`#17`) only counts, and always goes. Other numbers may tell things apart, as in
    `layer 3`: they go where more than `few` of the names differ in nothing else, and would each be a group.
    """
    templates = [template(name) for name in names]
    sizes = Counter(templates)
    return [
        whole if sizes[whole] > few else ORDINAL.sub("#", name) for name, whole in zip(names, templates, strict=True)
    ]
