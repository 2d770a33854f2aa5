"""`probe kernels test`: every case of every operation against float64, on the CPU emulation or on the GPU."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from harness.errors import EXIT_CLEAN, EXIT_DEFECT, EXIT_UNDECIDED, ProbeError, UsageError
from harness.record import Outcome, Session
from kernels import numbers
from kernels.accuracy import Accuracy, judge
from kernels.manifest import BY_NAME, SPECS
from kernels.plan import Plan, Step
from kernels.spec import Arrays, KernelSpec, checked
from probes.targets import driving

if TYPE_CHECKING:
    from harness.emulation.build import Source

POISON = 0x7B  # as bytes of any float a large finite number, which no comparison takes for a result
TIMEOUT_S = 60.0
Tell = Callable[[str], None]
Spec = KernelSpec[Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """What to test and where. `emulate` None: the GPU if there is one. `checks` are the emulation's."""

    names: tuple[str, ...] = ()
    emulate: bool | None = None
    checks: str = "none"
    only: str = ""  # a piece of the case's label
    seed: int | None = None
    out: Path | None = None

    def command(self) -> list[str]:
        options = [("--emulate", self.emulate), ("--gpu", self.emulate is False)]
        made = ["kernels", "test", *self.names, *(name for name, given in options if given)]
        values = (("--check", self.checks), ("--case", self.only), ("--seed", self.seed))
        return made + [word for name, value in values if value not in ("", None, "none") for word in (name, str(value))]


@dataclass(frozen=True)
class Machine:
    """Where steps run: a function of steps and arrays that gives arrays and findings; `prepare` compiles for many plans."""

    name: str
    run: Callable[[Sequence[Step], Arrays, Sequence[str]], tuple[Arrays, Sequence[Mapping[str, Any]]]]
    workers: int
    capability: tuple[int, int] | None = None  # of the GPU; the emulation has all
    prepare: Callable[[Sequence[Plan], Tell], None] = lambda plans, tell: None


@dataclass(frozen=True)
class Result:
    """How one case came out; `peer_share` is the worst of the usual formula, in the same unit."""

    kernel: str
    case: str
    outcome: Outcome
    message: str = ""
    outputs: tuple[Accuracy, ...] = ()
    peer_share: float | None = None
    findings: tuple[Mapping[str, Any], ...] = ()
    duration_s: float = 0.0

    @property
    def share(self) -> float | None:
        return max((output.share for output in self.outputs), default=None)

    def as_record(self) -> dict[str, Any]:
        return {"kernel": self.kernel, "case": self.case, "outcome": self.outcome.value, "message": self.message,
                "share": self.share, "peer_share": self.peer_share, "outputs": [asdict(o) for o in self.outputs],
                "findings": [dict(finding) for finding in self.findings], "duration_s": self.duration_s}  # fmt: skip


@dataclass(frozen=True)
class Tested:
    """All results, the JSON document, and the session."""

    results: tuple[Result, ...]
    document: dict[str, Any]
    session: Session

    @property
    def exit_code(self) -> int:
        outcomes = {result.outcome for result in self.results}
        if Outcome.FAIL in outcomes:
            return EXIT_DEFECT
        return EXIT_UNDECIDED if Outcome.UNRESOLVED in outcomes else EXIT_CLEAN


def choose(names: Iterable[str]) -> tuple[Spec, ...]:
    """The operations of these names; all for none. UsageError names those that there are."""
    wanted = tuple(names)
    if unknown := [name for name in wanted if name not in BY_NAME]:
        raise UsageError(f"no such kernel: {', '.join(unknown)}", hint=f"one of {', '.join(BY_NAME)}")
    return tuple(spec for spec in SPECS if not wanted or spec.name in wanted)


def machine(emulate: bool | None, checks: str = "none") -> Machine:
    """The emulation, or the GPU; by itself it is the GPU where there is one."""
    if emulate is None:
        try:
            return _gpu()
        except ProbeError:  # no driver, no card: the emulation needs neither
            return _emulation(checks)
    return _emulation(checks) if emulate else _gpu()


def _emulation(checks: str) -> Machine:
    from harness.emulation import run as emulated

    def run(steps: Sequence[Step], arrays: Arrays, unset: Sequence[str]) -> tuple[Arrays, Sequence[Mapping[str, Any]]]:
        made = emulated.run(steps, arrays, checks=checks, timeout_s=TIMEOUT_S, uninitialised=unset)
        return made.arrays, made.findings

    def prepare(plans: Sequence[Plan], tell: Tell) -> None:
        wanted = {
            (source.path, source.defines): source for plan in plans for source in emulated.sources(plan.steps, checks)
        }
        for number, _ in enumerate(_side_by_side(_try_to_build, list(wanted.values()), workers), 1):
            tell(f"compiling {number} of {len(wanted)}")

    emulated.parse_checks(checks)
    workers = os.cpu_count() or 1
    return Machine("emulation", run, workers, prepare=prepare)


