"""What do tests of what is Ray's own have in common? An instance on a cluster of one node."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import ray_cluster


@pytest.fixture(scope="package")
def cluster_of_one() -> Iterator[None]:
    """The one that is in use already, or one for all of these tests."""
    if ray_cluster.in_use():
        yield
        return
    ray_cluster.start(gpus=1)
    yield
    ray_cluster.stop()


@pytest.fixture(scope="module", autouse=True)
def _nothing_left_by_module(request: pytest.FixtureRequest) -> Iterator[None]:
    """Ray keeps connections of its own with the processes of actors, so descriptors tell nothing here; its actors do."""
    yield
    if "cluster_of_one" in request.fixturenames:
        assert not ray_cluster.actors()
