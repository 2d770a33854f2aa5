"""A headless Chromium, driven over the WebDriver protocol; the tests are skipped where it is not installed."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "unit"))  # the synthetic sessions

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--no-first-run", "--window-size=1280,820"]  # fmt: skip
OPTIONS = {"goog:chromeOptions": {"args": FLAGS}, "goog:loggingPrefs": {"browser": "ALL"}}


class Browser:
    """One WebDriver session: open a file, run script in it, read its console, print it."""

    def __init__(self, address):
        self.base = address
        self.base += f"/session/{self.call('POST', '/session', capabilities={'alwaysMatch': OPTIONS})['sessionId']}"

    def call(self, method, path, **body):
        data = json.dumps(body).encode() if method == "POST" else None
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error

    def open(self, path):
        self.call("POST", "/url", url=path.as_uri())
        self.wait("return document.documentElement.dataset.drawn !== undefined")

    def run(self, script, *arguments):
        return self.call("POST", "/execute/sync", script=script, args=arguments)

    def wait(self, script, seconds=30):
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, f"not within {seconds} s: {script}"
            time.sleep(0.05)

    def devtools(self, command, **parameters):
        return self.call("POST", "/goog/cdp/execute", cmd=command, params=parameters)

    def press(self, *keys):
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.call("POST", "/actions", actions=[{"type": "key", "id": "keyboard", "actions": actions}])

    def complaints(self):
        """Messages on the console since the last call, errors of the content security policy among them."""
        return [entry["message"] for entry in self.call("POST", "/se/log", type="browser")]

    def pdf(self):
        return base64.b64decode(self.call("POST", "/print"))


@pytest.fixture(scope="session")
def driver():
    """The address of a running chromedriver."""
    program = shutil.which("chromedriver")
    if program is None or not any(map(shutil.which, ("chromium", "google-chrome", "chrome"))):
        pytest.skip("needs Chromium and chromedriver: apt-get install chromium chromium-driver")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([program, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def browser(driver):
    one = Browser(driver)
    try:
        yield one
    finally:
        one.call("DELETE", "")
