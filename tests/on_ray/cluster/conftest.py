"""On which cluster are these tests run?"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.on_ray.cluster.nodes import Nodes


@pytest.fixture(scope="package")
def nodes() -> Iterator[Nodes]:
    """Four nodes; who kills one starts it again."""
    with Nodes(4) as nodes:
        yield nodes
