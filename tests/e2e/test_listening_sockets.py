"""Who can reach an instance from another machine?"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import sys
from pathlib import Path

import pytest

from headgate import serve
from headgate.router.remote import split
from tests.leaks import processes

pytestmark = pytest.mark.local_engine("on a cluster, nodes reach each other")

_LISTEN, _BOUND = "0A", "07"
"""As the kernel says of a TCP socket that listens, and of a UDP socket that takes what comes."""


def _own_inodes() -> set[str]:
    """Of all sockets of this process and of all that it has started."""
    found: set[str] = set()
    for pid in (os.getpid(), *(abs(pid) for pid in processes())):
        found |= _inodes_of(pid)
    return found


def _inodes_of(pid: int) -> set[str]:
    """Of all sockets of a process."""
    found: set[str] = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            held = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(link))
        except FileNotFoundError:  # closed just now
            continue
        if held is not None:
            found.add(held.group(1))
    return found


def _listening() -> list[list[str]]:
    """What the kernel says of the TCP sockets of this machine that listen."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [fields for fields in lines if fields[3] == _LISTEN]


def reachable_by_network() -> set[tuple[str, str, int]]:
    """What of these takes connections or datagrams of the network: protocol, address, port."""
    ours, found = _own_inodes(), set()
    for protocol, state in (("tcp", _LISTEN), ("tcp6", _LISTEN), ("udp", _BOUND), ("udp6", _BOUND)):
        for line in Path(f"/proc/net/{protocol}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == state and fields[9] in ours:
                host, port = fields[1].split(":")
                words = [bytes.fromhex(host[at : at + 8]) for at in range(0, len(host), 8)]
                raw = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
                found.add((protocol, str(ipaddress.ip_address(raw)), int(port, 16)))
    return found


def test_of_an_instance_on_one_machine_nothing_but_http_takes_connections_and_that_from_this_machine_alone() -> None:
    assert reachable_by_network() == set()
    with serve.init(http_port=0) as instance:
        serve.create_backend("b", lambda: "fine", config={"num_replicas": 2})
        serve.create_endpoint("e", backend="b", route="/e")
        assert serve.get_handle("e").remote().result(20) == "fine"
        host, port = split(instance.http_url.partition("//")[2])
        assert host == "127.0.0.1"
        assert reachable_by_network() == {("tcp", "127.0.0.1", port)}


def test_with_an_admin_address_that_too_and_no_replica_or_ingress_has_a_part_in_it() -> None:
    with serve.init(http_port=0, admin_address="127.0.0.1:0", admin_token="a-token-of-this-test") as instance:
        serve.create_backend("b", lambda: "fine")
        status = instance.status()
        http, admin = (split(address)[1] for address in (instance.http_url.partition("//")[2], status.admin_address))
        assert reachable_by_network() == {("tcp", "127.0.0.1", http), ("tcp", "127.0.0.1", admin)}
        inode = next(fields[9] for fields in _listening() if int(fields[1].partition(":")[2], 16) == admin)
        holders = {process.role for process in status.processes if inode in _inodes_of(process.pid)}
        assert holders == {"supervisor", "controller"}


@pytest.mark.parametrize(("family", "protocol", "host"), [(socket.AF_INET, "tcp", "0.0.0.0"), (socket.AF_INET6, "tcp6", "::1")])
def test_that_is_what_would_be_found(family: int, protocol: str, host: str) -> None:
    with socket.create_server((host, 0), family=family) as listener:
        assert reachable_by_network() == {(protocol, host, listener.getsockname()[1])}
