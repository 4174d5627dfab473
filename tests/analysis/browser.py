"""This module drives a headless Chromium over its DevTools protocol."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BINARIES = ("chromium", "chromium-browser", "google-chrome")
START_S = 60.0  # the seconds that a browser may take to start on a busy machine


class Page:
    """A page is one tab of the browser; it keeps requests, console messages and exceptions."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self.told: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return the result of a command."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=START_S))
            if message.get("id") == number:
                assert "error" not in message, message
                return dict(message["result"])
            self.told.append(message)

    def open(self, file: Path, *, width: int, height: int = 900) -> None:
        """Load a file and wait until its rounds are shown."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        self.call("Page.navigate", url=file.resolve().as_uri())
        self.until("document.readyState === 'complete' && !!document.querySelector('#facts div')")

    def value(self, script: str) -> Any:
        """Return the value of an expression in the page; promises are awaited."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + START_S
        while not self.value(script):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.02)

    def named(self, method: str) -> list[dict[str, Any]]:
        """Return what the page told by this name."""
        return [message["params"] for message in self.told if message.get("method") == method]

    def screenshot(self) -> bytes:
        """Return the whole page as PNG."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])


@contextmanager
def page(profile: Path) -> Iterator[Page]:
    """Yield a tab of a fresh browser, or skip the test where there is none."""
    client = pytest.importorskip("websockets.sync.client", reason="needs websockets")
    binary = next(filter(None, map(shutil.which, BINARIES)), None)
    if binary is None:
        pytest.skip(f"needs a browser: {', '.join(BINARIES)}")
    command = [
        binary, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--no-first-run", "--hide-scrollbars", "--disable-background-networking",
        "--remote-debugging-port=0",
        f"--user-data-dir={profile}", "about:blank",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with client.connect(_address(profile, process), max_size=None) as browser:
            yield Page(browser)
    finally:
        process.terminate()
        process.wait(timeout=START_S)


def _address(profile: Path, process: subprocess.Popen[bytes]) -> str:
    """Return the address at which the first tab listens."""
    from urllib.request import urlopen

    end, file = time.monotonic() + START_S, profile / "DevToolsActivePort"
    while time.monotonic() < end and process.poll() is None:
        if file.is_file() and len(lines := file.read_text().splitlines()) == 2:
            with urlopen(f"http://127.0.0.1:{lines[0]}/json/list") as answer:
                tabs = [tab for tab in json.load(answer) if tab["type"] == "page"]
            if tabs:
                return str(tabs[0]["webSocketDebuggerUrl"])
        time.sleep(0.05)
    raise AssertionError("the browser did not start")
