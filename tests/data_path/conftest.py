"""Every test of the data path runs thrice: with links on one machine, as between nodes, and as between nodes with TLS."""

from __future__ import annotations

import pytest

from headgate.router.tls import Tls
from tests.certificates import made_for
from tests.data_path import rig


@pytest.fixture(autouse=True, params=["unix", "tcp", "tls"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What links go over."""
    monkeypatch.setattr(rig, "REMOTE", request.param != "unix")
    if request.param == "tls":
        monkeypatch.setattr(rig, "TLS", Tls(*made_for("the cluster")))
    return str(request.param)
