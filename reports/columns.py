"""The tables as data: the columns of each with their types, and the check that a frame fits them.

Types are pandas' own, less one: `int64` (never missing), `Int64` (an integer that may be missing), `float64` (NaN where
missing), `boolean`, `string` (may be missing), `category` (a text that repeats much, may be missing), and `tuple`, an
object column that holds a tuple of texts a row, empty where there is none. Units are in the names of the columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

Columns = Mapping[str, str]

TABLES: dict[str, Columns] = {}


class Misfit(ValueError):
    """A value that its column cannot hold: says which table and column, the type expected, and what came."""


def declare(name: str, /, **columns: str) -> None:
    """Add a table; a second declaration of the same name is a mistake."""
    if name in TABLES:
        raise ValueError(f"table {name} is declared twice")
    if unknown := {dtype for dtype in columns.values() if dtype not in EMPTY}:
        raise ValueError(f"table {name}: no such type: {', '.join(sorted(unknown))}")
    TABLES[name] = MappingProxyType(columns)


# What an optional column holds where the frame does not have it. `int64` has no such value: it must be there.
EMPTY: dict[str, Any] = {
    "int64": ...,
    "Int64": pd.NA,
    "float64": np.nan,
    "boolean": pd.NA,
    "string": pd.NA,
    "category": None,
    "tuple": (),
}


def validate(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with the columns of table `name`, in their order and types; ValueError if it cannot be that.

    A column that may be missing and is not there is added, empty; one that must be there, and one that the table does
    not know, is refused.
    """
    columns = TABLES[name]
    if unknown := [column for column in frame.columns if column not in columns]:
        raise ValueError(f"table {name} has no column {', '.join(map(str, unknown))}")
    made = {column: _column(name, frame, column, dtype) for column, dtype in columns.items()}
    return pd.DataFrame(made, columns=list(columns), index=pd.RangeIndex(len(frame)), copy=False)


def empty(name: str) -> pd.DataFrame:
    """Table `name` without rows."""
    return validate(name, pd.DataFrame({column: [] for column in TABLES[name]}))


