"""A headless Chromium for the tests; they are skipped where it is not installed."""

from __future__ import annotations

import pytest

from benchmarks import chromium


@pytest.fixture(scope="session")
def driver():
    """The address of a running chromedriver."""
    if not chromium.installed():
        pytest.skip(f"needs {chromium.NEEDED}")
    with chromium.driver() as address:
        yield address


@pytest.fixture(scope="session")
def chrome(driver):
    """One Chromium for all tests: starting it takes longer than most of them."""
    one = chromium.Browser(driver)
    try:
        yield one
    finally:
        one.close()


@pytest.fixture
def browser(chrome):
    """A tab of its own."""
    chrome.fresh()
    return chrome
