"""Operations that name no node are tied to nodes, or to none: on a recording, on real builds, and on invented models."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import onnx
import pytest
import recorded_encoder
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import if_model

from harness.bert import model as bert
from harness.errors import ParseError
from harness.models import graph as graphs
from harness.models.model import Model, from_proto
from reports.collect import collect
from reports.onnx_graph import Graph, Node
from reports.onnx_names import Known, Step, nodes_of_layer, nodes_of_operation, steps_of
from reports.placing import place
from reports.readers import graph as reader
from reports.readers import nsys, trtexec_exports

DATA = Path(__file__).parents[1] / "data" / "nsys"
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
    (folder / RECORDING).write_bytes(gzip.decompress((DATA / f"{RECORDING}.gz").read_bytes()))
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


def built(path: Path) -> list[tuple[str, str, tuple[str, ...]]]:
    """Name, type and nodes of each layer that TensorRT-RTX makes of a model, in the order in which they run."""
    trt = pytest.importorskip("tensorrt_rtx")
    lines: list[str] = []

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: object, message: str) -> None:
            lines.extend(message.split("\n"))

    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    assert trt.OnnxParser(network, logger).parse_from_file(str(path))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    profile = builder.create_optimization_profile()
    for tensor in (network.get_input(number) for number in range(network.num_inputs)):
        profile.set_shape(tensor.name, *[[8 if size < 0 else size for size in tensor.shape]] * 3)
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None
    layers = [line for line in lines if line.startswith("Name: ") and ", LayerType: " in line]
    return [
        (line[6 : line.index(", LayerType: ")], re.search(r", LayerType: (\w+)", line)[1],
         trtexec_exports.onnx_nodes(line.partition("Metadata: ")[2]))
        for line in layers
    ]  # fmt: skip


@pytest.mark.trt_rtx
@pytest.mark.parametrize("layer_norm", ["fused", "decomposed"])
def test_of_a_real_build_nothing_is_tied_wrongly_however_many_names_are_hidden(tmp_path, layer_norm):
    proto = bert.build_onnx(SMALL, bert.random_weights(SMALL), layer_norm=layer_norm)
    layers = built(bert.save(proto, tmp_path / "encoder.onnx"))
    graph = graph_of(from_proto(onnx.load(tmp_path / "encoder.onnx"), tmp_path), tmp_path)
    assert all(nodes for _, _, nodes in layers)
    assert {node for _, _, nodes in layers for node in nodes} <= {node.name for node in graph.nodes}
    found = 0
    for number in range(len(layers)):  # one name less at a time, then all that a merged product is likely to lose
        found += check(layers, graph, lambda at, kind, hidden=number: at == hidden)
    found += check(layers, graph, lambda at, kind: kind == "gemm" and at % 2)
    assert found > len(layers)


def check(layers, graph, hide):
    """Every inference must be true; how many there are."""
    names = ["fc__mye7" if hide(at, kind) and kind == "gemm" else name for at, (name, kind, _) in enumerate(layers)]
    origins = place(names, graph)
    for origin, (_, _, truth) in zip(origins, layers, strict=True):
        assert set(origin.named + origin.inferred) <= set(truth)
    return sum(len(origin.inferred) for origin in origins)


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
