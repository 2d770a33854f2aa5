"""The pictures of the documentation, made again: `python -m benchmarks.pictures [NAME]...` runs each verb and shows its page.

`docs/images/sanitize.png` is not among them: its fault was recorded on a GPU. Nor is a ladder, which has no times without one.
Those that are tracked have a palette of 256 colours: a third of the bytes that Chromium writes.
"""

from __future__ import annotations

import argparse
import base64
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks import chromium
from examples import models
from probes import cli

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "examples" / "kernels"


@dataclass(frozen=True)
class Picture:
    """What is typed, where, the exit code that it must end with, and how much of its page is shown, in pixels."""

    words: tuple[str, ...]
    code: int
    model: str = ""
    width: int = 1180
    height: int = 820


PICTURES = {
    "report": Picture(("bisect", "magika.onnx", "--inputs", "magika.npz"), 1, "magika", 1100, 1440),
    "profile": Picture(("profile", "minilm.onnx", "--ort", "--inputs", "minilm.npz"), 0, "minilm"),
    "printf": Picture(("printf", "softmax.cu", "--watch-nan", "--grid", "3", "--block", "64", "--args", "softmax.yaml"), 1),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", choices=[*PICTURES, []], metavar="NAME", help=f"default: {', '.join(PICTURES)}"
    )
    names = parser.parse_args().names
    with chromium.driver() as address:
        browser = chromium.Browser(address)
        try:
            for name in names or PICTURES:
                target = ROOT / "docs" / "images" / f"{name}.png"
                target.write_bytes(taken(browser, PICTURES[name]))
                print(f"{target.relative_to(ROOT)}: {target.stat().st_size} bytes")
        finally:
            browser.close()


def taken(browser: chromium.Browser, picture: Picture) -> bytes:
    """The top of the page that a verb writes, as PNG."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if picture.model:
            models.fetch(picture.model, folder)
        for file in KERNELS.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        os.chdir(folder)
        code = cli.run([*picture.words, "--out", "run"])
        assert code == picture.code, f"{picture.words} ended with {code}"
        size = {"width": picture.width, "height": picture.height, "deviceScaleFactor": 1, "mobile": False}
        browser.devtools("Emulation.setDeviceMetricsOverride", **size)
        browser.devtools("Emulation.setScrollbarsHidden", hidden=True)
        browser.open(folder / "run" / "report.html")
        shot: str = browser.devtools("Page.captureScreenshot", format="png")["data"]
        os.chdir(ROOT)
    return base64.b64decode(shot)


if __name__ == "__main__":
    main()
