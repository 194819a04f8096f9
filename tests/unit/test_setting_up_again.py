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
from headgate.errors import ConfigError, InvalidTypeError
from headgate.serve import Instance

GIVEN = {"resources": {"raw": 1}}
TRAVELS = ReplicaOptions(resources={"checked": 1.0})


@pytest.fixture(autouse=True)
def version(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with io.FileIO(os.devnull, "w") as told:
        monkeypatch.setattr(again, "_version", again._Version(Names(), told), raising=False)
        yield


def instance(runs: ReplicaOptions, done: list[str]) -> Instance:
    """One that runs `a` with these options."""
    way = SimpleNamespace(check=lambda options: TRAVELS)
    made: Any = SimpleNamespace(
        list_backends=lambda: {"a": SimpleNamespace(config=BackendConfig(), options=runs)},
        update_backend=lambda tag, code: done.append(f"code of {tag}"),
        update_backend_config=lambda tag, config: done.append(f"config of {tag}"),
        _connection=SimpleNamespace(way=way),
    )
    return cast(Instance, made)


def test_what_a_replica_takes_is_compared_as_it_travels() -> None:
    done: list[str] = []
    again.create_backend(instance(TRAVELS, done), "a", print, ray_actor_options=GIVEN)
    assert done == ["code of a", "config of a"]
    with pytest.raises(ConfigError, match="its ray_actor_options have changed"):
        again.create_backend(instance(ReplicaOptions(), done), "a", print, ray_actor_options=GIVEN)
    assert len(done) == 2


@pytest.mark.parametrize(("route", "backend"), [(["GET"], None), (None, 3)], ids=["route", "backend"])
def test_a_route_or_backend_of_a_wrong_type_is_refused_at_once(route: Any, backend: Any) -> None:
    with pytest.raises(InvalidTypeError, match="must be a string"):
        again.create_endpoint(instance(TRAVELS, []), "hello", route, backend=backend)
