"""Is every block of every page run, or read by what it is written for?

`test_pages.py` types along what can be typed. What can't says why, and is held here: commands by the commands' own parsers, declared
states by the parser of `headgate deploy`, and what is written for Kubernetes by what Headgate does where nothing is said. Queries are asked
in `tests/e2e/test_metrics.py`, configurations of nginx and units of systemd are taken by these in `tests/e2e/test_behind_nginx.py` and
`tests/cli/test_service.py`.
"""

from __future__ import annotations

import inspect
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement

from headgate import formats, schema, serve
from headgate.cli.main import COMMANDS
from headgate.cli.main import headgate as group
from headgate.config import BackendConfig
from headgate.core import declared
from tests.docs.pages import PYTHON, SHELL, SHOWN, Block, blocks, commands
from tests.docs.test_pages import LESSONS, REFERENCE, page_of

ROOT = Path(__file__).parents[2]
FOLDERS = ("docs", "examples", "benchmarks", "demo")
EVERY_PAGE = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
READ_ELSEWHERE = {
    "promql": "e2e/test_metrics.py",
    "nginx": "e2e/test_behind_nginx.py",
    "ini": "cli/test_service.py",
    "dockerfile": "cli/test_service.py",
    "json": "unit/test_session_affinity_vectors.py",
}
"""By which tests what is neither typed nor declares anything is read."""
NAMES = [name for names in COMMANDS.values() for name in names]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def shown(*languages: str) -> Iterator[tuple[Path, Block]]:
    """The blocks of all pages in these languages, each with its page."""
    for page in EVERY_PAGE:
        for block in blocks(page):
            if block.language in languages and not block.borrowed:
                yield page, block


def test_every_block_that_can_be_run_is_run_or_says_why_not() -> None:
    """And each has a language, and a comment that tells of it is understood: otherwise its page can't be read at all."""
    typed = {*LESSONS, *REFERENCE}
    silent = [f"{name_of(page)}:{block.line}" for page, block in shown(*PYTHON, *SHELL) if page not in typed and block.is_typed]
    assert silent == []
    assert len(list(shown(*PYTHON, *SHELL))) > 250


def test_every_block_that_is_not_run_is_read_by_a_test() -> None:
    unread = []
    for page, block in shown(*SHOWN):
        if block.language in READ_ELSEWHERE:
            is_read = page.name in (ROOT / "tests" / READ_ELSEWHERE[block.language]).read_text()
        else:  # what is printed is compared where Python is typed, and what is declared is read below
            is_read = block.language == "yaml" or (block.language == "text" and page in {*LESSONS, *REFERENCE})
        if not is_read:
            unread.append(f"{name_of(page)}:{block.line}: {block.language}")
    assert unread == []


# Commands.


def of_headgate(command: str) -> list[list[str]]:
    """The arguments of each `headgate` in what is typed into a shell."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    parts: list[list[str]] = [[]]
    for token in lexer:
        if token.strip("();<>|&"):
            parts[-1].append(token)
        else:
            parts.append([])
    found = []
    for part in parts:
        for at, token in enumerate(part):
            is_one = token == "headgate" or token.endswith("/bin/headgate")
            if is_one and (at == 0 or (part[at + 1 : at + 2] and part[at + 1] in NAMES)):  # else it is the name of something else
                found.append(part[at + 1 :])
                break
    return found


def read(arguments: list[str]) -> click.Context:
    """What a command understands of its arguments; raises where it would refuse them. It isn't done."""
    context = click.Context(group, info_name="headgate")
    name, command, rest = group.resolve_command(context, arguments)
    assert command is not None
    understood = command.make_context(name, list(rest), parent=context)
    options = {flag for option in command.get_params(understood) if isinstance(option, click.Option) for flag in option.opts}
    for_program = options & set(understood.params.get("arguments") or ())
    assert not for_program, f"{for_program} after the program are the program's"
    return understood


def not_typed() -> list[tuple[str, str]]:
    """Commands that are shown and that nobody types, each with where it stands."""
    return [
        (f"{name_of(page)}:{block.line}", command.text)
        for page, block in shown(*SHELL)
        if block.why_not or block.needs
        for command in commands(block)
    ]


def test_every_command_that_is_shown_and_not_typed_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "state/logs").mkdir(parents=True)  # what the examples take to be there
    monkeypatch.chdir(tmp_path)
    understood, problems = set(), []
    for where, command in not_typed():
        for arguments in of_headgate(command):
            try:
                read(arguments)
                understood.add(arguments[0])
            except (click.ClickException, AssertionError) as error:
                problems.append(f"{where}: {command}: {getattr(error, 'message', error)}")
    assert problems == []
    assert understood == set(NAMES)  # the reference has an example of each


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("headgate config | headgate deploy --yes -", [["config"], ["deploy", "--yes", "-"]]),
        ("headgate config > app.yaml    # a comment", [["config"]]),
        ("source <(headgate completion bash)", [["completion", "bash"]]),
        ("sudo -u headgate A=/run/headgate /opt/bin/headgate status", [["status"]]),
        ("docker build --tag headgate --file x .", []),
        ("headgate stauts", [["stauts"]]),
    ],
)
def test_what_headgate_is_to_do_is_found_in_what_is_typed(command: str, found: list[list[str]]) -> None:
    assert of_headgate(command) == found


@pytest.mark.parametrize(
    "command", ["headgate stauts", "headgate status --jsn", "headgate scale digits:v1 many", "headgate run app.py --debug"]
)
def test_a_command_that_would_be_refused_is_found(command: str) -> None:
    (arguments,) = of_headgate(command)
    with pytest.raises((click.UsageError, AssertionError)):
        read(arguments)


