"""On which cluster is the Ray engine checked?"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import ray_cluster
from tests.conformance.harnesses import RESOURCES


@pytest.fixture(scope="package")
def ray_cluster_of_one() -> Iterator[None]:
    """One for all checks."""
    ray_cluster.start(gpus=int(RESOURCES["GPU"]), tpu=RESOURCES["tpu"])
    yield
    ray_cluster.stop()
