"""What builds gave, kept by the hash of all that matters to them: one folder an entry, written whole, the oldest dropped first."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT_BYTES = 16 << 30  # plans are as large as the weights, and a search makes a dozen
DOCUMENT = "entry.json"


def default_root() -> Path:
    """The user's cache folder for engines (XDG)."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "probe" / "engines"


def digest(*parts: str | bytes | memoryview | Path) -> str:
    """One hash of texts, bytes and the contents of files, in this order."""
    made = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").digest()
        else:
            content = hashlib.sha256(part.encode() if isinstance(part, str) else part).digest()
        made.update(content)
    return made.hexdigest()


@dataclass(frozen=True)
class EngineCache:
    """Entries by key: a JSON document and files. Processes may share it; whoever builds an entry holds its lock."""

    root: Path
    limit_bytes: int = LIMIT_BYTES

    def read(self, key: str) -> dict[str, Any] | None:
        """The document of an entry; None if there is none. Reading keeps an entry from being dropped soon."""
        path = self.root / key / DOCUMENT
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            os.utime(path)
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def file(self, key: str, name: str) -> Path:
        """Where a file of an entry lies; only to be read."""
        return self.root / key / name

    def write(self, key: str, document: Mapping[str, Any], files: Iterable[Path] = ()) -> None:
        """Keep an entry, whole or not at all; one that is there already stays. The files are moved in."""
        self.root.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=".part-", dir=self.root))
        try:
            for path in files:
                shutil.move(path, part / path.name)
            (part / DOCUMENT).write_text(json.dumps(document), encoding="utf-8")
            with contextlib.suppress(OSError):  # another process was first
                part.rename(self.root / key)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        self._trim(keep=key)

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Alone with what is called `name`; the lock goes with the process that holds it, however it ends."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / f".{name}.lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def _trim(self, keep: str) -> None:
        """Drop entries that were read longest ago until the rest fits."""
        entries = []
        for path in self.root.glob(f"*/{DOCUMENT}"):
            with contextlib.suppress(OSError):  # another process dropped it meanwhile
                size = sum(file.stat().st_size for file in path.parent.iterdir())
                entries.append((path.stat().st_mtime, size, path.parent))
        total = sum(size for _, size, _ in entries)
        for _, size, folder in sorted(entries):
            if total <= self.limit_bytes:
                break
            if folder.name != keep:
                shutil.rmtree(folder, ignore_errors=True)
                (self.root / f".{folder.name}.lock").unlink(missing_ok=True)
                total -= size
