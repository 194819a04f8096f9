"""Does the Ray engine keep to what every engine must keep to?"""

from __future__ import annotations

import asyncio

import pytest

from headgate.testing import conformance
from headgate.testing.conformance import Check
from tests.conformance.test_engines import name_of

pytestmark = pytest.mark.usefixtures("ray_cluster_of_one")


@pytest.mark.parametrize("check", conformance.CHECKS, ids=name_of)
def test_the_ray_engine_conforms(check: Check) -> None:
    from tests.conformance.ray_harness import RayHarness

    async def run() -> None:
        async with RayHarness() as harness:
            await check(harness)

    asyncio.run(run())
