"""Takes a .ncu-rep file apart in a process of its own, as the native library ends the process over a damaged one.

It needs nothing but `ncu_report`, and writes JSON: one object a launch, with its metrics, rules, and NVTX ranges.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def take_apart(path: str) -> list[dict[str, Any]]:
    """Every launch of the report."""
    import ncu_report  # type: ignore[import-untyped,import-not-found,unused-ignore]

    report = ncu_report.load_report(path)
    ranges = [report.range_by_idx(index) for index in range(report.num_ranges())]
    return [_launch(found.action_by_idx(index)) for found in ranges for index in range(found.num_actions())]


def _launch(action: Any) -> dict[str, Any]:
    metrics = []
    for name in action.metric_names():
        metric = action.metric_by_name(name)
        metrics.append((name, None, "") if metric is None else (name, metric.value(), metric.unit()))
    return {
        "kernel": action.name(action.NameBase_DEMANGLED) or action.name(),
        "metrics": metrics,
        "rules": action.rule_results_as_dicts(),
        "ranges": list(_ranges(action.nvtx_state())),
    }


def _ranges(state: Any) -> Iterator[tuple[str, list[str], list[str]]]:
    for identifier in state.domains() if state is not None else ():
        domain = state.domain_by_id(identifier)
        yield domain.name(), list(domain.push_pop_ranges()), list(domain.start_end_ranges())


if __name__ == "__main__":
    found = take_apart(sys.argv[1])
    Path(sys.argv[2]).write_text(json.dumps(found), encoding="ascii")
