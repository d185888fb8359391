"""A browser for tests of pages: headless Chromium, driven by its DevTools protocol.

CHROMIUM names another program than the one on the path. Where there is none, these tests are
skipped, and say how to come by one; QSESSION_REQUIRE_BROWSER=1 makes that a failure.
See https://chromedevtools.github.io/devtools-protocol/.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

PATIENCE = 30.0
"""Seconds after which something that should have happened is taken for stuck."""
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def program() -> str:
    """The browser of this machine. Skips the test, or fails it, if there is none."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, PROGRAMS)), None)
    if found is not None:
        return found
    told = (
        "no Chromium, so the page of the dashboard is not tried. To have one: apt install chromium"
    )
    if os.environ.get("QSESSION_REQUIRE_BROWSER") == "1":
        pytest.fail(told)
    pytest.skip(told)


class Browser:
    """One page of a running browser."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._number = 0
        self._session: str | None = None
        self.complaints: list[str] = []
        """Errors and warnings of the console, exceptions, and violations of the content policy."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command, and wait for its answer."""
        self._number += 1
        told = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            told["sessionId"] = self._session
        self._socket.send(json.dumps(told))
        while True:
            answer = json.loads(self._socket.recv(timeout=PATIENCE))
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer.get("method"), answer.get("params", {}))

    def _note(self, method: str | None, told: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(told["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning"):
            self.complaints.append(json.dumps(told["args"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")

    def open(self, url: str) -> None:
        """Go to a page, and wait until it is there."""
        self.ask("Page.navigate", url=url)
        self.until(f"document.readyState === 'complete' && location.href.startsWith({url!r})")

    def value(self, expression: str) -> Any:
        """The value of an expression of JavaScript in the page."""
        told = self.ask(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def until(self, expression: str, patience: float = PATIENCE) -> None:
        """Wait until an expression is true in the page."""
        eventually(lambda: bool(self.value(expression)), expression, patience)

    def press(self, key: str, code: int = 0) -> None:
        """Press and release a key."""
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            told = {} if kind == "keyUp" else text
            self.ask(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **told
            )

    def size(self, width: int, height: int) -> None:
        """Show the page on a screen of that many pixels."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip

    def prefer(self, **features: str) -> None:
        """Set what the user prefers: ``prefer(color_scheme="dark")``."""
        media = [
            {"name": f"prefers-{name.replace('_', '-')}", "value": value}
            for name, value in features.items()
        ]
        self.ask("Emulation.setEmulatedMedia", features=media)

    def picture(self) -> bytes:
        """A PNG of what is on the screen."""
        return b64decode(self.ask("Page.captureScreenshot", format="png")["data"])


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser that keeps its files in a folder, and ends with the block."""
    command = [
        program(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--no-first-run", "--remote-debugging-port=0", f"--user-data-dir={folder}",
    ]  # fmt: skip
    port = folder / "DevToolsActivePort"
    with (folder.parent / f"{folder.name}.log").open("wb") as log:
        running = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        eventually(lambda: port.exists() and port.read_text().count("\n") == 1, "a port")
        number, path = port.read_text().split("\n")
        with connect(f"ws://127.0.0.1:{number}{path}", max_size=None) as socket:
            page = Browser(socket)
            yield page
            page._session = None
            page.ask("Browser.close")
        running.wait(PATIENCE)
    finally:
        if running.poll() is None:
            running.kill()
            running.wait()


def eventually(condition: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Wait for a condition in another process, of which nothing tells."""
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, f"did not come true: {what}"
        time.sleep(0.02)
