"""All that needs a GPU, in one go: what is checked, then what is measured, every step with a time limit of its own.

    python tests/gpu/record.py OUT [--topic engines,tools,kernels,log,ladder,bisect] [--only TEXT,TEXT] [--budget 560]

OUT/record.txt holds what each step printed, the card's name first, appended as steps end; OUT/sessions.tar.gz the session
folders of probe's runs without what the tools wrote. Steps that look at no clock share the card; those that measure run
alone, after them. When the budget is spent, what runs is stopped and told as such, and what has not begun is named.
Wants nsys, ncu and compute-sanitizer on PATH; a step whose tool is missing says so and ends.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from harness import process  # noqa: E402
from harness.record import Command  # noqa: E402

PY = sys.executable
PROBE = (PY, "-P", "-c", "from probes.cli import main; main()")
PYTEST = (PY, "-m", "pytest", "-q", "--tb=short", "-m", "gpu", "-p", "no:cacheprovider")
TOGETHER = max(4, (os.cpu_count() or 1) * 3 // 4)  # steps that share the card: most wait for a compiler
LARGEST = 4 << 20  # bytes of a file that is kept of a session
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
PLANTED = ("out_of_bounds", "race", "uninitialised", "divergent_barrier")


@dataclass(frozen=True)
class Step:
    """One command. In `words`, {work} is a scratch folder with models and {sessions} where sessions are kept."""

    name: str
    topic: str
    limit_s: float
    words: tuple[str, ...]
    alone: bool = False


def probe(name: str, topic: str, limit_s: float, *words: str, alone: bool = False) -> Step:
    """A verb of probe's, its session under the step's name; what follows `--` stays last."""
    cut = words.index("--") if "--" in words else len(words)
    return Step(name, topic, limit_s, (*PROBE, *words[:cut], "--out", f"{{sessions}}/{name}", *words[cut:]), alone)


def suite(name: str, topic: str, limit_s: float, *, alone: bool = False) -> Step:
    return Step(name, topic, limit_s, (*PYTEST, f"tests/gpu/test_gpu_{name}.py"), alone)


def bench(name: str, topic: str, limit_s: float, *words: str) -> Step:
    return Step(f"time_{name}", topic, limit_s, (PY, "-m", f"benchmarks.{name}", *words), alone=True)


TRT = ("--backend", "trt", "--precision", "fp16")
ALL = ("--nsys", "--ncu", "--trtexec")
STEPS = (
    suite("engine", "engines", 900),
    suite("tools", "tools", 200),
    suite("compile", "tools", 100),
    suite("launch", "tools", 150, alone=True),
    suite("cublaslt", "kernels", 150),
    suite("kernels", "kernels", 300),
    suite("device_log", "log", 200),
    suite("ladder", "ladder", 300),
    suite("trt_bisect", "bisect", 900),
    probe("plugin_fault", "tools", 260, "sanitize", "{work}/plugin_fault.onnx", *TRT, "--inputs", "{work}/plugin_fault.npz"),
    *(probe(f"planted_{kind}", "tools", 200, "sanitize", "--tool", "all", "--", PY, "examples/gpu/layers.py", kind)
      for kind in PLANTED),
    *(Step(f"sanitized_{tool}", "kernels", 250,
           ("compute-sanitizer", "--tool", tool, "--print-limit", "5", *PROBE, "kernels", "test", "--out", f"{{sessions}}/{tool}"))
      for tool in TOOLS),
    bench("engine_overhead", "engines", 240, "--precision", "fp16", "--nsys"),
    probe("encoder", "engines", 240, "profile", "{work}/encoder.onnx", *TRT, "--shapes", "input_ids:1x128", *ALL, alone=True),
    probe("sweep", "engines", 200, "profile", "{work}/encoder.onnx", *TRT, "--sweep", "input_ids:1=16..512:16", alone=True),
    Step("bert_engine", "engines", 200, (PY, "examples/gpu/bert_engine.py", "{work}/bert.plan", "--layers", "12"), alone=True),
    probe("bert_plugins", "engines", 240, "profile", "{work}/bert.plan", *ALL, alone=True),
    probe("bert_graph", "engines", 200, "profile", "{work}/bert.plan", "--cuda-graph", "--nsys", alone=True),
    probe("kernel", "tools", 120, "profile", "skip_layernorm", "--nsys", "--ncu", alone=True),
    probe("arrays", "tools", 120, "profile", "--nsys", "--ncu", "--", PY, "examples/gpu/arrays.py", alone=True),
    probe("graph", "tools", 120, "profile", "--nsys", "--", PY, "examples/gpu/layers.py", "--graph", alone=True),
    bench("device_log", "log", 150, "--only", "gpu"),
    bench("rows", "kernels", 60),
    probe("kernels", "kernels", 240, "kernels", "bench", alone=True),
    bench("ladder", "ladder", 300, "--budget", "280"),
    bench("trt_bisect", "bisect", 900, "--ours-s", "500", "--peer-s", "300"),
)  # fmt: skip


class Record:
    """The file of all outputs; nothing in it names the machine."""

    def __init__(self, out: Path, work: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.path, self._lock = out / "record.txt", threading.Lock()
        self._hidden = {str(work): "work", f"{ROOT}/": "", str(ROOT): ".", PY: "python", str(Path.home()): "~"}

    def add(self, text: str) -> None:
        for hidden, shown in self._hidden.items():
            text = text.replace(hidden, shown)
        with self._lock, self.path.open("a", encoding="utf-8") as file:
            file.write(text.rstrip() + "\n")


class Run:
    """The steps, in a budget of seconds."""

    def __init__(self, out: Path, work: Path, budget_s: float) -> None:
        self.out, self.work, self.ends = out, work, time.monotonic() + budget_s
        self.record, self.sessions = Record(out, work), work / "sessions"
        self.sessions.mkdir()

    def all(self, steps: tuple[Step, ...]) -> None:
        with ThreadPoolExecutor(TOGETHER) as pool:
            list(pool.map(self.step, (step for step in steps if not step.alone)))
        for step in (step for step in steps if step.alone):
            self.step(step)

    def step(self, step: Step) -> None:
        limit = min(step.limit_s, self.ends - time.monotonic())
        if limit < 5:
            self._told(f"== {step.name}: not begun, the budget is spent")
            return
        words = tuple(
            word.format(work=self.work, sessions=self.sessions) if "{" in word else word for word in step.words
        )
        if shutil.which(words[0]) is None:
            self._told(f"== {step.name}: there is no {words[0]} on PATH")
            return
        run = process.run(Command(words, limit, process.module_environment(), ROOT), self.work / "logs" / step.name)
        ended = "stopped at its limit" if run.timed_out else f"exit {run.returncode}"
        said = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in (run.stdout, run.stderr))
        self._told(f"== {step.name}: {ended}, {run.duration_s:.0f} s", said)
        self._keep()

    def _told(self, headline: str, said: str = "") -> None:
        print(headline, flush=True)
        self.record.add(f"{headline}\n{said}")

    def _keep(self) -> None:
        """The sessions so far, without what is large; a step that still writes is taken as it is."""
        with self.record._lock, tarfile.open(self.out / "sessions.tar.gz", "w:gz") as archive:
            for path in sorted(self.sessions.rglob("*")):
                if path.is_file() and path.stat().st_size <= LARGEST and path.suffix not in (".nsys-rep", ".plan"):
                    archive.add(path, path.relative_to(self.sessions).as_posix(), filter=_nameless)


def _nameless(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uname = entry.gname = ""
    return entry


def models(work: Path) -> None:
    """What the steps work on: an encoder of four BERT-base layers, and NVIDIA's plugin with its fault."""
    from harness.bert import model as bert

    config = bert.BertConfig(768, 4, 12, 3072, vocab_size=1000)
    bert.save(bert.build_onnx(config, bert.random_weights(config), layer_norm="fused"), work / "encoder.onnx")
    subprocess.run(
        [PY, ROOT / "examples/gpu/plugin_fault.py", work / "plugin_fault.onnx"], check=True, capture_output=True
    )


def card() -> str:
    if shutil.which("nvidia-smi") is None:
        sys.exit("there is no NVIDIA GPU here: nvidia-smi is not on PATH")
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    return subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--topic", default="", help="with commas between; default: all")
    parser.add_argument("--only", default="", help="steps with one of these in their name, commas between")
    parser.add_argument(
        "--stage", choices=("together", "alone"), help="those that share the card, or those that measure"
    )
    parser.add_argument("--budget", type=float, default=math.inf, help="seconds in all")
    asked = parser.parse_args()
    topics = set(filter(None, asked.topic.split(","))) or {step.topic for step in STEPS}
    parts, alone = asked.only.split(","), {"together": (False,), "alone": (True,)}.get(asked.stage, (False, True))
    steps = tuple(
        step for step in STEPS
        if step.topic in topics and step.alone in alone and any(part in step.name for part in parts)
    )  # fmt: skip
    if not steps:
        parser.error(f"no such step; there are {', '.join(step.name for step in STEPS)}")
    with tempfile.TemporaryDirectory(prefix="probe-record-") as folder:
        work = Path(folder).resolve()
        began = Run(asked.out, work, asked.budget)
        began.record.add(card())
        models(work)
        began.all(steps)


if __name__ == "__main__":
    main()
