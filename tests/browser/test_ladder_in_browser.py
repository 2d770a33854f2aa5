"""The page of a ladder as a browser shows it: all figures drawn, nothing asked of the network, hostile names deaf."""

from __future__ import annotations

import pytest

import ladder_session
from reports.pages import page

pytestmark = pytest.mark.browser


def test_every_figure_is_drawn_without_a_request_or_a_complaint(browser, tmp_path):
    browser.open(page.write(ladder_session.make(tmp_path / "run")))
    assert browser.run("return document.documentElement.dataset.drawn") == "yes"
    assert browser.run("return document.querySelectorAll('.plot .main-svg').length") >= 7
    assert browser.run("return performance.getEntriesByType('resource').length") == 0
    assert browser.complaints() == []
    bars = "return document.querySelectorAll('[data-figure=data-waterfall] .bars .point').length"
    assert browser.run(bars) == len(ladder_session.TIMES_US)
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")


def test_hostile_names_run_nothing(browser, tmp_path):
    browser.open(page.write(ladder_session.make(tmp_path / "run", "<img src=x onerror='window.hacked = 1'>")))
    assert browser.run("return window.hacked") is None
    assert browser.run("return document.querySelectorAll('img').length") == 0
    assert "<img src=x" in browser.run("return document.querySelector('h1').textContent")
    assert browser.complaints() == []
