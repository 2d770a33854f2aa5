"""A GPU for tests on machines without one: the stand-in driver of tests/fakes, compiled, and a device on it."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from harness.cuda import driver as cuda
from harness.cuda.device import Device

SOURCE = Path(__file__).with_name("cuda_driver.c")


class FakeGpu:
    """The stand-in, its device, and what can be planted in it."""

    def __init__(self, path: Path) -> None:
        self.library: Any = ctypes.CDLL(str(path))
        self.library.fake_allocated.restype = ctypes.c_uint64
        self.library.fake_reset()
        self.device = Device(cuda.load(str(path)))

    def plant(self, function: str, status: int, after: int = 0) -> None:
        """Let a function return a status once, after so many good calls."""
        self.library.fake_plant(function.encode(), status, after)

    @property
    def launches(self) -> int:
        return int(self.library.fake_launches())

    @property
    def allocated(self) -> int:
        return int(self.library.fake_allocated())


def compile_driver(folder: Path) -> Path:
    """The stand-in for libcuda."""
    return compile_fake(SOURCE, folder / "libcuda.so.1")


def compile_fake(source: Path, library: Path) -> Path:
    """A shared library from one of the C files in tests/fakes; the test is skipped where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    options = ("-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror")
    subprocess.run([compiler, *options, "-o", str(library), str(source)], check=True)
    return library
