"""Does a file of declared state mean what it says, and is each mistake in it named with its line?"""

from __future__ import annotations

import importlib
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from headgate import declaring, formats
from headgate.config import BackendConfig, ReplicaOptions
from headgate.core.declared import Declared, DeclaredBackend, DeclaredEndpoint, HttpSettings
from headgate.errors import DeclaredStateError, InvalidTypeError, InvalidValueError
from tests.support import wait_until

EXPECTED = Declared(
    http=HttpSettings(http_port=8001, debug=True),
    backends={
        "greeter:v1": DeclaredBackend(
            import_path="app.models:Greeter",
            init_args=["hello", 2, 0.5, None, True],
            init_kwargs={"names": ["Ann", "Bob"], "on": "off"},
            config=BackendConfig(num_replicas=2, request_timeout=None),
            ray_actor_options=ReplicaOptions(num_cpus=0.5, runtime_env={"env_vars": {"MODE": "yes"}}),
        ),
        "plain": DeclaredBackend(import_path="app:handler"),
    },
    endpoints={
        "greet": DeclaredEndpoint(
            route="/greet", methods=("GET", "POST"), traffic={"greeter:v1": 0.75, "plain": 0.25}, shadows={"plain": 0.1}
        ),
        "later": DeclaredEndpoint(),
    },
)
YAML = """
http: {http_port: 8001, debug: true}
backends:
  greeter:v1:
    import_path: app.models:Greeter
    init_args: [hello, 2, 0.5, ~, true]
    init_kwargs:
      names: [Ann, Bob]
      on: off  # text, by YAML 1.2
    config:
      num_replicas: 2
      request_timeout: null
    ray_actor_options:
      num_cpus: 0.5
      runtime_env: {env_vars: {MODE: yes}}
  plain: {import_path: "app:handler"}
endpoints:
  greet:
    route: /greet
    methods: [get, POST]
    traffic: {greeter:v1: 0.75, plain: 0.25}
    shadows: {plain: 0.1}
  later: {}
"""
TOML = """
[backends.plain]
import_path = "app:handler"
config.num_replicas = 3
[endpoints.plain]
route = "/"
traffic = { plain = 1 }
"""


def declared(text: str, notation: str = formats.YAML) -> Declared:
    return declaring.load_text(text.encode(), f"app.{notation}", notation, "").declared


def mistakes(text: str, notation: str = formats.YAML) -> list[str]:
    with pytest.raises(DeclaredStateError) as caught:
        declared(text, notation)
    return caught.value.message.splitlines()


def test_a_file_in_yaml_declares_what_it_says():
    assert declared(YAML) == EXPECTED


def test_a_file_in_toml_declares_what_it_says():
    assert declared(TOML, formats.TOML) == Declared(
        backends={"plain": DeclaredBackend(import_path="app:handler", config=BackendConfig(num_replicas=3))},
        endpoints={"plain": DeclaredEndpoint(route="/", traffic={"plain": 1.0})},
    )


@pytest.mark.parametrize(
    ("text", "notation"), [("", formats.YAML), ("# nothing\n", formats.YAML), ("null", formats.JSON), ("# nothing\n", formats.TOML)]
)
def test_an_empty_file_is_refused_since_it_would_delete_everything(text: str, notation: str):
    assert mistakes(text, notation) == [f"app.{notation}: the file is empty; to have nothing run, say so by empty backends and endpoints"]


