"""Does a plan lead from any state to what is declared, and is there nothing to do then?"""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given, settings

from headgate import declaring
from headgate.controller.describe import description
from headgate.core import desired
from headgate.core.declared import BY_VALUE, Declared, HttpSettings
from headgate.core.desired import State
from headgate.core.plan import Plan, lines, plan, summary
from headgate.core.reports import Description
from headgate.core.specs import Code, Definition, MethodInfo
from tests.controller.rig import settings_in
from tests.properties.test_declared import states


def described(state: State, **http: Any) -> Description:
    """What an instance that was asked for this tells."""
    base = settings_in("/nowhere", **({"http_port": 8000, "max_body_bytes": 104857600} | http))
    return description(base, (), state, [], [], updating=(), faults={}, waiting={}, resources=({}, {}), node="", now=0.0)


def definitions(declared: Declared) -> dict[str, Definition]:
    """As if all code could be imported."""
    return {
        tag: Definition(
            payload=tag.encode(),
            name="f",
            methods={"": MethodInfo("", is_batch=True), "predict": MethodInfo("predict")},
            code=Code() if backend.by_value else Code(backend.import_path, backend.init_args, backend.init_kwargs, "hash"),
        )
        for tag, backend in declared.backends.items()
    }


def planned(declared: Declared, state: State) -> Plan:
    code = definitions(declared)
    return plan(declared, code, described(state), code={tag: one.code for tag, one in code.items()})


def importable(declared: Declared) -> Declared:
    backends = {
        tag: msgspec.structs.replace(backend, import_path=backend.import_path.replace(BY_VALUE, "m:").replace("@", ""))
        for tag, backend in declared.backends.items()
    }
    return msgspec.structs.replace(declared, backends=backends)


@settings(max_examples=60, deadline=None)
@given(states(), states())
def test_a_plan_leads_from_any_state_to_what_is_declared_and_then_there_is_nothing_to_do(before: Declared, after: Declared):
    before, after = importable(before), importable(after)
    state = desired.apply(State(), planned(before, State()).verb)
    first = planned(after, state)
    new = desired.apply(state, first.verb)
    if not first.steps:
        assert desired.state_id(new) == desired.state_id(state)
    assert planned(after, new).steps == ()
    assert summary(planned(after, new)) == str(planned(after, new)) == "nothing to do"
    assert {
        step.name for step in first.steps if step.what == "backend" and step.kind == "delete"
    } == before.backends.keys() - after.backends.keys()
    replaced = {
        tag for tag in before.backends.keys() & after.backends.keys() if state.backends[tag].generation != new.backends[tag].generation
    }
    assert {step.name for step in first.steps if step.kind == "replace"} == replaced
    started = {tag: count for tag, backend in new.backends.items() if (count := desired.missing(state, backend))}
    assert first.starts == started  # what people see is what is done
    for line in lines(first):
        assert line.sign in ("+", "-", "~")
        assert "\n" not in line.text


@settings(max_examples=60, deadline=None)
@given(states())
def test_deploying_what_is_told_of_a_running_state_changes_nothing(declared: Declared):
    state = desired.apply(State(), planned(importable(declared), State()).verb)
    running = described(state, **msgspec.to_builtins(declared.http))
    told = declaring.of_running(running, dict.fromkeys(HttpSettings.__struct_fields__))
    code = {tag: backend.code for tag, backend in running.backends.items()}
    again = plan(told, {}, running, code=code)
    assert again.steps == ()
    assert desired.apply(state, again.verb) == state
    reparsed = declaring.load(told).declared
    assert reparsed == told
    if declared.http != HttpSettings():
        for key, value in msgspec.to_builtins(told.http).items():
            assert running.http[key] == value
