"""Are replicas on a Ray cluster placed as asked, in surroundings as asked, and what happens where there is no room?"""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import headgate
from headgate import serve
from headgate.config import parse_options
from headgate.engines.local.surroundings import THREAD_VARIABLES
from headgate.errors import ConfigError, InsufficientResourcesError
from headgate.serve import Instance
from tests import ray_cluster
from tests.on_ray.placement.conftest import Nodes
from tests.support import wait_until

pytestmark = pytest.mark.timeout(180)

PLACED_WITHIN_S = 30.0


@pytest.fixture
def create(shared_instance: Instance) -> Iterator[Callable[..., Any]]:
    """Create a backend and return a handle to call it; all that were created are deleted after the test."""
    created: list[str] = []

    def create(tag: str, code: Any = lambda: None, *, config: dict[str, Any] | None = None, **options: Any) -> serve.Handle:
        created.append(tag)
        shared_instance.create_backend(tag, code, config=config, ray_actor_options=options)
        shared_instance.create_endpoint(tag, backend=tag)
        return shared_instance.get_handle(tag)

    yield create
    for name in shared_instance.list_endpoints():
        shared_instance.delete_endpoint(name)
    for tag in shared_instance.list_backends():
        shared_instance.delete_backend(tag)


class Seen:
    """What a replica found when it was constructed."""

    def __init__(self) -> None:
        import ray

        self._environ = dict(os.environ)
        group = ray.util.get_current_placement_group()
        self._group = None if group is None else group.id.hex()

    def environ(self) -> dict[str, str]:
        return self._environ

    def group(self) -> str | None:
        return self._group

    def imported(self, module: str) -> list[str | None]:
        found = importlib.import_module(module)
        return [found.NAME, found.__file__, os.getcwd()]


def test_replicas_that_say_nothing_are_spread_over_the_nodes(nodes: Nodes, create: Callable[..., Any]) -> None:
    create("spread", config={"num_replicas": 3}, num_cpus=1)
    assert nodes.names_of("spread") == ["a", "b", "head"]


def test_replicas_go_to_the_nodes_that_they_ask_for(nodes: Nodes, create: Callable[..., Any]) -> None:
    from ray.util import scheduling_strategies as strategies

    affinity = strategies.NodeAffinitySchedulingStrategy(nodes.id("a"), soft=False)
    labels = strategies.NodeLabelSchedulingStrategy({"zone": strategies.In("b")})
    asked: dict[str, tuple[str, dict[str, Any]]] = {
        "label": ("b", {"label_selector": {"zone": "b"}}),
        "other-label": ("a", {"label_selector": {"zone": "in(a,c)"}}),
        "fallback": ("b", {"label_selector": {"zone": "nowhere"}, "fallback_strategy": [{"label_selector": {"zone": "b"}}]}),
        "resource": ("a", {"resources": {"tpu": 1}}),
        "share": ("b", {"num_gpus": 0.5}),
        "affinity": ("a", {"scheduling_strategy": affinity}),
        "labels": ("b", {"scheduling_strategy": labels}),
        "word": ("head", {"scheduling_strategy": "DEFAULT", "label_selector": {"zone": "!in(a,b)"}}),
    }
    for tag, (node, options) in asked.items():
        create(tag, **options)
        assert nodes.names_of(tag) == [node], tag
        assert serve.list_backends()[tag].options == parse_options(options), "what was asked for is told, and can be compared"


def test_a_replica_may_be_placed_into_a_placement_group(create: Callable[..., Any]) -> None:
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = ray.util.placement_group([{"CPU": 1}])
    try:
        assert group.wait(PLACED_WITHIN_S)
        handle = create("in-group", Seen, num_cpus=1, scheduling_strategy=PlacementGroupSchedulingStrategy(group, 0))
        assert handle.options(method_name="group").remote().result(10) == group.id.hex()
    finally:
        serve.delete_endpoint("in-group")
        serve.delete_backend("in-group")
        ray.util.remove_placement_group(group)


def test_what_ray_refuses_is_said_by_the_verb(shared_instance: Instance) -> None:
    for options, match in (
        ({"runtime_env": {"working_dir": "/tmp"}}, "working_dir|URI"),
        ({"runtime_env": {"pipp": ["numpy"]}}, "'pip'"),
        ({"label_selector": {"zone": "!!"}}, "label"),
        ({"scheduling_strategy": "SPRED"}, "SPREAD"),
    ):
        with pytest.raises(ConfigError, match=match):
            shared_instance.create_backend("refused", lambda: None, ray_actor_options=options)