def _try_to_build(source: Source) -> None:
    """What does not compile is told by the case that needs it."""
    from harness.emulation.build import build

    with contextlib.suppress(ProbeError):
        build(source)


def _gpu() -> Machine:
    from harness.cuda import device, launch

    facts = device.get().facts

    def run(steps: Sequence[Step], arrays: Arrays, unset: Sequence[str]) -> tuple[Arrays, Sequence[Mapping[str, Any]]]:
        made = launch.run(steps, arrays)
        return made.arrays, made.findings

    return Machine(facts.name, run, 1, facts.compute_capability)


def run_all(settings: Settings, tell: Tell = lambda _: None) -> Tested:
    """Run the cases, write the session, say how it ended. Raises UsageError for what does not exist."""
    jobs = [(spec, case) for spec in choose(settings.names) for case in spec.cases if settings.only in case.label]
    if not jobs:
        raise UsageError(f"no case has {settings.only!r} in its label", hint="probe kernels list --cases")
    seed = secrets.randbits(32) if settings.seed is None else settings.seed
    where = machine(settings.emulate, settings.checks)
    here = [(spec, case) for spec, case in jobs if not elsewhere(case, where.capability)]
    session = Session.create("kernels-test", settings.out)
    argv = [*settings.command(), *([] if settings.seed is not None else ["--seed", str(seed)])]
    session.write_json("manifest.json", driving.manifest("kernels-test", argv, {"seed": seed, "device": where.name}))
    where.prepare([plan for spec, case in here if (plan := _planned(spec, case)) is not None], tell)
    results = []
    for result in _side_by_side(lambda job: run_case(job[0], job[1], where, seed), here, where.workers):
        results.append(result)
        session.append_step({"candidate": f"{result.kernel} {result.case}", "outcome": result.outcome.value,
                             "value": result.share, "duration_s": result.duration_s})  # fmt: skip
        tell(f"{len(results)} of {len(here)}: {result.kernel} {result.case}")
    findings = [dict(finding) for result in results for finding in result.findings]
    if findings:
        _write_findings(findings, session.raw / "findings.jsonl")
    document = {"seed": seed, "device": where.name, "checks": settings.checks, **_totals(results),
                "left_out": [f"{spec.name} {case.label}" for spec, case in jobs if elsewhere(case, where.capability)],
                "results": [result.as_record() for result in results]}  # fmt: skip
    session.write_json("result.json", document)
    return Tested(tuple(results), document, session)


def elsewhere(case: Any, capability: tuple[int, int] | None) -> bool:
    """Whether a case is for compute capability 9.0 alone (its matrix instructions), and this card has another."""
    return capability is not None and getattr(case, "capability", (0, 0)) == (9, 0) != capability


def _planned(spec: Spec, case: Any) -> Plan | None:
    """None for a case that the operation refuses, which is told when its turn comes."""
    return None if spec.refuse(case) else spec.plan(case)


def _side_by_side(work: Callable[[Any], T], jobs: Sequence[Any], workers: int) -> Iterator[T]:
    """Results in the order of the jobs; whoever stops asking stops those that wait."""
    with ThreadPoolExecutor(workers) as pool:
        try:
            yield from pool.map(work, jobs)
        finally:
            pool.shutdown(cancel_futures=True)


def run_case(spec: Spec, case: Any, where: Machine, seed: int) -> Result:
    """One case: fresh inputs, poisoned outputs, compared with float64. What goes wrong in it is its result."""
    start = time.monotonic()
    try:
        plan = checked(spec, case)
        with np.errstate(all="ignore"):
            inputs = spec.inputs(case, np.random.default_rng([seed, zlib.crc32(f"{spec.name} {case.label}".encode())]))
            expected = spec.reference(case, inputs)
            bound = spec.bound(case, inputs, expected)
        arrays, findings = where.run(plan.steps, arrays_of(plan, inputs), unwritten(plan))
    except (ProbeError, ValueError) as error:
        return Result(spec.name, case.label, Outcome.UNRESOLVED, str(error), duration_s=time.monotonic() - start)
    outputs = tuple(
        judge(buffer.name, numbers.decode(arrays[buffer.name], buffer.dtype), expected[buffer.name], bound[buffer.name],
              buffer.dtype)
        for buffer in spec.outputs(case)
    )  # fmt: skip
    wrong = [told(output) for output in outputs if not output.right]
    message = "; ".join([*wrong, *(str(finding.get("message", finding.get("kind"))) for finding in findings[:3])])
    outcome = Outcome.FAIL if wrong or findings else Outcome.PASS
    peer = _peer_share(spec, case, inputs, expected, bound)
    return Result(spec.name, case.label, outcome, message, outputs, peer, tuple(findings), time.monotonic() - start)


