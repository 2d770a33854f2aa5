"""How a worker answers which statements of a kernel may stay: one build with switches, or a source a query."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.cuda import pruned
from harness.cuda import source as cuda_source
from harness.emulation import run as emulated
from harness.engines import building
from harness.errors import BuildFailed
from harness.record import Answer, Outcome
from harness.workers import Evaluate, Query
from kernels.plan import Launch, Pointer
from probes.bisecting import verdicts
from probes.bisecting.recipes import scratch
from probes.bisecting.statements import statements
from probes.bisecting.statements.statements import MASK, Piece
from probes.targets import kernels as kernel_targets
from probes.targets.kernels import Asked

TIMEOUT_S = 20.0  # of a run, until it is known how long one takes
SHORTEST_S, SLOWER = 2.0, 20.0  # what takes so many times as long as any that ended, will not end
HANGS = ("Hang", "Deadlock")  # what taking out statements may cause by itself
Array = np.ndarray


@dataclass(frozen=True)
class Verdict:
    """What makes a run of the kernel bad: findings of the checks, NaN or Inf, or arrays that are not as expected."""

    fault: str  # sanitizer | nan | mismatch
    expect: Path | None = None
    tolerance: float = 0.0

    @property
    def checks(self) -> str:
        return "all" if self.fault == "sanitizer" else "none"

    def judge(self, run: emulated.Emulated, given: Mapping[str, Array], seen: bool) -> Answer:
        """`given`: the arrays before the launch; `seen`: an assignment made NaN or Inf."""
        errors = [row for row in run.findings if row["severity"] == "error"]
        if hung := [row for row in errors if row["kind"] in HANGS and self.fault != "sanitizer"]:
            return Answer(Outcome.UNRESOLVED, None, str(hung[0]["kind"]))
        if self.fault == "sanitizer":
            return Answer(Outcome.FAIL, None, _identity(errors[0])) if errors else Answer(Outcome.PASS)
        if not run.complete:
            return Answer(Outcome.UNRESOLVED, None, _identity(errors[0]) if errors else "stopped")
        if self.fault == "nan":
            bad = seen or _makes_nonfinite(run.arrays, given)
            return Answer(Outcome.FAIL if bad else Outcome.PASS)
        expected = _load(self.expect)
        got = [run.arrays[name].reshape(expected[name].shape) for name in expected]
        return verdicts.accuracy([got], [list(expected.values())], tolerance=self.tolerance)


class Patience:
    """How long a run may take: as asked for, or some times as long as the longest so far that came to its end."""

    def __init__(self, asked_s: float | None) -> None:
        self._asked_s, self._longest_s = asked_s, 0.0

    @property
    def seconds(self) -> float:
        if self._asked_s is not None or not self._longest_s:
            return self._asked_s or TIMEOUT_S
        return min(TIMEOUT_S, max(SHORTEST_S, SLOWER * self._longest_s))

    def took(self, seconds: float, complete: bool) -> None:
        if complete:
            self._longest_s = max(self._longest_s, seconds)


@dataclass(frozen=True)
class Switched:
    """Query: pieces left in (`taken_out`: taken out), by their switches in one build (`text`). Those in `always` stay."""

    text: Path
    count: int
    always: frozenset[int]
    launch: Asked
    verdict: Verdict
    timeout_s: float | None = None
    taken_out: bool = False

    def prepare(self) -> Evaluate:
        launch, arrays = load(self.launch)
        words = statements.words(self.count)
        step = dataclasses.replace(launch, source=self.text, arguments=(*launch.arguments, Pointer(MASK)),
                                   names=(*launch.names, MASK) if launch.names else ())  # fmt: skip

        patience = Patience(self.timeout_s)

        def evaluate(query: Query) -> Answer:
            kept = frozenset(range(self.count)) - query if self.taken_out else query | self.always
            mask = np.array([*statements.mask(kept, self.count), 0], np.uint32)
            began = time.monotonic()
            run = emulated.run(
                [step], {**arrays, MASK: mask}, checks=self.verdict.checks, timeout_s=patience.seconds
            )  # fmt: skip
            patience.took(time.monotonic() - began, run.complete)
            return self.verdict.judge(run, arrays, bool(run.arrays[MASK][words]))

        return evaluate


@dataclass(frozen=True)
class Commented:
    """Query: pieces left in (`taken_out`: taken out) of a copy, which is built and run, or given to `check`."""

    source: Path
    parts: tuple[Piece, ...]
    folder: Path
    verdict: Verdict | None = None
    launch: Asked | None = None
    check: str | None = None
    timeout_s: float | None = None
    taken_out: bool = False

    def prepare(self) -> Evaluate:
        source = cuda_source.read(self.source)
        if self.launch is not None:
            source = pruned.prune(source, cuda_source.entry_of(source, self.launch.entry))

        def evaluate(query: Query) -> Answer:
            with scratch(self.folder) as folder:
                path = folder / self.source.name
                out = query if self.taken_out else frozenset(range(len(self.parts))) - query
                text = statements.commented(source, self.parts, out)
                path.write_bytes(pruned.find_includes(text, self.source.parent))
                return self.answer(path, folder)

        return evaluate

    def answer(self, path: Path, folder: Path) -> Answer:
        """The verdict about one source; one that does not compile is UNRESOLVED."""
        if self.check is not None:
            return building.check(
                self.check.replace("{source}", "{model}"), path, timeout_s=self.timeout_s, folder=folder
            )
        assert self.launch is not None
        assert self.verdict is not None
        launch, arrays = load(self.launch)
        step = dataclasses.replace(launch, source=path)
        try:
            run = emulated.run([step], arrays, checks=self.verdict.checks, timeout_s=self.timeout_s or TIMEOUT_S)
        except BuildFailed as error:
            return Answer(Outcome.UNRESOLVED, None, f"does not compile: {str(error).splitlines()[0]}")
        return self.verdict.judge(run, arrays, seen=False)


def load(asked: Asked) -> tuple[Launch, dict[str, Array]]:
    """The launch and the arrays of a user's kernel."""
    loaded = kernel_targets.load(asked)
    (launch,) = loaded.steps
    assert isinstance(launch, Launch)
    return launch, loaded.arrays


def _load(path: Path | None) -> dict[str, Array]:
    assert path is not None
    with np.load(path, allow_pickle=False) as content:
        return {name: content[name] for name in content.files}


def _identity(finding: Mapping[str, Any]) -> str:
    """Which failure it is: lines keep their numbers, whatever is commented out."""
    return f"{finding['kind']} at line {finding['line']}"


def _makes_nonfinite(after: Mapping[str, Array], before: Mapping[str, Array]) -> bool:
    """NaN or Inf in an array that held none before the launch."""
    fresh: Sequence[str] = [name for name in before if not verdicts.has_nonfinite([[before[name]]])]
    return verdicts.has_nonfinite([[after[name] for name in fresh]])
