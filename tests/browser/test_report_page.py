"""The report as a browser shows it: offline, drawn, themed, worked with the keyboard, and deaf to hostile names."""

from __future__ import annotations

import pytest

import bisect_session
from reports.pages import page

pytestmark = pytest.mark.browser

TAB, ENTER = "\ue004", "\ue007"
MARKS = "return document.querySelectorAll(arguments[0] + ' .scatterlayer .point').length"
COLUMN = "return [...document.querySelectorAll('#table-steps tbody tr')].filter((r) => !r.hidden).map((r) => r.cells[arguments[0]].{})"


@pytest.fixture
def session(tmp_path):
    return bisect_session.make(tmp_path / "run")


@pytest.fixture
def opened(browser, session):
    browser.open(page.write(session))
    return browser


def theme(browser, scheme):
    browser.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])


def brightness(browser, selector, attribute):
    """0 (black) to 255 of a colour that the browser computed."""
    colour = browser.run(
        "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]", selector, attribute
    )
    channels = colour[colour.index("(") + 1 : -1].split(",")[:3]
    return sum(map(float, channels)) / 3


def test_every_figure_is_drawn_without_a_request_or_a_complaint(opened):
    assert opened.run("return document.documentElement.dataset.drawn") == "yes"
    assert opened.run(MARKS, "[data-figure=data-steps]") == 42
    assert opened.run(MARKS, "[data-figure=data-graph]") == 291
    assert opened.run("return document.querySelectorAll('[data-figure=data-sensitivities] .bars .point').length") == 30
    assert opened.run("return performance.getEntriesByType('resource').map((entry) => entry.name)") == []
    assert opened.complaints() == []


def test_the_first_screen_holds_the_answer(opened):
    bottom = "return document.getElementById(arguments[0]).getBoundingClientRect().bottom"
    assert opened.run("return innerHeight") <= 820
    for part in ("headline", "culprits", "model-out", "repro"):
        assert opened.run(bottom, part) < opened.run("return innerHeight"), part


def test_hostile_names_run_nothing_and_are_shown(browser, tmp_path):
    browser.open(page.write(bisect_session.make_hostile(tmp_path / "run")))
    assert browser.run("return document.documentElement.dataset.drawn") == "yes"
    assert browser.run("return window.hacked") is None
    assert browser.run("return document.querySelectorAll('img, .plot a, .plot b').length") == 0
    labels = browser.run("return [...document.querySelectorAll('.plot text')].map((text) => text.textContent)")
    assert any("<script>" in text for text in labels)
    assert browser.complaints() == []
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize(
    "point, text",
    [(0, "<script>window.hacked = 1</script>"), (4, "%{x} %{customdata} $x^2$ &lt;b&gt; <b>bold</b><br>")],
)
def test_hovering_shows_the_name_as_text(browser, tmp_path, point, text):
    browser.open(page.write(bisect_session.make_hostile(tmp_path / "run")))
    browser.run(
        """const plot = document.querySelector('[data-figure=data-steps]'); plot.scrollIntoView();
           Plotly.Fx.hover(plot, [{curveNumber: 1, pointNumber: arguments[0]}])""",
        point,
    )
    browser.wait("return document.querySelector('.hovertext') !== null")
    assert text in browser.run("return document.querySelector('.hoverlayer').textContent")
    assert browser.run("return window.hacked") is None


def test_page_and_figures_follow_the_theme(opened):
    seen = {}
    for scheme in ("light", "dark"):
        theme(opened, scheme)
        seen[scheme] = (brightness(opened, "body", "backgroundColor"), brightness(opened, ".plot .xtick text", "fill"))
    (light_ground, light_text), (dark_ground, dark_text) = seen["light"], seen["dark"]
    assert light_ground > 230
    assert light_text < 120
    assert dark_ground < 40
    assert dark_text > 140


def test_a_narrow_screen_scrolls_tables_not_the_page(opened):
    opened.devtools("Emulation.setDeviceMetricsOverride", width=420, height=800, deviceScaleFactor=1, mobile=False)
    opened.wait("return document.querySelector('.plot .main-svg').getBoundingClientRect().width < 420")
    assert opened.run("return document.documentElement.scrollWidth") <= 420


