"""What do tests of the page get? A real browser, and pages in it that must not complain."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

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
SIZES = {"desk": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}

Open = Callable[..., Page]


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
    """Opens a dashboard: `open_page(url, size="phone", scheme="dark")`. The test fails if the page has complained of anything.

    Give `may_complain` where it is part of the test that the ingress isn't there.
    """
    complaints: list[str] = []
    with ExitStack() as stack:

        def open_it(url: str, *, size: str = "desk", scheme: Any = "light", may_complain: bool = False) -> Page:
            context = browser.new_context(viewport=SIZES[size], color_scheme=scheme, reduced_motion="reduce" if scheme == "dark" else None)  # type: ignore[arg-type]
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(20_000)
            if not may_complain:
                page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
            page.on("pageerror", lambda error: complaints.append(f"raised: {error}"))
            page.goto(f"{url}/-/")
            return page

        yield open_it
    assert complaints == []
