"""Builds and the user's own check: outcomes, and signatures that name the bug whatever the sub-model."""

from __future__ import annotations

import importlib.util
import json
import shlex
import string
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from harness.engines import building
from harness.engines.building import (
    BuildOptions,
    BuildResult,
    ParserError,
    blamed,
    build,
    check,
    judge,
    names_of,
    normalise,
    signature,
    signatures,
)
from harness.errors import ArtifactMissing, DependencyMissing, ToolMissing, UsageError
from harness.models.model import Model, from_proto
from harness.models.submodel import extract, observe, save
from harness.record import Answer, Command, Outcome
from probes.bisecting.search import drive, smallest_kept

F = TensorProto.FLOAT
RTX = any(importlib.util.find_spec(name) for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"))
SKIP = pytest.mark.skipif(not RTX, reason="TensorRT-RTX is not installed: pip install 'probe-trt[trt-rtx]'")


def needs_rtx(test):
    return pytest.mark.trt_rtx(SKIP(test))


# Signatures

# Real messages; {a} and {b} are names of nodes or tensors, {i} and {j} numbers.
MESSAGES = (
    "IBuilder::buildSerializedNetwork: Error Code {i}: API Usage Error (ITopKLayer {a}: {a}: K exceeds the maximum value allowed ({j}).)",
    "IBuilder::buildSerializedNetwork: Error Code {i}: API Usage Error (ITopKLayer {a}: {a}: length of reduction axis ({i}) is smaller than K ({j}))",
    "[graphScope.cpp::analyze::{i}] Error Code {j}: Internal Error (Assertion tScope.getType() != ScopeType::kUNDEFINED failed. In analyze at /_src/optimizer/common/graphScope.cpp:{i})",
    "ITensor::getDimensions: Error Code 4: Shape Error (reshape changes volume. Reshaping [{i},{j}] to [{j},{i},{i}]. In operator() at /_src/optimizer/common/shape/shapeContext.cpp:{i})",
    "ITensor::getDimensions: Error Code 4: API Usage Error ({a}: ElementWiseOperation SUM must have same input types. But they are of types Half and Float.)",
    "ITensor::getDimensions: Error Code 4: API Usage Error ({a}: last dimension of input0 = {i} and second to last dimension of input1 = {j} but must match.)",
    "Error Code 10: Internal Error (Could not find any implementation for node {{ForeignNode[{a}...{b}]}}.)",
    "Invalid Node - {a}\nOutput shape can not be computed for node {b}_output.",
    'creator && "Plugin not found, are the plugin name, version, and namespace correct?"',
    "Assertion failed: (axis >= {i} && axis <= nbDims): Axis must be in the range [{i}, nbDims ({j})].",
    "Tensor {a} of type INT64 is not supported",
    "Tensor {a} of type INT32 is not supported",
    "could not read '{a}' from /home/{b}/models/m.onnx at 0x{j:x}",
)
words = set(" ".join(MESSAGES).replace("(", " ").replace(")", " ").replace(":", " ").split())
names = st.text(string.ascii_letters + string.digits + "_./", min_size=1, max_size=12).filter(
    lambda n: n.strip("./") and n not in words
)
numbers = st.integers(1, 10**6)
fillings = st.fixed_dictionaries({"a": names, "b": names, "i": numbers, "j": numbers})


def signature_of(message: str, filling: dict) -> str:
    return normalise(message.format(**filling), {filling["a"], filling["b"]})


@given(st.sampled_from(MESSAGES), fillings, fillings)
def test_the_same_bug_has_the_same_signature_whatever_names_and_numbers(message, one, other):
    for filling in (one, other):  # a name that is a word of the message is replaced wherever it stands
        assume(not any(filling[key] in message for key in "ab"))
    assert signature_of(message, one) == signature_of(message, other)


@given(st.lists(st.sampled_from(MESSAGES), min_size=2, max_size=2, unique=True), fillings)
def test_different_messages_have_different_signatures(messages, filling):
    assume(not any(filling[key] in message for key in "ab" for message in messages))
    assert signature_of(messages[0], filling) != signature_of(messages[1], filling)


@given(st.text(), st.lists(st.text(max_size=5)))
def test_normalising_takes_any_text_and_names(text, some):
    once = normalise(text, some)
    assert "\n" not in once
    assert not any(
        c.isdigit() for word in once.split() for c in word if not building.DTYPE.search(word) and c in string.digits
    )


@pytest.mark.parametrize(
    "message, expected",
    [
        ("Cuda Runtime (cudaError 35: CUDA driver version is insufficient for CUDA runtime version)", ""),
        ("CUDA driver version is insufficient\n[E] real: bad", "real: bad"),
        ("dims [1,2,3] and [4]", "dims # and #"),
        ("node_of_x: K too large", "*: K too large"),
        ("at /a/b/c.cpp:12 near /data/x.bin", "at c.cpp near *"),
        ("kFP16 and INT8 stay, x12 goes", "kFP16 and INT8 stay, # goes"),
    ],
)
def test_what_is_left_of_a_message(message, expected):
    assert normalise(message) == expected


def test_signatures_name_the_stage_and_how_the_build_ended():
    error = ParserError("UNSUPPORTED_NODE", "false", "conv_1", "Det", func="checkDet")
    again = ParserError("UNSUPPORTED_NODE", "false", "conv_2", "Det", func="checkDet")
    other = ParserError("INVALID_NODE", "Invalid Node - x\nK = 3 is wrong", "x", "TopK")
    assert signature(BuildResult("done", True)) is None
    assert signature(BuildResult("build", False, signal=11)) == "signal 11 at build"
    assert signature(BuildResult("parse", False, timed_out=True)) == "timeout at parse"
    assert signature(BuildResult("build", False, returncode=3)) == "exit 3 at build"
    assert (
        signature(BuildResult("build", False, log=("x: K = 3 is wrong",), names=frozenset("x")))
        == "build: *: K = # is wrong"
    )
    assert signatures(BuildResult("parse", False, errors=(error, again, other))) == (
        "parse: UNSUPPORTED_NODE Det checkDet", "parse: INVALID_NODE TopK K = # is wrong")  # fmt: skip


def test_verdicts_fail_only_with_the_wanted_failure():
    two = BuildResult("parse", False, errors=(ParserError("A", "a"), ParserError("B", "b")))
    assert judge(BuildResult("done", True), "any") == Answer(Outcome.PASS)
    assert judge(two) == Answer(Outcome.FAIL, signature="parse: A a")
    assert judge(two, "parse: B b") == Answer(Outcome.FAIL, signature="parse: B b")
    assert judge(two, "signal 11 at build") == Answer(Outcome.UNRESOLVED, signature="parse: A a")


def test_messages_blame_nodes_by_their_whole_names():
    log = ("ITopKLayer top.1: K exceeds", "{ForeignNode[first...last]} has no implementation")
    result = BuildResult("build", False, errors=(ParserError("A", "a", "named"),), log=log,
                         names=frozenset({"top", "top.1", "first", "last", "elsewhere"}))  # fmt: skip
    assert blamed(result) == {"top.1", "first", "last", "named"}


# The user's own check


@pytest.mark.parametrize(
    "mode, answer",
    [
        (("say", "", "", 0), Answer(Outcome.PASS)),
        (("say", "", "", 125), Answer(Outcome.UNRESOLVED, signature="exit 125")),
        (("say", "", "", 1), Answer(Outcome.FAIL, signature="exit 1")),
        (("say", "", "", 200), Answer(Outcome.FAIL, signature="exit 200")),
        (("crash",), Answer(Outcome.FAIL, signature="signal 11")),
    ],
)
def test_exit_codes_of_a_check(mode, answer, fake, tmp_path):
    code = (
        "import runpy, sys; sys.argv = sys.argv[2:]; runpy.run_path(sys.argv[0], run_name='__main__')"  # less the model
    )
    template = shlex.join([sys.executable, "-c", code, "{model}", *fake(*mode)[1:]])
    assert check(template, tmp_path / "m.onnx", timeout_s=30, folder=tmp_path) == answer


def test_a_check_that_hangs_is_unresolved(tmp_path):
    hang = shlex.join((sys.executable, "-c", "import time; time.sleep(60)"))
    answer = check(hang, tmp_path / "m.onnx", timeout_s=0.3, folder=tmp_path)
    assert answer == Answer(Outcome.UNRESOLVED, signature="timeout")


@pytest.mark.parametrize(
    "template, expected",
    [
        ("tool --in={model} 'two words'", ("tool", "--in={}", "two words")),
        ("tool", ("tool", "{}")),
        ("tool $(rm) ; {model} > {model}", ("tool", "$(rm)", ";", "{}", ">", "{}")),
    ],
)
def test_how_a_check_is_split(template, expected, tmp_path):
    model = tmp_path / "a b;c.onnx"
    assert building.check_argv(template, model) == tuple(part.replace("{}", str(model)) for part in expected)


@pytest.mark.parametrize("template", ["", "  ", "tool 'open"])
def test_a_check_that_cannot_be_split_is_refused(template):
    with pytest.raises(UsageError, match="--check"):
        building.check_argv(template, Path("m.onnx"))


def test_a_check_that_does_not_exist(tmp_path):
    with pytest.raises(ToolMissing, match="no-such-tool"):
        check("no-such-tool", tmp_path / "m.onnx", timeout_s=1, folder=tmp_path)


# The build's process


def stand_in(monkeypatch, code: str) -> None:
    """Let `code` run where the worker would; RESULT is the result file's path."""

    def worker(model_path, result, arguments, timeout_s):
        return Command((sys.executable, "-c", f"RESULT = {str(result)!r}\n{code}"), timeout_s)

    monkeypatch.setattr(building, "_worker", worker)


REPORT = (
    'import json, os, time\njson.dump({"stage": "build", "ok": False, "errors": [], "log": []}, open(RESULT, "w"))\n'
)


@pytest.mark.parametrize(
    "code, expected",
    [
        (REPORT + "os.kill(os.getpid(), 11)", "signal 11 at build"),
        (REPORT + "time.sleep(60)", "timeout at build"),
        (REPORT + "import sys; sys.exit('std::bad_alloc at 0x12')", "build: std::bad_alloc at #"),
    ],
)
def test_crashes_and_hangs_of_a_builder_are_verdicts(code, expected, monkeypatch, tmp_path):
    stand_in(monkeypatch, code)
    result = build(tmp_path / "m.onnx", BuildOptions(), shapes={}, timeout_s=2, folder=tmp_path / "raw")
    assert signature(result) == expected
    assert not result.ok


def test_a_process_that_never_began_is_no_verdict(monkeypatch, tmp_path):
    (tmp_path / "m.build.json").write_text(json.dumps({"stage": "done", "ok": True, "errors": [], "log": []}))
    stand_in(monkeypatch, "raise SystemExit('no such module')")
    with pytest.raises(ArtifactMissing, match="no such module"):
        build(tmp_path / "m.onnx", BuildOptions(), shapes={}, timeout_s=10, folder=tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_a_missing_backend_names_what_to_install(tmp_path):
    with pytest.raises(DependencyMissing, match="tensorrt") as caught:
        build(tmp_path / "m.onnx", BuildOptions("trt"), shapes={}, timeout_s=30, folder=tmp_path)
    assert "pip install" in caught.value.hint


# The real builder


def chain(*faults: str) -> Model:
    """Six Relus and, between them, nodes that TensorRT refuses: `unknown` while parsing, `topk` while building."""
    constants = {"k": np.array([4000], np.int64)}
    nodes, last = [], "x"
    for index in range(6):
        nodes.append(helper.make_node("Relu", [last], [f"r{index}"], name=f"relu_{index}"))
        last = f"r{index}"
        if index == 1 and "unknown" in faults:
            nodes.append(helper.make_node("Bernoulli", [last], ["u"], name="coin", seed=1.0))
            last = "u"
        if index == 3 and "topk" in faults:
            nodes.append(helper.make_node("TopK", [last, "k"], ["t", "order"], name="sort"))
            last = "t"
    graph = helper.make_graph(nodes, "chain", [helper.make_tensor_value_info("x", F, ["B", 4000])],
                              [helper.make_tensor_value_info(last, F, ["B", 4000])],
                              [numpy_helper.from_array(a, n) for n, a in constants.items()])  # fmt: skip
    return from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), Path("chain.onnx")
    )


