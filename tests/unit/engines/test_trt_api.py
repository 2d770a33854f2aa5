"""Every name that probe asks of TensorRT, and how it calls it, against what each version's bindings say of themselves.

The calls are read off the source: `trt.Builder(...)` is a Builder, its `create_network()` gives what its signature says,
and what cannot be followed goes by its name (a parameter called `network` is an INetworkDefinition).
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType

import pytest

import fake_trt
from harness.engines.api import read
from places import DATA, ROOT
from probes.bisecting.engines.repair import _TEMPLATE
from trt_listing import lines_of, recorded

RECORD = DATA / "tensorrt" / "api.txt"
VERSIONS = ("8.6", "10.0", "10.3", "10.16", "11.0", "11.4", "rtx-1.7")
SOURCES = (
    "harness/engine.py", "harness/engines", "harness/bert/network.py", "probes/bisecting/engines", "examples/gpu", "tests/gpu",
)  # fmt: skip
FROM_10 = "harness/engines/plugins.py"  # it says so itself on 8.6

# What values are that the code is handed: by the name that it gives them.
NAMED = {
    "builder": "Builder", "network": "INetworkDefinition", "config": "IBuilderConfig", "parser": "OnnxParser", "layer": "ILayer",
    "context": "IExecutionContext", "_context": "IExecutionContext", "_engine": "ICudaEngine", "_runtime": "Runtime",
    "inspector": "EngineInspector", "profile": "IOptimizationProfile", "registry": "IPluginRegistry", "_registry": "IPluginRegistry",
    "tensor": "ITensor", "cache": "ITimingCache",
}  # fmt: skip
# Where these names mean something else.
OTHERWISE = {
    "harness/bert/network.py": {"config", "layer"}, "examples/gpu/arrays.py": {"context"},
    "harness/engines/trt_run.py": {"tensor"}, "harness/engines/cache.py": {"cache"}, "harness/engines/layers.py": {"tensor", "layer"},
    "harness/engines/plugins.py": {"builder", "tensor"}, "harness/engines/plugin_ops.py": {"layer", "builder", "tensor"},
    "harness/engines/document.py": {"layer", "tensor"}, "harness/engines/measuring.py": {"layer"},
    "probes/bisecting/engines": {"layer", "tensor", "cache", "config", "network"}, "tests/gpu": {"layer", "config", "cache", "tensor"},
}  # fmt: skip
# What is asked only where it is there (`api.has`, `hasattr`, `__members__`): these, and nothing else, may be missing.
GUARDED = {
    "IBuilderConfig.progress_monitor", "IBuilderConfig.build_route", "IBuilderConfig.all_build_routes",
    "IBuilderConfig.set_compute_capability", "IBuilderConfig.num_compute_capabilities", "IBuilderConfig.set_calibration_profile",
    "IBuilderConfig.int8_calibrator", "INetworkDefinition.mark_debug", "ILayer.precision", "ILayer.set_output_type",
    "ParserError.node_name", "ParserError.node_operator", "IProgressMonitor",
    "BuilderFlag.OBEY_PRECISION_CONSTRAINTS", "ComputeCapability", "TensorRTPhase",
    "INetworkDefinition.add_fully_connected", "INetworkDefinition.add_plugin_v2", "INetworkDefinition.add_plugin_v3",
    "IPluginRegistry.get_plugin_creator", "IPluginRegistry.get_creator",
    "IOutputAllocator.reallocate_output_async",  # ours, for those that call it
    "IPluginV3OneBuild.get_output_data_types",  # 10.0 alone has another name for it, which ours has too
}  # fmt: skip


# The listing


@dataclass
class Listing:
    """One version: classes with their base, and of every name its type and the argument lists that it takes."""

    bases: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    calls: dict[str, list[list[str]]] = field(default_factory=dict)

    def find(self, owner: str, member: str) -> str | None:
        """`Class.member` of the class that has it, the one given or one that it derives from."""
        while owner:
            if f"{owner}.{member}" in self.kinds:
                return f"{owner}.{member}"
            owner = self.bases.get(owner, "")
        return None

    def takes(self, name: str, given: int, keywords: frozenset[str]) -> bool:
        """Whether a call with so many arguments by place and these by name fits one of the signatures."""
        return any(_fits(wanted, given, keywords) for wanted in self.calls.get(name, [["*"]]))


def _fits(wanted: list[str], given: int, keywords: frozenset[str]) -> bool:
    if wanted == ["*"]:
        return True
    names = [argument.rstrip("=") for argument in wanted]
    needed = {argument for argument in wanted[given:] if not argument.endswith("=")}
    return given <= len(wanted) and keywords <= set(names[given:]) and needed <= keywords


@cache
def listing(version: str) -> Listing:
    made = Listing()
    for line in recorded(RECORD)[version]:
        name, arguments, kind = re.fullmatch(r"([\w.]+)(?:\((.*)\))?(?:(?:: | -> )(.*))?", line).groups()
        if arguments is None or "." in name or kind or name[0].islower():
            made.kinds[name] = kind or ""
            if name.count(".") == 2:  # of an enum inside a class
                made.kinds[name.rpartition(".")[0]], made.bases[name.rpartition(".")[0]] = "enum", ""
            if arguments is not None:
                made.calls.setdefault(name, []).append([part for part in arguments.split(", ") if part])
        else:
            made.bases[name] = "" if arguments == "enum" else arguments.partition(",")[0]
            made.kinds[name] = "enum" if arguments == "enum" else "class"
    made.kinds["OnnxParser.get_error"] = "ParserError"  # the bindings' text has the C++ name
    made.kinds["ICudaEngine.create_engine_inspector"] = "EngineInspector"
    made.kinds["get_plugin_registry"] = "IPluginRegistry"
    return made


@cache
def anywhere() -> Listing:
    """All versions in one, to follow what is only in some of them."""
    made = Listing()
    for version in VERSIONS:
        made.bases |= listing(version).bases
        made.kinds |= listing(version).kinds
    return made


# The calls


@dataclass(frozen=True)
class Use:
    """`name` asked at a place; `given` and `keywords` are those of a call."""

    name: str
    place: str
    given: int | None = None
    keywords: frozenset[str] = frozenset()


class Reader(ast.NodeVisitor):
    """Follows values of TensorRT through one file."""

    def __init__(self, path: str, otherwise: set[str]) -> None:
        self.path, self.uses = path, []
        self.names = {name: kind for name, kind in NAMED.items() if name not in otherwise}
        self.known: dict[str, str] = {}
        self.imported: set[str] = set()

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        self.imported |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names} - {"trt"}

    visit_ImportFrom = visit_Import  # as `ast` calls it

    def kind(self, node: ast.expr) -> str:
        """What an expression is: a class's name for an instance, `module`, `class X`, `def X`, "" if not known."""
        if isinstance(node, ast.Name):
            return "module" if node.id == "trt" else self.known.get(node.id, self.names.get(node.id, ""))
        if isinstance(node, ast.Call):
            return self._called(self.kind(node.func))
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                return "module" if node.attr in ("trt", "_trt") else self.names.get(node.attr, "")
            return self._member(self.kind(node.value), node.attr)
        if isinstance(node, ast.ListComp):
            return f"list {self.kind(node.elt)}"
        if isinstance(node, ast.Subscript) and self.kind(node.value).startswith("list "):
            return self.kind(node.value).removeprefix("list ")
        return ""

    def _called(self, kind: str) -> str:
        what, _, name = kind.partition(" ")
        return name if what == "class" else anywhere().kinds.get(name, "") if what == "def" else ""

    def _member(self, owner: str, member: str) -> str:
        found = member if owner == "module" else anywhere().find(owner.removeprefix("class "), member)
        known = anywhere().kinds.get(found or "", None)
        if known is None:
            return ""
        if known in ("class", "enum"):
            return f"class {found}"
        return f"def {found}" if any(found in listing(version).calls for version in VERSIONS) else known

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Names of one function mean nothing in the next."""
        before, self.known = self.known, {**self.known, **{argument.arg: "" for argument in _annotated(node)}}
        self.generic_visit(node)
        self.known = before

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            if isinstance(target, ast.Name) and ((kind := self.kind(node.value)) or self._foreign(node.value)):
                self.known[target.id] = kind

    def _foreign(self, node: ast.expr) -> bool:
        """Whether it is something of another library, whatever its name."""
        while isinstance(node, ast.Call | ast.Attribute | ast.Subscript):
            node = node.func if isinstance(node, ast.Call) else node.value
        return isinstance(node, ast.Name) and node.id in self.imported

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        self._use(node, None, frozenset())

    def visit_Call(self, node: ast.Call) -> None:
        for part in (*node.args, *(keyword.value for keyword in node.keywords)):
            self.visit(part)
        spread = any(isinstance(part, ast.Starred) for part in node.args) or any(k.arg is None for k in node.keywords)
        if isinstance(node.func, ast.Attribute):
            self.visit(node.func.value)
            self._use(node.func, None if spread else len(node.args), frozenset(k.arg or "" for k in node.keywords))
        else:
            self.visit(node.func)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """What a class of ours overrides has the arguments of the one that it derives from."""
        bases = [self.kind(base).removeprefix("class ") for base in node.bases if self.kind(base).startswith("class ")]
        for method in node.body:
            if bases and isinstance(method, ast.FunctionDef) and method.name[0] != "_":
                for base in bases:
                    if anywhere().find(base, method.name):
                        self._add(f"{base}.{method.name}", method, len(method.args.args) - 1)
        self.generic_visit(node)

    def _use(self, node: ast.Attribute, given: int | None, keywords: frozenset[str]) -> None:
        owner = self.kind(node.value)
        if node.attr.startswith("__") and node.attr != "__init__":
            return
        if node.attr in ("name", "value") and anywhere().kinds.get(owner) == "enum":
            return
        if owner == "module":
            self._add(node.attr, node, given, keywords)
        name, bound = owner.removeprefix("class "), not owner.startswith("class ")
        if owner != "module" and name in anywhere().bases:
            self._add(f"{name}.{node.attr}", node, given, keywords, bound=bound)

    def _add(
        self, name: str, node: ast.AST, given: int | None, keywords: frozenset[str] = frozenset(), bound: bool = True
    ) -> None:  # fmt: skip
        place = f"{self.path}:{node.lineno}"
        self.uses.append(Use(name, place, given if bound or given is None else max(given - 1, 0), keywords))


def _annotated(node: ast.FunctionDef) -> Iterator[ast.arg]:
    """Parameters that are said to be something: what is TensorRT's is Any."""
    for argument in (*node.args.args, *node.args.kwonlyargs):
        said = ast.unparse(argument.annotation) if argument.annotation is not None else ""
        if said not in ("", "Any", "ModuleType"):
            yield argument


