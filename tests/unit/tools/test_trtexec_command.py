"""The command lines of trtexec 8.6, 10 and 11: the same measurement, whatever the version's defaults."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.tools import tool as tools
from harness.tools import trtexec
from harness.tools.tool import Tool
from harness.tools.trtexec import Options
from places import DATA

OLD_SWITCHES = frozenset(
    {"--useCudaGraph", "--useSpinWait", "--noDataTransfers", "--noTF32", "--fp16", "--int8", "--separateProfileRun"}
)
V86 = Tool("trtexec", Path("/bin/trtexec"), (8, 6, 1), OLD_SWITCHES | {"--plugins"})
V10 = Tool("trtexec", Path("/bin/trtexec"), (10, 16, 1), OLD_SWITCHES | {"--bf16", "--staticPlugins"})
V11 = Tool("trtexec", Path("/bin/trtexec"), (11, 4, 0),
           frozenset({"--noCudaGraph", "--noSpinWait", "--includeDataTransfers", "--noTF32", "--staticPlugins"}))  # fmt: skip
MODEL = Options(Path("m.onnx"))
each_version = pytest.mark.parametrize("tool", [V86, V10, V11], ids=["8.6", "10", "11"])


def words(options: Options, tool: Tool) -> list[str]:
    return list(trtexec.command(tool, options, Path("/out/t")).argv)


def test_the_whole_line():
    assert words(MODEL, V10) == [
        "/bin/trtexec", "--onnx=m.onnx", "--iterations=100", "--duration=0", "--warmUp=200", "--avgRuns=1",
        "--separateProfileRun", "--profilingVerbosity=detailed", "--dumpProfile", "--exportTimes=/out/t.times.json",
        "--exportProfile=/out/t.profile.json", "--exportLayerInfo=/out/t.layers.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("tool", "switched"),
    [
        (V86, ["--separateProfileRun"]),
        (V10, ["--separateProfileRun"]),
        (V11, ["--noCudaGraph", "--noSpinWait", "--includeDataTransfers"]),
    ],
    ids=["8.6", "10", "11"],
)
def test_the_defaults_of_11_are_turned_back_to_those_of_10(tool, switched):
    known = OLD_SWITCHES | V11.options
    assert [word for word in words(MODEL, tool) if word in known] == switched


@pytest.mark.parametrize(
    ("tool", "switched"),
    [(V86, ["--useCudaGraph", "--useSpinWait", "--noDataTransfers", "--separateProfileRun"]), (V11, [])],
    ids=["8.6", "11"],
)
def test_graph_spinning_and_no_transfers(tool, switched):
    asked = Options(Path("m.onnx"), cuda_graph=True, spin_wait=True, transfers=False)
    known = OLD_SWITCHES | V11.options
    assert [word for word in words(asked, tool) if word in known] == switched


@each_version
def test_without_a_help_text_the_version_decides(tool):
    blind = Tool(tool.name, tool.path, tool.version)
    assert words(MODEL, blind) == words(MODEL, tool)


@pytest.mark.parametrize(
    ("precision", "flags"), [("fp32", ["--noTF32"]), ("tf32", []), ("fp16", ["--fp16"]), ("int8", ["--int8"])]
)
def test_precisions(precision, flags):
    made = words(Options(Path("m.onnx"), precision=precision), V10)
    assert [word for word in made if word in ("--noTF32", "--fp16", "--bf16", "--int8")] == flags


@pytest.mark.parametrize(("tool", "precision"), [(V86, "bf16"), (V11, "fp16"), (V11, "int8")])
def test_a_precision_that_a_version_does_not_have_is_refused(tool, precision):
    with pytest.raises(UsageError, match=f"has no --{precision}"):
        words(Options(Path("m.onnx"), precision=precision), tool)


def test_an_engine_is_loaded_and_not_built():
    made = words(Options(Path("m.plan"), engine=True, precision="fp16", minimum={"x": (1,)}), V10)
    assert made[1] == "--loadEngine=m.plan"
    assert not any(word.startswith(("--fp16", "--minShapes")) for word in made)


def test_shapes_and_inputs_with_odd_names():
    made = words(
        Options(
            Path("m.onnx"), shapes={"x:0": (1, 128), "y": (2,)}, minimum={"y": (1,)}, inputs={"x:0": Path("/a/0.bin")}
        ),
        V10,
    )
    assert "--shapes='x:0':1x128,y:2" in made
    assert "--minShapes=y:1" in made
    assert "--loadInputs='x:0':/a/0.bin" in made


def test_plugins_are_called_as_the_version_calls_them():
    asked = Options(Path("m.onnx"), plugins=(Path("p.so"),))
    assert "--plugins=p.so" in words(asked, V86)
    assert "--staticPlugins=p.so" in words(asked, V10)


REASONS = [
    ("h100_trt86_failed_shape.log", "outside the opt_profile", "--min, --opt and --max"),
    ("NVIDIA__trt-samples-for-hackathon-cn__trt101600_plugin_FAILED.log", "AddScalar", "--plugin LIBRARY.so"),
]


@pytest.mark.parametrize(("name", "meaning", "hint"), REASONS, ids=[meaning for _, meaning, _ in REASONS])
def test_why_a_real_run_failed(name, meaning, hint):
    text = (DATA / "trtexec" / name).read_text(encoding="utf-8", errors="replace")
    found = tools.diagnose(text, trtexec.SYMPTOMS)
    assert found is not None
    assert meaning in found[0]
    assert hint in found[1]


ENGINE_ERRORS = (
    "[E] IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion stdVersionRead == kSERIALIZATION_VERSION"
    " failed.Version tag does not match. Note: Current Version: 228, Serialized Engine Version: 232)",
    "[E] Error[6]: The engine plan file is not compatible with this version of TensorRT, expecting library version 8.6.1.6 got 8.5.3.1",
)


@pytest.mark.parametrize("text", ENGINE_ERRORS)
def test_an_engine_of_another_version_is_told(text):
    found = tools.diagnose(text, trtexec.SYMPTOMS)
    assert found is not None
    assert "another version of TensorRT" in found[0]
