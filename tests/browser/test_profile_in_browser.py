"""The report of profiles as a browser shows it: offline, few elements, pictures that zoom, tables that sort, any name."""

from __future__ import annotations

import pytest

import trace_tables
from reports.pages import profile as profile_page

pytestmark = pytest.mark.browser

RIGHT, DOWN, ENTER = "\ue014", "\ue015", "\ue007"
PICTURE = "const picture = document.querySelector('[data-columns]').picture; "
SHOWN = PICTURE + "return [picture.from, picture.to]"
ROWS = "return [...document.querySelectorAll('[data-sheet=data-p0-kernels] tbody tr')].map((row) => row.cells[arguments[0]].textContent)"


def write(folder, tables):
    return profile_page.write(trace_tables.collection(trace_tables.artifact(tables)), folder / "report.html")


def show(browser, folder, tables):
    browser.open(write(folder, tables))
    browser.wait("return document.documentElement.dataset.pictures !== undefined")
    return browser


@pytest.fixture
def opened(browser, tmp_path):
    return show(browser, tmp_path, trace_tables.trace(4_000))


def pixels(browser, selector):
    """How many different colours a canvas shows."""
    return browser.run(
        """const canvas = document.querySelector(arguments[0] + ' canvas');
           const data = new Uint32Array(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.buffer);
           return new Set(data).size""",
        selector,
    )


def test_pictures_are_drawn_without_a_request_or_a_complaint(opened):
    assert opened.run("return document.documentElement.dataset.pictures") == "yes"
    assert pixels(opened, "[data-columns]") > 8
    assert pixels(opened, "[data-icicle]") > 4
    assert opened.run("return performance.getEntriesByType('resource').length") == 0
    assert opened.run("return document.querySelectorAll('*').length") < 1000
    assert opened.complaints() == []
    kept = "return all.map(({ style, parentElement }) => parentElement.style.minHeight.includes(style.height))"
    assert opened.run(f"const all = [...document.querySelectorAll('.canvas > canvas')]; {kept}") == [True, True]


def test_the_browser_decodes_what_python_packed(opened):
    tables = trace_tables.trace(4_000)
    origin = min(int(frame["start_ns"].min()) for frame in tables.values())
    first = tables["kernels"].sort_values("start_ns")
    first = first[first["stream_id"] == 7]
    script = (
        PICTURE
        + """const lane = picture.content.lanes.findIndex((lane) => lane.group === 'GPU 0, stream 7');
        const rows = []; for (let event = picture.offsets[lane]; event < picture.offsets[lane + 1]; event += 1)
            rows.push([picture.start[event], picture.end[event], picture.content.names[picture.name[event]]]);
        return rows"""
    )
    starts = first["start_ns"] - origin
    expected = zip(starts, starts + first["duration_ns"], first["kernel"].astype(str), strict=True)
    assert opened.run(script) == [list(row) for row in expected]


def test_the_keyboard_zooms_moves_and_walks(opened):
    opened.run("document.querySelector('[data-columns] canvas').focus()")
    opened.press("0")
    low, high = opened.run(SHOWN)
    assert low == 0
    opened.press("+", "+")
    assert opened.run(SHOWN)[1] - opened.run(SHOWN)[0] == pytest.approx((high - low) / 4)
    before = opened.run(SHOWN)[0]
    opened.press(RIGHT)
    assert opened.run(SHOWN)[0] > before
    opened.press(DOWN, "n")
    assert "thread 2" in opened.run("return document.querySelector('.said').textContent")
    opened.press("-", "-", "-")
    assert opened.run(SHOWN) == [low, high]