def unwritten(plan: Plan) -> list[str]:
    """Buffers that no step may read before one has written them."""
    return [buffer.name for buffer in plan.buffers if buffer.role in ("out", "scratch")]


def arrays_of(plan: Plan, inputs: Arrays) -> Arrays:
    """Every buffer's array: the inputs, and poison wherever something is to be written."""
    made = {}
    for buffer in plan.buffers:
        if buffer.role in ("in", "inout"):
            made[buffer.name] = np.ascontiguousarray(inputs[buffer.name])
        else:
            kind = numbers.storage(buffer.dtype)
            size = int(np.prod(buffer.shape, dtype=np.int64)) * kind.itemsize
            made[buffer.name] = np.full(size, POISON, np.uint8).view(kind).reshape(buffer.shape)
    return made


def _peer_share(spec: Spec, case: Any, inputs: Arrays, expected: Arrays, bound: Arrays) -> float | None:
    if spec.peer is None:
        return None
    with np.errstate(all="ignore"):
        made = spec.peer(case, inputs)
    dtypes = {buffer.name: buffer.dtype for buffer in spec.outputs(case)}
    return max(judge(name, value, expected[name], bound[name], dtypes[name]).share for name, value in made.items())


def told(output: Accuracy) -> str:
    at = ", ".join(map(str, output.where))
    return (f"{output.output}[{at}]: expected {output.expected:g}, got {output.got:g}, "
            f"{output.share:.3g} times the error that its dtype explains")  # fmt: skip


def _totals(results: Sequence[Result]) -> dict[str, Any]:
    counts = {outcome.value: sum(result.outcome is outcome for result in results) for outcome in Outcome}
    return {"cases": len(results), **counts}


def _write_findings(findings: Sequence[Mapping[str, Any]], path: Path) -> None:
    lines = [{"tool": findings[0].get("tool", "probe"), "findings": len(findings)}, *findings]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def summary_rows(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """For the screen: kernel, cases, right, worst error, worst of the usual formula, findings, seconds."""
    rows: list[tuple[str, ...]] = []
    for name in dict.fromkeys(result.kernel for result in results):
        mine = [result for result in results if result.kernel == name]
        right = sum(result.outcome is Outcome.PASS for result in mine)
        rows.append((name, str(len(mine)), str(right), _share(result.share for result in mine),
                     _share(result.peer_share for result in mine), str(sum(len(result.findings) for result in mine)),
                     f"{sum(result.duration_s for result in mine):.1f}"))  # fmt: skip
    return rows


def _share(shares: Iterable[float | None]) -> str:
    worst = max((share for share in shares if share is not None), default=None)
    return "" if worst is None else f"{worst:.3g}"


def wrong_rows(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """For the screen: kernel, case, outcome, what was wrong."""
    wrong = (result for result in results if result.outcome is not Outcome.PASS)
    return [(r.kernel, r.case, r.outcome.value, r.message.partition("\n")[0]) for r in wrong]


def list_document() -> dict[str, Any]:
    """Every operation as JSON values."""
    return {"kernels": [
        {"name": spec.name, "summary": spec.summary, "dtypes": list(spec.dtypes), "plugin": spec.plugin,
         "versions": dict(spec.versions), "fields": list(spec.fields), "cases": [case.label for case in spec.cases],
         "sources": sorted({step.source.name for case in (*spec.cases, *spec.bench) for step in spec.plan(case).steps
                            if hasattr(step, "source")})}
        for spec in SPECS
    ]}  # fmt: skip


def list_rows() -> list[tuple[str, ...]]:
    """For the screen: name, what it computes, dtypes, plugin with versions (legacy -> IPluginV3), cases."""
    rows: list[tuple[str, ...]] = []
    for spec in SPECS:
        versions = ", ".join(f"{old} -> {new}" for old, new in spec.versions.items())
        rows.append((spec.name, spec.summary, ", ".join(spec.dtypes), f"{spec.plugin or ''} {versions}".strip(),
                     str(len(spec.cases))))  # fmt: skip
    return rows
