"""Is what a caller gives to a verb checked before anything is started, and does the module keep what it promises about itself?"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from headgate import arguments, serve
from headgate.errors import ConfigError, HeadgateError, InvalidTypeError, InvalidValueError, NotRunningError
from tests.controller.rig import settings_in

WRONG_TYPES: list[dict[str, object]] = [
    {"name": 3},
    {"name": b"x"},
    {"engine": None},
    {"address": 7},
    {"http_host": None},
    {"http_port": "8000"},
    {"http_port": True},
    {"http_port": 80.0},
    {"num_ingresses": 1.5},
    {"num_ingresses": True},
    {"max_body_bytes": "1M"},
    {"max_inflight_bytes": 0.5},
    {"resources": [("CPU", 1)]},
    {"resources": {"CPU": "4"}},
    {"resources": {"CPU": True}},
    {"resources": {3: 1}},
    {"state_dir": 3},
    {"state_dir": b"/tmp/x"},
    {"detached": 1},
    {"debug": "yes"},
    {"ssl_certfile": 3},
    {"ssl_keyfile": 3},
]

WRONG_VALUES: list[dict[str, object]] = [
    {"name": ""},
    {"name": "a\nb"},
    {"name": "\ud800"},
    {"engine": "kubernetes"},
    {"engine": "ray", "resources": {"CPU": 1}},
    {"address": "ray://head:10001"},
    {"http_port": -1},
    {"http_port": 65536},
    {"num_ingresses": 0},
    {"max_body_bytes": -1},
    {"max_inflight_bytes": 0},
    {"resources": {"CPU": -1}},
    {"resources": {"CPU": float("nan")}},
    {"resources": {"tpu": float("inf")}},
    {"resources": {"GPU": 1.5}},
    {"state_dir": ""},
    {"ssl_keyfile": __file__},
    {"ssl_certfile": "/nowhere/at/all.pem"},
]


def runtime_folder() -> list[str]:
    base = f"{os.environ['HEADGATE_RUNTIME_DIR']}/headgate"
    return os.listdir(base) if os.path.isdir(base) else []


@pytest.mark.parametrize("wrong", WRONG_TYPES, ids=str)
def test_init_refuses_a_wrong_type_and_starts_nothing(wrong: dict[str, object]) -> None:
    with pytest.raises(TypeError) as caught:
        serve.init(**wrong)  # type: ignore[arg-type]  # that is the point
    assert isinstance(caught.value, InvalidTypeError)
    assert next(iter(wrong)) in str(caught.value) or "name" in str(caught.value)
    assert runtime_folder() == []


@pytest.mark.parametrize("wrong", WRONG_VALUES, ids=str)
def test_init_refuses_a_wrong_value_and_starts_nothing(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError) as caught:
        serve.init(**wrong)  # type: ignore[arg-type]  # that is the point
    assert isinstance(caught.value, InvalidValueError | ConfigError)
    assert runtime_folder() == []


def test_init_takes_only_its_own_arguments() -> None:
    with pytest.raises(TypeError):
        serve.init("a", "local")  # type: ignore[call-arg]  # everything but the name is by keyword
    with pytest.raises(TypeError):
        serve.init(prot=1)  # type: ignore[call-arg]  # that is the point


def handler(request: object) -> str:
    return "x"


CALLS_WITHOUT_INSTANCE = {
    "create_backend": lambda: serve.create_backend("t", handler),
    "update_backend": lambda: serve.update_backend("t", handler),
    "delete_backend": lambda: serve.delete_backend("t"),
    "update_backend_config": lambda: serve.update_backend_config("t", {}),
    "get_backend_config": lambda: serve.get_backend_config("t"),
    "list_backends": serve.list_backends,
    "list_endpoints": serve.list_endpoints,
    "status": serve.status,
    "stat": serve.stat,
    "create_endpoint": lambda: serve.create_endpoint("e", "/e"),
    "delete_endpoint": lambda: serve.delete_endpoint("e"),
    "set_traffic": lambda: serve.set_traffic("e", {"t": 1.0}),
    "shadow_traffic": lambda: serve.shadow_traffic("e", "t", 0.5),
    "plan": lambda: serve.plan({}),
    "deploy": lambda: serve.deploy({}),
    "get_declared": serve.get_declared,
    "get_handle": lambda: serve.get_handle("e"),
    "shutdown": serve.shutdown,
}


@pytest.mark.parametrize("verb", CALLS_WITHOUT_INSTANCE)
def test_a_verb_without_an_instance_says_what_to_do(verb: str) -> None:
    with pytest.raises(NotRunningError, match=r"serve\.init\(\)") as caught:
        CALLS_WITHOUT_INSTANCE[verb]()
    assert isinstance(caught.value, RuntimeError)
    assert isinstance(caught.value, HeadgateError)


@pytest.mark.parametrize("verb", CALLS_WITHOUT_INSTANCE)
def test_each_function_has_the_signature_and_the_documentation_of_its_method(verb: str) -> None:
    function, method = getattr(serve, verb), getattr(serve.Instance, verb)
    of_method = list(inspect.signature(method).parameters.values())
    assert list(inspect.signature(function).parameters.values()) == of_method[1:]
    assert function.__doc__ == method.__doc__
    assert function.__name__ == verb


def test_every_verb_of_an_instance_is_a_function_too() -> None:
    methods = {name for name, value in vars(serve.Instance).items() if inspect.isfunction(value) and not name.startswith("_")}
    assert methods == set(CALLS_WITHOUT_INSTANCE)
    assert methods < set(serve.__all__)


def test_the_signature_of_init_shows_the_defaults_of_the_contract() -> None:
    assert {name: parameter.default for name, parameter in inspect.signature(serve.init).parameters.items()} == {
        "name": None,
        "engine": "local",
        "address": None,
        "http_host": "127.0.0.1",
        "http_port": 8000,
        "num_ingresses": 1,
        "max_body_bytes": 104857600,
        "max_inflight_bytes": None,
        "resources": None,
        "state_dir": None,
        "detached": False,
        "debug": False,
        "ssl_certfile": None,
        "ssl_keyfile": None,
        "access_log": False,
        "log_format": "text",
        "log_dir": None,
        "admin_address": None,
        "admin_token": None,
        "traces": False,
    }


def test_everything_that_the_module_lists_is_there_and_an_unknown_name_gets_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    for name in serve.__all__:
        assert getattr(serve, name) is not None
        assert name in dir(serve)
    with pytest.raises(AttributeError, match="create_backend") as caught:
        serve.create_backen  # noqa: B018 - that is the point
    sys.__excepthook__(AttributeError, caught.value, None)
    assert capsys.readouterr().err.lower().count("did you mean") == 1  # Python would add one of its own


def test_importing_the_module_brings_in_nothing_heavy() -> None:
    heavy = {"asyncio", "cloudpickle", "httptools", "prometheus_client", "sqlite3", "subprocess", "uvloop", "werkzeug"}
    code = f"import sys; from headgate import serve; print(sorted({heavy!r} & set(sys.modules)))"
    environ = {**os.environ, "PYTHONPATH": str(Path(serve.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_verb_of_the_module_is_a_method_of_an_instance() -> None:
    others = ("init", "connect", "list_instances", "context", "metrics")
    functions = {name for name in serve.__all__ if name.islower() and name not in others}
    assert {name for name in functions if not callable(getattr(serve.Instance, name, None))} == set()


@pytest.mark.parametrize(
    ("host", "public"),
    [
        ("127.0.0.1", False),
        ("127.8.9.1", False),
        ("::1", False),
        ("localhost", False),
        ("0.0.0.0", True),
        ("::", True),
        ("", True),
        ("10.1.2.3", True),
        ("example.org", True),
    ],
)
def test_an_address_that_others_can_reach_is_warned_of(host: str, public: bool) -> None:
    warned = arguments.exposure(msgspec.structs.replace(settings_in("/nowhere"), http_host=host))
    assert bool(warned) is public
    assert not public or f"http_host={host!r}" in warned[0]
