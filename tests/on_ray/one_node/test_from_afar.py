"""Does an instance on a cluster take commands from outside of it, also after the death of its controller?"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator

import pytest

from headgate import serve
from headgate.errors import AddressInUseError, AdminTokenError
from headgate.router.admin import TOKEN_VARIABLE
from tests import ray_cluster
from tests.support import wait_until

pytestmark = pytest.mark.usefixtures("cluster_of_one")

TOKEN = "the-token-of-an-instance-on-ray"


@pytest.fixture(autouse=True)
def _nothing_left_by_test(_nothing_left_by_module: None) -> Iterator[None]:
    """As of modules: Ray keeps connections of its own with the processes of actors."""
    yield
    assert not ray_cluster.actors()


def variables() -> dict[str, str]:
    return dict(os.environ)


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def controller_of(instance: serve.Instance) -> int:
    (pid,) = [process.pid for process in instance.status().processes if process.role == "controller"]
    return pid


def test_it_is_operated_from_outside_and_the_next_controller_listens_there_again() -> None:
    address = free_address()
    with serve.init("afar", engine="ray", http_port=0, admin_address=address, admin_token=TOKEN) as near:
        with serve.connect(address=f"tcp://{address}", admin_token=TOKEN) as far:
            assert (far.name, far.status().admin_address) == ("afar", address)
            far.create_backend("one", variables, config={"num_replicas": 2})
            far.create_endpoint("e", backend="one")
            found = near.get_handle("e").remote().result(30)
            assert TOKEN_VARIABLE not in found
            assert TOKEN not in "".join(found.values())
            before = controller_of(near)
            os.kill(before, signal.SIGKILL)
            far.create_endpoint("meanwhile")
            assert "meanwhile" in near.list_endpoints()
            assert controller_of(far) != before
        with pytest.raises(AdminTokenError):
            serve.connect(address=f"tcp://{address}", admin_token=f"{TOKEN}-not")
        with serve.connect(address=f"tcp://{address}", admin_token=TOKEN) as far:
            far.shutdown()
        wait_until(lambda: near.ended, 30)


def test_a_port_that_is_taken_is_named_and_nothing_is_left() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(AddressInUseError, match=f"{address} is in use"):
            serve.init("taken", engine="ray", http_port=0, admin_address=address, admin_token=TOKEN)
