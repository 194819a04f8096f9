"""Does code that is set up again ask for what it may, and is what it asks for compared with what runs?"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from headgate.cli import again
from headgate.cli.reload import Names
from headgate.config import BackendConfig, ReplicaOptions
from headgate.core.messages import Deploy, DeployedBackend
from headgate.core.reports import BackendInfo, Description
from headgate.errors import ChangedMeanwhileError, InvalidTypeError
from headgate.serve import Instance

GIVEN = {"resources": {"raw": 1}}
TRAVELS = ReplicaOptions(resources={"checked": 1.0})


@pytest.fixture(autouse=True)
def version(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with io.FileIO(os.devnull, "w") as told:
        monkeypatch.setattr(again, "_version", again._Version(Names(), told), raising=False)
        yield


def instance(runs: ReplicaOptions, done: list[str], deployed: list[Deploy]) -> Instance:
    """One that runs `a` and `b` with these options, and at first is being changed by others."""
    way = SimpleNamespace(check=lambda options: TRAVELS, portable=lambda code: code)
    backends = {tag: BackendInfo(tag, "f", BackendConfig(), runs, "ready", "", ()) for tag in ("a", "b")}

    def do(verb: Deploy) -> None:
        deployed.append(verb)
        if len(deployed) == 1:
            raise ChangedMeanwhileError("by others")

    made: Any = SimpleNamespace(
        list_backends=lambda: backends,
        status=lambda: Description("name", (), backends, {}, (), {}, {}, (), True, state_id=f"state {len(deployed)}"),
        _verb=do,
        update_backend=lambda tag, code: done.append(f"code of {tag}"),
        update_backend_config=lambda tag, config: done.append(f"config of {tag}"),
        _connection=SimpleNamespace(way=way),
    )
    return cast(Instance, made)


def test_what_a_replica_takes_is_compared_as_it_travels() -> None:
    done: list[str] = []
    deployed: list[Deploy] = []
    again.create_backend(instance(TRAVELS, done, deployed), "a", print, ray_actor_options=GIVEN)
    assert (done, deployed) == (["code of a", "config of a"], [])


def test_where_what_a_replica_takes_has_changed_all_of_that_backend_is_replaced_and_nothing_else() -> None:
    done: list[str] = []
    deployed: list[Deploy] = []
    runs = ReplicaOptions()
    config = {"num_replicas": 2}
    again.create_backend(instance(runs, done, deployed), "a", print, config=config, ray_actor_options=GIVEN)
    assert (done, [verb.based_on for verb in deployed]) == ([], ["state 0", "state 1"])
    replaced, kept = deployed[-1].backends
    assert kept == DeployedBackend("b", None, BackendConfig(), runs)
    assert replaced.definition is not None
    assert (replaced.tag, replaced.definition.name) == ("a", "print")
    assert (replaced.config, replaced.options) == (BackendConfig(num_replicas=2), TRAVELS)


@pytest.mark.parametrize(("route", "backend"), [(["GET"], None), (None, 3)], ids=["route", "backend"])
def test_a_route_or_backend_of_a_wrong_type_is_refused_at_once(route: Any, backend: Any) -> None:
    with pytest.raises(InvalidTypeError, match="must be a string"):
        again.create_endpoint(instance(TRAVELS, [], []), "hello", route, backend=backend)
