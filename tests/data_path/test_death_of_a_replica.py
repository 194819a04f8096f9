"""What a router makes of a replica that dies: by what the shared page says, and only once the process is seen dead."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import pytest

from headgate.core.messages import BrokenReplica, ReplicaEntry
from headgate.router import payload
from tests.data_path.rig import Asked, Rig
from tests.data_path.test_data_path import play
from tests.support import until

# How each stand-in for a replica begins: it takes the link of one router, and names the process of its second argument, or its own.
STANDIN = """
import mmap, os, socket, sys
import msgspec
from headgate.core import wire

server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
print("listening", flush=True)
link, _ = server.accept()
decoder = wire.Decoder()

def receive():
    return decoder.received(link.recv_into(decoder.buffer()))

def take(count):
    calls = []
    while len(calls) < count:
        calls += [call for frame in receive() for call in msgspec.msgpack.decode(frame.body, type=list[wire.Call])]
    return calls

(hello,) = receive()
hello = msgspec.msgpack.decode(hello.meta, type=wire.Hello)
with open(hello.page, "r+b") as file:
    page = mmap.mmap(file.fileno(), wire.PLACES)
link.sendall(wire.encode(wire.WELCOME, int(sys.argv[2]) or os.getpid()))
"""

# One that takes two calls, marks the first as started, closes its link, and lives on until it is told whether it has
# started the second as well.
LINGERING = (
    STANDIN
    + """
calls = take(2)
page[calls[0].place] = 1
server.close()
link.close()
if sys.stdin.readline() == "start the second\\n":
    page[calls[1].place] = 1
"""
)


@contextmanager
def standin(program: str, address: str, *arguments: str, pid: int = 0) -> Iterator[subprocess.Popen[str]]:
    """A stand-in that listens there, and is killed when the block has ended."""
    command = [sys.executable, "-c", program, address, str(pid), *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert said(process) == "listening\n"
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> str:
    """What it says next."""
    assert process.stdout is not None
    return process.stdout.readline()


def tell(process: subprocess.Popen[str], what: str) -> None:
    """Have it go on."""
    assert process.stdin is not None
    process.stdin.write(f"{what}\n")
    process.stdin.flush()


@pytest.mark.parametrize(
    ("told", "idempotent", "ends"),
    [
        ("start none", False, ["ReplicaDiedError", "elsewhere"]),
        ("start none", True, ["elsewhere", "elsewhere"]),
        ("start the second", False, ["ReplicaDiedError", "ReplicaDiedError"]),
        ("start the second", True, ["elsewhere", "elsewhere"]),
    ],
)
def test_only_what_had_not_started_when_the_process_was_dead_runs_elsewhere(
    tmp_path: Path, told: str, idempotent: bool, ends: list[str]
) -> None:
    address = str(tmp_path / "standin.sock")

    async def scene() -> None:
        async with Rig(tmp_path, lambda x: "elsewhere", idempotent=idempotent, concurrency=2) as rig:
            entry = msgspec.structs.replace(rig.entry(), replicas=(ReplicaEntry("standin", address, "secret"),))
            rig.apply(backends={"b": entry})
            calls = [rig.ask(number) for number in range(2)]
            link = rig.router._backends["b"].links["standin"]
            await until(lambda: link.replica not in rig.router._backends["b"].links)
            rig.apply()  # the real replica is there now
            assert not calls[1].done.done()  # as long as the process lives it may start it
            tell(process, told)
            for call in calls:
                await call.done
            assert [call.info.kind if call.info else call.value for call in calls] == ends

    with standin(LINGERING, address) as process:
        play(scene)


def test_a_replica_that_lives_on_without_its_link_is_reported_until_it_is_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headgate.router.link._DEATH_WAIT_S", 0.02)
    address = str(tmp_path / "standin.sock")

    async def scene() -> None:
        async with Rig(tmp_path, lambda x: "elsewhere", concurrency=2) as rig:
            entry = msgspec.structs.replace(rig.entry(), replicas=(ReplicaEntry("standin", address, "secret"),))
            rig.apply(backends={"b": entry})
            calls = [rig.ask(number) for number in range(2)]
            broken = BrokenReplica("standin", "its link closed while the process lives")
            await until(lambda: rig.reported.count(broken) >= 3)  # no controller may have heard the first
            (link,) = rig.router._backends["b"].dying
            rig.apply()  # the real replica is there now
            tell(process, "die")
            await calls[1].done
            assert calls[1].value == "elsewhere"
            assert link._dead is None  # no report is due any more

    with standin(LINGERING, address) as process:
        play(scene)


# One that has begun its first call, answers nothing more than that, and dies with the second unread in its socket.
SUDDEN = (
    STANDIN
    + """
