"""What has to be done so that an instance runs what is declared, and nothing else?

`plan` compares the two. Its steps are for people, who see them before anything is done; its verb does all of them at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

import msgspec

from headgate.config import BackendConfig
from headgate.core.declared import Declared, DeclaredBackend, DeclaredEndpoint, same_data
from headgate.core.messages import Deploy, DeployedBackend, EndpointEntry
from headgate.core.reports import BackendInfo, Description, EndpointInfo
from headgate.core.specs import Code, Definition

CREATE: Final = "create"
REPLACE: Final = "replace"
"""All of a backend's replicas give way to new ones."""
CHANGE: Final = "change"
DELETE: Final = "delete"
SIGNS: Final = {CREATE: "+", REPLACE: "~", CHANGE: "~", DELETE: "-"}


class Change(msgspec.Struct, frozen=True):
    """One value that will be another; None is where there is none."""

    key: str
    """Where it is, with dots, such as "config.num_replicas"."""
    old: Any
    """What it is now."""
    new: Any
    """What it will be."""
    why: str = ""
    """Why, where that can't be seen by the values."""


class Step(msgspec.Struct, frozen=True):
    """What becomes of one backend or endpoint."""

    kind: str
    """ "create", "replace" (all replicas give way to new ones), "change" or "delete"."""
    what: str
    """ "backend" or "endpoint"."""
    name: str
    """The backend's tag, or the endpoint's name."""
    changes: tuple[Change, ...] = ()
    """The values that change."""
    starts: int = 0
    """So many replicas start for it."""

    @property
    def sign(self) -> str:
        """Plus, minus or tilde."""
        return SIGNS[self.kind]


class Plan(msgspec.Struct, frozen=True):
    """What a deployment will do; `print` shows it as a diff, a line for each step."""

    steps: tuple[Step, ...]
    """What becomes of each backend and endpoint that doesn't stay as it is; none: there is nothing to do."""
    verb: Deploy  # which does it, unless the instance was changed meanwhile

    @property
    def starts(self) -> dict[str, int]:
        """How many replicas start, by backend."""
        return {step.name: step.starts for step in self.steps if step.starts}

    def __str__(self) -> str:
        return "\n".join(f"{'  ' * line.depth}{line.sign} {line.text}" for line in lines(self)) or "nothing to do"


def plan(
    declared: Declared,
    definitions: Mapping[str, Definition],
    running: Description,
    *,
    update: Collection[str] = (),
    code: Mapping[str, Code],
) -> Plan:
    """Compare what is declared with what is asked for of the instance.

    `definitions` has the code of each backend that can be imported, `code` how a file names that, or what runs; `update` are
    the backends whose code is to be replaced though it looks the same.
    """
    steps: list[Step] = []
    backends: list[DeployedBackend] = []
    for tag, wanted in declared.backends.items():
        step = _backend_step(tag, wanted, running.backends.get(tag), code[tag], is_forced=tag in update)
        old = running.backends.get(tag)
        fresh = old is None or not _same_code(old.code, code[tag]) or tag in update
        backends.append(DeployedBackend(tag, definitions[tag] if fresh else None, wanted.config, wanted.ray_actor_options))
        steps += [step] if step is not None else []
    steps += [Step(DELETE, "backend", tag) for tag in running.backends if tag not in declared.backends]
    for name, endpoint in declared.endpoints.items():
        endpoint_step = _endpoint_step(name, endpoint, running.endpoints.get(name))
        steps += [endpoint_step] if endpoint_step is not None else []
    steps += [Step(DELETE, "endpoint", name) for name in running.endpoints if name not in declared.endpoints]
    endpoints = tuple(
        EndpointEntry(name, endpoint.route, endpoint.methods, endpoint.traffic, endpoint.shadows)
        for name, endpoint in declared.endpoints.items()
    )
    return Plan(tuple(steps), Deploy(tuple(backends), endpoints, running.state_id))


def as_it_is(running: Description) -> Deploy:
    """The deployment that changes nothing, from which one that changes a little is made."""
    return Deploy(
        tuple(DeployedBackend(tag, None, backend.config, backend.options) for tag, backend in running.backends.items()),
        tuple(
            EndpointEntry(name, endpoint.route, endpoint.methods, endpoint.traffic, endpoint.shadows)
            for name, endpoint in running.endpoints.items()
        ),
        running.state_id,
    )


def _backend_step(tag: str, wanted: DeclaredBackend, old: BackendInfo | None, code: Code, *, is_forced: bool) -> Step | None:
    count = wanted.config.num_replicas
    if old is None:
        shown = [Change("import_path", None, code.import_path), *_of_arguments(Code(), code)]
        shown += _of_record("config", BackendConfig(), wanted.config) + _of_record("ray_actor_options", None, wanted.ray_actor_options)
        return Step(CREATE, "backend", tag, tuple(shown), count)
    replacing = _of_code(old.code, code)
    if is_forced and not replacing:
        replacing = [Change("import_path", old.code.import_path, code.import_path, "asked for")]
    replacing += _of_record("ray_actor_options", old.options, wanted.ray_actor_options)
    changes = (*replacing, *_of_record("config", old.config, wanted.config))
    if replacing:
        return Step(REPLACE, "backend", tag, changes, count)
    return Step(CHANGE, "backend", tag, changes, max(count - old.config.num_replicas, 0)) if changes else None


