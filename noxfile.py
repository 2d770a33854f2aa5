"""Every check there is, each in an environment of its own: `nox` runs those that need no GPU, `nox -s gpu` the rest."""

from __future__ import annotations

from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.sessions = ["lint", "types", "tests", "nodeps", "browser"]
nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = True
nox.options.error_on_external_run = True
nox.options.stop_on_first_error = False

NEEDS_NOTHING = "not slow and not browser and not gpu"
BENCHMARKS = Path(__file__).parent / "benchmarks"


def install(session: nox.Session, *what: str) -> None:
    """Install, unless told to use the environment that nox itself runs in (`nox --no-venv`, as CI does)."""
    if session.venv_backend != "none":
        session.install(*what)


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff: the rules, and the format."""
    install(session, "ruff>=0.17,<0.18")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Mypy, strict, over the four packages."""
    install(session, "-e", ".[dev]")
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """All tests that need no GPU and no browser; `nox -s tests -- -k search` passes options on to pytest."""
    install(session, "-e", ".[dev]")
    session.run("pytest", "-m", "not browser and not gpu", *session.posargs)


@nox.session
def nodeps(session: nox.Session) -> None:
    """The base install, with no extra at all: everything imports, `probe doctor` and `probe bisect` work."""
    session.install(".")
    script = session.invoked_from + "/tests/cli/nodeps.py"
    session.chdir(session.create_tmp())  # away from the checkout, so that what is imported is what was installed
    session.run("python", "-P", script)


@nox.session(python="3.11")
def oldest(session: nox.Session) -> None:
    """The fast tests with the oldest versions that setup.cfg admits, on the oldest Python."""
    session.install("uv")
    session.run("uv", "pip", "install", "--resolution", "lowest-direct", "-e", ".[dev]")
    session.run("pytest", "-m", NEEDS_NOTHING, *session.posargs)


@nox.session
def browser(session: nox.Session) -> None:
    """Reports opened in Chromium; skipped where there is none."""
    install(session, "-e", ".[dev]")
    session.run("pytest", "-m", "browser", *session.posargs, success_codes=[0, 5])  # 5: there is no such test yet


@nox.session
def gpu(session: nox.Session) -> None:
    """What needs an NVIDIA GPU."""
    session.install("-e", ".[dev,gpu]")
    session.run("pytest", "-m", "gpu", *session.posargs, success_codes=[0, 5])


@nox.session
def bench(session: nox.Session) -> None:
    """The benchmarks and their peers; `nox -s bench -- search` runs benchmarks/search.py alone."""
    session.install("-e", ".[dev]", "onnxconverter-common", "onnx-graphsurgeon")
    names = session.posargs or sorted(path.stem for path in BENCHMARKS.glob("*.py") if not path.stem.startswith("_"))
    for name in names:
        session.run("python", "-m", f"benchmarks.{name}")
