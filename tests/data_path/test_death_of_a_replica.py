"""What a router makes of a replica that dies: by what the shared page says, and only once the process is seen dead."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from headgate.core.messages import ReplicaEntry
from headgate.router import payload
from tests.data_path.rig import Rig
from tests.data_path.test_data_path import play
from tests.support import until

# A replica that takes two calls, marks the first as started, closes its link, and lives on until it is told whether it
# has started the second as well.
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

(hello,) = receive()
hello = msgspec.msgpack.decode(hello.meta, type=wire.Hello)
with open(hello.page, "r+b") as file:
    page = mmap.mmap(file.fileno(), wire.PLACES)
link.sendall(wire.encode(wire.WELCOME, os.getpid()))
calls = []
while len(calls) < 2:
    calls += [call for frame in receive() for call in msgspec.msgpack.decode(frame.body, type=list[wire.Call])]
page[calls[0].place] = 1
server.close()
link.close()
if sys.stdin.readline() == "start the second\\n":
    page[calls[1].place] = 1
"""


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
            assert process.stdin is not None
            process.stdin.write(f"{told}\n")
            process.stdin.flush()
            for call in calls:
                await call.done
            assert [call.info.kind if call.info else call.value for call in calls] == ends

    with subprocess.Popen([sys.executable, "-c", STANDIN, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"
        try:
            play(scene)
        finally:
            process.kill()


# A replica that has begun its first call, answers nothing more than that, and dies with the second unread in its socket.
SUDDEN = """
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

(hello,) = receive()
link.sendall(wire.encode(wire.WELCOME, int(sys.argv[2]) or os.getpid()))
(frame,) = receive()
(call,) = msgspec.msgpack.decode(frame.body, type=list[wire.Call])
print("one call", flush=True)
sys.stdin.readline()
answer = msgspec.msgpack.encode([(call.number, 200, 0, 0, b"", bytes.fromhex(sys.argv[3]))])
link.sendall(wire.HEAD.pack(0, len(answer), 0, 0, 0, 0, 0, wire.ANSWERS, 0) + answer)
os._exit(0)
"""


@pytest.mark.parametrize("pid", [0, 0xFFFFFFFF], ids=["seen by its pidfd", "without a pidfd"])
def test_a_replica_that_dies_with_calls_unread_just_after_an_answer_is_seen_dead(tmp_path: Path, pid: int) -> None:
    address = str(tmp_path / "sudden.sock")

    async def scene() -> None:
        async with Rig(tmp_path, lambda x: "elsewhere", concurrency=2) as rig:
            entry = msgspec.structs.replace(rig.entry(), replicas=(ReplicaEntry("sudden", address, "secret"),))
            rig.apply(backends={"b": entry})
            first = rig.ask(1)
            assert process.stdin is not None
            assert process.stdout is not None
            assert await asyncio.to_thread(process.stdout.readline) == "one call\n"
            second = rig.ask(2)
            link = rig.router._backends["b"].links["sudden"]
            await until(lambda: len(link.calls) == 2 and link._channel is not None and link._channel.empty)
            process.stdin.write("die\n")
            process.stdin.flush()
            process.wait()  # while this loop sees nothing: the answer and the end are there together
            await first.done
            assert first.value == "answered"
            await until(lambda: "sudden" not in rig.router._backends["b"].links, "the link is given up")
            rig.apply()  # the real one is there now
            await second.done
            assert second.value == "elsewhere"

    arguments = [sys.executable, "-c", SUDDEN, address, str(pid), payload.dump("answered").hex()]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"
        try:
            play(scene)
        finally:
            process.kill()
