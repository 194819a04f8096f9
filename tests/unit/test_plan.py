"""Is a plan told so that people see what will happen?"""

from __future__ import annotations

from typing import Any

from headgate.config import BackendConfig, ReplicaOptions
from headgate.core import desired
from headgate.core.declared import Declared, DeclaredBackend, DeclaredEndpoint
from headgate.core.desired import State
from headgate.core.plan import Plan, plan, summary
from headgate.core.specs import Code, Definition, MethodInfo
from tests.properties.test_plan import described


def planned(declared: Declared, state: State, update: tuple[str, ...] = (), hash: str = "hash") -> Plan:
    code = {tag: Code(one.import_path, one.init_args, one.init_kwargs, hash) for tag, one in declared.backends.items()}
    definitions = {tag: Definition(b"", "f", {"": MethodInfo("")}, code=one) for tag, one in code.items()}
    return plan(declared, definitions, described(state), code=code, update=update)


def backend(
    path: str = "shop:Model", *, kwargs: dict[str, Any] | None = None, options: ReplicaOptions | None = None, **config: Any
) -> DeclaredBackend:
    return DeclaredBackend(
        import_path=path, init_kwargs=kwargs or {}, config=BackendConfig(**config), ray_actor_options=options or ReplicaOptions()
    )


BEFORE = Declared(
    backends={
        "same": backend(),
        "code": backend(kwargs={"word": "hello", "size": 1}, num_replicas=2),
        "config": backend(num_replicas=2),
        "gone": backend(),
    },
    endpoints={
        "a": DeclaredEndpoint(route="/a", traffic={"code": 1.0}),
        "b": DeclaredEndpoint(route="/b", shadows={"gone": 0.5}),
        "c": DeclaredEndpoint(),
    },
)
AFTER = Declared(
    backends={
        "same": backend(),
        "code": backend("shop:Other", kwargs={"size": 2, "more": None}, options=ReplicaOptions(num_cpus=0.5), num_replicas=3),
        "config": backend(num_replicas=4, request_timeout=None),
        "new": backend(kwargs={"word": "a\nb" + "x" * 100}),
    },
    endpoints={
        "a": DeclaredEndpoint(route="/aa", methods=("POST",), traffic={"code": 0.75, "new": 0.25}),
        "b": DeclaredEndpoint(route="/b"),
        "d": DeclaredEndpoint(route="/d", traffic={"new": 1.0}),
    },
)


def test_each_step_says_what_becomes_of_what_and_how_many_replicas_start():
    state = desired.apply(State(), planned(BEFORE, State()).verb)
    found = planned(AFTER, state)
    assert str(found) == (
        "~ backend code (3 replicas replaced)\n"
        "  ~ import_path: shop:Model -> shop:Other\n"
        "  - init_kwargs.word: hello\n"
        "  ~ init_kwargs.size: 1 -> 2\n"
        "  + init_kwargs.more: none\n"
        "  ~ ray_actor_options.num_cpus: 0.0 -> 0.5\n"
        "  ~ config.num_replicas: 2 -> 3\n"
        "~ backend config (+2 replicas)\n"
        "  ~ config.num_replicas: 2 -> 4\n"
        "  ~ config.request_timeout: 60.0 -> none\n"
        "+ backend new (1 replica)\n"
        "  + import_path: shop:Model\n"
        f'  + init_kwargs.word: "a\\nb{"x" * 54}…\n'
        "- backend gone\n"
        "~ endpoint a\n"
        "  ~ route: /a -> /aa\n"
        '  ~ methods: ["GET"] -> ["POST"]\n'
        "  ~ traffic.code: 1.0 -> 0.75\n"
        "  + traffic.new: 0.25\n"
        "~ endpoint b\n"
        "  - shadows.gone: 0.5\n"
        "+ endpoint d\n"
        "  + route: /d\n"
        '  + methods: ["GET"]\n'
        "  + traffic.new: 1.0\n"
        "- endpoint c"
    )
    assert summary(found) == "2 to create, 1 to replace, 3 to change, 2 to delete"
    assert found.starts == {"code": 3, "config": 2, "new": 1}


def test_a_changed_file_and_an_asked_for_update_are_told_as_such():
    state = desired.apply(State(), planned(BEFORE, State()).verb)
    assert str(planned(BEFORE, state)) == "nothing to do"
    assert "~ backend same (1 replica replaced)\n  ~ import_path: shop:Model (its file has changed)\n" in str(
        planned(BEFORE, state, hash="x")
    )
    assert str(planned(BEFORE, state, ("same",))) == "~ backend same (1 replica replaced)\n  ~ import_path: shop:Model (asked for)"


def test_numbers_of_different_kinds_are_different_arguments():
    one, other = (Declared(backends={"a": backend(kwargs={"n": value})}) for value in (1, 1.0))
    state = desired.apply(State(), planned(one, State()).verb)
    assert str(planned(other, state)) == "~ backend a (1 replica replaced)\n  ~ init_kwargs.n: 1 -> 1.0"


def test_values_of_environment_variables_are_not_shown():
    def declared(token: str) -> Declared:
        options = ReplicaOptions(runtime_env={"env_vars": {"TOKEN": token}})
        return Declared(backends={"a": backend(options=options)})

    created = planned(declared("hush"), State())
    replaced = planned(declared("new"), desired.apply(State(), created.verb))
    assert '+ ray_actor_options.runtime_env: {"env_vars":["TOKEN"]}' in str(created)
    assert str(replaced) == (
        "~ backend a (1 replica replaced)\n"
        '  ~ ray_actor_options.runtime_env: {"env_vars":["TOKEN"]} (a value has changed that isn\'t shown)'
    )
