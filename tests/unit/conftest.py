"""What the tests of several rooms need."""

from __future__ import annotations

import pytest

import fake_gpu


@pytest.fixture(scope="module")
def driver_path(tmp_path_factory):
    """The stand-in for NVIDIA's driver, compiled."""
    return fake_gpu.compile_driver(tmp_path_factory.mktemp("driver"))
