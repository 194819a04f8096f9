"""Does each verb make of the desired state what the contract says, or refuse with the error that it names?"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from headgate.config import BackendConfig, ReplicaOptions
from headgate.core.desired import Fault, State, apply, concurrency_of, routing_table
from headgate.core.messages import (
    CreateBackend,
    CreateEndpoint,
    DeleteBackend,
    DeleteEndpoint,
    ReplicaEntry,
    RoutingTable,
    SetTraffic,
    ShadowTraffic,
    UpdateBackend,
    UpdateBackendConfig,
)
from headgate.core.specs import Definition, MethodInfo
from headgate.errors import AlreadyExistsError, ChangedMeanwhileError, ConfigError, InUseError, InvalidValueError, NotFoundError


def code(name: str = "f", *, call: MethodInfo | None = None, **methods: MethodInfo) -> Definition:
    return Definition(b"", name, {"": call or MethodInfo("")} | methods)


def create(tag: str, definition: Definition | None = None, **config: Any) -> CreateBackend:
    return CreateBackend(tag, definition or code(), BackendConfig(**config), ReplicaOptions())


def endpoint(name: str, route: str | None = None, methods: tuple[str, ...] = ("GET",), backend: str | None = None) -> CreateEndpoint:
    return CreateEndpoint(name, route, methods, backend)


def after(*verbs: Any) -> State:
    state = State()
    for verb in verbs:
        state = apply(state, verb)
    return state


BATCHES = MethodInfo("", is_batch=True)
TWO = after(create("v1"), create("v2"), endpoint("e", "/e", backend="v1"))


def refuses(state: State, verb: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        apply(state, verb)


# Backends.


def test_each_version_of_code_has_a_generation_of_its_own():
    state = after(create("v1"), create("v2"), UpdateBackend("v1", code("g"), False), DeleteBackend("v2"), create("v2"))
    assert (state.backends["v1"].generation, state.backends["v2"].generation) == (3, 4)
    assert state.backends["v1"].definition.name == "g"


@pytest.mark.parametrize("name", ["", "a\nb", "\x00", "a\x7f", "\x85", "\ud800"])
def test_names_that_are_empty_or_have_control_characters_are_refused(name: str):
    refuses(State(), create(name), InvalidValueError, "backend tag")
    refuses(State(), endpoint(name), InvalidValueError, "endpoint name")


def test_a_duplicate_tag_is_refused_naming_what_to_do():
    refuses(TWO, create("v1"), AlreadyExistsError, r"'v1'.*update_backend.*list_backends")


def test_batches_need_a_handler_that_takes_them():
    refuses(State(), create("v1", max_batch_size=2), ConfigError, "accept_batch")
    state = after(create("v1", code(call=BATCHES), max_batch_size=2))
    refuses(state, UpdateBackend("v1", code("g"), False), ConfigError, "accept_batch")
    refuses(TWO, UpdateBackendConfig("v1", {"max_batch_size": 2}, None), ConfigError, "accept_batch")


def test_http_methods_must_exist_on_the_class():
    definition = code("M", predict=MethodInfo("predict"))
    state = after(create("v1", definition, http_methods=("predict", "__call__")))
    refuses(state, UpdateBackendConfig("v1", {"http_methods": ("predicct",)}, None), ConfigError, "'predict'")
    refuses(state, UpdateBackend("v1", code("N", other=MethodInfo("other")), False), ConfigError, "predict")
    refuses(State(), create("v1", http_methods=("predict",)), ConfigError, "no methods")


def test_a_dict_changes_keys_and_a_config_replaces_all():
    state = after(create("v1", num_replicas=2, concurrency=3))
    changed = apply(state, UpdateBackendConfig("v1", {"num_replicas": 4}, None)).backends["v1"].config
    assert (changed.num_replicas, changed.concurrency) == (4, 3)
    replaced = apply(state, UpdateBackendConfig("v1", None, BackendConfig(num_replicas=5))).backends["v1"].config
    assert replaced == BackendConfig(num_replicas=5)


def test_an_unknown_key_is_refused_with_the_nearest_name():
    refuses(TWO, UpdateBackendConfig("v1", {"num_replica": 2}, None), ConfigError, "num_replicas")


@pytest.mark.parametrize(
    ("verb", "overtaken", "now"),
    [
        (SetTraffic("e", {"v1": 0.5, "v2": 0.5}, {"v1": 1.0}), {"v2": 1.0}, "v1 1.0"),
        (SetTraffic("e", {"v1": 0.5, "v2": 0.5}, {"v1": 1.0}), {}, "v1 1.0"),
        (UpdateBackendConfig("v1", {"num_replicas": 3}, None, {"num_replicas": 1}), {"num_replicas": 2}, "num_replicas 1"),
        (UpdateBackendConfig("v1", {"num_replicas": 3}, None, {"num_replicas": 1}), {"nothing": 1}, "nothing None"),
    ],
)
def test_what_was_made_for_another_state_is_refused_and_says_what_is_so(verb: Any, overtaken: dict[str, float], now: str):
    assert apply(TWO, verb) != TWO
    refuses(TWO, msgspec.structs.replace(verb, based_on=overtaken), ChangedMeanwhileError, f"changed by others meanwhile: it is {now} now")


def test_a_backend_with_weight_or_as_a_shadow_can_not_be_deleted():
    refuses(TWO, DeleteBackend("v1"), InUseError, "'e'")
    shadowed = apply(TWO, ShadowTraffic("e", "v2", 0.1))
    refuses(shadowed, DeleteBackend("v2"), InUseError, "'e'")


def test_a_backend_with_weight_zero_can_be_deleted_and_is_forgotten_by_its_endpoints():
    state = apply(TWO, SetTraffic("e", {"v1": 1.0, "v2": 0.0}))
    state = apply(state, DeleteBackend("v2"))
    assert "v2" not in state.backends
    assert state.endpoints["e"].weights == {"v1": 1.0}


@pytest.mark.parametrize(
    "verb",
    [
        DeleteBackend("v3"),
        UpdateBackend("v3", code(), False),
        UpdateBackendConfig("v3", {}, None),
        endpoint("f", backend="v3"),
        SetTraffic("e", {"v3": 1.0}),
        ShadowTraffic("e", "v3", 0.5),
    ],
)
def test_an_unknown_tag_is_named_with_the_nearest_one(verb: Any):
    refuses(TWO, verb, NotFoundError, r"'v3'; did you mean 'v[12]'")


@pytest.mark.parametrize("verb", [DeleteEndpoint("ee"), SetTraffic("ee", {"v1": 1.0}), ShadowTraffic("ee", "v1", 0.5)])
def test_an_unknown_endpoint_is_named_with_the_nearest_one(verb: Any):
    refuses(TWO, verb, NotFoundError, "'ee'; did you mean 'e'")


# Endpoints.


def test_the_same_endpoint_again_changes_nothing_whatever_its_traffic_is_now():
    state = apply(TWO, SetTraffic("e", {"v2": 1.0}))
    assert apply(state, endpoint("e", "/e", ("get",), "v1")) is state


@pytest.mark.parametrize(
    "other", [endpoint("e", "/other", backend="v1"), endpoint("e", "/e", ("POST",), "v1"), endpoint("e", "/e"), endpoint("e", backend="v1")]
)
def test_the_same_name_with_anything_else_is_refused(other: CreateEndpoint):
    refuses(TWO, other, AlreadyExistsError, "'e'")


def test_a_route_that_is_taken_is_refused_naming_who_has_it():
    refuses(TWO, endpoint("f", "/e"), AlreadyExistsError, "taken by endpoint 'e'")
    assert apply(TWO, endpoint("f", "/e/")).endpoints["f"].route == "/e/"


def test_any_number_of_endpoints_have_no_route():
    assert len(after(endpoint("a"), endpoint("b")).endpoints) == 2


@pytest.mark.parametrize(
    ("route", "match"), [("e", "begins"), ("", "begins"), ("/-/x", "Headgate's own"), ("/-/", "Headgate's own"), ("/a\r\n", "control")]
)
def test_routes_that_can_not_be(route: str, match: str):
    refuses(State(), endpoint("e", route), InvalidValueError, match)


def test_methods_are_known_and_upper_cased():
    assert after(endpoint("e", methods=("get", "Post", "GET"))).endpoints["e"].methods == ("GET", "POST")
    refuses(State(), endpoint("e", methods=("GETT",)), InvalidValueError, "'GET'")
    refuses(State(), endpoint("e", methods=()), InvalidValueError, "at least one")


def test_a_deleted_endpoint_frees_its_name_and_route():
    state = apply(TWO, DeleteEndpoint("e"))
    assert apply(state, endpoint("f", "/e")).endpoints.keys() == {"f"}


# Traffic.


@pytest.mark.parametrize("weights", [{}, {"v1": 0.5}, {"v1": float("nan")}, {"v1": 1.5, "v2": -0.5}, {"v1": 0.6, "v2": 0.5}])
def test_weights_that_are_no_policy_are_refused(weights: dict[str, float]):
    refuses(TWO, SetTraffic("e", weights), InvalidValueError, "weight")


def test_new_weights_replace_the_old_and_leave_the_shadows():
    state = apply(apply(TWO, ShadowTraffic("e", "v2", 0.25)), SetTraffic("e", {"v2": 1.0}))
    assert (state.endpoints["e"].weights, state.endpoints["e"].shadows) == ({"v2": 1.0}, {"v2": 0.25})


def test_a_shadow_of_zero_leaves_no_trace():
    state = apply(apply(TWO, ShadowTraffic("e", "v2", 0.25)), ShadowTraffic("e", "v2", 0.0))
    assert state == TWO
    refuses(TWO, ShadowTraffic("e", "v2", 1.5), InvalidValueError, "1.5")


# What routers are told.


@pytest.mark.parametrize(
    ("definition", "configured", "expected"),
    [
        (code(), None, 1),
        (code(call=MethodInfo("", is_async=True)), None, 100),
        (code(call=BATCHES), None, 1),
        (code(call=MethodInfo("", is_async=True, is_batch=True)), None, 1),
        (code("M", go=MethodInfo("go", is_async=True)), None, 100),
        (code(call=MethodInfo("", is_async=True)), 7, 7),
    ],
)
def test_concurrency_defaults_to_100_for_async_handlers_and_to_1_for_others(definition: Definition, configured: int | None, expected: int):
    assert concurrency_of(definition, BackendConfig(concurrency=configured)) == expected


def test_a_table_has_the_ready_replicas_and_how_many_are_on_their_way():
    ready = {"v1": [ReplicaEntry("r1", "/r1", "t1"), ReplicaEntry("r2", "/r2", "t2")]}
    faults = {"v1": Fault("unused", 3.0), "v2": Fault("no model", 0.4)}
    table = routing_table(TWO, ready, coming={"v2": 3}, faults=faults, leaving={}, base=RoutingTable(version=7, debug=True))
    assert (table.version, table.debug) == (7, True)
    assert table.backends["v1"].replicas == (ReplicaEntry("r1", "/r1", "t1"), ReplicaEntry("r2", "/r2", "t2"))
    assert (table.backends["v1"].starting, table.backends["v2"].starting) == (0, 3)
    assert table.backends["v2"].replicas == ()
    assert (table.backends["v1"].fault, table.backends["v1"].pause_s) == ("", 0.0)  # who has all replicas has no fault
    assert (table.backends["v2"].fault, table.backends["v2"].pause_s) == ("no model", 0.4)
    assert (table.endpoints["e"].route, table.endpoints["e"].weights) == ("/e", {"v1": 1.0})
    assert table.leaving == {}


def test_a_table_has_backends_that_are_leaving_apart_from_those_that_are_asked_for():
    state = State({"v1": TWO.backends["v1"]})
    leaving = {"v2": TWO.backends["v2"]}
    table = routing_table(state, {"v2": [ReplicaEntry("r", "/r", "t")]}, coming={"v2": 1}, faults={}, leaving=leaving, base=RoutingTable(7))
    assert (table.backends.keys(), table.leaving.keys()) == ({"v1"}, {"v2"})
    assert (table.leaving["v2"].replicas, table.leaving["v2"].starting) == ((ReplicaEntry("r", "/r", "t"),), 1)
