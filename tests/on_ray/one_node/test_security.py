"""Do Ray's own security settings stay on, and do ours follow them?"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headgate.router.way import Way
from tests.certificates import made_for
from tests.support import leave_out

PROGRAM = Path(__file__).with_name("secure_cluster.py")


def run_with(**variables: str) -> dict[str, Any]:
    """What the program finds."""
    if importlib.util.find_spec("ray") is None:
        leave_out("Ray isn't installed")
    root = Path(__file__).parents[3]
    path = os.pathsep.join([str(root / "src"), str(root)])
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environ |= {"PYTHONPATH": path, "PYTHONWARNINGS": "ignore::DeprecationWarning"} | variables
    done = subprocess.run([sys.executable, PROGRAM], env=environ, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    *told, last = done.stdout.splitlines()
    found: dict[str, Any] = json.loads(last)
    for written in found["secret"]:
        assert written not in "\n".join([*told, done.stderr])
    return found


def check(found: dict[str, Any]) -> None:
    assert len(found["nodes"]) == 2, "replicas on both nodes answer"
    assert len(found["across"]) == 4, "each reaches itself and the other"
    assert found["gates"] == 3, "the controller's and the replicas'"
    for written in found["secret"]:
        assert written not in found["repr"]
    assert found["logged"] == []


@pytest.mark.timeout(240)
def test_an_instance_runs_on_a_cluster_with_rays_tokens() -> None:
    found = run_with(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    check(found)
    assert not found["uses TLS"]
    assert found["plain"] == [""] * 3
    assert all("TLS" in refused for refused in found["secure"])


@pytest.mark.timeout(240)
def test_where_ray_uses_tls_connections_between_nodes_do_with_rays_own_files() -> None:
    address = socket.gethostbyname(socket.gethostname())
    files = made_for("the cluster", "localhost", "127.0.0.1", address, *_address_of_ray())
    found = run_with(
        RAY_USE_TLS="1",
        RAY_TLS_SERVER_CERT=files.cert,
        RAY_TLS_SERVER_KEY=files.key,
        RAY_TLS_CA_CERT=files.authority,
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN=secrets.token_hex(32),
    )
    check(found)
    assert found["uses TLS"]
    assert all("uses TLS, and this process doesn't" in refused for refused in found["plain"]), found["plain"]
    assert found["secure"] == [""] * 3


def test_what_holds_the_secret_does_not_show_it() -> None:
    if importlib.util.find_spec("ray") is None:
        leave_out("Ray isn't installed")
    from headgate.engines.ray.records import InstanceRecord
    from tests.conformance.harnesses import settings_for

    secret = secrets.token_bytes(32)
    record = InstanceRecord(settings=settings_for("shown"), secret=secret, controller="node 10.0.0.1:1 /path", serving=True)
    shown = "".join([repr(record), str(record), f"{[record]}", repr(Way("/folder", secret=secret)), repr(record.settings)])
    assert repr(secret)[2:-1] not in shown
    assert secret.hex() not in shown
    for other in ("settings=InstanceSettings(", "controller='node 10.0.0.1:1 /path'", "serving=True"):
        assert other in repr(record)


def _address_of_ray() -> list[str]:
    """Ray looks at the names in certificates, and calls this machine by the address that it has for the world."""
    if importlib.util.find_spec("ray") is None:
        return []
    import ray

    return [ray.util.get_node_ip_address()]