def _column(name: str, frame: pd.DataFrame, column: str, dtype: str) -> Any:
    if column not in frame.columns:
        if EMPTY[dtype] is ...:
            raise ValueError(f"table {name} lacks column {column}")
        return _lacking(dtype, len(frame))
    try:
        return _cast(frame[column], dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise Misfit(f"table {name}, column {column}: expected {dtype}, got {error}") from error


def _lacking(dtype: str, rows: int) -> Any:
    """A column in which every value is missing. Zeros that nobody touches take no memory."""
    if dtype == "Int64":
        return pd.arrays.IntegerArray(np.zeros(rows, np.int64), np.ones(rows, np.bool_))
    if dtype == "category":
        return pd.Categorical.from_codes(np.full(rows, -1, np.int8), pd.Index([], dtype=object))
    return _cast([EMPTY[dtype]] * rows, dtype)


def _cast(values: Any, dtype: str) -> Any:
    if dtype == "tuple":
        return _tuples(values)
    if isinstance(values, pd.Series):
        values = values.array
        if str(values.dtype) == dtype:
            return values
    if dtype == "int64":
        return _whole(pd.array(values, dtype="Int64")).to_numpy(np.int64)  # refuses fractions and missing values
    if dtype == "Int64":
        return pd.array(values, dtype="Int64")
    if dtype == "float64":
        return pd.to_numeric(pd.Series(values), errors="raise").to_numpy(np.float64, na_value=np.nan)
    if dtype == "category":
        return pd.Categorical(values)
    return pd.array(values, dtype=dtype)


def _whole(values: Any) -> Any:
    if values.isna().any():
        raise ValueError("missing values")
    return values


def _tuples(values: Any) -> np.ndarray[Any, np.dtype[np.object_]]:
    given = np.empty(len(values), dtype=object)
    given[:] = values
    if set(map(type, given)) != {tuple}:
        given[:] = [() if value is None or value is pd.NA or value != value else tuple(value) for value in given]
    return given


declare(
    "kernels",
    kernel="category",  # demangled; the short name stands beside it
    kernel_short="category",
    device_id="Int64",
    context_id="Int64",
    stream_id="Int64",
    process_id="Int64",
    thread_id="Int64",  # of the launch; missing if no launch call is known
    correlation_id="Int64",
    graph_id="Int64",
    graph_node_id="Int64",
    start_ns="int64",
    duration_ns="int64",
    grid_x="Int64",
    grid_y="Int64",
    grid_z="Int64",
    block_x="Int64",
    block_y="Int64",
    block_z="Int64",
    registers_per_thread="Int64",
    smem_static_bytes="Int64",
    smem_dynamic_bytes="Int64",
    launch_ns="Int64",  # when the launch call started
    range_id="Int64",  # innermost range that holds the launch
    capture_range_id="Int64",  # for a kernel of a CUDA graph: innermost range that held the capture of its node
    layer="category",
    operation="category",
    onnx_nodes="tuple",  # what the tool says of them: by the operation's name, or the engine's layer information
    inferred_nodes="tuple",  # what follows from the model beyond that
    tie="category",  # named, inferred or unattributed; missing where no layer of TensorRT is in the trace
)
declare(
    "graph_launches",  # whole CUDA graphs, where the trace has no single kernels of them
    graph_id="Int64",
    graph_exec_id="Int64",
    device_id="Int64",
    context_id="Int64",
    stream_id="Int64",
    process_id="Int64",
    thread_id="Int64",
    correlation_id="Int64",
    start_ns="int64",
    duration_ns="int64",
    launch_ns="Int64",
    range_id="Int64",
    layer="category",
    operation="category",
    onnx_nodes="tuple",
)
declare(
    "ranges",
    range_id="int64",
    parent_id="Int64",
    domain="category",
    range="category",
    range_group="category",  # the name with its numbers templated, where they only count
    kind="category",  # push_pop or start_end
    category="category",
    process_id="Int64",
    thread_id="Int64",
    end_thread_id="Int64",  # where a start/end range ended, if elsewhere
    depth="int64",
    start_ns="int64",
    end_ns="int64",  # of a range that was never closed: the end of the trace
    open="boolean",
)
declare(
    "marks",
    mark="category",
    domain="category",
    category="category",
    process_id="Int64",
    thread_id="Int64",
    time_ns="int64",
)
declare(
    "memory_ops",
    kind="category",
    bytes="Int64",
    device_id="Int64",
    stream_id="Int64",
    context_id="Int64",
    process_id="Int64",
    thread_id="Int64",
    correlation_id="Int64",
    start_ns="int64",
    duration_ns="int64",
    range_id="Int64",
)
declare(
    "api_calls",
    api="category",
    process_id="Int64",
    thread_id="Int64",
    correlation_id="Int64",
    start_ns="int64",
    duration_ns="int64",
    range_id="Int64",
)
declare(
    "devices",
    device_id="Int64",
    gpu="string",
    compute_capability="string",
    sm_count="Int64",
    memory_bytes="Int64",
    memory_bytes_per_s="Int64",
    clock_hz="Int64",
)
declare("meta", name="string", value="string")
declare(
    "nodes",  # of an ONNX model, in topological order
    node="string",
    op_type="string",
    inputs="tuple",  # tensors, those that its subgraphs capture among them
    outputs="tuple",
    called="tuple",  # the names that TensorRT may give it
)
declare(
    "metrics",
    launch_id="Int64",
    kernel="category",
    range="category",
    metric="category",
    value="float64",
    unit="category",
)
declare(
    "iterations",
    iteration="int64",
    enqueue_ns="float64",
    h2d_ns="float64",
    compute_ns="float64",
    d2h_ns="float64",
    latency_ns="float64",
)
declare(
    "layers",
    layer="string",
    layer_type="string",
    precision="string",
    tactic="string",
    onnx_nodes="tuple",
    total_ns="float64",
    mean_ns="float64",
    median_ns="float64",
    time_pct="float64",
)
declare(
    "findings",
    tool="string",
    severity="string",
    kind="string",
    kernel="string",
    file="string",
    line="Int64",
    block_x="Int64",
    block_y="Int64",
    block_z="Int64",
    thread_x="Int64",
    thread_y="Int64",
    thread_z="Int64",
    address="string",  # hexadecimal: 64 bits without a sign
    access="string",
    size_bytes="Int64",
    api="string",
    message="string",
    count="Int64",
    launch_id="Int64",
    layer="string",
    onnx_nodes="tuple",
    inferred_nodes="tuple",
)
declare(
    "device_log",
    sequence="Int64",
    launch_id="Int64",
    kernel="string",
    tag="string",
    file="string",
    line="Int64",
    block_x="Int64",
    block_y="Int64",
    block_z="Int64",
    thread_x="Int64",
    thread_y="Int64",
    thread_z="Int64",
    type="string",
    value="string",
)
declare(
    "steps",
    step="int64",
    candidate="string",
    outcome="category",
    value="float64",
    duration_s="float64",
    cached="boolean",
)
declare(
    "finding_details",  # what a record of compute-sanitizer says beyond its row in `findings`
    finding="int64",  # the row of `findings`, from 0
    position="int64",
    role="string",  # at, access, device, host, remark
    text="string",
    function="string",
    file="string",  # as the tool wrote it, with its folder
    line="Int64",
    pc="string",
    module="string",
    count="Int64",  # hazards
)
declare(
    "runs",  # of trtexec: one row for each start
    run="int64",
    status="string",
    tool_version="string",
    command="string",
    comparable_group="string",  # times of different groups do not measure the same thing
    throughput_qps="float64",
    compute_min_ns="float64",
    compute_mean_ns="float64",
    compute_median_ns="float64",
    compute_p90_ns="float64",
    compute_p95_ns="float64",
    compute_p99_ns="float64",
    compute_max_ns="float64",
)
declare(
    "averages",  # the lines `Average on 10 runs` of trtexec
    run="int64",
    position="int64",  # among the printed ones
    iterations="Int64",  # how many one line averages
    compute_ns="float64",
    latency_ns="float64",
    end_to_end_ns="float64",
    enqueue_ns="float64",
)
declare(
    "node_events",  # of ONNX Runtime: one row for each execution of a node
    node="string",
    op_type="string",
    provider="string",
    iteration="Int64",  # the model run it belongs to, from 0
    node_index="Int64",
    parent="Int64",  # the row of the node it ran inside of (Loop, If, Scan)
    process_id="Int64",
    thread_id="Int64",
    start_ns="int64",
    duration_ns="int64",
    self_ns="int64",  # less what ran inside
    input_shapes="string",
    output_shapes="string",
    output_bytes="Int64",
)
declare(
    "tensors",  # of Polygraphy's inputs and outputs
    runner="string",
    iteration="int64",
    role="string",  # input or output
    tensor="string",
    dtype="string",
    shape="string",
    elements="Int64",
    bytes="Int64",
    min="float64",  # of the finite values, like mean and std
    max="float64",
    mean="float64",
    std="float64",
    nan_count="Int64",
    inf_count="Int64",
    zero_count="Int64",
)

# Nsight Compute, the roofline that follows from it, and comparisons.

PRECISIONS = ("fp64", "fp32", "fp16", "tensor")

declare(
    "ncu_launches",
    launch_id="int64",
    kernel="category",
    range="category",  # innermost: of Myelin, else of TensorRT, else of the first other domain
    process_id="Int64",
    device_id="Int64",
    device="category",
    cc="category",
    context_id="Int64",
    stream_id="Int64",
    grid_x="Int64",
    grid_y="Int64",
    grid_z="Int64",
    block_x="Int64",
    block_y="Int64",
    block_z="Int64",
    registers_per_thread="Int64",
    smem_static_bytes="Int64",
    smem_dynamic_bytes="Int64",
    duration_ns="Int64",  # the mean, where `count` launches are one row (summary page)
    count="int64",
)
declare("ncu_ranges", launch_id="int64", domain="category", range="category", kind="category", depth="int64")
declare("ncu_texts", launch_id="int64", metric="category", text="category")  # metrics whose value is no number
declare(
    "ncu_rules",
    launch_id="int64",
    kernel="category",
    section="category",
    rule="category",
    kind="category",  # OPT (can be improved), INF (a remark), WRN, ERR
    title="string",
    message="string",
    speedup_scope="category",  # global: of the kernel; local: of the part that the rule is about
    estimated_speedup_pct="float64",
)
declare(
    "ncu_extremes",  # of the summary page, in base units
    launch_id="int64",
    metric="category",
    unit="category",
    minimum="float64",
    maximum="float64",
    average="float64",
    count="int64",
)

declare(
    "roofline",
    launch_id="int64",
    kernel="category",
    range="category",
    duration_ns="float64",
    dram_bytes="float64",
    dram_bytes_per_s="float64",
    peak_dram_bytes_per_s="float64",
    **{f"{precision}_flop": "float64" for precision in PRECISIONS},
    **{f"{precision}_flop_per_s": "float64" for precision in PRECISIONS},
    **{f"peak_{precision}_flop_per_s": "float64" for precision in PRECISIONS},
    flop="float64",
    flop_per_s="float64",
    flop_per_byte="float64",  # arithmetic intensity, of device memory
    ceiling_flop_per_s="float64",  # of the busiest precision at this intensity: the roof above this launch
    ceiling_pct="float64",
    memory_pct="float64",  # of peak
    compute_pct="float64",
    occupancy_pct="float64",  # achieved
    theoretical_occupancy_pct="float64",
    waves="float64",  # of blocks, over all multiprocessors
    limited_by="category",
    why="string",
)

declare(
    "kernel_bench",  # of `probe kernels bench`: an operation beside what physics allows, and beside its peers
    operation="category",
    case="string",
    implementation="category",  # probe, or the peer's name
    median_ns="float64",
    p10_ns="float64",
    p90_ns="float64",
    bound_ns="float64",  # the larger of least traffic / copy rate and FLOPs / peak
    bound_by="category",  # memory, compute
    bound_pct="float64",  # bound / median
    bytes_per_s="float64",
    flop_per_s="float64",
    cold="boolean",  # inputs were rotated past the L2 cache
)

declare(
    "comparison",
    name="string",
    name_after="string",  # where it is called otherwise
    matched_by="category",
    count_before="int64",
    count_after="int64",
    used_before="int64",  # how many independent repetitions they are worth: what the statistics rest on
    used_after="int64",
    median_before_ns="float64",
    median_after_ns="float64",
    ratio="float64",  # of medians, after / before
    ratio_low="float64",
    ratio_high="float64",
    difference_ns="float64",
    effect="float64",  # probability that a repetition after takes longer than one before; 0.5: neither
    p_value="float64",
    p_corrected="float64",
    verdict="category",
    beyond_threshold="boolean",
)

declare(
    "sweep",  # one input dimension varied
    size="int64",
    shapes="string",
    iterations="Int64",
    latency_median_ns="float64",
    latency_p90_ns="float64",
    latency_p99_ns="float64",
    compute_median_ns="float64",
    throughput_qps="float64",  # inferences that do not wait for each other
    step="category",  # what shows that something changed from the size before: kernels, tactics or latency
    change="string",
    kernels="tuple",  # mangled, `name x12` where one is launched several times
)