class Builder:
    """Builds parts of a model, and counts how often."""

    def __init__(self, model: Model, folder: Path, *, freeze: bool = True) -> None:
        self.model, self.folder, self.freeze, self.count = model, folder, freeze, 0
        self.facts = observe(model, {"x": np.ones((2, 4000), np.float32)})

    def __call__(self, keep) -> BuildResult:
        self.count += 1
        proto = extract(self.model, keep, self.facts, freeze=self.freeze)
        path = save(proto, self.model.weights, self.folder / "part.onnx")
        return build(
            path, BuildOptions(), shapes={"x": (2, 4000)}, timeout_s=60, folder=self.folder, names=names_of(self.model)
        )


def node_indices(model: Model, *names: str) -> set[int]:
    return {node.index for node in model.nodes if node.key in names}


@needs_rtx
def test_a_sound_model_builds_frozen_and_dynamic(tmp_path):
    for freeze in (True, False):
        result = Builder(chain(), tmp_path, freeze=freeze)(range(6))
        assert result.ok, signatures(result)
        assert (result.stage, result.engine_bytes > 0, result.build_s > 0) == ("done", True, True)


@needs_rtx
def test_the_engine_is_written_only_if_asked_and_parsing_alone_builds_none(tmp_path):
    path = save(chain().proto, {}, tmp_path / "m.onnx")
    parsed = build(path, BuildOptions(parse_only=True), shapes={}, timeout_s=60, folder=tmp_path / "raw")
    assert (parsed.ok, parsed.engine_bytes) == (True, None)
    engine = tmp_path / "m.engine"
    built = build(path, BuildOptions(engine=engine), shapes={"x": (2, 4000)}, timeout_s=60, folder=tmp_path / "raw")
    assert engine.stat().st_size == built.engine_bytes