@cache
def uses() -> tuple[Use, ...]:
    paths = [path for name in SOURCES for path in (sorted((ROOT / name).glob("*.py")) or [ROOT / name])]
    texts = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    found = []
    texts["repro.py"] = re.sub("@[A-Z]+@", "0", _TEMPLATE.replace("@MODULE@", "tensorrt"))
    for path, text in texts.items():
        reader = Reader(path, set().union(*(names for prefix, names in OTHERWISE.items() if path.startswith(prefix))))
        reader.visit(ast.parse(text))
        found += reader.uses
    return tuple(found)


def wrong(use: Use, version: str) -> str | None:
    """What is wrong with a use on a version."""
    owner, _, member = use.name.partition(".")
    known = listing(version)
    if owner not in known.kinds:
        return f"{use.place}: TensorRT {version} has no {owner}"
    name = owner if not member else known.find(owner, member)
    if name is None:
        return f"{use.place}: TensorRT {version} has no {use.name}"
    if member == "__init__":
        return None
    called = f"{name}.__init__" if known.kinds[name] == "class" else name
    if use.given is not None and not known.takes(called, use.given, use.keywords):
        return f"{use.place}: {name} of TensorRT {version} takes {known.calls[called]}, not {use.given} {sorted(use.keywords)}"
    return None