def test_wheel_and_drag(opened):
    opened.run(PICTURE + "picture.canvas.scrollIntoView(); picture.act('all')")
    span = opened.run(SHOWN)[1]
    wheel = (
        PICTURE
        + """const event = new WheelEvent('wheel', { deltaY: arguments[0], cancelable: true });
        picture.canvas.dispatchEvent(event); return event.defaultPrevented"""
    )
    assert opened.run(wheel, 120) is False  # at its widest, the page scrolls
    assert opened.run(wheel, -240) is True
    low, high = opened.run(SHOWN)
    assert high - low < 0.6 * span
    drag = (
        PICTURE
        + """const rect = picture.canvas.getBoundingClientRect();
        picture.press({ pointerId: 1, clientX: rect.left + 600, clientY: rect.top + 50 });"""
    )
    opened.run(
        "HTMLCanvasElement.prototype.setPointerCapture = () => {};"
        + drag
        + "picture.move({ clientX: rect.left + 500, clientY: rect.top + 50 })"
    )
    moved = opened.run(SHOWN)
    assert moved[0] > low
    assert moved[1] - moved[0] == pytest.approx(high - low)


def test_hovering_says_name_length_and_range(browser, tmp_path):
    show(browser, tmp_path, trace_tables.iterations(3))
    script = (
        PICTURE
        + """picture.act('all'); picture.draw();
        const row = picture.rows.find(({ lane }) => lane.kind === 'work'), event = picture.offsets[row.index];
        picture.point({ offsetX: (picture.start[event] + picture.end[event]) / 2 * picture.scale, offsetY: row.y + 5, clientX: 99, clientY: 99 });
        return [picture.hint.hidden, [...picture.hint.children].map((line) => line.textContent)]"""
    )
    hidden, lines = browser.run(script)
    assert hidden is False
    assert lines[0] == "gemm"
    assert lines[1].startswith("20")
    assert lines[2:] == ["in infer", "GPU 0, stream 7, work"]


def test_one_stream_can_be_looked_at_alone(opened):
    lanes = PICTURE + "return picture.rows.map(({ lane }) => lane.group)"
    assert len(set(opened.run(lanes))) == 3
    opened.run("""const choice = document.querySelector('[data-columns] select');
                  choice.value = 'GPU 0, stream 13'; choice.dispatchEvent(new Event('change'))""")
    assert opened.run(lanes) == ["GPU 0, stream 13"]


def test_the_icicle_zooms_into_a_box(browser, tmp_path):
    show(browser, tmp_path, trace_tables.iterations(5))
    box = "const picture = document.querySelector('[data-icicle]').picture; "
    browser.run("document.querySelector('[data-icicle] canvas').focus()")
    browser.press(DOWN, DOWN, ENTER)
    names = browser.run(box + "return [picture.content.name[picture.chosen], picture.from, picture.to, picture.span]")
    assert names[0] == "copy"  # the kernel that takes most
    assert names[2] - names[1] == pytest.approx(names[3] / 2, rel=0.1)
    browser.press("0")
    assert browser.run(box + "return [picture.from, picture.to]") == [0, names[3]]


def test_tables_sort_filter_grow_and_copy_all_rows(opened):
    total = len(set(trace_tables.trace(4_000)["kernels"]["kernel"]))
    assert len(opened.run(ROWS, 0)) == 10
    opened.run("document.querySelectorAll('[data-sheet=data-p0-kernels] button.order')[0].click()")
    names = opened.run(ROWS, 0)
    assert names[:2] == ["kernel_0<float, 0>", "kernel_1<float, 1>"]  # numbers count as numbers
    opened.run("document.querySelectorAll('[data-sheet=data-p0-kernels] button.order')[3].click()")
    counts = [int(text.replace(",", "")) for text in opened.run(ROWS, 3)]
    assert counts == sorted(counts, reverse=True)
    opened.run("document.querySelector('[data-sheet=data-p0-kernels] input').focus()")
    opened.press(*"3>")
    assert all("3>" in name for name in opened.run(ROWS, 0))
    assert "of" in opened.run("return document.querySelector('[data-sheet=data-p0-kernels] .shown').textContent")
    opened.run("""navigator.clipboard.writeText = async (text) => { window.copied = text; };
                  const field = document.querySelector('[data-sheet=data-p0-kernels] input');
                  field.value = ''; field.dispatchEvent(new Event('input'));
                  document.querySelector('[data-sheet=data-p0-kernels] .take').click()""")
    opened.wait("return window.copied !== undefined")
    lines = opened.run("return window.copied").split("\n")
    assert len(lines) == 1 + total
    assert lines[0].split("\t")[:3] == ["Kernel", "Share", "Total"]
    opened.run("document.querySelector('[data-sheet=data-p0-kernels] .more').click()")
    assert len(opened.run(ROWS, 0)) == min(40, total)


