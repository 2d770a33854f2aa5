"""Operations that name no node are tied to nodes, or to none: on a recording, on real builds, and on invented models."""

from __future__ import annotations

import gzip
import importlib
import json
from pathlib import Path

import onnx
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import recorded_encoder
from harness.bert import model as bert
from harness.engines.options import BuildOptions
from harness.errors import ParseError
from harness.models import graph as graphs
from harness.models.model import Model, from_proto
from places import DATA
from probes.targets import inferring
from probes.targets.inferring import Spec
from reports.artifact import Artifact
from reports.collect import collect
from reports.columns import validate
from reports.readers import graph as reader
from reports.readers import nsys, trtexec_exports
from reports.tables.onnx_graph import Graph, Node
from reports.tables.onnx_names import Known, Step, nodes_of_layer, nodes_of_operation, steps_of
from reports.tables.origins import combine, tied
from reports.tables.placing import place
from small_models import if_model

RECORDED = DATA / "nsys"
node_ties = importlib.import_module("benchmarks.node_ties")
RECORDING = "h100_trt86_myelin_2025.3.sqlite"


def graph_of(model: Model, folder: Path) -> Graph:
    """As a report reads it."""
    path = folder / "model.graph.json"
    path.write_text(json.dumps(graphs.document(model)), encoding="utf-8")
    return reader.graph_of(reader.read(path))


def chain(*names_and_types: tuple[str, str]) -> Graph:
    """Each node reads the one before it."""
    nodes = [
        Node(name, kind, (f"t{at}", "weight"), (f"t{at + 1}",), (name,))
        for at, (name, kind) in enumerate(names_and_types)
    ]
    return Graph(("t0",), tuple(nodes))


def inferred(operations, graph, told=None):
    return [origin.inferred for origin in place(operations, graph, told)]


