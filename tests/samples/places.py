"""Where the checkout, the recorded files and the fake programs lie."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"
FAKES = ROOT / "tests" / "fakes"