# The tests


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_asked_of_tensorrt_is_there_and_takes_what_it_is_given(version):
    missing = [
        said for use in uses() if (said := wrong(use, version))
        and not ({use.name, use.name.partition(".")[0]} & GUARDED and _absent(use.name, version))
        and not (version == "8.6" and use.place.startswith(FROM_10))
    ]  # fmt: skip
    assert not missing, "\n".join(missing)


def _absent(name: str, version: str) -> bool:
    owner, _, member = name.partition(".")
    known = listing(version)
    return owner not in known.kinds or bool(member and known.find(owner, member) is None)


def test_the_reader_follows_what_the_code_does():
    """Were it to lose the thread, the test above would pass on nothing."""
    names = {use.name for use in uses()}
    assert len(uses()) > 200
    assert {
        "Builder.create_network", "Builder.build_serialized_network", "IExecutionContext.execute_async_v3", "OnnxParser.get_error",
        "ICudaEngine.get_tensor_profile_shape", "IOutputAllocator.reallocate_output", "IProfiler.report_layer_time",
        "EngineInspector.get_engine_information", "ITimingCache.serialize", "ParserError.node_name", "IPluginRegistry.get_plugin_creator",
        "IShuffleLayer.first_transpose", "ILayer.set_output_type", "IOptimizationProfile.set_shape", "IProgressMonitor.step_complete",
    } <= names  # fmt: skip


