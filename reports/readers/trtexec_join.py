"""What files of one trtexec run say together: layers by name, and printed percentiles against those of the times."""

from __future__ import annotations

import re
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import PureWindowsPath
from typing import Any

import pandas as pd

from reports.artifact import Artifact
from reports.columns import validate
from reports.readers.trtexec_exports import PHASES, by_layer, summarise

_PROFILE_SUFFIX = re.compile(r" \[profile \d+\]$")
_KNOWN = ("layer_type", "precision", "tactic", "onnx_nodes")


def join_layers(profile: pd.DataFrame, info: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The profile's rows with what the layer information knows of them; both are tables `layers`.

    By name, the k-th of a repeated name to the k-th; a name without `[profile N]` matches the lowest N.
    """
    waiting: dict[str, deque[int]] = defaultdict(deque)
    for row, name in enumerate(info["layer"]):
        waiting[name].append(row)
    unsuffixed = _by_bare_name(info["layer"])
    joined = profile.reset_index(drop=True).copy()
    found: list[int | None] = [_take(name, waiting, unsuffixed) for name in joined["layer"]]
    for column in _KNOWN:
        values = info[column].tolist()
        joined[column] = pd.Series(
            [own if row is None else values[row] for own, row in zip(joined[column], found, strict=True)], dtype=object
        )
    return validate("layers", joined), _unmatched(found, info)


def _by_bare_name(names: Iterable[str]) -> dict[str, deque[str]]:
    """Name without `[profile N]` -> the full names, those of the lowest N first."""
    bare: dict[str, deque[str]] = defaultdict(deque)
    for name in dict.fromkeys(names):
        if _PROFILE_SUFFIX.search(name):
            bare[_PROFILE_SUFFIX.sub("", name)].append(name)
    return bare


def _take(name: str, waiting: dict[str, deque[int]], unsuffixed: Mapping[str, Iterable[str]]) -> int | None:
    """The next row of a name: as it is, without its suffix, or with one."""
    for candidate in (name, _PROFILE_SUFFIX.sub("", name), *unsuffixed.get(name, ())):
        if waiting.get(candidate):
            return waiting[candidate].popleft()
    return None


def _unmatched(found: list[int | None], info: pd.DataFrame) -> tuple[str, ...]:
    notes = []
    if missing := found.count(None):
        notes.append(f"{missing} of {len(found)} profiled layers are not in the layer information")
    if unused := len(info) - len(set(found) - {None}):
        notes.append(f"{unused} of {len(info)} layers of the layer information were not profiled")
    return tuple(notes)


def share_layers(profile: pd.DataFrame, info: pd.DataFrame) -> float:
    """How much of a profile a layer information names, from 0 to 1: whether both are of one engine."""
    names = Counter(_PROFILE_SUFFIX.sub("", name) for name in profile["layer"])
    known = {_PROFILE_SUFFIX.sub("", name) for name in info["layer"]}
    return sum(count for name, count in names.items() if name in known) / max(1, sum(names.values()))


def check_times(run: Mapping[str, Any], iterations: pd.DataFrame, tolerance: float = 2e-5) -> tuple[str, ...]:
    """Where the statistics that a run printed differ from those of its exported times; empty if they agree.

    Both are printed with six digits. Enqueue times are left out: the export holds stamps of them only.
    """
    differences = []
    if (queries := run.get("queries")) is not None and queries != len(iterations):
        differences.append(f"the log counts {queries} queries, the times are of {len(iterations)}")
    printed = {f"{phase}_ns": run.get(f"{phase}_ns") or {} for phase in PHASES if phase != "enqueue"}
    percents = {float(name[1:]) for stats in printed.values() for name in stats if name[0] == "p"}
    recomputed = summarise(iterations, tuple(sorted(percents)))
    for phase, stats in printed.items():
        for name, value in stats.items():
            own = recomputed.get(phase, {}).get(name)
            if own is not None and abs(own - value) > tolerance * max(abs(own), abs(value)) + 1:
                differences.append(f"{phase} {name}: printed {value:g} ns, recomputed {own:g} ns")
    return tuple(differences)


# --- artifacts that lie together -----------------------------------------------------------------------------------


def combine(artifacts: Sequence[Artifact]) -> list[Artifact]:
    """The artifacts, those of trtexec with what the others know: layers joined, printed percentiles checked."""
    return [_with_checks(_with_layers(one, artifacts), artifacts) for one in artifacts]


def _with_layers(one: Artifact, artifacts: Sequence[Artifact], least: float = 0.5) -> Artifact:
    """A profile with the layer information that names most of its layers; of equals, that of its own folder."""
    if one.kind != "trtexec-profile":
        return one
    profile = one.tables["layers"]
    infos = [other for other in artifacts if other.kind == "trtexec-layers"]
    shares = [(share_layers(profile, info.tables["layers"]), info.path.parent == one.path.parent) for info in infos]
    best = max(range(len(infos)), key=lambda at: shares[at], default=None)
    if best is None or shares[best][0] < least:
        return one
    joined, notes = join_layers(profile, infos[best].tables["layers"])
    summary = {**one.summary, "by_layer": by_layer(joined), "layer_information": infos[best].path.name}
    return replace(one, tables={**one.tables, "layers": joined}, summary=summary, notes=(*one.notes, *notes))


def _with_checks(one: Artifact, artifacts: Sequence[Artifact]) -> Artifact:
    """A log with a note for each run whose exported times are there too."""
    if one.kind != "trtexec-log":
        return one
    notes = []
    for number, run in enumerate(one.summary["runs"]):
        times = _exported(one, run["exports"].get("times"), artifacts)
        if times is not None:
            differences = check_times(run, times.tables["iterations"])
            said = "; ".join(differences) or "the printed statistics agree with them"
            notes.append(f"run {number}, exported times {times.path.name}: {said}")
    return replace(one, notes=(*one.notes, *notes))


def _exported(log: Artifact, name: str | None, artifacts: Sequence[Artifact]) -> Artifact | None:
    """The times that a run wrote: by the name of the file, the one in the log's folder before others."""
    wanted = PureWindowsPath(name).name if name else None
    found = [other for other in artifacts if other.kind == "trtexec-times" and other.path.name == wanted]
    return min(found, key=lambda other: other.path.parent != log.path.parent, default=None)