@needs_rtx
def test_one_failure_can_hide_another(tmp_path):
    model = chain("unknown", "topk")
    builder = Builder(model, tmp_path)
    everything = set(range(len(model.nodes)))
    whole = builder(everything)
    without_coin = builder(everything - node_indices(model, "coin"))
    assert signature(whole) == "parse: UNSUPPORTED_NODE Bernoulli checkBernoulli"
    assert signature(without_coin).startswith("build: ")
    assert "K exceeds the maximum value" in signature(without_coin)
    assert blamed(whole) >= {"coin"}
    assert blamed(without_coin) >= {"sort"}
    assert judge(without_coin, signature(whole)).outcome is Outcome.UNRESOLVED


@needs_rtx
def test_both_of_two_independent_culprits_are_found(tmp_path):
    model = chain("unknown", "topk")
    builder = Builder(model, tmp_path)
    order = range(len(model.nodes))
    found = drive(smallest_kept(order), lambda query: judge(builder(query)))
    assert set(found.kept) == node_indices(model, "coin", "sort")
    assert found.certified


@needs_rtx
@pytest.mark.parametrize("culprit, absent", [("coin", ""), ("sort", "coin")])
def test_the_smallest_failing_part_never_slides_onto_another_bug(culprit, absent, tmp_path):
    model = chain("unknown", "topk")
    builder = Builder(model, tmp_path)
    start = set(range(len(model.nodes))) - node_indices(model, absent)
    wanted = signature(builder(start))

    def ask(removed):
        return judge(builder(start - removed), wanted) if start - removed else Answer(Outcome.PASS)

    found = drive(smallest_kept(sorted(start), wanted=Outcome.FAIL, signature=wanted), ask)
    assert set(found.kept) == node_indices(model, culprit)
