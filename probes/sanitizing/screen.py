"""What `probe sanitize` shows: how each checker's run went, the findings and where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.record import Session
from probes.screen import Shown, cut, report_line, tool_runs

HEADERS = ("finding", "kernel or call", "where", "count", "launch", "layer or range", "nodes")


def show(session: Session, result: Mapping[str, Any]) -> Shown:
    yield from tool_runs(result["ran"])
    if code := result["program_exit_code"]:
        yield f"the program itself ended with exit code {code}"
    findings = result["findings"]
    yield from cut(HEADERS, [_row(finding) for finding in findings], "result.json")
    yield from dict.fromkeys(f"{f['kernel']}: {f['how']}" for f in findings if f["kernel"] and f["how"])
    if not findings and result["status"] == "clean":
        yield "nothing was found"
    yield from report_line(session)


def _row(finding: Mapping[str, Any]) -> tuple[str, ...]:
    where = f"{finding['file']}:{finding['line']}" if finding["file"] else ""
    launch = "" if finding["launch"] is None else str(finding["launch"])
    return (finding["kind"], finding["kernel"] or finding["api"] or "", where, str(finding["count"]), launch,
            finding["layer"] or finding["range"] or "", _nodes(finding))  # fmt: skip


def _nodes(finding: Mapping[str, Any]) -> str:
    """The first few; those that no name tells are marked as what they are."""
    named, inferred = finding["onnx_nodes"], finding["inferred_nodes"]
    return ", ".join((named or inferred)[:3]) + (" (inferred)" if inferred and not named else "")