def test_a_replica_has_the_surroundings_that_it_asks_for(create: Callable[..., Any]) -> None:
    environ = create("plain", Seen).options(method_name="environ").remote().result(10)
    assert {environ[name] for name in THREAD_VARIABLES} == {"1"}
    environ = create("cpus", Seen, num_cpus=2).options(method_name="environ").remote().result(10)
    assert {environ[name] for name in THREAD_VARIABLES} == {"2"}
    variables = {"OPENBLAS_NUM_THREADS": "5", "OMP_NUM_THREADS": "4", "WHERE": "here"}
    environ = create("env", Seen, runtime_env={"env_vars": variables}).options(method_name="environ").remote().result(10)
    assert {name: environ[name] for name in variables} == variables
    assert environ["MKL_NUM_THREADS"] == "4"


def test_code_of_a_runtime_env_goes_before_the_drivers(create: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drivers = tmp_path / "drivers"
    drivers.mkdir()
    for name in ("placed_twice", "placed_here"):
        (drivers / f"{name}.py").write_text("NAME = 'of the driver'\n")
    with zipfile.ZipFile(tmp_path / "code.zip", "w") as archive:
        archive.writestr("code/placed_twice.py", "NAME = 'of the runtime_env'\n")
    monkeypatch.syspath_prepend(str(drivers))
    monkeypatch.chdir(drivers)
    plain = create("drivers", Seen).options(method_name="imported")
    assert plain.remote("placed_twice").result(10) == ["of the driver", str(drivers / "placed_twice.py"), str(drivers)]
    # Ray forgets the PYTHONPATH of the node, by which Headgate may be found here.
    environ = {"PYTHONPATH": str(Path(headgate.__file__).parents[1])}
    runtime_env = {"working_dir": f"file://{tmp_path}/code.zip", "env_vars": environ}
    packed = create("packed", Seen, runtime_env=runtime_env).options(method_name="imported")
    name, path, cwd = packed.remote("placed_twice").result(10)
    assert name == "of the runtime_env"
    assert str(path).startswith(str(cwd))
    assert packed.remote("placed_here").result(10)[0] == "of the driver"


def test_what_can_never_be_placed_fails_at_once(shared_instance: Instance) -> None:
    for options, match in (
        ({"num_cpus": 50}, "asked for 50 CPU; no node of the cluster has that much: at most 2 CPU"),
        ({"resources": {"fpga": 1}}, "asked for 1 fpga; no node"),
        ({"label_selector": {"zone": "z"}}, "none of the 3 nodes"),
        ({"num_cpus": 2, "label_selector": {"zone": "a"}}, "at most 1 CPU"),
        ({"accelerator_type": "H100"}, "H100"),
    ):
        with pytest.raises(InsufficientResourcesError, match=match):
            shared_instance.create_backend("never", lambda: None, ray_actor_options=options)
    with pytest.raises(InsufficientResourcesError, match="the cluster has 4 CPU, over 3 nodes"):
        shared_instance.create_backend("never", lambda: None, config={"num_replicas": 5}, ray_actor_options={"num_cpus": 1})
    assert "never" not in shared_instance.list_backends()


def begin(create: Callable[..., Any], tag: str, **options: Any) -> tuple[threading.Thread, list[BaseException]]:
    """Create a backend in a thread; its errors."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            create(tag, **options)
        except BaseException as error:  # noqa: BLE001  # the test looks at it
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, errors


def waits(tag: str, text: str) -> Callable[[], bool]:
    """Whether the instance tells that the backend waits, in these words."""
    return lambda: any(one.backend == tag and text in one.reason for one in serve.status().waiting)


def test_what_has_no_room_waits_is_reported_and_starts_when_there_is(create: Callable[..., Any]) -> None:
    create("first", config={"num_replicas": 4}, num_cpus=1)
    thread, errors = begin(create, "second", num_cpus=1)
    wait_until(waits("second", "asked for 1 CPU; free 0 of 4 CPU, over 3 nodes"))
    assert serve.status().free["CPU"] == 0
    assert thread.is_alive()
    serve.update_backend_config("first", {"num_replicas": 3})
    thread.join(PLACED_WITHIN_S)
    assert not thread.is_alive()
    assert not errors
    assert serve.status().waiting == ()


def test_a_node_that_comes_gives_room(nodes: Nodes, create: Callable[..., Any]) -> None:
    create("first", config={"num_replicas": 4}, num_cpus=1)
    thread, errors = begin(create, "second", num_cpus=1)
    wait_until(waits("second", "asked for 1 CPU"))
    nodes.add("c", num_cpus=1, resources={"late": 1})
    try:
        thread.join(PLACED_WITHIN_S)
        assert not errors
        assert nodes.names_of("second") == ["c"]
    finally:
        serve.delete_endpoint("second")
        serve.delete_backend("second")
        nodes.end_one("c")


def test_a_backend_that_waits_can_be_deleted(create: Callable[..., Any]) -> None:
    create("first", config={"num_replicas": 4}, num_cpus=1)
    thread, errors = begin(create, "second", num_cpus=1)
    wait_until(waits("second", "asked for 1 CPU"))
    serve.delete_backend("second")
    thread.join(PLACED_WITHIN_S)
    assert [type(error) for error in errors] == [InsufficientResourcesError]
    assert len([actor for actor in ray_cluster.actors() if " replica:" in actor]) == 4


def test_what_waits_for_room_starts_though_the_controller_died_meanwhile(create: Callable[..., Any]) -> None:
    create("first", config={"num_replicas": 4}, num_cpus=1)
    thread, errors = begin(create, "second", num_cpus=1)
    wait_until(waits("second", "asked for 1 CPU"))

    def controllers() -> list[int]:
        return [process.pid for process in serve.status().processes if process.role == "controller"]

    (killed,) = controllers()
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: controllers() != [killed] and waits("second", "asked for 1 CPU")(), PLACED_WITHIN_S)
    serve.update_backend_config("first", {"num_replicas": 3})
    thread.join(PLACED_WITHIN_S)
    assert not thread.is_alive()
    assert not errors
    assert serve.get_handle("second").remote().result(10) is None


def test_a_verb_that_is_interrupted_while_it_waits_leaves_nothing(create: Callable[..., Any]) -> None:
    create("first", config={"num_replicas": 4}, num_cpus=1)
    main = threading.get_ident()

    def interrupt() -> None:
        wait_until(waits("second", "asked for 1 CPU"))
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        create("second", num_cpus=1)
    thread.join()
    wait_until(lambda: not serve.status().waiting, what="nobody waits")
    wait_until(lambda: len([actor for actor in ray_cluster.actors() if " replica:" in actor]) == 4, what="no actor is left of it")
    assert "second" not in serve.list_backends()


def test_what_others_take_is_waited_for_no_longer_than_a_start_may_take(create: Callable[..., Any]) -> None:
    import ray

    class Stranger:
        def here(self) -> bool:
            return True

    def has_free(cpus: float) -> Callable[[], bool]:
        return lambda: ray.available_resources().get("CPU", 0.0) == cpus

    wait_until(has_free(4), PLACED_WITHIN_S, "Ray knows that the test before has ended")
    strangers = [ray.remote(Stranger).options(num_cpus=1, scheduling_strategy="SPREAD").remote() for _ in range(4)]
    try:
        ray.get([stranger.here.remote() for stranger in strangers])
        wait_until(has_free(0), PLACED_WITHIN_S, "Ray knows that all is taken")
        began = time.monotonic()
        with pytest.raises(InsufficientResourcesError, match=r"'late'.*asked for 1 CPU.*waited \d"):
            create("late", config={"startup_timeout": 1.0}, num_cpus=1)
        assert time.monotonic() - began < PLACED_WITHIN_S
        assert ["replica" for actor in ray_cluster.actors() if " replica:" in actor] == []
        thread, errors = begin(create, "in-time", num_cpus=1)
        wait_until(waits("in-time", "free 0 of 4 CPU"), PLACED_WITHIN_S)
        ray.kill(strangers.pop())
        thread.join(PLACED_WITHIN_S)
        assert not errors
    finally:
        for stranger in strangers:
            ray.kill(stranger)


def test_a_replica_whose_node_is_lost_starts_again_on_one_that_comes(nodes: Nodes, create: Callable[..., Any]) -> None:
    nodes.add("d", num_cpus=1, resources={"rare": 1})
    wait_until(lambda: serve.status().resources.get("rare"), what="the node is seen")
    handle = create("rare", resources={"rare": 1})
    assert nodes.names_of("rare") == ["d"]
    nodes.remove("d")
    wait_until(lambda: "rare" in serve.list_backends()["rare"].reason, PLACED_WITHIN_S)
    nodes.add("d", num_cpus=1, resources={"rare": 1})
    try:
        wait_until(lambda: serve.list_backends()["rare"].state == "ready", PLACED_WITHIN_S)
        assert nodes.names_of("rare") == ["d"]
        assert handle.remote().result(10) is None
    finally:
        serve.delete_endpoint("rare")
        serve.delete_backend("rare")
        nodes.end_one("d")