# Declared states.


def completed(part: Any, within: str) -> dict[str, Any]:
    """The least declared state that has this part at that place, such as `endpoints.greet`; the backends that it names are there, too."""
    whole: Any = part
    for key in reversed(within.split(".")):
        whole = {key: whole}
    tags = {tag for endpoint in whole.get("endpoints", {}).values() for tag in endpoint.get("traffic", {})}
    return {"backends": {tag: {"import_path": "module:name"} for tag in tags} | whole.pop("backends", {}), **whole}


def problems_of(block: Block) -> list[str]:
    """What is wrong with what a block in YAML declares."""
    data = formats.read(block.text, "what is shown", formats.YAML).data
    whole = completed(data, block.within) if block.within else data
    _, problems = declared.parse(whole)
    by_schema = jsonschema.Draft202012Validator(schema.schema()).iter_errors(whole)
    return [problem.text for problem in problems] + [problem.message for problem in by_schema]


def test_every_declared_state_that_is_shown_can_be_deployed() -> None:
    shown_states = [(page, block) for page, block in shown("yaml") if page.name != "kuberay.md"]
    assert {f"{name_of(page)}:{block.line}": problems for page, block in shown_states if (problems := problems_of(block))} == {}
    assert len(shown_states) >= 4


@pytest.mark.parametrize(
    ("text", "within"),
    [
        ("backends:\n  a: {import_pth: m:f}\n", ""),
        ("traffic: {a: 0.5, b: 0.4}\n", "endpoints.e"),
        ("traffik: {a: 1}\n", "endpoints.e"),
        ("num_replica: 2\n", "backends.a.config"),
    ],
)
def test_what_could_not_be_deployed_is_found(text: str, within: str) -> None:
    assert problems_of(Block(1, "yaml", text, within=within))


# Kubernetes.


KUBERAY = ROOT / "docs/how-to/kuberay.md"


def objects() -> dict[str, Any]:
    """What the page has Kubernetes make, by kind."""
    documents = [each for block in blocks(KUBERAY) if block.language == "yaml" for each in yaml.safe_load_all(block.text)]
    assert len({each["kind"] for each in documents}) == len(documents)
    return {each["kind"]: each for each in documents}


def test_what_kubernetes_is_told_fits_together_and_what_headgate_does_by_itself() -> None:
    made = objects()
    assert {kind: each["apiVersion"] for kind, each in made.items()} == {"RayCluster": "ray.io/v1", "Service": "v1"}
    cluster, service = made["RayCluster"], made["Service"]
    name, spec = cluster["metadata"]["name"], cluster["spec"]
    (workers,) = spec["workerGroupSpecs"]
    assert spec.keys() == {"headGroupSpec", "workerGroupSpecs"}
    ports, images, pods = {}, set(), {"head": spec["headGroupSpec"], "worker": workers}
    for kind, each in pods.items():
        assert all(type(value) is str for value in each["rayStartParams"].values()), "KubeRay takes text alone"
        (container,) = each["template"]["spec"]["containers"]
        assert container.keys() == {"name", "image", "ports", "resources"}
        images.add(container["image"])
        ports[kind] = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
    serves = inspect.signature(serve.init).parameters["http_port"].default
    assert ports == {"head": {"gcs": 6379, "dashboard": 8265, "http": serves}, "worker": {"http": serves}}
    assert service["spec"]["selector"] == {"ray.io/cluster": name, "ray.io/node-type": "worker"}
    (leads,) = service["spec"]["ports"]
    assert leads["targetPort"] in ports["worker"]
    (image,), text = images, KUBERAY.read_text()
    assert f"$ docker build --tag {image} ." in text
    assert f"--address http://{name}-head-svc:{ports['head']['dashboard']}" in text
    grace_s = workers["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace_s > BackendConfig().graceful_shutdown_timeout + 5  # the ingresses
    (program,) = (block.text for block in blocks(ROOT / "docs/how-to/ray-cluster.md") if "create_backend" in block.text)
    for argument in ("detached=True", 'num_ingresses="every_node"', 'http_host="0.0.0.0"'):
        assert argument in program
        assert f"`{argument}`" in text
    assert "http_port" not in program


def test_the_image_for_kubernetes_has_a_ray_and_a_python_that_headgate_takes() -> None:
    (image,) = (block.text for block in blocks(KUBERAY) if block.language == "dockerfile")
    found = re.match(r"FROM rayproject/ray:([\d.]+)-py(\d)(\d+)\n", image)
    assert found is not None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert found[1] in Requirement(project["optional-dependencies"]["ray"][0]).specifier
    assert f"{found[2]}.{found[3]}" in Requirement(f"python{project['requires-python']}").specifier


# The harness itself.


def test_a_block_that_nobody_types_and_that_does_not_say_why_is_found(tmp_path: Path) -> None:
    page = page_of(tmp_path, "```python\nx = 1\n```\n\n<!-- not run: why -->\n\n```python\nx = 1\n```\n\n```yaml\nx: 1\n```\n")
    assert [block.is_typed for block in blocks(page)] == [True, False, False]


def test_a_part_of_a_declared_state_says_of_what(tmp_path: Path) -> None:
    (block,) = blocks(page_of(tmp_path, "<!-- within: endpoints.e -->\n\n```yaml\ntraffic: {a: 1}\n```\n"))
    assert block.within == "endpoints.e"
    assert problems_of(block) == []
