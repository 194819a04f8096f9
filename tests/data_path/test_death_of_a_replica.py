"""What a router makes of a replica that dies: by what the shared page says, and only once the process is seen dead."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from headgate.core.messages import ReplicaEntry
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