def _endpoint_step(name: str, wanted: DeclaredEndpoint, old: EndpointInfo | None) -> Step | None:
    before = old or EndpointInfo(name, None, (), {}, {})
    changes = [Change("route", before.route, wanted.route)] if before.route != wanted.route else []
    if set(before.methods) != set(wanted.methods):
        changes.append(Change("methods", list(before.methods) or None, list(wanted.methods)))
    changes += _of_mapping("traffic", before.traffic, wanted.traffic) + _of_mapping("shadows", before.shadows, wanted.shadows)
    if old is None:
        return Step(CREATE, "endpoint", name, tuple(changes))
    return Step(CHANGE, "endpoint", name, tuple(changes)) if changes else None


def _same_code(old: Code, new: Code) -> bool:
    return not _of_code(old, new)


def _of_code(old: Code, new: Code) -> list[Change]:
    changes = [Change("import_path", old.import_path, new.import_path)] if old.import_path != new.import_path else []
    if not changes and old.source_hash != new.source_hash:
        changes.append(Change("import_path", old.import_path, new.import_path, "its file has changed"))
    return changes + _of_arguments(old, new)


def _of_arguments(old: Code, new: Code) -> list[Change]:
    changes = []
    if not same_data(old.init_args, new.init_args):
        changes.append(Change("init_args", old.init_args or None, new.init_args or None))
    return changes + _of_mapping("init_kwargs", old.init_kwargs, new.init_kwargs)


def _of_record(name: str, old: msgspec.Struct | None, new: msgspec.Struct) -> list[Change]:
    before = type(new)() if old is None else old
    changes = []
    for key in new.__struct_fields__:
        if getattr(before, key) != getattr(new, key):
            was, is_now = _without_secrets(key, getattr(before, key)), _without_secrets(key, getattr(new, key))
            changes.append(Change(f"{name}.{key}", was, is_now, "a value has changed that isn't shown" if was == is_now else ""))
    return changes


def _without_secrets(key: str, value: Any) -> Any:
    """As it is shown: of environment variables the names alone."""
    if key == "runtime_env" and "env_vars" in value:
        return {**value, "env_vars": sorted(value["env_vars"])}
    return msgspec.to_builtins(value)


def _of_mapping(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    keys = dict.fromkeys([*old, *new])
    return [
        Change(f"{name}.{key}", old.get(key), new.get(key))
        for key in keys
        if (key in old) != (key in new) or not same_data(old[key], new[key])
    ]


# For people.

_MOST_CHARS: Final = 60


class Line(msgspec.Struct, frozen=True):
    """A line of the plan; what it is about is told by its sign: +, -, ~ or none."""

    sign: str
    text: str
    depth: int = 0


def lines(plan: Plan) -> Iterator[Line]:
    """The plan, line by line: a step, and below it what it changes."""
    for step in plan.steps:
        yield Line(step.sign, f"{step.what} {step.name}{_about(step)}")
        for change in step.changes:
            yield _line(step, change)


def summary(plan: Plan) -> str:
    """The plan in one line, such as "1 to create, 2 to change"."""
    counts = {
        "to create": sum(step.kind == CREATE for step in plan.steps),
        "to replace": sum(step.kind == REPLACE for step in plan.steps),
        "to change": sum(step.kind == CHANGE for step in plan.steps),
        "to delete": sum(step.kind == DELETE for step in plan.steps),
    }
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "nothing to do"


def _about(step: Step) -> str:
    replicas = f"{step.starts} replica{'s' if step.starts != 1 else ''}"
    if step.kind == REPLACE:
        return f" ({replicas} replaced)"
    if step.what == "backend" and step.starts:
        return f" ({'' if step.kind == CREATE else '+'}{replicas})"
    return ""


def _line(step: Step, change: Change) -> Line:
    if change.why:
        return Line("~", f"{change.key}: {_said(change.new)} ({change.why})", 1)
    if step.kind == CREATE:
        return Line("+", f"{change.key}: {_said(change.new)}", 1)
    if change.old is None and "." in change.key and not change.key.startswith(("config.", "ray_actor_options.")):
        return Line("+", f"{change.key}: {_said(change.new)}", 1)
    if change.new is None and "." in change.key and not change.key.startswith(("config.", "ray_actor_options.")):
        return Line("-", f"{change.key}: {_said(change.old)}", 1)
    return Line("~", f"{change.key}: {_said(change.old)} -> {_said(change.new)}", 1)


def _said(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, str) and value.isprintable():
        text = value
    else:
        text = msgspec.json.encode(value).decode()
    return text if len(text) <= _MOST_CHARS else f"{text[: _MOST_CHARS - 1]}…"
