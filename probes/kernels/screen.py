"""What `probe kernels` shows."""

from __future__ import annotations

from probes.kernels import benching, testing
from probes.kernels.running import Ran
from probes.screen import MOST_ROWS, Shown, cut, table


def show_list(cases: bool) -> Shown:
    """Every kernel; with `cases` also every case."""
    yield table(("kernel", "computes", "formats", "plugin, versions", "cases"), testing.list_rows())
    if cases:
        rows = ((kernel["name"], label) for kernel in testing.list_document()["kernels"] for label in kernel["cases"])
        yield table(("kernel", "case"), rows)


def show_test(tested: testing.Tested) -> Shown:
    """A row a kernel, a row a case that went wrong, and the count."""
    document = tested.document
    headers = ("kernel", "cases", "right", "worst error / bound", "usual formula's", "findings", "seconds")
    yield table(headers, testing.summary_rows(tested.results))
    yield from cut(("kernel", "case", "outcome", "what"), testing.wrong_rows(tested.results), "the session")
    yield f"{document['pass']} of {document['cases']} right on {document['device']}, seed {document['seed']}"
    if left_out := len(document["left_out"]):
        yield f"{left_out} left out: they are for compute capability 9.0 alone"
    yield f"session: {tested.session.folder}"


def show_run(ran: Ran) -> Shown:
    """What the kernel printed last, what was found, and on what it ran."""
    yield from ran.printed[-MOST_ROWS:]
    rows = ran.rows()
    yield from cut(("what", "where", "block", "thread", "times", "message"), rows, "the session")
    document = ran.document
    checked = f", checked for {document['checks']}" if document["checks"] else ""
    yield f"{document['entry']} on {document['device']}{checked}: {len(rows) or 'no'} findings"
    yield f"session: {ran.session.folder}"


def show_bench(benched: benching.Benched) -> Shown:
    """Times beside what physics allows and what others take."""
    headers = ("kernel", "case", "median", "10 % .. 90 %", "bound", "of bound", "memory", "TFLOP/s", "peers")
    yield table(headers, benching.rows(benched.document))
    yield f"report: {benched.report}"
