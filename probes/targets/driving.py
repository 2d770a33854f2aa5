"""What `probe profile` and `probe sanitize` share: a session around tools that may fail, be missing, or be interrupted."""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.cuda import smi
from harness.errors import (
    EXIT_CLEAN,
    EXIT_INTERRUPTED,
    EXIT_UNDECIDED,
    ArtifactMissing,
    ProbeError,
    ToolFailed,
)
from harness.record import SCHEMA_VERSION, Session
from harness.tools import tool as tools
from harness.tools.tool import Recorded

Tell = Callable[[str], None]
LEAST_BYTES = 64 * 1024 * 1024  # free on the disk, below which it is said before a tool runs into it
WORKER_RESULT = "infer.result.json"
SCRATCH = (WORKER_RESULT, "infer.spec.json", "launch.spec.json")  # between processes: they hold paths of this machine
RELATED = ("probe-trt", "onnxruntime", "tensorrt", "tensorrt-rtx-cu13", "polygraphy", "numpy", "onnx", "nvtx")


@dataclass
class Step:
    """One tool's run: how it went, the files it left in raw/, and what is to be said of it."""

    name: str
    status: str = "ok"  # ok, failed, interrupted
    version: str = ""
    command: tuple[str, ...] = ()
    artifacts: tuple[Path, ...] = ()
    duration_s: float = 0.0
    program_code: int | None = None
    notes: tuple[str, ...] = ()
    error: str = ""
    hint: str = ""
    exit_code: int = EXIT_CLEAN

    def as_json(self) -> dict[str, Any]:
        known = {"name": self.name, "status": self.status, "version": self.version or None, "duration_s": round(self.duration_s, 3),
                 "artifacts": [path.name for path in self.artifacts], "program_exit_code": self.program_code,
                 "command": list(self.command), "notes": list(self.notes)}  # fmt: skip
        if not self.error:
            return known
        from reports.pages import sheets

        return {**known, "error": sheets.public(self.error), "hint": self.hint}


@dataclass
class Drive:
    """A session and the steps that were taken in it; a failed step does not end it, an interruption does."""

    session: Session
    tell: Tell
    folders: tuple[Path, ...] = ()  # of the files that were named
    steps: list[Step] = field(default_factory=list)
    interrupted: bool = False

    @property
    def artifacts(self) -> list[Path]:
        return [path for step in self.steps for path in step.artifacts]

    @property
    def exit_code(self) -> int:
        """Of the steps: the first failure's."""
        if self.interrupted:
            return EXIT_INTERRUPTED
        return next((step.exit_code for step in self.steps if step.exit_code), EXIT_CLEAN)

    def take(self, name: str, run: Callable[[], Recorded]) -> Recorded | None:
        """Run one tool; None if it failed, in which case the step says why. What it recorded until then is kept."""
        (self.session.folder / WORKER_RESULT).unlink(missing_ok=True)
        recorded = None
        with self.step(name) as step:
            recorded = run()
            fill(step, recorded, self.session)
        if (told := worker_error(self.session)) is not None:  # a tool's failure is the consequence, where it is one
            said, hint = (self._named(str(told.get(name) or "")) for name in ("message", "hint"))
            step.error = f"{said}\n{step.error}" if step.error else said
            step.status, step.hint, step.exit_code = "failed", hint or step.hint, EXIT_UNDECIDED
        return recorded

    @contextmanager
    def kept(self) -> Iterator[None]:
        """An interruption ends the work in it, and what there is until then is kept."""
        try:
            yield
        except KeyboardInterrupt:
            self.interrupted = True

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """A step to be filled in; what goes wrong in it is told there, an interruption is passed on."""
        step = Step(name)
        self.steps.append(step)
        began = time.monotonic()
        self.tell(f"{name} is starting")
        try:
            yield step
        except ProbeError as error:
            step.status, step.error, step.hint = "failed", self._named(str(error)), self._named(error.hint or "")
            step.exit_code = error.exit_code or EXIT_UNDECIDED
            if isinstance(error, ToolFailed):
                step.command = public(error.run.command.argv, self.session)
        except KeyboardInterrupt:
            step.status, step.error, self.interrupted = "interrupted", "interrupted", True
            raise
        except OSError as error:
            full = disk_is_full(error, self.session.folder)
            if full is None:
                raise
            step.status, step.error, step.hint, step.exit_code = "failed", str(full), full.hint or "", full.exit_code
        finally:
            step.duration_s = time.monotonic() - began

    def _named(self, text: str) -> str:
        """What a result says of files: where they lie from here, or by name, never where that is on this machine."""
        for folder in (self.session.folder.absolute(), Path.cwd(), *self.folders):
            text = text.replace(f"{folder}/", "")
        return text

    def draw(self, write: Callable[[], object]) -> None:
        """Draw the page; a disk without room for it is a step that failed, and hides nothing of what was found."""
        with self.step("page") as step:
            write()
        if step.status == "ok":
            self.steps.pop()  # nothing to be told
        else:
            step.hint = f"probe report {self.session.folder} -o FILE on another disk"


