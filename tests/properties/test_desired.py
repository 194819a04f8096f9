"""Whatever verbs come in whatever order: is the desired state sound, and is a refused verb as if it had never been sent?"""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from headgate.config import BackendConfig, ReplicaOptions
from headgate.core.desired import State, apply
from headgate.core.messages import CreateBackend, CreateEndpoint, DeleteBackend, DeleteEndpoint, SetTraffic, ShadowTraffic, UpdateBackend
from headgate.core.specs import Definition, MethodInfo
from headgate.errors import HeadgateError

TAGS = st.sampled_from(["v1", "v2", "v3"])
NAMES = st.sampled_from(["a", "b", "c"])
ROUTES = st.sampled_from([None, "/a", "/b"])
CODE = Definition(b"", "f", {"": MethodInfo("")})
WEIGHTS = st.dictionaries(TAGS, st.sampled_from([0.0, 0.5, 1.0]), max_size=3)

VERBS = st.one_of(
    st.builds(CreateBackend, TAGS, st.just(CODE), st.just(BackendConfig()), st.just(ReplicaOptions())),
    st.builds(UpdateBackend, TAGS, st.just(CODE), st.just(False)),
    st.builds(DeleteBackend, TAGS),
    st.builds(CreateEndpoint, NAMES, ROUTES, st.just(("GET",)), st.none() | TAGS),
    st.builds(DeleteEndpoint, NAMES),
    st.builds(SetTraffic, NAMES, WEIGHTS),
    st.builds(ShadowTraffic, NAMES, TAGS, st.sampled_from([0.0, 0.5, 1.0])),
)


class Model:
    """The contract's rules in sets and dicts, without a look at the code under test."""

    def __init__(self) -> None:
        self.tags: set[str] = set()
        self.routes: dict[str, str | None] = {}
        self.created: dict[str, tuple[str | None, str | None]] = {}
        self.weights: dict[str, dict[str, float]] = {}
        self.shadows: dict[str, dict[str, float]] = {}

    def used(self, tag: str) -> bool:
        return any(policy.get(tag) for policy in [*self.weights.values(), *self.shadows.values()])

    def accepts(self, verb: Any) -> bool:
        """Apply the verb, if the contract allows it."""
        match verb:
            case CreateBackend(tag=tag):
                fine = tag not in self.tags
                self.tags.add(tag)
                return fine
            case UpdateBackend(tag=tag):
                return tag in self.tags
            case DeleteBackend(tag=tag):
                if tag not in self.tags or self.used(tag):
                    return False
                self.tags.remove(tag)
                for policy in self.weights.values():
                    policy.pop(tag, None)
            case CreateEndpoint(name=name, route=route, backend=backend):
                if backend is not None and backend not in self.tags:
                    return False
                if name in self.created:
                    return self.created[name] == (route, backend)
                if route is not None and route in self.routes.values():
                    return False
                self.routes[name], self.created[name] = route, (route, backend)
                self.weights[name], self.shadows[name] = {backend: 1.0} if backend else {}, {}
            case DeleteEndpoint(name=name):
                if name not in self.created:
                    return False
                for known in (self.routes, self.created, self.weights, self.shadows):
                    del known[name]
            case SetTraffic(endpoint=name, weights=weights):
                if name not in self.created or sum(weights.values()) != 1.0 or not weights.keys() <= self.tags:
                    return False
                self.weights[name] = dict(weights)
            case ShadowTraffic(endpoint=name, backend=tag, proportion=share):
                if name not in self.created or tag not in self.tags:
                    return False
                self.shadows[name].pop(tag, None)
                if share:
                    self.shadows[name][tag] = share
        return True


@given(st.lists(VERBS, max_size=30))
def test_the_state_follows_the_contract_and_refused_verbs_change_nothing(verbs: list[Any]):
    state, model = State(), Model()
    generations: set[int] = set()
    for verb in verbs:
        before, expected = copy.deepcopy(state), model.accepts(verb)
        try:
            new = apply(state, verb)
        except HeadgateError:
            assert not expected
        else:
            assert expected
            if isinstance(verb, CreateBackend | UpdateBackend):
                generation = new.backends[verb.tag].generation
                assert generation not in generations
                generations.add(generation)
            assert state == before  # the old state is never changed in place
            state = new
        assert state.backends.keys() == model.tags
        assert {name: endpoint.route for name, endpoint in state.endpoints.items()} == model.routes
        assert {name: endpoint.weights for name, endpoint in state.endpoints.items()} == model.weights
        assert {name: endpoint.shadows for name, endpoint in state.endpoints.items()} == model.shadows
        if not expected:
            assert state == before
