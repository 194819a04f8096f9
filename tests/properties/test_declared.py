"""Is what is written of a declared state read again as the same, in each notation?"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headgate import formats
from headgate.config import BackendConfig, ReplicaOptions
from headgate.core import declared as declared_state
from headgate.core.declared import Declared, DeclaredBackend, DeclaredEndpoint, HttpSettings, same_data
from headgate.errors import InvalidValueError
from headgate.scheduling import InPlacementGroup, LabelMatch, NodeAffinity, NodeLabels

TEXTS = st.text(max_size=12) | st.sampled_from(
    ["on", "no", "1e3", "0x1f", "0o7", "010", "12:30", "~", "null", "<<", "=", "- a", "a: b", ".nan", "1_0", "2001-01-01"]
)
VISIBLE = st.text(st.characters(min_codepoint=0x20, exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8) | st.sampled_from(
    ["on", "1", "~", "a:v1"]
)
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
PLAIN = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=4)
SECONDS = st.floats(0.001, 1e6) | st.integers(1, 1000)

CONFIGS = st.builds(
    BackendConfig,
    num_replicas=st.integers(1, 9),
    concurrency=st.none() | st.integers(1, 9),
    request_timeout=st.none() | SECONDS,
    idempotent=st.booleans(),
    http_methods=st.sampled_from([(), ("predict", "__call__")]),
    startup_timeout=SECONDS,
)
STRATEGIES = (
    st.sampled_from([None, "SPREAD", "DEFAULT", InPlacementGroup(id="0f", bundle_index=2)])
    | st.builds(NodeAffinity, node_id=VISIBLE, soft=st.booleans())
    | st.builds(NodeLabels, hard=st.dictionaries(VISIBLE, st.builds(LabelMatch, st.just("In"), st.just(("a", "b"))), max_size=2))
)
OPTIONS = st.builds(
    ReplicaOptions,
    num_cpus=st.sampled_from([0.0, 0.5, 2.0]),
    resources=st.dictionaries(st.sampled_from(["tpu", "on"]), st.floats(0, 4), max_size=2),
    runtime_env=st.just({}) | st.builds(lambda env: {"env_vars": env}, st.dictionaries(TEXTS, TEXTS, min_size=1, max_size=2)),
    scheduling_strategy=STRATEGIES,
    fallback_strategy=st.sampled_from([(), ({"label_selector": {"zone": "in(a,b)"}},)]),
    max_pending_calls=st.sampled_from([-1, 5]),
)
BACKENDS = st.builds(
    DeclaredBackend,
    import_path=st.sampled_from(["app:f", "a.b.c:D.e"]),
    init_args=st.lists(PLAIN, max_size=2),
    init_kwargs=st.dictionaries(TEXTS, PLAIN, max_size=2),
    config=CONFIGS,
    ray_actor_options=OPTIONS,
) | st.builds(DeclaredBackend, import_path=st.just("by-value:f@0123456789abcdef"), config=CONFIGS)
HTTP = st.builds(HttpSettings, http_port=st.sampled_from([0, 8000]), num_ingresses=st.sampled_from([1, "every_node"]), debug=st.booleans())


@st.composite
def states(draw: st.DrawFn) -> Declared:
    backends = draw(st.dictionaries(VISIBLE, BACKENDS, max_size=2))
    endpoints = {}
    for name in draw(st.lists(VISIBLE, max_size=2, unique=True)):
        weights, shadows = {}, {}
        has_traffic = draw(st.booleans())
        if backends and has_traffic:
            weights = {tag: 1 / len(backends) for tag in backends}
            shadows = {tag: draw(st.sampled_from([0.25, 1.0])) for tag in backends}
        route = draw(st.sampled_from([None, f"/{name}"]))
        endpoints[name] = DeclaredEndpoint(
            route=route, methods=draw(st.sampled_from([("GET",), ("POST", "GET")])), traffic=weights, shadows=shadows
        )
    routes = [endpoint.route for endpoint in endpoints.values() if endpoint.route is not None]
    assert len(routes) == len(set(routes))
    if any(route.startswith("/-/") for route in routes):
        endpoints = {}
    return Declared(http=draw(st.just(HttpSettings()) | HTTP), backends=backends, endpoints=endpoints)


@pytest.mark.parametrize("notation", [formats.YAML, formats.TOML, formats.JSON])
@settings(max_examples=60, deadline=None)
@given(state=states())
def test_what_is_written_is_read_as_the_same(notation: str, state: Declared):
    data = declared_state.to_data(state)
    try:
        text = formats.write(data, notation)
    except InvalidValueError as error:
        assert notation == formats.TOML
        assert "is null, which TOML can't say" in error.message  # noqa: PT017 - as above
        return
    found = formats.read(text, f"app.{notation}", notation).data
    again, problems = declared_state.parse(found)
    assert problems == []
    assert again == state
    for tag, backend in state.backends.items():  # 1, 1.0 and True are equal, and not the same
        assert same_data(again.backends[tag].init_args, backend.init_args)
        assert same_data(again.backends[tag].init_kwargs, backend.init_kwargs)


KEYS = [*Declared.__struct_fields__, *DeclaredBackend.__struct_fields__, *DeclaredEndpoint.__struct_fields__]
ANYTHING = st.recursive(
    SCALARS | st.binary(max_size=2),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | TEXTS | st.integers(0, 2), inner, max_size=4),
    max_leaves=30,
)


@given(ANYTHING)
def test_whatever_a_file_says_is_right_or_told_to_be_wrong(data: Any):
    declared, problems = declared_state.parse(data)
    assert isinstance(declared, Declared)
    for problem in problems:
        assert problem.text
        value: Any = data
        for key in problem.place:  # it leads to what is there, or to what should be
            value = value.get(key) if isinstance(value, dict) else None
