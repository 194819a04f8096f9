"""How long is the chaos suite?"""

from __future__ import annotations

import pytest

from tests.figures import Figures

__all__ = ["Figures", "long"]


@pytest.fixture
def long(request: pytest.FixtureRequest) -> bool:
    """Whether the long form was asked for."""
    return bool(request.config.getoption("--long"))