def test_a_file_may_say_that_nothing_is_to_run():
    for text, notation in (("backends: {}\nendpoints: {}", formats.YAML), ("{}", formats.YAML), ("[backends]", formats.TOML)):
        assert declared(text, notation) == Declared()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("backend: {}", ["app.yaml:1: the file: unknown key 'backend'; did you mean 'backends'?"]),
        ("- 1", ["app.yaml: the file must be a mapping with http, backends or endpoints, got list: [1]"]),
        ("http:\n  http_prt: 1", ["app.yaml:2: http: unknown key 'http_prt'; did you mean 'http_port'?"]),
        ("http:\n  debug: yes", ["app.yaml:2: http: debug must be true or false, got str: 'yes'"]),
        ("http:\n  http_port: true", ["app.yaml:2: http: http_port must be a whole number, got bool: True"]),
        ("backends: [1]", ["app.yaml:1: backends must be a mapping, got list: [1]"]),
        ("backends:\n  7: {}", ["app.yaml:2: a backend tag must be text; put it in quotes, got int: 7"]),
        ("backends:\n  a: x", ["app.yaml:2: backend 'a' must be a mapping with import_path, init_args"]),
        ("backends:\n  a: {config: {}}", ["app.yaml:2: backend 'a': import_path is missing"]),
        (
            "backends:\n  a:\n    import_path: app.f",
            ["app.yaml:3: backend 'a': import_path must be 'module:name', such as 'models.text:Classifier', got 'app.f'; did"],
        ),
        (
            "backends:\n  a:\n    import_path: m:f\n    config:\n      num_replica: 2\n      request_timeout: -1",
            [
                "app.yaml:5: backend 'a': config: unknown key 'num_replica'; did you mean 'num_replicas'?",
                "app.yaml:6: backend 'a': config: request_timeout must be above 0 and finite, got -1",
            ],
        ),
        (
            "backends:\n  a:\n    import_path: m:f\n    config:\n      max_batch_size: 8\n      max_concurrent_queries: 4",
            ["app.yaml:4: backend 'a': config: max_concurrent_queries=4 is below max_batch_size=8"],
        ),
        (
            "backends:\n  a:\n    import_path: m:f\n    ray_actor_options:\n      num_gpu: 1",
            ["app.yaml:5: backend 'a': ray_actor_options: unknown key 'num_gpu'; did you mean 'num_gpus'?"],
        ),
        (
            "backends:\n  a:\n    import_path: m:f\n    init_kwargs:\n      when: .nan",
            [
                "app.yaml:5: backend 'a': an argument must be text, a finite number of at most 64 bits"
            ],
        ),
        ("backends:\n  a:\n    import_path: by-value:f@1\n    init_args: [1]", ["app.yaml:3: backend 'a': code by value has its arg"]),
        ("endpoints:\n  e:\n    route: e", ["app.yaml:3: endpoint 'e': a route begins with '/', got 'e'"]),
        ("endpoints:\n  e: {route: /-/x}", ["app.yaml:2: endpoint 'e': routes under '/-/' are Headgate's own, got '/-/x'; choose another"]),
        ("endpoints:\n  e: {methods: GET}", ["app.yaml:2: endpoint 'e': methods must be a list of HTTP methods"]),
        ("endpoints:\n  e: {methods: [GTE]}", ["app.yaml:2: endpoint 'e': 'GTE' is not an HTTP method that can be served; did"]),
        (
            "backends: {one: {import_path: m:f}}\nendpoints:\n  e:\n    traffic: {one: 0.5}",
            ["app.yaml:4: endpoint 'e': traffic: weights must sum to 1, these sum to 0.5: {'one': 0.5}"],
        ),
        (
            "backends: {one: {import_path: m:f}}\nendpoints:\n  e:\n    traffic:\n      on: 1",
            ["app.yaml:5: endpoint 'e': traffic: the file declares no backend 'on'; did you mean 'one'?"],
        ),
        ("endpoints:\n  e:\n    shadows: {x: 0.5}", ["app.yaml:3: endpoint 'e': shadows: the file declares no backend 'x'"]),
        ("endpoints:\n  e: {route: /x}\n  f: {route: /x}", ["app.yaml:3: endpoint 'f': route '/x' is that of endpoint 'e', too"]),
    ],
)  # fmt: skip
def test_each_mistake_is_named_with_its_line_its_key_and_what_was_expected(text: str, told: list[str]):
    found = mistakes(text)
    assert [line[: len(start)] for line, start in zip(found, told, strict=True)] == told


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file():
    told = mistakes("endpoints:\n  e: {route: x}\n  f: {traffic: {a: 2}}\nbackends:\n  a: {import_path: 3}\nhtp: {}")
    assert [line.split(" ")[0] for line in told] == ["app.yaml:2:", "app.yaml:3:", "app.yaml:5:", "app.yaml:6:"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[backends.a]\nimport_path="m:f"\n[backends.a.config]\nnum_replicas = 0', "app.toml:4: backend 'a': config: num_replicas"),
        ('[backends]\n"a=b".import_path = 3', "app.toml:2: backend 'a=b': import_path must be text"),
        ('[endpoints."e f"]\nroute = "x"', "app.toml:2: endpoint 'e f': a route begins with '/'"),
        ("[http]\nhttp_port = 1\nhttp_port = 2", "app.toml:3: this is no TOML: Cannot overwrite a value"),
        ("x = ", "app.toml:1: this is no TOML: Invalid value"),
    ],
)  # fmt: skip
def test_mistakes_in_toml_have_their_lines_too(text: str, told: str):
    assert mistakes(text, formats.TOML)[0].startswith(told)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\nb: 2\na: 3", "app.yaml:3: the key 'a' is there twice, first in line 1"),
        ("a: 010", "app.yaml:1: 010 is octal to some and decimal to others"),
        ("a:\n\tb: 1", "app.yaml:2: this is no YAML: "),
        ("a: &x [*x]", "app.yaml:1: this is part of itself"),
        ("a: !!python/object:os.system 1", "app.yaml:1: the tag 'tag:yaml.org,2002:python/object:os.system' has no meaning here"),
        ("a: !x [1]", "app.yaml:1: the tag '!x' has no meaning here"),
        ("a: &x {b: 1}\nc:\n  <<: *x", "app.yaml:3: merge keys ('<<') are no part of YAML 1.2"),
        ("[1]: 2", "app.yaml:1: a key must be text"),
        ("a: 1\n---\nb: 1", "app.yaml:2: this is no YAML: expected a single document"),
        ("a: [" * 5000, "app.yaml: values are nested too deeply"),
        ("a: \x00", "app.yaml: this is no YAML: "),
        ("a: " + "9" * 5000, "app.yaml:1: a number of 5000 digits is too long"),
    ],
)
def test_what_is_no_yaml_or_means_different_things_to_different_readers_is_refused_with_its_line(text: str, told: str):
    assert mistakes(text)[0].startswith(told)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("on", "on"), ("No", "No"), ("12:30:45", "12:30:45"), ("1_000", "1_000"), ("2001-01-01", "2001-01-01"), ("0b1", "0b1"), ("=", "="),
        ("~", None), ("NULL", None), ("", None), ("True", True), ("false", False), ("-7", -7), ("+7", 7), ("0o17", 15), ("0x1F", 31),
        ("1e3", 1000.0), (".5", 0.5), ("1.", 1.0), ("-1.5E-2", -0.015), ("'1'", "1"), ("!!str 1", "1"), ("|\n  x\n", "x\n"),
    ],
)  # fmt: skip
def test_scalars_mean_what_yaml_1_2_says(written: str, meant: object):
    found = formats.read(f"a: {written}", "x.yaml", formats.YAML).data["a"]
    assert found == meant
    assert type(found) is type(meant)


