"""For how long may a service manager hold up who tells it something?"""

from __future__ import annotations

import contextlib
import os
import socket

import pytest

from headgate.cli import service_manager


def test_one_that_takes_nothing_is_given_up_and_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"headgate-test-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    monkeypatch.setattr(service_manager, "_address", None)
    monkeypatch.setattr(service_manager, "_PATIENCE_S", 0.01)
    service_manager.take()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        manager.bind(f"\0{name}")
        other.setblocking(False)
        other.connect(f"\0{name}")
        with contextlib.suppress(BlockingIOError):
            while True:  # until it holds as much as it may
                other.send(b"x")
        service_manager.tell(service_manager.STOPPING, "finishing what was admitted")
    assert capsys.readouterr().err == f"the service manager can't be told STOPPING=1: timed out (NOTIFY_SOCKET=@{name})\n"
