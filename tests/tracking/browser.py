"""Headless Chromium, driven over the WebDriver protocol (https://www.w3.org/TR/webdriver2) with plain HTTP."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from tests.tracking.servers import free_port

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MISSING = None if CHROMIUM and CHROMEDRIVER else "Chromium is not installed (Debian: apt-get install chromium-driver)"

ARGUMENTS = [
    "--headless=new",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]


class Browser:
    """One page of a headless browser."""

    def __init__(self, session: str) -> None:
        self.session = session

    def _command(self, method: str, path: str, **body: Any) -> Any:
        response = requests.request(
            method, f"{self.session}{path}", json=body if method == "POST" else None, timeout=300
        )
        value = response.json()["value"]
        if not response.ok:
            raise RuntimeError(f"{path}: {value['message'].splitlines()[0]}")
        return value

    def open(self, address: str) -> None:
        """Go to `address`; a change of its #fragment alone loads the page anew too."""
        self._command("POST", "/url", url="about:blank")
        self._command("POST", "/url", url=address)

    def run(self, script: str, *arguments: Any) -> Any:
        """What the JavaScript `script` returns."""
        return self._command("POST", "/execute/sync", script=script, args=list(arguments))

    def text(self) -> str:
        """The page's visible text."""
        return str(self.run("return document.body ? document.body.innerText : ''")).replace("\xa0", " ")

    def wait_for(self, *words: str, seconds: float = 300) -> str:
        """The page's text once it has all of `words`."""
        deadline = time.monotonic() + seconds
        while True:
            text = self.text()
            missing = [word for word in words if word not in text]
            if not missing:
                return text
            assert time.monotonic() < deadline, f"the page lacks {missing}; it says:\n{text}"
            time.sleep(0.3)

    def wait_until(self, script: str, *arguments: Any, seconds: float = 300) -> Any:
        """What `script` returns, once that is true."""
        deadline = time.monotonic() + seconds
        while not (found := self.run(script, *arguments)):
            assert time.monotonic() < deadline, f"never true: {script}; the page says:\n{self.text()}"
            time.sleep(0.3)
        return found

    def click(self, selector: str) -> None:
        """Click the first element that the CSS `selector` finds."""
        self.wait_until("const e = document.querySelector(arguments[0]); if (e) e.click(); return !!e", selector)

    def remember(self, address: str, **values: str) -> None:
        """Put `values` into the local storage of the site at `address`."""
        self.open(address)
        script = "for (const [key, value] of Object.entries(arguments[0])) localStorage.setItem(key, value)"
        self.run(script, values)

    def screenshot(self, path: Path) -> None:
        """The visible page as a PNG."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self._command("GET", "/screenshot")))


@contextmanager
def browser(profile: Path, width: int = 1400, height: int = 900) -> Iterator[Browser]:
    """A headless browser with the new profile directory `profile`."""
    port = free_port()
    driver = subprocess.Popen(
        [str(CHROMEDRIVER), f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    arguments = [*ARGUMENTS, f"--user-data-dir={profile}", f"--window-size={width},{height}"]
    if os.getuid() == 0:
        arguments.append("--no-sandbox")
    options = {"binary": CHROMIUM, "args": arguments}
    try:
        deadline = time.monotonic() + 300
        while True:
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"{address}/status", timeout=60).json()["value"]["ready"]:
                    break
            assert time.monotonic() < deadline, "chromedriver does not start"
            time.sleep(0.2)
        capabilities = {"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}}
        started = requests.post(f"{address}/session", json=capabilities, timeout=300).json()["value"]
        assert "sessionId" in started, started
        session = f"{address}/session/{started['sessionId']}"
        try:
            yield Browser(session)
        finally:
            requests.delete(session, timeout=300)
    finally:
        driver.terminate()
        driver.wait(300)
