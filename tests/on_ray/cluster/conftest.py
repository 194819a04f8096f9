"""On which cluster are these tests run?"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.leaks import Held
from tests.on_ray.cluster.nodes import Nodes
from tests.support import wait_until


@pytest.fixture(scope="module", autouse=True)
def _nothing_left_by_module() -> Iterator[None]:
    """Where tests before these have connected this process with a cluster, Ray opens and closes connections of its own: no descriptors."""
    before = Held.now()
    yield

    def nothing_left() -> bool:
        left = Held.now()._replace(descriptors=before.descriptors).more_than(before)
        assert not left, left
        return True

    wait_until(nothing_left, what="nothing is left behind")


@pytest.fixture(scope="package")
def nodes() -> Iterator[Nodes]:
    """Four nodes; who kills one starts it again."""
    with Nodes(4) as nodes:
        yield nodes