def test_an_address_opens_the_table_that_it_names(opened):
    count = "return document.querySelectorAll('[data-sheet=data-p0-api] tbody tr').length"
    assert opened.run(count) == 0
    opened.run("location.hash = 'title-p0-api'")
    opened.wait(f"return ({count.removeprefix('return ')}) === 1")


def test_a_name_that_is_cut_off_is_told_on_hovering(browser, tmp_path):
    show(browser, tmp_path, trace_tables.hostile())
    told = browser.run("""const names = [...document.querySelectorAll('td .name')];
        names.forEach((name) => name.dispatchEvent(new PointerEvent('pointerover', { bubbles: true })));
        return names.filter((name) => name.title).map((name) => [name.title === name.textContent, name.clientHeight < name.scrollHeight])""")
    assert told
    assert all(cut and whole for whole, cut in told)


OTHERS = "return [...document.querySelectorAll('[data-sheet=data-others] tbody a')].map((link) => link.textContent)"
OPEN = "document.querySelector('a[href=\"#part-p' + arguments[0] + '\"]').click()"
STAGE = "const part = document.querySelector('#stage > article#part-p' + {}); return part && part.dataset.pictures && part.dataset.drawn"


@pytest.fixture
def many(browser, tmp_path):
    """Thirty files: two traces, one with hostile names, and benchmarks, each with a figure of plotly."""
    found = [trace_tables.trace(4_000), trace_tables.hostile(), *[trace_tables.measured(seed) for seed in range(28)]]
    artifacts = [trace_tables.artifact(tables, f"run <b>{place}<b>.sqlite") for place, tables in enumerate(found)]
    browser.open(profile_page.write(trace_tables.collection(*artifacts), tmp_path / "report.html"))
    browser.wait("return document.documentElement.dataset.pictures !== undefined")
    return browser


def open_part(browser, place):
    browser.run(OPEN, place)
    browser.wait(STAGE.format(place))
    return browser.run(
        "const part = document.querySelector('#stage > article'); return [part.id, part.dataset.pictures, part.dataset.drawn]"
    )


def test_of_many_files_one_is_shown_at_a_time(many):
    assert many.run("return document.querySelectorAll('*').length") < 1000
    assert many.run(OTHERS)[:2] == ["run <b>1<b>.sqlite", "run <b>2<b>.sqlite"]
    for place in (2, 3, 1, 2):
        assert open_part(many, place) == [f"part-p{place}", "yes", "yes"]
        assert many.run("return document.querySelectorAll('#stage > article').length") == 1
        assert many.run("return document.querySelectorAll('*').length") < 1000
    assert many.run("return document.querySelectorAll('#stage .plot .scatterlayer .js-line').length") == 1
    assert many.run("return window.hacked") is None
    assert many.complaints() == []


def test_a_part_that_came_later_is_as_alive_as_the_first(many):
    open_part(many, 1)
    assert pixels(many, "#stage [data-columns]") > 4
    many.run("document.querySelector('#stage [data-sheet=data-p1-kernels] button.order').click()")
    assert many.run("return document.querySelector('#stage th').ariaSort") == "ascending"
    many.run("document.querySelector('#stage details').open = true")
    many.wait("return document.querySelectorAll('#stage details tbody tr').length > 0")
    open_part(many, 2)
    many.run("history.back()")
    many.wait(STAGE.format(1))  # comes back as it was
    assert many.run("return document.querySelector('#stage th').ariaSort") == "ascending"
    many.run("""navigator.clipboard.writeText = async (text) => { window.copied = text; };
                document.querySelector('#stage .verdict button').click()""")
    many.wait("return window.copied !== undefined")
    assert many.run("return window.copied").startswith("run <b>1<b>.sqlite: The kernel ")