def test_a_file_that_is_no_utf_8_is_refused_with_its_line():
    with pytest.raises(DeclaredStateError, match=r"app\.yaml:2: this is no text in UTF-8"):
        declaring.load_text(b"a: 1\nb: \xff", "app.yaml", formats.YAML, "")


def test_a_name_that_tells_no_format_is_refused(tmp_path: Path):
    with pytest.raises(InvalidValueError, match=r"ends in \.yaml, \.yml, \.toml, \.json"):
        declaring.load(tmp_path / "app.txt")
    with pytest.raises(InvalidTypeError, match="a path, a dict or a Declared"):
        declaring.load(3)


# Code.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop_of_declared.py").write_text(
        "def handler(request): ...\nclass Model:\n    def __init__(self, n): ...\n    def __call__(self): ...\n"
    )
    (tmp_path / "broken_of_declared.py").write_text("import json\n1 / 0\n")
    return tmp_path


def source(folder: Path, path: str, more: str = "") -> declaring.Source:
    (folder / "app.yaml").write_text(f"backends:\n  a:\n    import_path: {path}\n    {more}\n")
    return declaring.load(folder / "app.yaml")


def test_code_is_imported_from_the_folder_of_the_file_and_replicas_find_it_there(folder: Path):
    before = list(sys.path)
    found = source(folder, "shop_of_declared:Model", "init_args: [3]").definitions()["a"]
    assert (found.code.import_path, found.code.init_args, found.module) == ("shop_of_declared:Model", [3], "shop_of_declared")
    assert found.code.source_hash == found.source_hash != ""
    assert found.sys_path[0] == str(folder)
    assert sys.path == before


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("shop_of_declare:handler", "app.yaml:3: backend 'a': there is no module 'shop_of_declare'; did you mean 'shop_"),
        ("shop_of_declared:handle", "app.yaml:3: backend 'a': module 'shop_of_declared' has no 'handle'; did you mean 'handler'?"),
        ("broken_of_declared:f", r"backend 'a': module 'broken_of_declared' can't be imported: Zero.*_of_declared.py, line 2\)"),
        ("__main__:f", "backend 'a': '__main__' is another module in each process"),
        ("shop_of_declared:__name__", "app.yaml:3: backend 'a': a backend is a function, a class or another callable, got str"),
    ],
)  # fmt: skip
def test_code_that_is_not_there_is_named_with_its_line_and_the_nearest_name(folder: Path, path: str, told: str):
    with pytest.raises(DeclaredStateError, match=told):
        source(folder, path).definitions()["a"]


