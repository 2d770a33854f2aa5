"""The roofline of launches: numbers by hand, real files, and verdicts that say why."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from places import DATA
from reports.columns import validate
from reports.readers import ncu
from reports.tables.roofline import LIMITS, NUMBERS, limited_by, roofline, wide

RECORDED = DATA / "ncu"


def made(*measured, duration_ns=1000):
    """The roofline of one launch with these (metric, value, unit)."""
    launches = pd.DataFrame(
        {
            "launch_id": [3],
            "kernel": ["k"],
            "range": [None],
            "duration_ns": pd.array([duration_ns], dtype="Int64"),
            "count": [1],
        }
    ).astype({"kernel": "category", "range": "category"})
    metrics = validate(
        "metrics",
        pd.DataFrame(
            [(3, "k", None, *row) for row in measured],
            columns=["launch_id", "kernel", "range", "metric", "value", "unit"],
        ),
    )
    return roofline(launches, metrics).iloc[0]


def inst(name, value):
    return (f"sm__sass_thread_inst_executed_op_{name}_pred_on.sum", value, "inst")


def test_operations_bytes_and_intensity_by_hand():
    row = made(
        inst("ffma", 500), inst("fadd", 100), inst("fmul", 50), inst("dfma", 7), inst("hfma", 10), inst("hadd", 3),
        ("dram__bytes_read.sum", 200, "byte"), ("dram__bytes_write.sum", 50, "byte"),
    )  # fmt: skip
    assert row["fp32_flop"] == pytest.approx(2 * 500 + 100 + 50)
    assert row["fp64_flop"] == pytest.approx(14)
    assert row["fp16_flop"] == pytest.approx(2 * (2 * 10 + 3))  # an instruction works on a pair
    assert row["fp32_flop_per_s"] == pytest.approx(1150 / 1e-6)
    assert math.isnan(row["tensor_flop"])
    assert row["flop"] == pytest.approx(1150 + 14 + 46)
    assert (row["dram_bytes"], row["dram_bytes_per_s"]) == (250, pytest.approx(250e6))
    assert row["flop_per_byte"] == pytest.approx(1210 / 250)
    assert row["limited_by"] is np.nan or row["limited_by"] is None
    assert "not measured" in row["why"]


def test_a_second_pass_over_rates_gives_the_same_numbers():
    cycles = [("smsp__sass_thread_inst_executed_op_ffma_pred_on.sum.per_cycle_elapsed", 64.0, "inst/cycle"),
              ("smsp__cycles_elapsed.avg.per_second", 2e9, "hz"), ("dram__bytes.sum.per_second", 1e12, "byte/s")]  # fmt: skip
    row = made(*cycles)
    assert row["fp32_flop_per_s"] == pytest.approx(2 * 64 * 2e9)
    assert row["fp32_flop"] == pytest.approx(2 * 64 * 2e9 * 1e-6)
    assert row["dram_bytes"] == pytest.approx(1e6)


def test_the_roof_is_the_lower_of_bandwidth_and_peak():
    peaks = [
        ("sm__sass_thread_inst_executed_op_ffma_pred_on.sum.peak_sustained", 1000, "inst/cycle"),
        ("sm__cycles_elapsed.avg.per_second", 1e9, "hz"),
        ("dram__bytes.sum.peak_sustained", 100, "byte/cycle"),
        ("dram__cycles_elapsed.avg.per_second", 1e9, "hz"),
    ]
    low = made(*peaks, inst("ffma", 1000), ("dram__bytes.sum", 1000, "byte"))
    assert (low["peak_fp32_flop_per_s"], low["peak_dram_bytes_per_s"]) == (pytest.approx(2e12), pytest.approx(1e11))
    assert low["ceiling_flop_per_s"] == pytest.approx(2 * 1e11)
    assert low["ceiling_pct"] == pytest.approx(100 * 2e9 / 2e11)
    high = made(*peaks, inst("ffma", 1000), ("dram__bytes.sum", 10, "byte"))
    assert high["ceiling_flop_per_s"] == pytest.approx(2e12)
    assert high["memory_pct"] == pytest.approx(100 * 10 / 1e-6 / 1e11)
    assert high["compute_pct"] == pytest.approx(100 * 2e9 / 2e12)


def test_tensor_operations_are_counted_once_and_integers_not_at_all():
    def counter(name, value, peak):
        stem = f"sm__ops_path_tensor_{name}.sum"
        return [
            (stem, value, ""),
            (f"{stem}.per_second", value / 1e-6, ""),
            (f"{stem}.peak_sustained_elapsed.per_second", peak, ""),
        ]

    by_instruction = [
        *counter("op_hmma_src_fp16_dst_fp32_sparsity_off", 300, 1e15),
        *counter("op_imma_src_int8", 9, 5e15),
    ]
    assert made(*by_instruction)["tensor_flop"] == 300
    both = made(*by_instruction, *counter("src_fp16_dst_fp32", 300, 1e15), *counter("src_tf32_dst_fp32", 0, 9e15))
    assert (both["tensor_flop"], both["tensor_flop_per_s"]) == (300, pytest.approx(3e8))
    assert both["peak_tensor_flop_per_s"] == 1e15


@pytest.mark.parametrize(
    "memory, compute, occupancy, waves, verdict, why",
    [
        (92.0, 22.0, 80, 4, "memory", "memory 92.0 % and compute 22.0 % of peak"),
        (30.0, 75.0, 80, 4, "compute", "compute 75.0 %"),
        (30.0, 20.0, 90, 4, "latency", "90.0 % occupancy"),
        (30.0, 20.0, 90, 0.4, "occupancy", "0.40 waves"),
        (30.0, 20.0, 20, 4, "occupancy", "occupancy 20.0 %"),
        (60.0, 60.0, 20, 0.1, "memory", "60.0 %"),
        (None, 97.0, None, None, "compute", "memory not measured"),
        (None, 61.0, None, None, None, "memory peak not measured"),
        (40.0, 50.0, None, None, None, "occupancy not measured"),
        (None, None, 20, 4, None, "memory and compute peak not measured"),
        (float("nan"), float("inf"), 20, 4, None, "not measured"),
    ],
)
def test_limits_with_the_numbers_that_say_so(memory, compute, occupancy, waves, verdict, why):
    numbers = {"memory_pct": memory, "compute_pct": compute, "occupancy_pct": occupancy, "waves": waves}
    found, words = limited_by(numbers)
    assert found == verdict
    assert why in words


@given(numbers=st.fixed_dictionaries({name: st.one_of(st.none(), st.floats(0, 150)) for name in NUMBERS}))
def test_every_launch_gets_a_known_limit_or_a_reason_why_not(numbers):
    found, why = limited_by(numbers)
    assert found in (*LIMITS, None)
    assert why
    assert found is not None or "not measured" in why


def test_real_launches_of_tensorrt():
    tables = ncu.read(RECORDED / "h100_trt86_raw_nvtx.csv").tables
    table = tables["roofline"].set_index("launch_id")
    gemm = table.loc[2]
    # An H100 at these clocks: 3.34 TB/s, 60 TFLOP/s in FP32.
    assert gemm["peak_dram_bytes_per_s"] == pytest.approx(3.34e12, rel=0.01)
    assert gemm["peak_fp32_flop_per_s"] == pytest.approx(5.96e13, rel=0.01)
    # 1024 x 2304 x 768, the projections of Q, K and V together, as one FP16 product; the duration is 13,088 ns.
    assert gemm["tensor_flop"] == pytest.approx(2 * 1024 * 2304 * 768, rel=0.005)
    assert gemm["limited_by"] == "occupancy"
    assert "0.91 waves" in gemm["why"]
    assert table["dram_bytes"].tolist()[:2] == [3_148_544.0, 1_576_448.0]


def test_real_launches_of_a_page_of_chosen_metrics():
    table = ncu.read(RECORDED / "a10g_metrics.csv").tables["roofline"]
    first = table.iloc[0]
    assert first["fp32_flop"] == 2 * 1_073_741_824 + 1_048_576
    assert first["fp32_flop_per_s"] == pytest.approx((2 * 1_073_741_824 + 1_048_576) / 10_776_576e-9)
    assert first["flop_per_byte"] == pytest.approx((2 * 1_073_741_824 + 1_048_576) / 32_746_880)


def test_the_first_alternative_that_was_measured_counts():
    metrics = validate(
        "metrics",
        pd.DataFrame(
            [(0, "k", None, "b", 2.0, "ns"), (1, "k", None, "a", 1.0, "ns"), (1, "k", None, "b", 2.0, "ns"),
             (2, "k", None, "a", float("nan"), "ns"), (2, "k", None, "b", 3.0, "ns"), (3, "k", None, "a", 1.0, "%")],
            columns=["launch_id", "kernel", "range", "metric", "value", "unit"],
        ),
    )  # fmt: skip
    assert wide(metrics, {"x": (("a", "ns"), ("b", "ns"))})["x"].to_dict() == pytest.approx(
        {0: 2, 1: 1, 2: 3, 3: math.nan}, nan_ok=True
    )
