"""The house: who may import whom, one door to heavy libraries, one module that prints, imports that do nothing."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from places import ROOT

ORDER = ("kernels", "harness", "reports", "probes")  # a package imports only those to its left
HARNESS_FOR_REPORTS = {"harness.errors", "harness.record"}
HEAVY = {"tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings", "cupy", "pycuda", "polygraphy", "onnxruntime", "nvtx",
         "dask", "distributed"}  # fmt: skip
DOOR = "harness.optional"
FRONT = "probes.cli"
START = "probes.__main__"  # what the console script calls: it loads the command line


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for package in ORDER for path in sorted((ROOT / package).rglob("*.py"))}
each_module = pytest.mark.parametrize("module", MODULES)


def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"), MODULES[module].name)


def imported(module: str, tree: ast.AST) -> Iterator[str]:
    """Every module that is imported anywhere in the tree, absolutely named; `from a import b` gives `a` and `a.b`."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            above = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, (above, node.module)))
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def without_type_checking(tree: ast.Module) -> ast.Module:
    """The tree without the blocks that only a type checker reads."""

    class Remover(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
            self.generic_visit(node)
            return node.orelse if ast.unparse(node.test).endswith("TYPE_CHECKING") else node

    return Remover().visit(tree)


def test_all_four_packages_are_looked_at():
    assert {module.partition(".")[0] for module in MODULES} == set(ORDER)
    assert {DOOR, FRONT} <= MODULES.keys()


@each_module
def test_packages_import_only_to_their_left(module):
    own = module.partition(".")[0]
    allowed = ORDER[: ORDER.index(own) + 1]
    ours = {name for name in imported(module, tree_of(module)) if name.partition(".")[0] in ORDER}
    assert {name for name in ours if name.partition(".")[0] not in allowed} == set()


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("reports")])
def test_reports_take_only_errors_and_records_from_the_harness(module):
    ours = {name for name in imported(module, tree_of(module)) if name.startswith("harness.")}
    assert {name for name in ours if not any(f"{name}.".startswith(f"{ok}.") for ok in HARNESS_FOR_REPORTS)} == set()


@each_module
def test_nothing_imports_the_tests_or_the_command_line(module):
    names = {
        name for name in imported(module, tree_of(module)) if name.startswith(("tests.", FRONT)) or name == "tests"
    }
    assert names == ({FRONT} if module == START else set())


@each_module
def test_heavy_libraries_come_through_the_one_door(module):
    tree = without_type_checking(tree_of(module))
    assert {name for name in imported(module, tree) if name.partition(".")[0] in HEAVY} == set()
    if module != DOOR:
        assert {"import_module", "__import__"} & called(tree) == set()


def is_worker(module: str) -> bool:
    """Whether a module is the entry point of a process (`python -m`), whose standard error is a log of ours."""
    return any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in tree_of(module).body)


def called(tree: ast.AST) -> set[str]:
    """Names of what is called, `a.b.c()` as `c` and as `a.b.c`."""
    names = (ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {part for name in names for part in (name, name.rpartition(".")[2])}


PRINTING = {
    "print",
    "click.echo",
    "click.secho",
    "sys.stdout.write",
    "sys.stderr.write",
    "traceback.print_exc",
    "breakpoint",
}
LEAVING = {"sys.exit", "os._exit", "os.abort", "exit", "quit", "SystemExit"}
FIGURES = {"fig.show", "figure.show", "webbrowser.open"}


def without_main_block(tree: ast.Module) -> ast.Module:
    """The tree without `if __name__ == "__main__":`, where a worker process may hand its exit status over."""
    tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and "__main__" in ast.unparse(node.test))]
    return tree


def without_logging(tree: ast.Module) -> ast.Module:
    """The tree without `print(..., file=sys.stderr)`."""

    class Remover(ast.NodeTransformer):
        def visit_Call(self, node: ast.Call) -> ast.AST:
            self.generic_visit(node)
            to_stderr = any(word.arg == "file" and ast.unparse(word.value) == "sys.stderr" for word in node.keywords)
            return ast.Constant(None) if to_stderr and ast.unparse(node.func) == "print" else node

    return Remover().visit(tree)


@pytest.mark.parametrize("module", [module for module in MODULES if module != FRONT])
def test_only_the_command_line_prints_or_exits(module):
    tree, may = without_main_block(tree_of(module)), set()
    if is_worker(module):  # a lost CUDA context keeps the libraries' own ending waiting: a worker may leave at once
        tree, may = without_logging(tree), {"os._exit", "_exit"}
    assert ((PRINTING | LEAVING | FIGURES) - may) & called(tree) == set()
    raised = {ast.unparse(node.exc) for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc}
    assert LEAVING & raised == set()


SHELLS = {"os.system", "os.popen", "pickle.load", "pickle.loads", "eval", "exec", "subprocess.getoutput"}


@each_module
def test_no_shell_no_pickle_no_eval(module):
    tree = tree_of(module)
    assert SHELLS & called(tree) == set()
    keywords = [word for node in ast.walk(tree) if isinstance(node, ast.Call) for word in node.keywords]
    assert [ast.unparse(word.value) for word in keywords if word.arg == "shell"] == []


@each_module
def test_a_module_says_what_it_is_in_one_sentence(module):
    text = ast.get_docstring(tree_of(module)) or ""
    assert text.split("\n\n")[0].rstrip().endswith("."), "the first paragraph of the docstring is one sentence"


IMPORT_EVERYTHING = """
import importlib, json, os, sys, threading
before = dict(os.environ)
modules, heavy = json.loads(sys.argv[1])
for name in modules:
    importlib.import_module(name)
print(json.dumps({
    "threads": [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()],
    "environment": sorted(set(before.items()) ^ set(os.environ.items())),
    "files": os.listdir("."),
    "heavy": sorted(set(heavy) & set(sys.modules)),
}))
"""


def test_importing_everything_does_nothing(tmp_path):
    import json

    names = [name for name in MODULES if not name.endswith("__main__")]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EVERYTHING, json.dumps([names, sorted(HEAVY)])],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"threads": [], "environment": [], "files": [], "heavy": []}


def test_help_imports_nothing_that_takes_time():
    code = "import sys; from probes import cli; cli.run(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    slow = {"numpy", "pandas", "onnx", "plotly", "jinja2", "rich", *HEAVY}
    assert slow & set(done.stderr.split()) == set()


@pytest.mark.slow
def test_the_wheel_holds_the_four_packages_their_data_and_no_tests(tmp_path):
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "dist", "probe-runs")
    (tmp_path / "source").mkdir()
    for package in ORDER:
        shutil.copytree(ROOT / package, tmp_path / "source" / package, ignore=ignored)
    for file in filter(Path.is_file, ROOT.iterdir()):
        shutil.copy(file, tmp_path / "source")
    shutil.copytree(ROOT / "tests" / "unit", tmp_path / "source" / "tests" / "unit", ignore=ignored)
    argv = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(tmp_path / "source")]
    subprocess.run(argv, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name.partition("/")[0] for name in held} == set(ORDER)
    assert {path.relative_to(ROOT).as_posix() for path in MODULES.values()} <= held
    data = [
        path
        for folder in ("reports/templates", "kernels/cuda", "kernels/emulation")
        for path in (ROOT / folder).rglob("*.*")
    ]
    assert {path.relative_to(ROOT).as_posix() for path in data if "__pycache__" not in path.parts} <= held
