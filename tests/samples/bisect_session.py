"""Synthetic session folders of bisections, as realistic as the page's tests need them; seeded, never shipped."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

from harness.record import Session

HOSTILE = [
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 2</script>",
    '<img src=x onerror="window.hacked=3"> \'single\' "double"',
    "two\nlines\tand\x00nul \u202ereversed \ud800 surrogate",
    "{{ 7 * 7 }} {% raw %} %{x} %{customdata} $x^2$ &lt;b&gt; <b>bold</b><br>",
    "long/" + "n" * 10_000 + "/end",
]


def bert_scopes(layers: int) -> list[tuple[str, str]]:
    """(scope, op) of each node of a BERT-like encoder, in topological order."""
    attention = ["MatMul", "Add", "Reshape", "Transpose"] * 3 + [
        "MatMul",
        "Div",
        "Add",
        "Softmax",
        "MatMul",
        "Transpose",
    ]
    norm = ["ReduceMean", "Sub", "Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul", "Add"]
    nodes = [("/embeddings", op) for op in ("Gather", "Gather", "Add")]
    nodes += [("/embeddings/LayerNorm", op) for op in norm]
    for layer in range(layers):
        root = f"/encoder/layer.{layer}"
        nodes += [(f"{root}/attention/self", op) for op in attention]
        nodes += [(f"{root}/attention/output/dense", op) for op in ("MatMul", "Add", "Add")]
        nodes += [(f"{root}/attention/output/LayerNorm", op) for op in norm]
        nodes += [(f"{root}/intermediate", op) for op in ("MatMul", "Add", "Div", "Erf", "Add", "Mul", "Mul")]
        nodes += [(f"{root}/output/LayerNorm", op) for op in norm]
    return nodes + [("/pooler", op) for op in ("Gather", "Gemm", "Tanh")]


def candidates(layers: int = 6, *, culprits: int = 3, seed: int = 0, scoped: bool = True) -> dict[str, object]:
    """The content of candidates.json, culprits side by side (an overflow between two) and one further on."""
    rng = random.Random(seed)
    rows, seen = [], {}
    for scope, op in bert_scopes(layers):
        number = seen[scope, op] = seen.get((scope, op), 0) + 1
        name = f"{scope}/{op}" + (f"_{number}" if number > 1 else "") if scoped else f"{op}_{len(rows)}"
        rows.append({"key": name, "op_type": op, "scope": scope if scoped else "", "nodes": [name], "undecided": False,
                     "sensitivity": 10 ** rng.gauss(-4.3, 0.6), "culprit": False})  # fmt: skip
    first = len(rows) // 3
    guilty = [first, first + 1, *(rng.sample(range(first + 2, len(rows)), max(0, culprits - 2)))][:culprits]
    for place, index in enumerate(guilty):
        rows[index] |= {"culprit": True, "sensitivity": math.inf if place == 0 else rng.uniform(0.02, 0.05)}
    rows[-1]["sensitivity"] = None
    rows[0]["sensitivity"] = 0.0
    edges = [[i, i + 1] for i in range(len(rows) - 1)]
    return {"candidates": rows, "edges": edges}


def steps(rows: list[dict], count: int = 42, *, seed: int = 0, tolerance: float = 0.01) -> list[dict[str, object]]:
    """Rows of steps.jsonl: a search that closes in, with NaN, Infinity, zero, nulls and cached answers among its values."""
    rng = random.Random(seed)
    out = []
    for number in range(1, count + 1):
        kept = max(1, round(len(rows) * 0.8 ** (number / count * 18)))
        kind = rng.choices(["pass", "fail", "nan", "unresolved"], [45, 38, 12, 5])[0]
        value = {"pass": rng.uniform(0.1, 0.9) * tolerance, "fail": tolerance * rng.uniform(1.1, 9),
                 "nan": rng.choice([math.inf, math.nan]), "unresolved": None}[kind]  # fmt: skip
        outcome = {"nan": "fail"}.get(kind, kind)
        name = rows[rng.randrange(len(rows))]["key"]
        out.append({"step": number, "candidate": f"lower all but {kept} of {len(rows)}: {name}, …", "kept": kept,
                    "applied": len(rows) - kept, "outcome": outcome, "value": 0.0 if number == 5 else value,
                    "duration_s": rng.uniform(0.03, 0.09), "cached": rng.random() < 0.07, "signature": None})  # fmt: skip
    return out


def manifest(rows: list[dict], **changes: object) -> dict[str, object]:
    return {
        "schema_version": 1, "verb": "bisect", "argv": ["bisect", "bert small.onnx", "--tolerance", "0.01"],
        "started": "2026-02-03T09:15:42Z", "fault": "precision", "precision": "fp16", "tolerance": 0.01, "samples": 1,
        "model": {"name": "bert small.onnx", "sha256": "9f2c" * 16, "nodes": len(rows), "weight_bytes": 90_634_112, "opset": 17},
        "versions": {"probe": "0.1.0", "onnxruntime": "1.32.0", "onnx": "1.19.0", "python": "3.11.7"},
        "inputs": [{"name": "input_ids", "shape": [1, 128], "dtype": "int64"}, {"name": "mask", "shape": [1, 128], "dtype": "int64"}],
        "backend": "onnxruntime",
    } | changes  # fmt: skip


def result(rows: list[dict], **changes: object) -> dict[str, object]:
    guilty = [row for row in rows if row["culprit"]]
    return {
        "fault": "precision", "status": "found", "culprits": [name for row in guilty for name in row["nodes"]],
        "scopes": sorted({row["scope"] for row in guilty}), "certified_minimal": True, "evaluations": 42, "cached": 3,
        "unresolved": 2, "wall_s": 3.2, "error_before": 0.061, "error_after": 0.0021, "tolerance": 0.01,
        "model_out": "bert small.mixed.onnx", "repro_command": "probe bisect 'bert small.onnx' --tolerance 0.01 --seed 0",
        "undecided": [], "notes": ["Accumulation stays in FP32, as on tensor cores."],
    } | changes  # fmt: skip


def make(
    folder: Path, *, layers: int = 6, culprits: int = 3, evaluations: int = 42, seed: int = 0, scoped: bool = True
) -> Session:
    """A complete session folder of a bisection that found its culprits."""
    session = Session.create("bisect", folder)
    graph = candidates(layers, culprits=culprits, seed=seed, scoped=scoped)
    rows: list[dict] = graph["candidates"]  # type: ignore[assignment]
    session.write_json("manifest.json", manifest(rows))
    session.write_json("candidates.json", graph)
    session.write_json("result.json", result(rows, evaluations=evaluations))
    for row in steps(rows, evaluations, seed=seed):
        session.append_step(row)
    return session


def make_hostile(folder: Path) -> Session:
    """A session whose every text is one that a page must not believe."""
    session = Session.create("bisect", folder)
    rows = [{"key": name, "op_type": name, "scope": f"{name}/{name}", "nodes": [name], "sensitivity": 0.1 / (i + 1),
             "culprit": i % 2 == 0, "undecided": i == 1} for i, name in enumerate(HOSTILE)]  # fmt: skip
    odd = HOSTILE[1]
    session.write_json(
        "manifest.json", manifest(rows, argv=["bisect", *HOSTILE[:3]], started=odd, model={"name": odd, odd: odd})
    )
    session.write_json("candidates.json", {"candidates": rows, "edges": [[0, 2]]})
    session.write_json("result.json", result(rows, model_out=odd, repro_command=odd, notes=HOSTILE, undecided=HOSTILE))
    for number, name in enumerate(HOSTILE, 1):
        session.append_step({"step": number, "candidate": name, "outcome": "fail", "value": 0.2, "signature": name})
    return session


def edit(session: Session, name: str, **changes: object) -> None:
    """Change some fields of one of the session's JSON files; a change to None takes the field out."""
    content = json.loads((session.folder / name).read_text(encoding="utf-8")) | changes
    session.write_json(name, {key: value for key, value in content.items() if value is not None})
