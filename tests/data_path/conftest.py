"""Every test of the data path runs twice: with links on one machine, and as between nodes."""

from __future__ import annotations

import pytest

from tests.data_path import rig


@pytest.fixture(autouse=True, params=["unix", "tcp"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What links go over."""
    monkeypatch.setattr(rig, "REMOTE", request.param == "tcp")
    return str(request.param)
