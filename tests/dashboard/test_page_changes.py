"""Are traffic and replicas changed on the page by who has the admin token, and by nobody else, and is no edit lost unseen?"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from headgate import serve
from headgate.errors import ConfigError
from headgate.serve import Instance
from tests.dashboard.conftest import PHONE, Look, Open, check_access
from tests.dashboard.test_page import Model, NeverAgain, card, see

TOKEN = "the-token-of-this-test"


@pytest.fixture(scope="module")
def instance(_nothing_left_by_module: None) -> Iterator[Instance]:
    with serve.init("changed", http_port=0, admin_token=TOKEN) as running:
        for tag in ("v1", "v2", "v3"):
            running.create_backend(tag, Model)
        running.create_endpoint("model", "/model", backend="v1")
        yield running


@pytest.fixture(autouse=True)
def _as_it_was(instance: Instance) -> None:
    """Each test begins with the same split."""
    instance.set_traffic("model", {"v1": 0.7, "v2": 0.3})


OpenUnlocked = Callable[..., Page]


@pytest.fixture
def unlocked(instance: Instance, open_page: Open) -> OpenUnlocked:
    """Opens the page, and gives it the token. Say what fails as with `open_page`."""

    def open_it(*, failing: dict[str, str] | None = None) -> Page:
        page = open_page(instance.http_url, failing=failing)
        give_token(page)
        expect_shares(page, "70", "30")  # not those of the test before, which are told once more to who comes soon
        return page

    return open_it


def give_token(page: Page, token: str = TOKEN) -> None:
    page.get_by_role("button", name="Make changes").click()
    page.get_by_label("Admin token").fill(token)
    page.get_by_role("button", name="Unlock").click()


def share_of(page: Page, tag: str) -> Locator:
    return page.get_by_role("slider", name=f"Share of {tag}, in percent")


def number_of(page: Page, tag: str) -> Locator:
    return page.get_by_role("spinbutton", name=f"Share of {tag}, in percent, as a number")


def add(where: Page | Locator, tag: str) -> None:
    where.get_by_label("Send a share to").select_option(tag)
    where.get_by_role("button", name="Add").click()


def split(page: Page) -> Locator:
    return page.locator("#splits form")


def expect_shares(page: Page, *percents: str) -> None:
    fields = split(page).get_by_role("spinbutton")
    expect(fields).to_have_count(len(percents))
    for at, percent in enumerate(percents):
        expect(fields.nth(at)).to_have_value(percent)


def test_who_has_no_token_sees_nothing_to_move_and_a_wrong_one_opens_nothing(instance: Instance, open_page: Open, look: Look):
    page = open_page(instance.http_url, failing={"token": "401"})
    expect(card(page, "endpoints", "model")).to_contain_text("70 % of requests go to v1")
    sliders = page.get_by_role("slider")
    expect(sliders).to_have_count(0)
    give_token(page, f"{TOKEN}-not")
    expect(page.get_by_role("dialog").get_by_role("alert")).to_have_text("The instance has another admin token.")
    look(page, "token-refused", "#unlock")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(sliders).to_have_count(0)
    assert page.get_by_label("Admin token").input_value() == ""
    give_token(page)
    expect(share_of(page, "v1")).to_be_visible()
    page.get_by_role("button", name="Lock").click()
    expect(sliders).to_have_count(0)
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]


def test_who_says_another_token_does_not_mean_this_instance(instance: Instance):
    with serve.init("changed", admin_token=TOKEN) as same:
        assert not same.started
    with pytest.raises(ConfigError, match=r"admin_token \(it runs with another one\)"):
        serve.init("changed", admin_token=f"{TOKEN}-not")


def test_an_instance_without_a_token_offers_nothing(open_page: Open):
    with serve.init("unchanged", http_port=0) as instance:
        page = open_page(instance.http_url)
        expect(page.get_by_role("status").first).to_have_text("Ready")
        expect(page.get_by_role("button", name="Make changes")).to_be_hidden()


def test_traffic_is_changed_by_the_keyboard_alone_and_the_shares_are_always_one(instance: Instance, open_page: Open):
    page = open_page(instance.http_url)
    button = page.get_by_role("button", name="Make changes")
    expect(button).to_be_visible()
    tab_to(page, button)
    page.keyboard.press("Enter")
    page.keyboard.type(TOKEN)
    page.keyboard.press("Enter")
    first, second = share_of(page, "v1"), share_of(page, "v2")
    expect_shares(page, "70", "30")
    expect(first).to_be_visible()
    tab_to(page, first)
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    expect_shares(page, "65", "35")
    expect(first).to_have_attribute("aria-valuetext", "65\N{NO-BREAK SPACE}%")
    expect(second).to_have_attribute("aria-valuetext", "35\N{NO-BREAK SPACE}%")
    tab_to(page, split(page).get_by_role("button", name="Apply"))
    page.keyboard.press("Enter")
    expect(split(page).get_by_role("status").last).to_have_text("Done: v1 65 %, v2 35 %.")
    assert instance.list_endpoints()["model"].traffic == {"v1": 0.65, "v2": 0.35}
    expect(card(page, "endpoints", "model")).to_contain_text("65 % of requests go to v1")
    assert split(page).get_by_role("button", name="Apply").evaluate("node => node === document.activeElement")
    check_access(page)


def tab_to(page: Page, target: Locator) -> None:
    for _ in range(40):
        page.keyboard.press("Tab")
        if target.evaluate("node => node === document.activeElement"):
            return
    raise AssertionError(f"Tab never comes to {target}")


def test_a_backend_is_added_with_an_exact_share_on_a_phone(instance: Instance, unlocked: OpenUnlocked, look: Look):
    page = unlocked()
    add(page, "v3")
    number_of(page, "v3").fill("0.5")
    expect_shares(page, "69.7", "29.8", "0.5")
    look(page, "edit")
    page.set_viewport_size(PHONE)
    split(page).get_by_role("button", name="Reset").click()
    expect_shares(page, "70", "30")
    add(page, "v3")
    number_of(page, "v3").fill("12.5")
    number_of(page, "v3").press("Enter")
    expect(split(page)).to_contain_text("Done: v1 61.3 %, v2 26.2 %, v3 12.5 %.")
    assert instance.list_endpoints()["model"].traffic == {"v1": 0.613, "v2": 0.262, "v3": 0.125}


def test_what_is_no_share_stays_to_be_seen_and_is_not_applied(instance: Instance, unlocked: OpenUnlocked):
    page = unlocked()
    number = number_of(page, "v1")
    for typed in ("150", "-1", "1.23", ""):
        number.fill(typed)
        number.press("Enter")
        expect(number).to_have_value(typed)
        expect(number).to_be_focused()
        assert not number.evaluate("node => node.checkValidity()")
    assert instance.list_endpoints()["model"].traffic == {"v1": 0.7, "v2": 0.3}
    number.fill("60")
    number.press("Enter")
    expect(split(page)).to_contain_text("Done: v1 60 %, v2 40 %.")
    assert instance.list_endpoints()["model"].traffic == {"v1": 0.6, "v2": 0.4}


def test_what_is_moved_after_a_reset_begins_anew(unlocked: OpenUnlocked):
    page = unlocked()
    slider = share_of(page, "v1")
    # As with a pointer that is held: it has moved, and hasn't been let go.
    slider.evaluate("node => { node.valueAsNumber = 100; node.dispatchEvent(new Event('input', {bubbles: true})); }")
    expect_shares(page, "100", "0")
    split(page).get_by_role("button", name="Reset").click()
    expect_shares(page, "70", "30")
    slider.press("ArrowRight")
    expect_shares(page, "71", "29")


def test_a_backend_is_added_once(unlocked: OpenUnlocked):
    page = unlocked()
    add(page, "v3")
    expect_shares(page, "70", "30", "0")
    expect(page.get_by_label("Send a share to")).to_be_hidden()  # that was the last
    expect(number_of(page, "v3")).to_be_focused()
    number_of(page, "v3").fill("10")
    split(page).get_by_text("Add", exact=True).evaluate("node => node.click()")
    expect_shares(page, "63", "27", "10")


def test_a_change_of_ones_own_is_not_called_that_of_others(instance: Instance, unlocked: OpenUnlocked):
    page = unlocked()
    for times in (1, 2):
        share_of(page, "v1").press("ArrowLeft")
        split(page).get_by_role("button", name="Apply").click()
        expect(split(page)).to_contain_text(f"Done: v1 {70 - times} %, v2 {30 + times} %.")
        expect(split(page).get_by_role("button", name="Keep my edit")).to_be_hidden()
        expect(card(page, "endpoints", "model")).to_contain_text(f"{70 - times} % of requests go to v1")
        expect_shares(page, str(70 - times), str(30 + times))
    assert instance.list_endpoints()["model"].traffic == {"v1": 0.68, "v2": 0.32}


def test_what_others_change_is_followed_and_where_something_was_edited_it_is_said_and_asked(
    instance: Instance, unlocked: OpenUnlocked, look: Look
):
    page = unlocked()
    instance.set_traffic("model", {"v1": 0.6, "v2": 0.4})
    expect(number_of(page, "v1")).to_have_value("60")
    share_of(page, "v1").press("End")
    expect_shares(page, "100", "0")
    instance.set_traffic("model", {"v1": 0.5, "v2": 0.5})
    expect(split(page)).to_contain_text("Others have changed this meanwhile: v1 50 %, v2 50 %.")
    expect_shares(page, "100", "0")
    look(page, "edit-overtaken", "#splits")
    apply = split(page).get_by_role("button", name="Apply")
    expect(apply).to_have_attribute("aria-disabled", "true")
    apply.click(force=True)
    assert instance.list_endpoints()["model"].traffic == {"v1": 0.5, "v2": 0.5}
    split(page).get_by_role("button", name="Keep my edit").click()
    apply.click()
    expect(split(page)).to_contain_text("Done: v1 100 %, v2 0 %.")
    assert instance.list_endpoints()["model"].traffic == {"v1": 1.0, "v2": 0.0}


def test_a_change_that_crosses_another_is_refused_and_the_edit_stays(instance: Instance, unlocked: OpenUnlocked):
    page = unlocked(failing={"traffic": "409"})

    def overtake(route: Any) -> None:
        instance.set_traffic("model", {"v2": 1.0})
        route.continue_()

    page.route("**/-/traffic", overtake)
    share_of(page, "v1").press("Home")
    split(page).get_by_role("button", name="Apply").click()
    expect(split(page)).to_contain_text("The traffic of endpoint 'model' was changed by others meanwhile: it is v2 1.0 now")
    expect(split(page)).to_contain_text("Others have changed this meanwhile: v2 100 %.")
    expect_shares(page, "0", "100")
    split(page).get_by_role("button", name="Reset").click()
    expect_shares(page, "100")


def test_replicas_are_changed_and_why_they_could_not_be_is_said_with_the_traceback(
    instance: Instance, unlocked: OpenUnlocked, look: Look, tmp_path: Path
):
    instance.create_backend("never", NeverAgain, str(tmp_path / "once"))
    page = unlocked(failing={"replicas": "500"})
    there = card(page, "backend-list", "v3")
    slider = page.get_by_role("slider", name="Replicas of v3")
    slider.press("ArrowRight")
    there.get_by_role("button", name="Apply").click()
    expect(there).to_contain_text("Done: 2 replicas.")
    assert instance.list_backends()["v3"].config.num_replicas == 2
    expect(there).to_contain_text("2 / 2")
    broken = card(page, "backend-list", "never")
    page.get_by_role("spinbutton", name="Replicas of never, as a number").fill("3")
    broken.get_by_role("button", name="Apply").click()
    expect(broken.locator(".said")).to_contain_text("FileExistsError")
    broken.locator(".edit summary").click()
    expect(broken.get_by_role("region", name="Traceback: Replicas of never")).to_contain_text("in __init__")
    look(page, "edit-refused", "#backends")
    assert instance.list_backends()["never"].config.num_replicas == 1
    broken.get_by_role("button", name="Reset").click()
    expect(page.get_by_role("slider", name="Replicas of never")).to_have_js_property("value", "1")
    instance.update_backend_config("v3", {"num_replicas": 1})
    instance.delete_backend("never")


def test_an_edit_of_what_others_delete_is_said_to_be_gone(instance: Instance, unlocked: OpenUnlocked, look: Look):
    page = unlocked()
    instance.create_backend("gone", Model)
    instance.create_endpoint("gone", "/gone", backend="gone")
    add(page.locator("#splits details").filter(has_text="traffic of gone"), "v1")
    page.get_by_role("slider", name="Replicas of gone").press("End")
    instance.delete_endpoint("gone")
    instance.delete_backend("gone")
    expect(page.locator("#lost")).to_contain_text("The endpoint gone was deleted by others, and with it your edit of its traffic.")
    expect(page.locator("#lost")).to_contain_text("The backend gone was deleted by others, and with it your edit of its replicas.")
    look(page, "edit-lost", "#lost")


def test_a_token_that_is_right_no_more_is_asked_for_anew_and_the_edit_stays(instance: Instance, unlocked: OpenUnlocked):
    page = unlocked(failing={"traffic": "401"})
    refusal = json.dumps({"detail": "the instance has another admin token"})
    page.route("**/-/traffic", lambda route: route.fulfill(status=401, body=refusal), times=1)
    share_of(page, "v1").press("End")
    apply = split(page).get_by_role("button", name="Apply")
    apply.click()
    expect(page.get_by_role("dialog")).to_contain_text("The instance has another admin token. Your edit is kept.")
    page.get_by_label("Admin token").fill(TOKEN)
    page.get_by_role("button", name="Unlock").click()
    expect_shares(page, "100", "0")
    expect(apply).to_be_focused()
    apply.press("Enter")
    expect(split(page)).to_contain_text("Done: v1 100 %, v2 0 %.")


def test_where_no_answer_comes_that_is_said_and_when_the_ingress_is_away_the_token_is_forgotten(instance: Instance, unlocked: OpenUnlocked):
    page = unlocked(failing={"traffic": "net::ERR_FAILED", "events": "net::ERR_"})
    page.route("**/-/traffic", lambda route: route.abort(), times=1)
    share_of(page, "v1").press("End")
    split(page).get_by_role("button", name="Apply").click()
    expect(split(page)).to_contain_text("There was no answer; whether it was done isn't known, but what is shown is so.")
    page.context.set_offline(True)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # which has it connect anew
    expect(page.get_by_role("status").first).to_have_text("Not connected")
    expect(page.get_by_role("slider")).to_have_count(0)
    expect(page.get_by_role("button", name="Make changes")).to_be_focused()
    page.context.set_offline(False)
    expect(page.get_by_role("status").first).to_have_text("Ready")
    give_token(page)
    expect_shares(page, "100", "0")


def test_what_is_not_waited_for_any_longer_is_given_up_as_the_verb_says(instance: Instance, unlocked: OpenUnlocked, look: Look):
    page = unlocked()
    page.route("**/-/replicas", lambda route: None)  # it is never answered
    page.get_by_role("slider", name="Replicas of v1").press("ArrowRight")
    there = card(page, "backend-list", "v1")
    there.get_by_role("button", name="Apply").click()
    expect(there).to_contain_text("Under way …")
    look(page, "edit-under-way", "#backends")
    with page.expect_event("requestfailed", lambda request: request.url.endswith("/-/replicas")):
        there.get_by_role("button", name="Don't wait").click()
    expect(there).to_contain_text("What waits for room is given up")
    expect(there.get_by_role("button", name="Apply")).to_be_focused()


def test_what_was_applied_is_not_moved_before_the_page_is_told_of_it_and_that_is_said(instance: Instance, unlocked: OpenUnlocked):
    page = unlocked()
    see(page, False)
    slider, there = share_of(page, "v1"), split(page)
    slider.press("ArrowLeft")
    there.get_by_role("button", name="Apply").click()
    expect(there).to_contain_text("Done: v1 69 %, v2 31 %.")
    slider.press("ArrowLeft")
    expect(there).to_contain_text("Done: v1 69 %, v2 31 %. The instance has yet to tell of it; until then this can't be moved.")
    expect_shares(page, "69", "31")
    see(page, True)
    expect(there).not_to_contain_text("The instance has yet to tell of it")
    slider.press("ArrowLeft")
    expect_shares(page, "68", "32")


def test_over_plain_http_from_elsewhere_the_page_does_not_even_ask_for_the_token(instance: Instance, open_page: Open, look: Look):
    page = open_page(instance.http_url)
    page.evaluate("Object.defineProperty(window, 'isSecureContext', {value: false})")
    page.get_by_role("button", name="Make changes").click()
    expect(page.get_by_role("dialog")).to_contain_text("Open it over HTTPS, or by an SSH tunnel.")
    expect(page.get_by_label("Admin token")).to_be_hidden()
    expect(page.get_by_role("button", name="Unlock")).to_be_hidden()
    look(page, "token-not-asked-for", "#unlock")


SHARES = """async () => {
  const {WHOLE, moved, shares, tenths} = await import("./shares.js");
  const found = [];
  const weights = [[1], [0.5, 0.5], [1 / 3, 1 / 3, 1 / 3], [0.0004, 0.9996], [1, 0, 0], [0.1, 0.2, 0.3, 0.4], Array(37).fill(1 / 37)];
  for (const given of weights) {
    const parts = tenths(Object.fromEntries(given.map((share, at) => [`b${at}`, share])));
    found.push([given, parts, given.length]);
    for (const name of parts.keys()) {
      for (const to of [0, 1, 333, 500, 999, 1000]) found.push([[name, to], moved(parts, name, to), given.length]);
    }
  }
  return found.map(([what, parts, size]) => [what, [...parts], Object.values(shares(parts)).reduce((sum, share) => sum + share, 0), size]);
}"""


def test_shares_are_one_in_all_however_they_are_moved(instance: Instance, open_page: Open):
    cases = open_page(instance.http_url).evaluate(SHARES)
    assert len(cases) > 200
    for what, parts, total, size in cases:
        assert len(parts) == size
        assert sum(part for _, part in parts) == 1000, what
        assert all(part == int(part) and 0 <= part <= 1000 for _, part in parts), what
        assert abs(total - 1) < 1e-9
        if len(what) == 2 and isinstance(what[0], str) and size > 1:
            assert dict(parts)[what[0]] == what[1]
    rounded = {tuple(what): dict(parts) for what, parts, _, _ in cases if not isinstance(what[0], str)}
    assert rounded[1, 0, 0] == {"b0": 1000, "b1": 0, "b2": 0}
    assert sorted(rounded[1 / 3, 1 / 3, 1 / 3].values()) == [333, 333, 334]
    assert rounded[0.0004, 0.9996] == {"b0": 0, "b1": 1000}
