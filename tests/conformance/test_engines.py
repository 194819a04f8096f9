"""Do the engines that Headgate brings keep to what every engine must keep to?"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable

import pytest

from headgate.testing import conformance
from headgate.testing.conformance import Check
from tests.conformance.harnesses import FakeHarness, LocalHarness

HARNESSES: dict[str, Callable[[], FakeHarness | LocalHarness]] = {
    "fake": FakeHarness,
    "fake-that-waits": functools.partial(FakeHarness, waits=True),
    "local": LocalHarness,
}


def name_of(check: Check) -> str:
    """Of a check, for people."""
    return getattr(check, "__name__", str(check)).removeprefix("check_")


@pytest.mark.parametrize("check", conformance.CHECKS, ids=name_of)
@pytest.mark.parametrize("make", HARNESSES.values(), ids=HARNESSES)
def test_every_engine_conforms(make: Callable[[], FakeHarness | LocalHarness], check: Check) -> None:
    async def run() -> None:
        async with make() as harness:
            await check(harness)

    asyncio.run(run())


def test_the_suite_has_checks() -> None:
    assert len(conformance.CHECKS) > 15
