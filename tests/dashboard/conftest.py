"""What do tests of the page get? A real browser, pages in it that must not complain, and a look at the state that one is in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.base import AXE_SCRIPT, AxeResults
from playwright.sync_api import Browser, ConsoleMessage, Page, ViewportSize, sync_playwright

from tests.support import leave_out

_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESK: ViewportSize = {"width": 1280, "height": 900}
PHONE: ViewportSize = {"width": 390, "height": 844}
_SCHEMES: tuple[Literal["light", "dark"], ...] = ("dark", "light")
_LOOSE_LINES = """() => {
  const boxes = which => [...document.querySelectorAll(which)].map(node => node.getBoundingClientRect());
  const sides = (which, side) => boxes(which).map(box => [box[side], box.top, box.bottom]);
  const meets = (at, places) => places.some(([x, top, bottom]) => Math.abs(at.x - x) < 1 && at.y > top && at.y < bottom);
  const [from, to] = [sides("#endpoints .node", "right"), sides("#targets .node", "left")];
  return [...document.querySelectorAll("#links .link")].filter(line => {
    const [begin, end] = [0, line.getTotalLength()].map(far => line.getPointAtLength(far).matrixTransform(line.getScreenCTM()));
    return line.checkVisibility() && !(meets(begin, from) && meets(end, to));
  }).length;
}"""
_FAILED = "Failed to load resource: "  # so the browser itself begins a line on what a page has asked for

Open = Callable[..., Page]
Look = Callable[..., None]


@pytest.fixture(scope="module")
def browser(_nothing_left_by_module: None) -> Iterator[Browser]:
    """Chromium, as Debian has it."""
    path = shutil.which("chromium")
    if path is None:
        leave_out("chromium is not installed")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=_ARGUMENTS, env={**os.environ, "HOME": "/nonexistent"})
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Opens a dashboard, as on a desk and in light: `open_page(url)`. The test fails if the page has complained of anything.

    Where it is part of the test that something which the page asks for fails, say how: `open_page(url, failing={"token": "401"})` expects
    what the browser says by itself of `/-/token` and the status 401, and nothing else.
    """
    complaints: list[str] = []
    with ExitStack() as stack:

        def open_it(url: str, *, failing: dict[str, str] | None = None) -> Page:
            def heard(message: ConsoleMessage) -> None:
                page_asked = urlsplit(message.location["url"]).path.removeprefix("/-/")
                how = (failing or {}).get(page_asked)
                if how is None or not message.text.startswith(_FAILED) or how not in message.text:
                    complaints.append(f"{message.type} of {page_asked}: {message.text}")

            context = browser.new_context(viewport=DESK)
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(20_000)
            page.on("console", heard)
            page.on("pageerror", lambda error: complaints.append(f"raised: {error}"))
            page.goto(f"{url}/-/")
            return page

        yield open_it
    assert complaints == []


def check_access(page: Page, part: str = "html") -> None:
    """What axe-core finds there: names, roles, contrast, order. And nothing is wider than the window, or beside what it belongs to."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE_SCRIPT)
    run = "part => axe.run(part, {resultTypes: ['violations']}).then(({violations}) => ({violations}))"
    found = AxeResults(page.evaluate(run, part))
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than the window"
    assert page.evaluate(_LOOSE_LINES) == 0, "lines of the flow don't go from an endpoint to a backend"


@pytest.fixture
def look(request: pytest.FixtureRequest) -> Look:
    """Checks the state that a page is in on a phone and on a desk, in the dark and in light, in which it is left: `look(page, "busy")`.

    `part` is all that axe-core looks at but in the last of the four, where the rest is as in another state: what it does for the whole
    page takes a third of a second.
    With `--screenshots FOLDER` there is a picture of each, for people to look at.
    """
    folder: str | None = request.config.getoption("--screenshots")

    def look_at(page: Page, state: str, part: str = "html") -> None:
        for (name, size), scheme in product((("phone", PHONE), ("desk", DESK)), _SCHEMES):
            page.set_viewport_size(size)
            page.emulate_media(color_scheme=scheme)
            check_access(page, "html" if (size, scheme) == (DESK, "light") else part)
            if folder is not None:
                page.screenshot(path=Path(folder, f"{state}-{name}-{scheme}.png"), full_page=True, animations="disabled")

    return look_at
