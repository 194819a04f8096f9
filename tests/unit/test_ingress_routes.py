"""Does a path lead where the contract says?"""

from __future__ import annotations

import pytest

from headgate.core.messages import EndpointEntry
from headgate.ingress.routes import Routes


def _routes(*routes: str, methods: tuple[str, ...] = ("GET",)) -> Routes:
    return Routes(EndpointEntry(route, route, methods) for route in routes)


@pytest.mark.parametrize(
    ("path", "endpoint"),
    [
        (b"/a", "/a"),
        (b"/%61", "/a"),
        (b"/a/", "/"),
        (b"/tree/", "/tree/"),
        (b"/tree/x/y", "/tree/"),
        (b"/tree/deep/x", "/tree/deep/"),
        (b"/tree/deep", "/tree/"),
        (b"/tree%2Fdeep/x", "/tree/deep/"),
        (b"/tree", "/"),
        (b"/caf%C3%A9", "/café"),
        (b"/%zz", "/"),
        (b"/", "/"),
        (b"/-", "/"),
    ],
)
def test_the_decoded_path_is_matched_exactly_and_then_by_the_longest_prefix(path: bytes, endpoint: str) -> None:
    found = _routes("/", "/a", "/tree/", "/tree/deep/", "/café").find(path)
    assert found is not None
    assert found.endpoint == endpoint


@pytest.mark.parametrize("path", [b"/-/x", b"/%2d/x", b"/-%2Fx", b"/-/routes/", b"/-/healthz/x"])
def test_nothing_reserved_reaches_an_endpoint_even_with_a_route_that_takes_everything(path: bytes) -> None:
    assert _routes("/").find(path) is None


@pytest.mark.parametrize("page", ["routes", "healthz", "readyz", "metrics", "events", "dashboard.js"])
def test_the_pages_are_found_encoded_too(page: str) -> None:
    for path in (f"/-/{page}", f"/%2D/{page}"):
        found = _routes("/").find(path.encode())
        assert found is not None
        assert (found.page, found.endpoint) == (page, "")


def test_the_dashboard_is_the_page_of_the_reserved_prefix_itself_and_of_nothing_below_it() -> None:
    routes = _routes("/")
    for path in (b"/-/", b"/%2d/", b"/-%2F"):
        found = routes.find(path)
        assert found is not None
        assert (found.page, found.endpoint) == ("index.html", "")


def test_without_a_route_for_everything_an_unknown_path_leads_nowhere() -> None:
    assert _routes("/a", "/tree/").find(b"/b") is None


def test_an_endpoint_without_a_route_is_not_found_by_any_path() -> None:
    assert Routes([EndpointEntry("hidden", None, ("GET",))]).find(b"/hidden") is None


def test_head_is_taken_where_get_is_and_options_is_allowed_everywhere() -> None:
    get = _routes("/a").find(b"/a")
    post = _routes("/a", methods=("POST",)).find(b"/a")
    assert get is not None
    assert post is not None
    assert (get.methods, get.allow) == ({b"GET", b"HEAD"}, b"GET, HEAD, OPTIONS")
    assert (post.methods, post.allow) == ({b"POST"}, b"POST, OPTIONS")


def test_what_is_remembered_of_paths_has_a_bound() -> None:
    routes = _routes("/")
    for number in range(10_000):
        routes.find(b"/%d" % number)
    assert len(routes._remembered) <= 4096
    routes.find(b"/" + b"x" * 1000)
    assert b"/" + b"x" * 1000 not in routes._remembered
