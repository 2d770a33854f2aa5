"""Everything in this folder needs an NVIDIA GPU: it is marked so, and skipped with the reason where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness.cuda import device as gpu
from harness.cuda.device import Device
from harness.errors import UsageError

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def device() -> Device:
    """The first GPU."""
    try:
        return gpu.get()
    except UsageError as error:
        pytest.skip(str(error))


@pytest.fixture
def random(request) -> np.random.Generator:
    """Fresh numbers in every run; the seed is shown when a test fails."""
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    request.node.add_report_section("setup", "seed", f"np.random.default_rng({seed})")
    return np.random.default_rng(seed)


@pytest.fixture(scope="session")
def vector() -> Path:
    """The small kernels that tests launch."""
    return HERE.parent / "data" / "kernels" / "vector.cu"