# ---- the recording


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recording")
    (folder / RECORDING).write_bytes(gzip.decompress((RECORDED / f"{RECORDING}.gz").read_bytes()))
    document = graphs.document(from_proto(recorded_encoder.make(), Path("encoder.onnx")))
    (folder / "encoder.graph.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def encoder(recording):
    """The timeline of the recording, with the model beside it."""
    (artifact,) = collect([recording]).artifacts
    return artifact


def test_of_the_fused_encoder_more_than_95_percent_is_tied_to_nodes(encoder):
    ties = encoder.summary["ties"]
    assert {name: round(share["time_pct"], 1) for name, share in ties.items()} == {
        "named": 72.8, "inferred": 26.6, "unattributed": 0.6}  # fmt: skip
    assert sum(share["time_ns"] for share in ties.values()) == encoder.summary["kernel_time_ns"]
    assert encoder.summary["model"] == "encoder.graph.json"


def test_of_an_encoder_with_fused_attention_more_than_95_percent_is_tied_to_nodes(tmp_path):
    """Recorded by `probe profile` on an H200: TensorRT 8.6 makes one kernel of each attention and of its three products."""
    for name in ("h200_trt86_encoder_2025.3.sqlite", "h200_trt86_encoder.graph.json"):
        (tmp_path / name).write_bytes(gzip.decompress((RECORDED / f"{name}.gz").read_bytes()))
    (timeline,) = collect([tmp_path]).artifacts
    ties = timeline.summary["ties"]
    assert {name: round(share["time_pct"], 1) for name, share in ties.items()} == {
        "named": 84.4, "inferred": 14.4, "unattributed": 1.2}  # fmt: skip
    merged = timeline.tables["kernels"].query("operation.str.startswith('fc__').fillna(False)").sort_values("launch_ns")
    attention = "/encoder/layer.{}/attention/self/{}/MatMul"
    assert (
        merged["inferred_nodes"].tolist()
        == [tuple(attention.format(layer, which) for which in ("query", "key", "value")) for layer in range(4)] * 3
    )


def test_no_operation_of_the_recording_is_tied_to_a_node_that_is_not_its_own(encoder):
    kernels = encoder.tables["kernels"].sort_values("launch_ns")
    layer, seen = 0, set()
    for row in kernels.itertuples():
        name = row.operation if isinstance(row.operation, str) else ""
        layer = 0 if name.startswith("xpos") else layer + ("fc__" in name and f"l{layer}_qk_matrix_multiply" in seen)
        seen = set() if name.startswith("xpos") else seen | {name}
        assert set(row.onnx_nodes + row.inferred_nodes) <= recorded_encoder.nodes_of(name, layer), name
        assert row.tie == ("named" if row.onnx_nodes else "inferred" if row.inferred_nodes else "unattributed")


def test_merged_products_gelus_and_halves_of_a_normalization_have_their_nodes(encoder):
    kernels = encoder.tables["kernels"]
    found = {(str(row.operation).partition("__mye")[0], row.inferred_nodes) for row in kernels.itertuples()}
    for number in range(recorded_encoder.LAYERS):
        assert ("fc", tuple(f"l{number}.{name}" for name in "qkv")) in found
        parts = ("div", "erf", "add", "mul", "half")
        gelu = "gelu_div+gelu_erf+gelu_add+gelu_mul+gelu_mul_2"
        assert (gelu, tuple(f"l{number}.gelu.{part}" for part in parts)) in found
    halves = kernels[kernels["operation"].astype(str).str.contains("_ 54) [Normalization]", regex=False)]
    assert set(halves["inferred_nodes"]) == {("l0.ln2",)}


def test_what_tensorrt_or_myelin_made_up_stays_unattributed(encoder):
    kernels = encoder.tables["kernels"]
    left = kernels[kernels["tie"] == "unattributed"]
    assert {str(name)[:4] for name in left["operation"].dropna()} == {"xpos"}
    assert all(str(name).startswith("Reformatting") for name in left.loc[left["operation"].isna(), "layer"])


def test_without_the_model_nothing_is_inferred(recording):
    kernels = nsys.read(recording / RECORDING).tables["kernels"]
    assert not kernels["inferred_nodes"].map(bool).any()
    assert set(kernels.loc[kernels["operation"].astype(str).str.startswith(("fc", "gelu")), "tie"]) == {"unattributed"}


def test_another_model_ties_nothing(recording, tmp_path):
    (tmp_path / RECORDING).symlink_to(recording / RECORDING)
    other = graphs.document(from_proto(bert.build_onnx(SMALL, bert.random_weights(SMALL)), Path("bert.onnx")))
    (tmp_path / "bert.graph.json").write_text(json.dumps(other), encoding="utf-8")
    (artifact,) = collect([tmp_path]).artifacts
    assert artifact.summary["ties"] == nsys.read(recording / RECORDING).summary["ties"]


# ---- real builds: the names of the layers go in, what the builder says of their nodes is the truth


SMALL = bert.BertConfig(64, 2, 4, 256, vocab_size=100, max_position=32)


@pytest.mark.trt_rtx
@pytest.mark.parametrize("layer_norm", ["fused", "decomposed"])
def test_of_a_real_build_nothing_is_tied_wrongly_however_many_names_are_hidden(tmp_path, layer_norm):
    proto = bert.build_onnx(SMALL, bert.random_weights(SMALL), layer_norm=layer_norm)
    pytest.importorskip("tensorrt_rtx")
    model = bert.save(proto, tmp_path / "encoder.onnx")
    layers, graph = node_ties.build(model), node_ties.graph_of(model)
    assert all(layer.nodes for layer in layers)
    assert {node for layer in layers for node in layer.nodes} <= {node.name for node in graph.nodes}
    trials = [node_ties.judge(layers, graph, lambda at, one=one: at == one) for one in range(len(layers))]
    trials.append(node_ties.judge(layers, graph, lambda at: at % 2 == 1))
    assert sum(trial["wrong"] for trial in trials) == 0
    assert all(trial["inferred"] > 10 for trial in trials)


@pytest.mark.trt_rtx
def test_an_engine_is_built_with_its_graph_beside_it(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    onnx.save(recorded_encoder.make(), tmp_path / "encoder.onnx")
    options = BuildOptions(backend="trt-rtx")
    spec = Spec("build", tmp_path / "encoder.onnx", tmp_path / "r.json", tmp_path, tmp_path / "model.plan", options)
    inferring.run(spec)
    found = reader.graph_of(reader.read(tmp_path / "model.graph.json"))
    assert [node.name for node in found.nodes] == [node.name for node in recorded_encoder.make().graph.node]
    assert found.known.meant("l0_o_4_matrix_multiply") == "l0.o"


# ---- invented models


TYPES = {
    "MatMul": "fc__mye1", "Add": "add", "Mul": "mul__mye2", "Erf": "gelu_erf", "Relu": "relu", "Transpose": "transp__mye3",
    "Softmax": "maxred+sub+exp__mye4+sum+sr_div+sr_div", "LayerNormalization": "mean+sub+mul+mean+add+sqrt+sr_div+mul+mul+add",
    "Sigmoid": "neg+exp+add+sr_div",
}  # fmt: skip
ABSORBED = ("Add", "Mul", "Relu")  # by the product before them, which does not say so


@st.composite
def engines(draw):
    """A graph, the operations of an engine of it in an order that its edges allow, and the nodes of each.

    Operations are runs of that order; each of their nodes is named, or tells its steps; an element-wise node may vanish in
    a product that is named.
    """
    kinds = draw(st.lists(st.sampled_from(sorted(TYPES)), min_size=2, max_size=14))
    nodes = []
    for at, kind in enumerate(kinds):
        sources = draw(st.lists(st.integers(-1, at - 1), min_size=1, max_size=2))
        inputs = tuple("x" if source < 0 else f"t{source}" for source in sources)
        nodes.append(Node(f"n{at}.{kind}", kind, inputs, (f"t{at}",), (f"n{at}.{kind}",)))
    ready, order, rank = set(range(len(nodes))), [], {name: draw(st.integers(0, 99)) for name in range(len(nodes))}
    while ready:
        free = [at for at in ready if not any(f"t{other}" in nodes[at].inputs for other in ready)]
        order.append(min(free, key=lambda at: (rank[at], at)))
        ready.remove(order[-1])
    operations, truth = [], []
    for at in order:
        if not operations or draw(st.booleans()):
            operations.append([])
            truth.append(set())
        node, host = nodes[at], operations[-1]
        hidden = (
            node.op_type in ABSORBED and bool(host) and host[0].endswith("_matrix_multiply") and draw(st.booleans())
        )
        if not hidden:
            named = node.name.replace(".", "_") + ("_matrix_multiply" if node.op_type == "MatMul" else "")
            host.append(named if draw(st.booleans()) else TYPES[node.op_type])
        truth[-1].add(node.name)
    return Graph(("x",), tuple(nodes)), ["+".join(parts) for parts in operations], truth


@given(engines())
@settings(max_examples=150)
def test_of_any_engine_nothing_is_tied_wrongly(engine):
    graph, operations, truth = engine
    for origin, nodes in zip(place(operations, graph), truth, strict=True):
        assert set(origin.named) <= nodes
        assert set(origin.inferred) <= nodes
        assert not set(origin.named) & set(origin.inferred)


@given(engines(), st.randoms())
def test_names_that_contradict_the_edges_tie_nothing_else(engine, random):
    graph, operations, _ = engine
    shuffled = random.sample(operations, len(operations))
    position = {}
    for at, operation in enumerate(shuffled):
        for name in nodes_of_operation(operation, graph.known):
            position[name] = at
    maker = {tensor: node.name for node in graph.nodes for tensor in node.outputs}
    backwards = any(
        position[maker[tensor]] > position[node.name]
        for node in graph.nodes for tensor in node.inputs
        if tensor in maker and maker[tensor] in position and node.name in position
    )  # fmt: skip
    if backwards:
        assert not any(inferred(shuffled, graph))


def test_a_product_between_two_named_ones_is_the_one_that_is_missing():
    graph = chain(("a", "MatMul"), ("b", "MatMul"), ("c", "MatMul"))
    assert inferred(["a", "fc__mye1", "c"], graph) == [(), ("b",), ()]


def test_two_products_that_could_each_be_in_two_operations_are_in_none():
    nodes = [Node("first", "MatMul", ("x", "w"), ("a",)), Node("left", "MatMul", ("a", "w"), ("b",)),
             Node("right", "MatMul", ("a", "w"), ("c",)), Node("last", "MatMul", ("b", "c"), ("y",))]  # fmt: skip
    graph = Graph(("x",), tuple(nodes))
    assert inferred(["first", "fc__mye1", "fc__mye2", "last"], graph) == [(), (), (), ()]
    assert inferred(["first", "fc__mye1", "left", "last"], graph) == [(), ("right",), (), ()]
    assert inferred(["first", "fc__mye1", "last"], graph) == [(), ("left", "right"), ()]


def test_an_operation_that_says_nothing_may_hold_a_product_too():
    graph = chain(("a", "MatMul"), ("b", "MatMul"), ("c", "MatMul"), ("d", "MatMul"))
    assert inferred(["a", "fc__mye1", "__mye123", "d"], graph) == [(), (), (), ()]
    assert inferred(["a", "fc__mye1", "transp__mye123+cast", "d"], graph) == [(), ("b", "c"), (), ()]


def test_a_step_that_two_nodes_can_have_asked_for_ties_neither():
    graph = chain(("a", "MatMul"), ("b", "Add"), ("c", "Add"), ("d", "MatMul"))
    assert inferred(["a", "add", "d"], graph) == [(), (), ()]
    assert inferred(["a", "add+add", "d"], graph) == [(), ("b", "c"), ()]


def test_operations_without_any_named_neighbour_tie_nothing_beyond_doubt():
    """Of a chain with one product and an engine with one product nothing says that they belong together."""
    assert inferred(["fc__mye1"], chain(("a", "MatMul"))) == [()]


def test_constants_and_what_only_shapes_decide_are_no_candidates():
    nodes = [Node("size", "Shape", ("x",), ("s",)), Node("grow", "Mul", ("s", "two"), ("g",)),
             Node("fold", "Mul", ("w", "two"), ("f",)), Node("a", "MatMul", ("x", "f"), ("t",)),
             Node("scale", "Mul", ("t", "two"), ("u",)), Node("b", "MatMul", ("u", "w"), ("y",))]  # fmt: skip
    graph = Graph(("x",), tuple(nodes))
    assert graph.live == (False, False, False, True, True, True)
    assert inferred(["a", "mul", "b"], graph) == [(), ("scale",), ()]


def test_what_the_engine_says_of_its_layers_goes_before_their_names():
    graph = chain(("a", "MatMul"), ("b", "Add"), ("c", "MatMul"))
    operations = ["__myl_Fc_myl0_0", "__myl_Add_myl0_1", "c_myl0_2"]
    found = place(operations, graph, {"__myl_Fc_myl0_0": ("a",)})
    assert [(origin.named, origin.inferred) for origin in found] == [(("a",), ()), ((), ("b",)), (("c",), ())]


# ---- timelines of other versions: layers of Myelin stand in TensorRT's own domain, and the engine tells their nodes


def timeline(*layers: str, executions: int = 2) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables `kernels` and `ranges` of runs of an engine, each layer one kernel of 10 ns."""
    ranges, kernels = [], []
    for start in range(0, 1000 * executions, 1000):
        top = len(ranges)
        ranges.append(
            {
                "range": "ExecutionContext::enqueue",
                "parent_id": pd.NA,
                "depth": 0,
                "start_ns": start,
                "end_ns": start + 999,
            }
        )
        for number, layer in enumerate(layers):
            begin = start + 10 * number
            ranges.append({"range": layer, "parent_id": top, "depth": 1, "start_ns": begin, "end_ns": begin + 9})
            kernels.append({"kernel": "k", "start_ns": begin, "duration_ns": 10, "launch_ns": begin, "layer": layer,
                            "range_id": len(ranges) - 1})  # fmt: skip
    frame = pd.DataFrame(ranges).assign(range_id=range(len(ranges)), domain="TensorRT")
    return validate("kernels", pd.DataFrame(kernels)), validate("ranges", frame)


def test_what_the_engine_says_of_its_layers_ties_their_kernels():
    kernels, ranges = timeline(
        "/v/MatMul+/k/MatMul_myl0_0", "__myl_Add_myl0_1", "Reformatting CopyNode for Output Tensor 0 to a + b"
    )
    made = tied(kernels, ranges, None, {"__myl_Add_myl0_1": ("/v/Add", "/k/Add")})
    assert made["tie"].tolist() == ["named", "named", "unattributed"] * 2
    assert made["onnx_nodes"].tolist()[:3] == [("/v/MatMul", "/k/MatMul"), ("/v/Add", "/k/Add"), ()]


def test_layers_of_myelin_without_their_nodes_are_placed_among_those_that_are_named():
    graph = chain(("a", "MatMul"), ("b", "Erf"), ("c", "MatMul"))
    made = tied(*timeline("a_myl0_0", "__myl_Erf_myl0_1", "c_myl0_2"), graph, {})
    assert made["inferred_nodes"].tolist() == [(), ("b",), ()] * 2
    assert made["tie"].tolist() == ["named", "inferred", "named"] * 2


def test_a_layer_of_which_two_engines_say_different_things_is_left_to_its_name(tmp_path):
    one, other = (
        [{"Name": "x_myl0_0", "LayerType": "gemm", "Metadata": f"[ONNX Layer: {node}]"}] for node in ("a", "b")
    )
    kernels, ranges = timeline("x_myl0_0")
    trace = Artifact(tmp_path / "t.sqlite", "nsys-sqlite", "nsys", None,
                     {"kernels": tied(kernels, ranges, None, {}), "ranges": ranges}, {"by_operation": []})  # fmt: skip
    layers = []
    for number, listed in enumerate((one, other)):
        (tmp_path / f"{number}.layers.json").write_text(json.dumps({"Layers": listed}), encoding="utf-8")
        layers.append(trtexec_exports.read(tmp_path / f"{number}.layers.json"))
    said = [combine([trace, *some])[0].tables["kernels"]["onnx_nodes"].tolist()[0] for some in (layers[:1], layers)]
    assert said == [("a",), ("x",)]


def test_a_kernel_that_is_known_to_lie_in_a_span_alone_is_not_tied():
    kernels, ranges = timeline("{ForeignNode[a...z]}")
    assert set(tied(kernels, ranges, None, {})["tie"]) == {"unattributed"}


@pytest.mark.parametrize("between", ["\x1e", "\x1f", ""])
def test_nodes_in_the_metadata_of_a_layer(between):
    metadata = between.join(f"[ONNX Layer: {name}]" for name in ("/a/Mat[0]", "b", "b"))
    assert trtexec_exports.onnx_nodes(metadata) == ("/a/Mat[0]", "b")
    assert trtexec_exports.onnx_nodes("") == trtexec_exports.onnx_nodes("[Other: a]") == ()


# ---- names


KNOWN = Known(["l0.o", "l0.qk", "/a/MatMul", "/a/MatMul_1", "x.y", "x_y", "sub", "mean"])


@pytest.mark.parametrize(
    ("part", "node"),
    [
        ("l0_o_4_matrix_multiply", "l0.o"), ("shuffle_output_l0_qk_reshape", "l0.qk"), ("/a/MatMul_1_myl0_3", "/a/MatMul_1"),
        ("/a/MatMul_myl0_3", "/a/MatMul"), ("x_y", "x_y"), ("x.y_matrix_multiply", None), ("sub", "sub"), ("sub_2", None),
        ("(Unnamed Layer_ 33) [Normalization]_U0_mean", None), ("copied_l0_qk", None), ("between_l0_qk", None), ("l0", None),
    ],
)  # fmt: skip
def test_a_part_of_a_name_speaks_of_the_node_it_begins_with_or_of_none(part, node):
    assert nodes_of_operation(part, KNOWN) == ((node,) if node else ())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fc__mye12725", ["product"]), ("__myl_FcAddDivErf_myl0_11", ["product", "add", "div", "erf"]),
        ("_gemm_mha_v2_myl0_4", ["product", "?"]), ("__mye14172", ["?"]), ("xpos__mye1+reshp__mye2+transp__mye3", []),
        ("l0_qk_matrix_multiply", []), ("slice__mye1+shuffle_output_l0_qk_reshape+maxred+sr_div", ["max", "div"]),
        ("Reformatting CopyNode for Input Tensor 0 to l0.o + l9", []), ("cast_hvar^11366i32", []),
    ],
)  # fmt: skip
def test_the_steps_beyond_the_nodes_of_an_operation(name, words):
    assert [step.word for step in steps_of(name, KNOWN)] == words


def test_a_layer_without_a_name_is_the_same_in_all_operations():
    name = "(Unnamed Layer_ 33) [Normalization]_U0_mean+(Unnamed Layer_ 33) [Normalization]_U0_variance"
    assert set(steps_of(name, KNOWN)) == {Step("normalization", "33")}


def test_nodes_of_a_merged_layer():
    assert nodes_of_layer("/v/MatMul+/k/MatMul+/q/MatMul_myl0_1") == ("/v/MatMul", "/k/MatMul", "/q/MatMul")
    assert nodes_of_layer("a+b") == ("a+b",)


# ---- the document


def test_the_graph_of_a_model_with_branches_and_nameless_nodes(tmp_path):
    graph = graph_of(if_model(), tmp_path)
    branch = next(node for node in graph.nodes if node.name == "branch")
    assert {"c", "h", "bias"} <= set(branch.inputs)
    assert graph.inputs == ("x", "c")
    nameless = onnx.helper.make_node("Relu", ["x"], ["y"])
    proto = onnx.helper.make_model(onnx.helper.make_graph([nameless], "g", [value("x")], [value("y")]))
    (node,) = graph_of(from_proto(proto, Path("m.onnx")), tmp_path).nodes
    assert (node.name, node.called) == ("y", ("y", "node_of_y"))


def value(name):
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1])


@pytest.mark.parametrize("content", ['{"probe": "graph", "schema": 2}', '{"probe": "graph", "schema"'])
def test_a_graph_of_another_schema_or_cut_off_is_told(tmp_path, content):
    (tmp_path / "g.json").write_text(content, encoding="utf-8")
    with pytest.raises(ParseError):
        collect([tmp_path / "g.json"])


def test_a_graph_alone_is_shown(tmp_path):
    graph_of(if_model(), tmp_path)
    (artifact,) = collect([tmp_path]).artifacts
    assert artifact.kind == reader.KIND
