"""Does the page show what is so, in a real browser, to everybody: on a phone, in the dark, with the keyboard, by its names?"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from headgate import serve
from headgate.serve import Instance
from tests.dashboard.conftest import Look, Open

PATIENCE_MS = 20_000
expect.set_options(timeout=PATIENCE_MS)


class Model:
    def __call__(self, request=None):
        return {"an": "answer"}


@serve.accept_batch
def together(requests: list[Any]) -> list[str]:
    return ["together"] * len(requests)


def fails(request=None):
    raise ValueError("hush")


class NeverAgain:
    """Starts once, and then no more."""

    def __init__(self, path: str):
        open(path, "x").close()

    def __call__(self, request=None):
        return ""


def wait_for(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(0.01)


class Slow:
    """Starts once there is a file."""

    def __init__(self, path: str):
        wait_for(path)

    def __call__(self, request=None):
        return ""


class Held:
    """Answers once there is a file."""

    def __init__(self, path: str):
        self.path = path

    def __call__(self, request=None):
        wait_for(self.path)
        return ""


@contextmanager
def requests_to(url: str, *paths: str) -> Iterator[None]:
    """Somebody asks for these all the time."""
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(timeout=20) as client:
            while not stop.wait(0.01):
                for path in paths:
                    client.get(url + path)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@contextmanager
def much_under_way(instance: Instance, let_go: Path) -> Iterator[None]:
    """Three requests to `held`, one after the other, and a backend that starts: all of it is over once `let_go` is there."""
    with ThreadPoolExecutor(4) as threads:
        done = [threads.submit(httpx.get, f"{instance.http_url}/held", timeout=60) for _ in range(3)]
        starting = threads.submit(serve.create_backend, "slow", Slow, str(let_go))
        try:
            yield
        finally:
            let_go.touch()
        starting.result()
        assert [answer.result().status_code for answer in done] == [200, 200, 200]


def set_up(let_go: Path) -> None:
    """Endpoints with a split, a shadow, batches, a queue, failures, and without any traffic."""
    serve.create_backend("model:v1", Model, config={"num_replicas": 9})
    serve.create_backend("model:v2", Model)
    serve.create_backend("together", together, config={"max_batch_size": 8})
    serve.create_backend("fails", fails)
    serve.create_backend("held", Held, str(let_go), config={"max_concurrent_queries": 1}, ray_actor_options={"num_gpus": 1})
    serve.create_endpoint("model", "/model", backend="model:v1")
    serve.set_traffic("model", {"model:v1": 0.7, "model:v2": 0.3})
    serve.shadow_traffic("model", "together", 0.5)
    serve.create_endpoint("together", "/together", backend="together")
    serve.create_endpoint("fails", "/fails", backend="fails")
    serve.create_endpoint("held", "/held", backend="held")
    serve.create_endpoint("unused", "/unused")


def card(page: Page, column: str, title: str) -> Any:
    """An endpoint or a backend of the flow, or a card of the backends below it."""
    return page.locator(f"#{column} > *").filter(has=page.get_by_role("heading", name=title, exact=True))


@pytest.fixture
def instance() -> Iterator[Instance]:
    with serve.init(http_port=0, resources={"CPU": 16, "GPU": 1}) as running:
        yield running


def test_an_empty_instance_says_what_comes_next_and_shows_it_once_it_is_there(instance: Instance, open_page: Open, look: Look):
    page = open_page(instance.http_url)
    expect(page.get_by_role("heading", name="Nothing is served yet")).to_be_visible()
    expect(page.locator("#empty")).to_contain_text("serve.create_backend(")
    expect(page.locator("#empty")).to_contain_text("serve.create_endpoint(")
    look(page, "empty")
    serve.create_backend("model:v1", Model)
    serve.create_endpoint("model", "/model", backend="model:v1")
    expect(page.locator("#empty")).to_be_hidden()
    expect(card(page, "endpoints", "model")).to_contain_text("GET /model")
    expect(card(page, "targets", "model:v1")).to_contain_text("1 of 1 replica ready")
    expect(page.locator("#declared-text")).to_contain_text("route: /model")
    expect(page.get_by_role("status")).to_have_text("Ready")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == page.locator("#declared-text").text_content()


def figure(page: Page, name: str) -> Any:
    """One of the figures of all requests."""
    return page.locator("#totals > div").filter(has=page.get_by_text(name, exact=True)).locator("dd")


def test_it_shows_traffic_times_batches_replicas_and_what_fails_and_tells_no_secrets(
    instance: Instance, open_page: Open, look: Look, tmp_path: Path
):
    let_go = tmp_path / "let-go"
    set_up(let_go)
    page = open_page(instance.http_url)
    with requests_to(instance.http_url, "/model", "/together", "/fails", "/nowhere"), much_under_way(instance, let_go):
        endpoint = card(page, "endpoints", "model")
        expect(endpoint).to_contain_text("70 % of requests go to model:v1")
        expect(endpoint).to_contain_text("30 % of requests go to model:v2")
        expect(endpoint).to_contain_text("copies of 50 % of requests go to together")
        expect(endpoint).to_contain_text(re.compile(r"p50 \d"))
        expect(endpoint.locator("b")).to_have_text(re.compile("[1-9]"))
        expect(card(page, "endpoints", "fails")).to_contain_text("100 % fail: 500")
        expect(card(page, "endpoints", "unused")).to_contain_text("No backend has its traffic")
        expect(page.locator("#links path.link")).to_have_count(6)
        expect(page.locator("#links path.shadow")).to_have_count(1)
        expect(card(page, "backend-list", "together").locator(".bars li")).to_have_count(4)
        expect(page.locator("#failure-list")).to_contain_text("A call raised ValueError")
        expect(page.locator("#failure-list")).to_contain_text("endpoint fails")
        expect(figure(page, "Requests/s")).to_have_text(re.compile("[1-9]"))
        expect(figure(page, "p99")).to_have_text(re.compile(r"\d\s(µs|ms|s)"))
        expect(figure(page, "Queued")).to_have_text("2")
        expect(card(page, "targets", "held")).to_contain_text("2 queued 1 running")
        expect(card(page, "targets", "model:v1")).to_contain_text("9 of 9 replicas ready")
        expect(card(page, "targets", "model:v1").locator("li")).to_have_count(9)
        assert card(page, "targets", "model:v1").locator(".replicas").bounding_box()["height"] < 40, "their names are not seen"
        expect(page.locator("#coming")).to_have_text("slow is on its way: 0 of 1 new replica ready")
        expect(page.locator("#refused")).to_have_text(re.compile(r"Refused before they reached an endpoint, .*: \d+ with 404"))
        held = card(page, "backend-list", "held")
        held.get_by_text("1 replica one by one").click()
        expect(held.get_by_role("columnheader", name="GPUs")).to_be_visible()
        expect(held.get_by_role("row").last.get_by_role("cell").last).to_have_text("0")
        look(page, "busy")
        assert "hush" not in page.content()
        widths = page.locator("#links path.link:not(.shadow)").evaluate_all(
            "lines => lines.map(line => +line.getAttribute('stroke-width'))"
        )
        assert sorted(widths)[:2] == pytest.approx([2 + 0.3 * 24, 2 + 0.7 * 24])
        page.emulate_media(reduced_motion="reduce")
        assert page.locator("#links path.link").first.evaluate("line => getComputedStyle(line).transitionProperty") == "none"
    expect(figure(page, "Queued")).to_have_text("0")
    expect(page.locator("#coming")).to_be_hidden()
    expect(card(page, "targets", "slow")).to_contain_text("1 of 1 replica ready")


def test_a_replica_that_dies_and_a_backend_that_is_not_well_are_said_in_words(
    instance: Instance, open_page: Open, look: Look, tmp_path: Path
):
    serve.create_backend("model:v1", Model, config={"num_replicas": 2})
    serve.create_backend("never", NeverAgain, str(tmp_path / "once"))
    serve.create_endpoint("model", "/model", backend="model:v1")
    serve.create_endpoint("never", "/never", backend="never")
    page = open_page(instance.http_url)
    expect(page.get_by_role("status")).to_have_text("Ready")
    for tag in ("model:v1", "never"):
        pid = serve.list_backends()[tag].replicas[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    expect(page.locator("#failure-list")).to_contain_text("A replica ended: killed by SIGKILL")
    expect(page.locator("#failure-list")).to_contain_text("A replica did not start")
    expect(card(page, "backend-list", "model:v1")).to_contain_text("1 by signal")
    expect(page.get_by_role("status")).to_have_text("Not ready")
    expect(card(page, "targets", "never")).to_contain_text("unhealthy")
    expect(card(page, "backend-list", "never")).to_contain_text("FileExistsError")
    expect(card(page, "backend-list", "never")).not_to_contain_text("Traceback (most recent call last)")
    look(page, "broken")


def test_with_debug_a_traceback_is_opened_by_keyboard_and_stays_open_and_in_focus_while_figures_change(open_page: Open, look: Look):
    with serve.init(http_port=0, debug=True) as instance:
        serve.create_backend("fails", fails)
        serve.create_endpoint("fails", "/fails", backend="fails")
        httpx.get(f"{instance.http_url}/fails", timeout=20)
        page = open_page(instance.http_url)
        summary = page.locator("#failure-list summary")
        expect(summary).to_be_visible()
        expect(page.locator("#failure-list")).to_contain_text("ValueError: hush")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        for _ in range(10):
            if summary.evaluate("node => node === document.activeElement"):
                break
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        traceback = page.get_by_role("region", name="Traceback: ValueError, endpoint fails, backend fails")
        expect(traceback).to_contain_text('raise ValueError("hush")')
        httpx.get(f"{instance.http_url}/fails", timeout=20)
        expect(page.locator("#failure-list")).to_contain_text("2 times")
        expect(traceback).to_be_visible()
        expect(summary).to_be_focused()
        look(page, "traceback")


def pid_of(role: str) -> int:
    (pid,) = [process.pid for process in serve.status().processes if process.role == role]
    return pid


def test_it_says_so_when_the_controller_is_away_and_goes_on_when_it_is_back(instance: Instance, open_page: Open, look: Look):
    serve.create_backend("model:v1", Model)
    serve.create_endpoint("model", "/model", backend="model:v1")
    page = open_page(instance.http_url)
    expect(page.get_by_role("status")).to_have_text("Ready")
    controller = pid_of("controller")
    os.kill(controller, signal.SIGSTOP)
    expect(page.get_by_role("status")).to_have_text("Controller away")
    expect(page.get_by_role("alert")).to_contain_text("Requests are served as before")
    look(page, "controller-away")
    os.kill(controller, signal.SIGKILL)  # it would be found, and replaced, after 10 s
    expect(page.get_by_role("status")).to_have_text("Ready")
    expect(page.get_by_role("alert")).to_be_hidden()
    assert pid_of("controller") != controller
    serve.create_endpoint("another", "/another", backend="model:v1")
    expect(card(page, "endpoints", "another")).to_be_visible()


def test_when_the_ingress_is_gone_it_says_so_and_it_follows_the_next_one(open_page: Open, look: Look):
    with serve.init(http_port=0) as instance:
        serve.create_backend("model:v1", Model)
        serve.create_endpoint("model", "/model", backend="model:v1")
        page = open_page(instance.http_url, failing={"events": "net::"})
        page.clock.install()
        expect(page.get_by_role("status")).to_have_text("Ready")
        ingress = pid_of("ingress")
        os.kill(ingress, signal.SIGSTOP)
        page.clock.fast_forward("00:08")  # so long it may say nothing
        expect(page.get_by_role("status")).to_have_text("Not connected")
        expect(page.get_by_role("alert")).to_contain_text("This ingress doesn't answer")
        look(page, "not-connected")
        os.kill(ingress, signal.SIGKILL)  # as above
        expect(page.get_by_role("status")).to_have_text("Ready")
        assert pid_of("ingress") != ingress
    expect(page.get_by_role("status")).to_have_text("Not connected")


def see(page: Page, is_seen: bool) -> None:
    """Have the page believe that somebody sees it, or that nobody does, as with a tab behind another."""
    page.evaluate("is => Object.defineProperty(document, 'hidden', {value: is, configurable: true})", not is_seen)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def test_who_does_not_see_the_page_is_told_nothing_until_it_is_seen_again(instance: Instance, open_page: Open):
    page = open_page(instance.http_url)
    expect(page.get_by_role("status")).to_have_text("Ready")
    with page.expect_event("requestfailed", lambda request: request.url.endswith("/-/events")):  # which the page has given up
        see(page, False)
    with page.expect_request("**/-/events"):
        see(page, True)
    serve.create_backend("model:v1", Model)
    expect(card(page, "targets", "model:v1")).to_be_visible()