def test_what_may_be_missing_is_missing_somewhere_and_asked_for():
    names = {use.name for use in uses()} | {use.name.partition(".")[0] for use in uses()}
    for name in GUARDED:
        assert name in names, f"nobody asks for {name}"
        assert any(_absent(name, version) for version in VERSIONS), f"every version has {name}"


@pytest.mark.parametrize(
    "text, said",
    [("trt.Builder(a, b)", "Builder of TensorRT 8.6 takes"), ("builder.create_networks()", "has no Builder.create_networks"),
     ("builder.create_network(1).add_input('x', trt.float32)", "add_input"), ("context.set_input_shape(named='x')", "set_input_shape"),
     ("trt.BuilderFlag.FP15", "BuilderFlag.FP15"), ("parser.get_error(0).desk()", "ParserError.desk"),
     ("class A(trt.IOutputAllocator):\n    def reallocate_output(self, size): pass", "reallocate_output")],
)  # fmt: skip
def test_a_wrong_call_is_found(text, said):
    reader = Reader("x.py", set())
    reader.visit(ast.parse(text))
    found = [message for use in reader.uses if (message := wrong(use, "8.6"))]
    assert len(found) == 1
    assert said in found[0]


STAND_INS = [("8.6", "8.6.1"), ("10.3", "10.3.0"), ("11.4", "11.2.0"), ("rtx-1.7", "1.7.1")]


@pytest.mark.parametrize("version, fake", STAND_INS)
def test_the_stand_in_offers_nothing_that_the_real_one_does_not(version, fake):
    """What runs on the stand-in runs on names that are there."""
    trt, known = fake_trt.module(fake), listing(version)
    classes = {
        "Builder": trt.Builder, "OnnxParser": trt.OnnxParser, "Runtime": trt.Runtime, "ICudaEngine": fake_trt.Engine,
        "IExecutionContext": fake_trt.Context, "INetworkDefinition": fake_trt.Network, "ILayer": fake_trt.Layer, "ITensor": fake_trt.Tensor,
        "IBuilderConfig": type(trt.Builder(None).create_builder_config()), "IOptimizationProfile": type(trt.Builder(None).create_optimization_profile()),
    }  # fmt: skip
    own = {"fill"}  # how a test gets at what was built
    for name, cls in classes.items():
        for member in set(vars(cls)) - own:
            there = member[0] == "_" or known.find(name, member) or f"{name}.{member}" in GUARDED
            assert there, f"{name}.{member}"
    for name in ("BuilderFlag", "NetworkDefinitionCreationFlag", "ProfilingVerbosity", "MemoryPoolType"):
        for member in getattr(trt, name).__members__:
            assert f"{name}.{member}" in known.kinds, f"{name}.{member}"


@pytest.mark.parametrize("version, fake", STAND_INS)
def test_a_version_has_what_the_stand_in_says(version, fake):
    assert read(_module(version, fake)).has == read(fake_trt.module(fake)).has


def _module(version: str, number: str) -> ModuleType:
    """A module with the names of a listing, and nothing behind them."""
    known, made = listing(version), ModuleType("tensorrt_rtx" if version.startswith("rtx") else "tensorrt")
    made.__version__ = number
    for name in known.bases:
        members = {
            one.partition(".")[2]: None for one in known.kinds if one.startswith(f"{name}.") and one.count(".") == 1
        }
        setattr(made, name, type(name, (), {**members, "__members__": members}))
    return made


@pytest.mark.trt_rtx
@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
def test_the_listing_is_that_of_the_module_that_is_here():
    import tensorrt_rtx as trt

    if trt.__version__.startswith("1.7."):
        assert lines_of(trt) == recorded(RECORD)["rtx-1.7"]
    assert set(recorded(RECORD)) == set(VERSIONS)
