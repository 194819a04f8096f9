"""Does the demo hold what it says, and can a person draw a digit with the mouse and see which backend answers?"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import leave_out, wait_until

pytestmark = pytest.mark.local_engine("the demo starts its own")

DEMO = str(Path(__file__).parents[2] / "demo" / "digits.py")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


class Browser:
    """A headless Chromium with one page, spoken to over its debugging pipe: JSON messages, each ended by a zero byte."""

    def __init__(self, profile: str) -> None:
        to_browser, self.out = os.pipe()
        self.inward, from_browser = os.pipe()
        # The browser reads its descriptor 3 and writes its descriptor 4.
        plumbing = f'exec {CHROMIUM} "$@" 3<&{to_browser} 4>&{from_browser}'
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            *QUIET,
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
            "about:blank",
        ]
        self.process = subprocess.Popen(
            ["bash", "-c", plumbing, "bash", *flags],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(to_browser)
        os.close(from_browser)
        self.numbers = itertools.count(1)
        self.buffer = b""
        self.session: dict[str, str] = {}
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}

    def send(self, method: str, **params: Any) -> Any:
        """Send a command; returns its result."""
        number = next(self.numbers)
        os.write(self.out, json.dumps({"id": number, "method": method, "params": params, **self.session}).encode() + b"\0")
        while True:
            message = self._receive()
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    def _receive(self) -> Any:
        while b"\0" not in self.buffer:
            data = os.read(self.inward, 65536)
            assert data, "the browser has ended"
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(line)

    def evaluate(self, expression: str) -> Any:
        """What a JavaScript expression gives in the page."""
        return self.send("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def text(self, element: str) -> Any:
        """The text of the element of that id; empty where there is none."""
        return self.evaluate(f"document.getElementById({element!r})?.textContent ?? ''")

    def mouse(self, kind: str, x: float, y: float) -> None:
        """Press, move or release the left button."""
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=int(kind != "mouseReleased"), clickCount=1)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.out)
        os.close(self.inward)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    if CHROMIUM is None:
        leave_out("no chromium to draw with")
    browser = Browser(str(tmp_path))
    try:
        yield browser
    finally:
        browser.close()


@pytest.fixture(scope="module")
def demo_url() -> Iterator[str]:
    with subprocess.Popen([sys.executable, "-u", DEMO, "--port", "0"], stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        try:
            said = ""
            for line in demo.stdout:
                said += line
                if "Ctrl-C" in line:
                    break
            found = re.search(r"Draw a digit:\s+(\S+)", said)
            assert found is not None, f"the demo said: {said}"
            yield found[1]
            demo.send_signal(signal.SIGINT)
            assert demo.wait(timeout=30) == 0
        finally:
            demo.kill()


def test_a_digit_drawn_with_the_mouse_is_recognised_and_its_backend_named(demo_url: str, browser: Browser):
    browser.send("Page.navigate", url=demo_url)
    wait_until(lambda: browser.text("who") == "Nothing drawn yet.", 10)
    left, top, size = browser.evaluate(
        "(({left, top, width}) => [left, top, width])(document.getElementById('pad').getBoundingClientRect())"
    )
    # A seven: a bar, then down to the left.
    points = [(0.25 + 0.5 * step / 10, 0.15) for step in range(11)] + [
        (0.75 - 0.3 * step / 20, 0.15 + 0.75 * step / 20) for step in range(1, 21)
    ]
    at = [(left + x * size, top + y * size) for x, y in points]
    browser.mouse("mousePressed", *at[0])
    for point in at[1:]:
        browser.mouse("mouseMoved", *point)
    browser.mouse("mouseReleased", *at[-1])
    wait_until(lambda: browser.text("digit") == "7", 10)
    assert browser.text("who") in {"digits:v1", "digits:v2"}
    assert "%" in browser.text("bars")


def test_with_a_shard_key_every_request_of_the_page_meets_one_backend(demo_url: str, browser: Browser):
    browser.send("Page.navigate", url=f"{demo_url}#example=3")
    wait_until(lambda: browser.text("digit") == "3", 10)
    browser.evaluate(
        "document.getElementById('forget').click(); document.getElementById('sticky').click(); document.getElementById('key').value = 'Zoë'"
    )
    browser.evaluate("document.getElementById('many').click()")
    wait_until(lambda: {browser.text("count1"), browser.text("count2")} == {"0", "100"}, 20)
