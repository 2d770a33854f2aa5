"""The page of a bisection: answers first, one offline file, honest about what is missing, and names stay text."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bisect_session
import ladder_session
from harness.errors import ArtifactMissing, ParseError, UsageError
from harness.record import Session
from page_reader import Reader, check_structure
from reports.pages import bisection, page

FIGURES = ["data-steps", "data-graph", "data-sensitivities"]


@pytest.fixture
def session(tmp_path):
    return bisect_session.make(tmp_path / "run")


def read(session):
    return Reader(page.render(session))


def test_the_first_screen_answers(session):
    run = bisection.read(session)
    assert run.headline == "3 of 291 nodes must stay in FP32"
    assert run.facts == "error 6.1 % → 0.21 %, tolerance 1 %; proven minimal in 42 evaluations, 3.2 s"
    text = re.sub("On this page.*?</nav>", "", page.render(session), flags=re.DOTALL)
    text = Reader(text).text
    order = [text.index(part) for part in (run.headline, "6.1 % → 0.21 %", "proven", "/encoder/layer.1/output/LayerNorm/Pow",
             "bert small.mixed.onnx", "probe bisect 'bert small.onnx' --tolerance 0.01 --seed 0", "Error against step", "What was run")]  # fmt: skip
    assert order == sorted(order)


def test_culprits_are_numbered_along_the_graph_and_say_what_they_feed(session):
    rows = bisection.read(session).culprits
    assert [(row.number, row.op_type, row.feeds) for row in rows] == [
        (1, "Pow", (2,)),
        (2, "ReduceMean", ()),
        (3, "Mul", ()),
    ]
    assert rows[0].sensitivity == math.inf
    assert rows[0].scope == "/encoder/layer.1/output/LayerNorm"


def test_a_culprit_that_no_candidate_holds_is_still_listed(session):
    bisect_session.edit(session, "result.json", culprits=["stray"], scopes=[])
    names = [(row.number, row.node) for row in bisection.read(session).culprits]
    assert (None, "stray") in names
    assert "stray" in read(session).text


@pytest.mark.parametrize("changes, headline", [
    ({"culprits": ["a"]}, "1 of 291 nodes must stay in FP32"),
    ({"fault": "finite"}, "3 of 291 nodes together make values that are not finite"),
    ({"fault": "build"}, "3 of 291 nodes break the build"),
    ({"fault": "compare", "culprits": ["a"]}, "1 of 291 nodes makes the models differ"),
    ({"status": "stopped"}, "Stopped early; best so far: 3 of 291 nodes must stay in FP32"),
    ({"status": "stopped", "culprits": []}, "Stopped before any culprit was known"),
    ({"status": "stopped", "culprits": [], "undecided": ["x", "y"]}, "Stopped early: 2 of 291 nodes still to be judged, the others are cleared"),
    ({"status": "undecided"}, "Undecided: at least 3 of 291 nodes must stay in FP32"),
    ({"status": "undecided", "culprits": [], "undecided": ["x", "y"]}, "Undecided: 2 of 291 nodes could not be judged"),
    ({"status": "nothing_to_find", "culprits": []}, "Nothing to find: every node can be stored in FP16"),
])  # fmt: skip
def test_headlines(session, changes, headline):
    kept = changes.get("culprits", ["three"])
    if kept != ["three"]:
        graph = session.read_json("candidates.json")
        session.write_json(
            "candidates.json", graph | {"candidates": [row | {"culprit": False} for row in graph["candidates"]]}
        )
    bisect_session.edit(session, "result.json", **changes)
    assert bisection.read(session).headline == headline
    assert headline in read(session).text


def test_values_that_are_not_finite_and_unproven_results_are_said(session):
    bisect_session.edit(session, "result.json", error_before=math.inf, certified_minimal=False)
    text = read(session).text
    assert "not finite → 0.21 %" in text
    assert "not proven" in text
    assert "a smaller set may do" in text


@pytest.mark.parametrize("name, drawn", [
    ("result.json", FIGURES),
    ("candidates.json", ["data-steps"]),
    ("steps.jsonl", ["data-graph", "data-sensitivities"]),
])  # fmt: skip
@pytest.mark.parametrize("damage", ["missing", "cut off", "not UTF-8"])
def test_what_is_missing_is_said_and_the_rest_drawn(session, name, drawn, damage):
    path = session.folder / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(
            content[: len(content) // 2].rpartition(b"\n")[0] if damage == "cut off" else b"\xff\xfe\n" + content
        )
    reader = read(session)
    if (name, damage) != ("steps.jsonl", "cut off"):  # fewer whole lines are whole steps
        assert f"Incomplete. {name}" in reader.text
        assert [key for key in FIGURES if key in reader.scripts] == drawn
    assert ("no result yet" in reader.text) is (name == "result.json")


def test_a_step_that_is_no_json_ends_the_steps_and_is_said(session):
    path = session.folder / "steps.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join([*lines[:4], "{broken\n", "[1, 2]\n", *lines[5:]]), encoding="utf-8")
    text = read(session).text
    assert "steps.jsonl cannot be read from line 5 on" in text
    assert "4 steps" in text


def test_a_manifest_alone_makes_a_small_page_without_the_library(tmp_path):
    session = Session.create("bisect", tmp_path)
    session.write_json("manifest.json", {"verb": "bisect", "schema_version": 1})
    reader = read(session)
    assert "Interrupted after 0 steps: there is no result yet" in reader.text
    assert set(reader.scripts) == {"script", "style"}
    assert len(page.render(session)) < 40_000


def test_errors_of_the_manifest(tmp_path):
    session = Session.create("bisect", tmp_path)
    with pytest.raises(ArtifactMissing, match="manifest"):
        page.render(session)
    session.write_json("manifest.json", {"verb": "knit"})
    with pytest.raises(UsageError, match=r"verb: expected one of bisect, .*got 'knit'"):
        page.render(session)
    (tmp_path / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(ParseError, match="manifest"):
        page.render(session)


def test_the_file_is_whole_offline_and_the_same_again(session):
    path = page.write(session)
    first = path.read_bytes()
    assert path == session.folder / "report.html"
    assert page.write(session).read_bytes() == first
    assert not [name for name in session.folder.iterdir() if "part" in name.name]
    assert len(first) < 2_300_000
    source = first.decode()
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", source.replace(Reader(source).scripts["library"], ""))
    assert not [tag for tag, attributes in Reader(source).attributes if {"src", "srcset"} & set(attributes)]


def test_only_its_own_scripts_may_run(session):
    reader = read(session)
    policy = next(a["content"] for _, a in reader.attributes if a.get("http-equiv") == "Content-Security-Policy")
    library = zlib.decompress(base64.b64decode(reader.scripts["library"])).decode()
    allowed = re.search(r"script-src ([^;]*);", policy)[1].split()
    digests = [hashlib.sha256(script.encode()).digest() for script in (reader.scripts["script"], library)]
    assert allowed == [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]
    assert "default-src 'none'" in policy
    assert "plotly.js" in library[:100]


def test_figures_are_json_with_their_marks(session):
    scripts = read(session).scripts
    drawn = {key: json.loads(scripts[key]) for key in FIGURES}
    assert sum(len(trace["x"]) for trace in drawn["data-steps"]["data"]) == 42
    assert sum(len(trace["x"]) for trace in drawn["data-graph"]["data"] if trace["type"] == "scatter") == 291
    assert "42 steps" in read(session).text
    assert (
        "The 30 most sensitive of 290 measured (291 candidates in all), as relative L2 error in percent"
        in read(session).text
    )


def test_hostile_names_are_text(tmp_path):
    plain = read(bisect_session.make(tmp_path / "plain"))
    reader = read(bisect_session.make_hostile(tmp_path / "hostile"))
    assert set(reader.tags) <= {*plain.tags, "ul", "li"}
    assert reader.tags.count("script") == plain.tags.count("script") == 5
    assert not [name for _, attributes in reader.attributes for name in attributes if name.startswith("on")]
    for name in bisect_session.HOSTILE[:3]:
        assert name in reader.text
    assert r"two\nlines\tand\x00nul \u202ereversed \ud800 surrogate" in reader.text
    assert "{{ 7 * 7 }}" in reader.text
    assert bisect_session.HOSTILE[-1] in reader.text
    assert not set(map(ord, "\x00\u202e\ud800")) & set(map(ord, page.render(Session(tmp_path / "hostile"))))


def test_every_control_has_a_name_and_every_figure_a_caption(session):
    reader = read(session)
    ids = [attributes["id"] for _, attributes in reader.attributes if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in reader.attributes:
        for key in ("aria-labelledby", "aria-describedby", "data-copy", "data-filter", "data-figure"):
            assert attributes.get(key) is None or attributes[key] in ids, (tag, key, attributes)
        if tag == "div" and attributes.get("class") == "plot":
            assert {"role", "aria-labelledby", "aria-describedby"} <= set(attributes)


def test_the_command_line_can_be_pasted_back():
    line = "probe bisect 'my model.onnx' '--x=$HOME'"
    assert page.command({"argv": ["bisect", "my model.onnx", "--x=$HOME"]}) == line


@pytest.mark.parametrize("make", [bisect_session.make, bisect_session.make_hostile, ladder_session.make])
def test_what_a_screen_reader_goes_by(tmp_path, make):
    check_structure(read(make(tmp_path / "run")).attributes)


def test_the_manifest_is_grouped():
    groups = page.group({"schema_version": 1, "verb": "bisect", "argv": ["x"], "started": "2026-02-03T10:15:42+01:00", "notes": [],
                         "model": {"name": "m", "weight_bytes": 1.3e9, "deep": {"a": None}}, "versions": {"my_lib": "1"},
                         "inputs": [{"name": "x", "shape": [1, 3]}, {"name": "y"}], "gpu": [{"name": "H100", "clocks.max.sm": "1980"}], "empty": {}})  # fmt: skip
    assert [(facts.title, facts.rows) for facts in groups] == [
        ("Run", [("Started", "2026-02-03 09:15 UTC")]),
        ("Model", [("Name", "m"), ("Weight bytes", "1.3 GB (1,300,000,000 bytes)"), ("Deep a", "–")]),
        ("Versions", [("my_lib", "1")]),
        ("Inputs", [("1", "name x, shape [1, 3]"), ("2", "name y")]),
        ("GPU", [("Name", "H100"), ("Clocks max sm", "1980 MHz")]),
    ]


ANY = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(-(10**400), 10**400), st.floats(), st.text(max_size=8)),
                   lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
                   max_leaves=4)  # fmt: skip


def damaged(content):
    """The same object with some of its fields replaced by anything that JSON can say."""
    return st.dictionaries(st.sampled_from(sorted(content)), ANY, max_size=3).map(lambda changes: content | changes)


@settings(
    max_examples=15,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_no_content_breaks_the_page(tmp_path, data):
    session = Session(tmp_path)
    graph = bisect_session.candidates(layers=0)
    rows = graph["candidates"]
    rows[0] = data.draw(damaged(rows[0]))
    rows.append(data.draw(ANY))
    session.write_json("manifest.json", data.draw(damaged(bisect_session.manifest(rows[:5]))) | {"verb": "bisect"})
    session.write_json("result.json", data.draw(damaged(bisect_session.result(rows[1:5]))))
    session.write_json("candidates.json", data.draw(damaged(graph | {"edges": [[0, 1], data.draw(ANY)]})))
    steps = [*(data.draw(damaged(row)) for row in bisect_session.steps(rows[1:5], 3)), data.draw(ANY)]
    lines = "".join(json.dumps(step) + "\n" for step in steps)
    (tmp_path / "steps.jsonl").write_text(lines, encoding="utf-8")
    assert page.render(session).count("<h1 ") == 1