def test_arguments_that_the_constructor_does_not_take_are_refused_with_their_line(folder: Path):
    with pytest.raises(DeclaredStateError, match=r"app\.yaml:4: backend 'a': Model takes no argument 'm'; it takes n"):
        source(folder, "shop_of_declared:Model", "init_kwargs: {m: 3}").definitions()


def test_a_config_that_the_code_cannot_run_with_is_refused_with_its_line(folder: Path):
    with pytest.raises(
        DeclaredStateError, match=r"app\.yaml:4: backend 'a': config: max_batch_size=4, but handler of backend 'a' does not take batches"
    ):
        source(folder, "shop_of_declared:handler", "config: {max_batch_size: 4}").definitions()["a"]


def test_code_is_what_its_files_say_now_whatever_was_imported_before(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(folder)
    base, module = folder / "base_of_declared.py", "model_of_declared"
    base.write_text("class Base:\n    def __call__(self, request): ...\n")
    (folder / f"{module}.py").write_text("from base_of_declared import Base\nclass Model(Base): ...\n")
    try:
        importlib.import_module(module)
        before = source(folder, f"{module}:Model").definitions()["a"]
        base.write_text("class Base:\n    async def __call__(self, request): ...\n    def other(self): ...\n")
        after = source(folder, f"{module}:Model").definitions()["a"]
    finally:
        for name in (module, "base_of_declared"):
            sys.modules.pop(name, None)
    assert (before.methods.keys(), before.any_async) == ({""}, False)
    assert (after.methods.keys(), after.any_async) == ({"", "other"}, True)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import os; os._exit(3)", r"ended before it was done \(exit status 3\)"),
        ("import threading; threading.Thread(target=threading.Event().wait).start()\ndef f(): ...", None),
        ("from headgate import declaring; declaring.load('app.yaml').definitions()", "under `if __name__ == '__main__':`"),
    ],
    ids=["it ends the process", "it starts a thread that stays", "it deploys itself"],
)
def test_code_that_does_more_than_define_when_it_is_imported_holds_nobody_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch, code: str, told: str | None
):
    monkeypatch.chdir(folder)
    (folder / "odd_of_declared.py").write_text(f"{code}\n")
    if told is None:
        assert source(folder, "odd_of_declared:f").definitions()["a"].name == "f"
        return
    with pytest.raises(DeclaredStateError, match=told):
        source(folder, "odd_of_declared:f").definitions()


def test_code_that_is_never_imported_is_given_up_after_the_startup_timeout(folder: Path):
    (folder / "hanging_of_declared.py").write_text("import threading; threading.Event().wait()\n")
    hanging = "{import_path: 'hanging_of_declared:f', config: {startup_timeout: 0.25}}"
    (folder / "app.yaml").write_text(f"backends:\n  a: {hanging}\n  b: {hanging}\n")
    with pytest.raises(DeclaredStateError, match=r"the code of 'a', 'b' is not imported after 0\.5 s, the startup_timeout of all together"):
        declaring.load(folder / "app.yaml").definitions()


def test_the_process_that_imports_ends_with_the_one_that_began_it(folder: Path):
    (folder / "hanging_of_declared.py").write_text(
        "import os, threading\n"
        "with open('pid.new', 'w') as file:\n    file.write(str(os.getpid()))\n"
        "os.rename('pid.new', 'pid')\nthreading.Event().wait()\n"
    )
    (folder / "app.yaml").write_text("backends: {a: {import_path: 'hanging_of_declared:f'}}")
    code = "from headgate import declaring; declaring.load('app.yaml').definitions()"
    pid = folder / "pid"
    with subprocess.Popen([sys.executable, "-c", code], cwd=folder) as process:
        try:
            wait_until(pid.exists, timeout_s=30)
        finally:
            process.kill()
    try:
        descriptor = os.pidfd_open(int(pid.read_text()))
    except ProcessLookupError:
        return  # it has ended
    try:
        assert select.select([descriptor], [], [], 10)[0], "it goes on"
    finally:
        os.close(descriptor)


def test_a_path_among_those_that_are_searched_may_be_one_of_pathlib(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [*sys.path, folder])
    (folder / "plain_of_declared.py").write_text("def f(): ...\n")
    assert source(folder, "plain_of_declared:f").definitions()["a"].name == "f"
