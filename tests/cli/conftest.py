"""What do the tests of the command line share? An instance that commands look at and change."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from headgate.serve import Instance
from tests.cli.console import NAME


@pytest.fixture(scope="module")
def running(_nothing_left_by_module: None) -> Iterator[Instance]:
    """An instance with two backends and an endpoint."""
    from headgate import serve

    with serve.init(NAME, http_port=0, resources={"CPU": 4}) as instance:
        instance.create_backend("greet:v1", lambda who="world": f"hello {who}")
        instance.create_backend("greet:v2", lambda who="world": {"hello": who})
        instance.create_endpoint("greet", "/greet", ("GET", "POST"), backend="greet:v1")
        yield instance