(call,) = take(1)
print("one call", flush=True)
sys.stdin.readline()
answer = msgspec.msgpack.encode([(call.number, 200, 0, 0, b"", bytes.fromhex(sys.argv[3]))])
link.sendall(wire.HEAD.pack(0, len(answer), 0, 0, 0, 0, 0, wire.ANSWERS, 0) + answer)
os._exit(0)
"""
)


@pytest.mark.parametrize("pid", [0, 0xFFFFFFFF], ids=["seen by its pidfd", "without a pidfd"])
def test_a_replica_that_dies_with_calls_unread_just_after_an_answer_is_seen_dead(tmp_path: Path, pid: int) -> None:
    address = str(tmp_path / "sudden.sock")

    async def scene() -> None:
        async with Rig(tmp_path, lambda x: "elsewhere", concurrency=2) as rig:
            entry = msgspec.structs.replace(rig.entry(), replicas=(ReplicaEntry("sudden", address, "secret"),))
            rig.apply(backends={"b": entry})
            first = rig.ask(1)
            assert await asyncio.to_thread(said, process) == "one call\n"
            second = rig.ask(2)
            link = rig.router._backends["b"].links["sudden"]
            await until(lambda: len(link.calls) == 2 and link._channel is not None and link._channel.empty)
            tell(process, "die")
            process.wait()  # while this loop sees nothing: the answer and the end are there together
            await first.done
            assert first.value == "answered"
            await until(lambda: "sudden" not in rig.router._backends["b"].links, "the link is given up")
            rig.apply()  # the real one is there now
            await second.done
            assert second.value == "elsewhere"

    with standin(SUDDEN, address, payload.dump("answered").hex(), pid=pid) as process:
        play(scene)


# One that takes two calls, begins with the one that is named "runs", and dies.
FATAL = (
    STANDIN
    + """
(place,) = [call.place for call in take(2) if call.request_id == "runs"]
page[place] = 1
os._exit(1)
"""
)


async def met(call: Asked, deaths: int) -> None:
    """Until a call has met so many deaths."""
    await until(lambda: call.deaths == deaths, f"death {deaths}")


@pytest.mark.parametrize("idempotent", [False, True], ids=["another runs each time", "the same runs each time"])
def test_a_request_that_has_never_started_is_given_up_by_its_third_death_too(
    tmp_path: Path, idempotent: bool, caplog: pytest.LogCaptureFixture
) -> None:
    addresses = [str(tmp_path / f"{number}.sock") for number in range(3)]
    started: list[str] = []

    async def scene() -> None:
        async with Rig(tmp_path, started.append, idempotent=idempotent, concurrency=2) as rig:
            running: list[Asked] = []
            waits: Asked | None = None
            for number, address in enumerate(addresses):
                entry = msgspec.structs.replace(rig.entry(), replicas=(ReplicaEntry(f"fatal {number}", address, "secret"),))
                rig.apply(backends={"b": entry})
                if not running or not idempotent:
                    running.append(rig.ask("runs", request_id="runs"))
                waits = waits or rig.ask("waits", request_id="waits")
                assert not waits.done.done()
                await met(waits, number + 1)
            rig.apply()  # the real replica is there now
            await rig.ask("next").done
            assert waits is not None
            for call in (*running, waits):
                assert call.info is not None
                assert (call.info.kind, call.info.status) == ("ReplicaDiedError", 502)
                assert ("too many deaths" in call.info.message) is (idempotent or call is waits), call.info

    with ExitStack() as standins:
        for address in addresses:
            standins.enter_context(standin(FATAL, address))
        play(scene)
    assert started == ["next"]
    given_up = [f"request {name} to endpoint 'e' met the deaths of 3 replicas of backend 'b'; it is given up" for name in ("runs", "waits")]
    assert sorted(caplog.messages) == (given_up if idempotent else given_up[1:])