def test_figures_keep_their_height_when_the_window_changes(opened):
    heights = "return [...document.querySelectorAll('.plot')].map((plot) => plot.querySelector('.main-svg').getBoundingClientRect().height)"
    before = opened.run(heights)
    opened.devtools("Emulation.setDeviceMetricsOverride", width=700, height=800, deviceScaleFactor=1, mobile=False)
    opened.wait("return document.querySelector('.plot .main-svg').getBoundingClientRect().width < 700")
    assert opened.run(heights) == before
    assert min(before) > 300


def test_sorting_with_the_keyboard(opened):
    opened.run("document.querySelectorAll('#table-steps .sort')[2].focus()")
    opened.press(ENTER)
    values = opened.run(COLUMN.format("dataset.value"), 2)
    numbers = [float(value) for value in values if value and value != "nan"]
    assert len(values) == 42
    assert numbers == sorted(numbers)
    assert values[-1] == ""  # a step without a value stays last
    assert opened.run("return document.querySelectorAll('#table-steps th')[2].ariaSort") == "ascending"
    opened.press(ENTER)
    values = opened.run(COLUMN.format("dataset.value"), 2)
    assert values[0] in ("inf", "nan")
    assert values[-1] == ""
    opened.press(TAB, ENTER)
    assert opened.run("return document.querySelectorAll('#table-steps th')[3].ariaSort") == "ascending"


def test_filtering_and_copying_what_is_shown(opened):
    opened.run("document.querySelector('[data-filter=table-steps]').focus()")
    opened.press(*"unresolved")
    outcomes = opened.run(COLUMN.format("textContent"), 1)
    assert set(outcomes) == {"unresolved"}
    assert (
        opened.run("return document.querySelector('[data-shown=table-steps]').textContent")
        == f"{len(outcomes)} of 42 steps shown"
    )
    opened.run("""navigator.clipboard.writeText = async (text) => { document.title = JSON.stringify(text); };
                  document.querySelector('[data-copy=table-steps]').focus()""")
    opened.press(ENTER)
    opened.wait("return document.querySelector('[data-copy=table-steps]').textContent === 'Copied'")
    lines = opened.run("return JSON.parse(document.title)").split("\n")
    assert lines[0].split("\t")[:3] == ["Step", "Outcome", "Error (relative L2)"]
    assert len(lines) == 1 + len(outcomes)
    assert all(line.count("\t") == lines[0].count("\t") for line in lines)


def test_names_are_copied_as_they_are(opened):
    opened.run("navigator.clipboard.writeText = async (text) => { document.title = JSON.stringify(text); }")
    opened.run("document.querySelector('[data-copy=culprits]').click()")
    opened.wait("return document.title.startsWith('\"')")
    first = opened.run("return JSON.parse(document.title)").split("\n")[1].split("\t")
    assert first == [
        "1",
        "/encoder/layer.1/output/LayerNorm/Pow",
        "Pow",
        "/encoder/layer.1/output/LayerNorm",
        "inf",
        "#2",
    ]


def test_without_the_browser_features_the_tables_still_say_everything(browser, session):
    path = page.write(session)
    browser.devtools("Page.addScriptToEvaluateOnNewDocument", source="delete window.DecompressionStream")
    browser.open(path)
    assert browser.run("return document.documentElement.dataset.drawn") == "no"
    assert "could not be drawn" in browser.run("return document.querySelector('.plot').textContent")
    rows = "return document.querySelectorAll('#table-candidates tbody tr').length"
    assert browser.run(rows) == 0
    browser.run("location.hash = 'title-candidates'")
    browser.wait(f"{rows} === 291")
    browser.run("document.querySelectorAll('#table-candidates .sort')[1].click()")
    assert browser.run("return document.querySelectorAll('#table-candidates th')[1].ariaSort") == "ascending"


def test_it_prints_with_figures(opened):
    assert opened.pdf().startswith(b"%PDF")
    assert opened.run(MARKS, "[data-figure=data-steps]") == 42


def test_three_thousand_nodes_are_drawn(browser, tmp_path):
    browser.open(page.write(bisect_session.make(tmp_path / "run", layers=64, culprits=20, evaluations=400)))
    assert browser.run(MARKS, "[data-figure=data-graph]") > 2900
