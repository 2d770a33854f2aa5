"""What is to be profiled or sanitized: a model, an engine, a kernel, or any command line; told by what the words are."""

from __future__ import annotations

import enum
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError

ENGINES = (".plan", ".engine", ".trt")
MODEL = ".onnx"
SOURCE = ".cu"


class Kind(enum.StrEnum):
    MODEL = "model"
    ENGINE = "engine"
    KERNEL = "kernel"
    COMMAND = "command"


@dataclass(frozen=True)
class Target:
    """One thing to look at. `words` are as typed: a file, the name of a kernel, or a program and its arguments."""

    kind: Kind
    words: tuple[str, ...]

    @property
    def path(self) -> Path:
        return Path(self.words[0])

    @property
    def name(self) -> str:
        """For people: without the folder that it lies in."""
        return Path(self.words[0]).name or self.words[0]

    @property
    def public(self) -> tuple[str, ...]:
        """The words with files by name only, so that no folder of this machine shows."""
        return tuple(Path(word).name if Path(word).is_absolute() else word for word in self.words)


def parse(words: tuple[str, ...], verb: str) -> Target:
    """The target that the words name. Raises UsageError, with what to type, for words that are none."""
    if not words:
        raise UsageError(
            "what is to be looked at?", hint=f"probe {verb} MODEL.onnx, or probe {verb} -- COMMAND ARGUMENT..."
        )
    if len(words) > 1:
        return _command(words, verb)
    (word,) = words
    suffix = Path(word).suffix.lower()
    kind = (
        Kind.MODEL
        if suffix == MODEL
        else Kind.ENGINE
        if suffix in ENGINES
        else Kind.KERNEL
        if suffix == SOURCE
        else None
    )
    if kind is not None:
        if not Path(word).is_file():
            what = "is a folder" if Path(word).is_dir() else "does not exist"
            raise UsageError(f"{word} {what}", hint="check the path, and the folder that this is typed in")
        return Target(kind, words)
    if _is_kernel(word):
        return Target(Kind.KERNEL, words)
    return _command(words, verb)


def _command(words: tuple[str, ...], verb: str) -> Target:
    if shutil.which(words[0]) is None:
        known = f"no program, no {MODEL}, {', '.join(ENGINES)} or {SOURCE} file, and no kernel of `probe kernels list`"
        raise UsageError(f"{words[0]}: {known}", hint=_meant(words, verb))
    return Target(Kind.COMMAND, words)


def _meant(words: tuple[str, ...], verb: str) -> str:
    """What to type instead: a script is run by its interpreter."""
    if words[0].endswith(".py") and Path(words[0]).is_file():
        return shlex.join(("probe", verb, "--", "python", *words))
    return f"probe {verb} MODEL.onnx, or probe {verb} -- COMMAND ARGUMENT..."


def _is_kernel(word: str) -> bool:
    from kernels import manifest

    return any(spec.name == word for spec in manifest.SPECS)