def worker_error(session: Session) -> Mapping[str, Any] | None:
    """What our own process under a tool says went wrong: error, message and hint; None if it went well, or none ran."""
    try:
        told: dict[str, Any] = session.read_json(WORKER_RESULT)
    except ProbeError:
        return None
    return None if told.get("ok", True) else told


def fill(step: Step, recorded: Recorded, session: Session) -> None:
    """What a tool's run left, into its step."""
    step.version, step.command = recorded.tool.version_text, public(recorded.run.command.argv, session)
    step.artifacts, step.program_code, step.notes = recorded.artifacts, recorded.program_code, recorded.notes


def public(argv: Sequence[str], session: Session) -> tuple[str, ...]:
    """A command line without the folders of this machine: files of the session from there on, all others by name."""
    base = f"{session.folder.absolute()}/"
    shown = []
    for word in argv:
        head, equals, tail = word.partition("=")
        value = tail if equals and head.startswith("--") else word
        kept = value.replace(base, "")
        kept = Path(kept).name if Path(kept).is_absolute() else kept
        shown.append(f"{head}={kept}" if equals and head.startswith("--") else kept)
    return tuple(shown)


def disk_is_full(error: OSError, folder: Path) -> ProbeError | None:
    """The error to tell if the disk is full; None for any other."""
    if error.errno not in (28, 122):  # ENOSPC, EDQUOT
        return None
    return ArtifactMissing(f"the disk that {folder} lies on is full: {error}", hint=tools.DISK_FULL.hint)


@contextmanager
def full_disk_told(folder: Path) -> Iterator[None]:
    """A disk that is full is the user's to mend: raise ArtifactMissing for it, with what to type next."""
    try:
        yield
    except OSError as error:
        raise disk_is_full(error, folder) or error from error


def room(session: Session) -> str | None:
    """What to say if the disk has little left."""
    free = shutil.disk_usage(session.folder).free
    if free >= LEAST_BYTES:
        return None
    return f"only {free // 1024 // 1024} MiB are free where {session.folder} lies: tools may fail to write"


def manifest(verb: str, argv: Sequence[str], more: Mapping[str, Any]) -> dict[str, Any]:
    """What a session says of itself: command line, versions, GPU and its clocks before; nothing of host or user."""
    gpus = smi.gpus()
    return {
        "schema_version": SCHEMA_VERSION, "verb": verb, "argv": list(argv), "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": f"{platform.system()} {platform.machine()}", "versions": versions(), **more,
        **({"gpu": gpus, "clocks_before": smi.states()} if gpus else {}),
    }  # fmt: skip


def versions() -> dict[str, str]:
    """Of Python and of the libraries that a measurement depends on."""
    found = {"python": platform.python_version()}
    for name in RELATED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def close(session: Session, steps: Sequence[Step]) -> None:
    """Add to the manifest what is known only afterwards, the tools' versions and the clocks; leave no scratch behind."""
    for name in SCRATCH:
        (session.folder / name).unlink(missing_ok=True)
    with suppress(OSError):  # not there, or in use
        (session.folder / "model").rmdir()
    content = session.read_json("manifest.json")
    content["tools"] = {step.name: step.version for step in steps if step.version}
    if "gpu" in content:
        content["clocks_after"] = smi.states()
    session.write_json("manifest.json", content)
