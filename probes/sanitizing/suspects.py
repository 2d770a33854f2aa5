"""Findings gathered into suspects: one row for each fault at one place of a kernel, and where each comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from harness.tools.sanitizer import FALSE_ALARM
from probes.sanitizing.locating import Place
from reports.artifact import Artifact

SAME = ("tool", "severity", "kind", "kernel", "file", "line", "access", "size_bytes", "api")
EXAMPLE = ("block_x", "block_y", "block_z", "thread_x", "thread_y", "thread_z", "address", "message")
NOT_HERE = "CUDA API error"  # a call that told of the fault later on: it is rarely the place that is wrong


@dataclass
class Suspect:
    """A fault at one place: its checker, what its records have in common, how many they are, and the first of them."""

    checker: str
    artifact: Path
    rows: tuple[int, ...]  # of the artifact's `findings`
    same: dict[str, Any]
    example: dict[str, Any]
    count: int
    place: Place | None = None
    tried: list[str] = field(default_factory=list)  # why it could not be tied, where it could not

    @property
    def kernel(self) -> str | None:
        kernel: str | None = self.same["kernel"]
        return kernel

    @property
    def is_fault(self) -> bool:
        """Whether it stands at a kernel; not one that only tells of another."""
        return self.kernel is not None and self.same["kind"] != NOT_HERE

    @property
    def is_doubtful(self) -> bool:
        """Whether the checker says this of kernels that do nothing wrong, too."""
        return self.kernel is not None and FALSE_ALARM.search(str(self.example["message"])) is not None

    def as_json(self) -> dict[str, Any]:
        place = self.place
        return {
            "checker": self.checker, **self.same, "count": self.count, "first": self.example,
            "launch": place.launch if place else None, "range": place.ranges[-1] if place and place.ranges else None,
            "ranges": list(place.ranges) if place else [], "layer": place.layer if place else None,
            "operation": place.operation if place else None, "onnx_nodes": list(place.onnx_nodes) if place else [],
            "inferred_nodes": list(place.inferred_nodes) if place else [],
            "how": place.how if place else "; ".join(self.tried), "artifact": self.artifact.name,
        }  # fmt: skip


def gather(checker: str, artifact: Artifact) -> list[Suspect]:
    """The findings of one artifact as suspects, in the order in which they first appear."""
    table = artifact.tables["findings"]
    groups: dict[tuple[Any, ...], list[int]] = {}
    records = table.to_dict("records")
    for number, row in enumerate(records):
        groups.setdefault(tuple(_plain(row[name]) for name in SAME), []).append(number)
    return [
        Suspect(
            checker, artifact.path, tuple(rows), dict(zip(SAME, key, strict=True)),
            {name: _plain(records[rows[0]][name]) for name in EXAMPLE}, sum([_count(records[row]) for row in rows]),
        )
        for key, rows in groups.items()
    ]  # fmt: skip


def _count(row: Mapping[Any, Any]) -> int:
    count = _plain(row.get("count"))
    return int(count) if count else 1


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    if value is None or pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value


def kernels(suspects: Sequence[Suspect]) -> list[str]:
    """The kernels at fault, in the order of their first finding."""
    return list(dict.fromkeys(suspect.kernel for suspect in suspects if suspect.is_fault and suspect.kernel))


def ties(suspects: Sequence[Suspect]) -> dict[str, Any]:
    """What a report needs to say the layer of each finding: artifact name -> rows -> launch, layer, nodes."""
    told: dict[str, Any] = {}
    for suspect in suspects:
        if suspect.place is not None:
            place = suspect.place
            told.setdefault(suspect.artifact.name, []).append(
                {
                    "rows": list(suspect.rows),
                    "launch_id": place.launch,
                    "layer": place.layer,
                    "onnx_nodes": list(place.onnx_nodes),
                    "inferred_nodes": list(place.inferred_nodes),
                }
            )
    return told