def test_without_script_all_files_are_there(many):
    shown = "//article//h2[@class='headline']"
    many.devtools("DOM.enable")
    assert many.devtools("DOM.performSearch", query=shown)["resultCount"] == 0
    many.devtools("Emulation.setScriptExecutionDisabled", value=True)
    many.call("POST", "/refresh")
    many.devtools("DOM.getDocument")
    assert many.devtools("DOM.performSearch", query=shown)["resultCount"] == 29


def test_hostile_names_run_nothing_and_are_shown(browser, tmp_path):
    show(browser, tmp_path, trace_tables.hostile())
    browser.run("for (const closed of document.querySelectorAll('details')) closed.open = true")
    assert browser.run("return window.hacked") is None
    assert browser.run("return document.querySelectorAll('main img').length") == 0
    assert browser.run("return document.body.innerText").count("<script>window.hacked") >= 1
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.complaints() == []


@pytest.mark.parametrize("scheme, low, high", [("light", 230, 256), ("dark", 0, 60)])
def test_pictures_follow_the_theme(browser, tmp_path, scheme, low, high):
    browser.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    spans = trace_tables.ranges([(0, None, "all", 0, 0, 1000)])
    show(browser, tmp_path, {"ranges": spans, "kernels": trace_tables.kernels([("k", 0, 10, 0)])})
    ground = (
        PICTURE
        + """picture.act('all'); picture.draw(); const row = picture.rows[1];
        return [...picture.context.getImageData(picture.canvas.width - 3, (row.y + 5) * devicePixelRatio, 1, 1).data]"""
    )
    red, green, blue, opaque = browser.run(ground)
    assert low <= (red + green + blue) / 3 < high
    assert opaque == 255


def test_a_narrow_screen_scrolls_tables_not_the_page(opened):
    opened.devtools("Emulation.setDeviceMetricsOverride", width=420, height=800, deviceScaleFactor=1, mobile=False)
    opened.wait("return document.querySelector('[data-columns] canvas').getBoundingClientRect().width < 420")
    assert opened.run("return document.documentElement.scrollWidth") <= 420


def test_without_the_browser_features_the_tables_still_say_everything(browser, tmp_path):
    browser.devtools("Page.addScriptToEvaluateOnNewDocument", source="delete window.DecompressionStream")
    show(browser, tmp_path, trace_tables.iterations(3))
    assert browser.run("return document.documentElement.dataset.pictures") == "no"
    assert "could not be drawn" in browser.run("return document.querySelector('[data-columns]').textContent")
    assert len(browser.run(ROWS, 0)) == 3


def test_it_prints(opened):
    assert opened.pdf().startswith(b"%PDF")


@pytest.mark.slow
def test_a_million_events_are_small_and_quick(browser, tmp_path):
    path = write(tmp_path, trace_tables.trace(1_000_000))
    assert path.stat().st_size < 6_000_000
    browser.open(path)
    browser.wait("return document.documentElement.dataset.pictures !== undefined")
    assert (
        browser.run("return Number(document.querySelector('[data-columns]').dataset.readyMs)") < 3 * 1500
    )  # shared machine
    redraw = (
        PICTURE
        + """picture.act('all'); picture.draw(); const took = [];
        for (let round = 0; round < 9; round += 1) { const began = performance.now(); picture.draw();
            picture.context.getImageData(0, 0, 1, 1); took.push(performance.now() - began); }
        return took.sort((a, b) => a - b)[4]"""
    )
    assert browser.run(redraw) < 3 * 50
    assert browser.run("return document.querySelectorAll('*').length") < 1000
