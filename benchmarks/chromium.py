"""A headless Chromium, driven over the WebDriver protocol by chromedriver: no library needed."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--no-first-run", "--window-size=1280,820"]  # fmt: skip
OPTIONS = {"goog:chromeOptions": {"args": FLAGS}, "goog:loggingPrefs": {"browser": "ALL"}}
NEEDED = "Chromium and chromedriver: apt-get install chromium chromium-driver"


def installed() -> bool:
    return shutil.which("chromedriver") is not None and any(map(shutil.which, ("chromium", "google-chrome", "chrome")))


@contextlib.contextmanager
def driver() -> Iterator[str]:
    """The address of a running chromedriver."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        ["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )  # fmt: skip
    try:
        for _ in range(100):
            with socket.socket() as knock:
                if knock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


class Browser:
    """One WebDriver session: open a file, run script in it, read its console, print it."""

    def __init__(self, address: str) -> None:
        self.base = address
        self.base += f"/session/{self.call('POST', '/session', capabilities={'alwaysMatch': OPTIONS})['sessionId']}"

    def close(self) -> None:
        self.call("DELETE", "")

    def call(self, method: str, path: str, **body: Any) -> Any:
        data = json.dumps(body).encode() if method == "POST" else None
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error

    def fresh(self) -> None:
        """A new tab in place of the one that is open: nothing of what was set or said there is left."""
        old, new = self.call("GET", "/window"), self.call("POST", "/window/new", type="tab")["handle"]
        self.call("DELETE", "/window")
        assert old != new
        self.call("POST", "/window", handle=new)
        self.call("POST", "/window/rect", width=1280, height=820)
        self.complaints()

    def go(self, path: Path) -> None:
        """Load a page; returns after its load event."""
        self.call("POST", "/url", url=path.as_uri())

    def open(self, path: Path) -> None:
        """Load one of our pages, and wait until its figures are drawn."""
        self.go(path)
        self.wait("return document.documentElement.dataset.drawn !== undefined")

    def run(self, script: str, *arguments: Any) -> Any:
        return self.call("POST", "/execute/sync", script=script, args=arguments)

    def wait(self, script: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, f"not within {seconds} s: {script}"
            time.sleep(0.05)

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self.call("POST", "/goog/cdp/execute", cmd=command, params=parameters)

    def press(self, *keys: str) -> None:
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.call("POST", "/actions", actions=[{"type": "key", "id": "keyboard", "actions": actions}])

    def complaints(self) -> list[str]:
        """Messages on the console since the last call, errors of the content security policy among them."""
        return [entry["message"] for entry in self.call("POST", "/se/log", type="browser")]

    def pdf(self) -> bytes:
        return base64.b64decode(self.call("POST", "/print"))
