"""How does a freshly executed interpreter become a supervisor, or a replica?

Composition roots call `main` with their programs.
"""

from __future__ import annotations

import faulthandler
import gc
import io
import os
import socket
import sys

import msgspec

from headgate.core.specs import LogSettings
from headgate.engines.base import REPLICA
from headgate.engines.local import sigterm, surroundings
from headgate.engines.local.programs import Programs, read_replica_spec, run_replica
from headgate.engines.local.protocol import Boot
from headgate.engines.local.supervisor import supervise


def main(programs: Programs) -> None:
    """Supervise as told on standard input; with the arguments `replica <spec file> <log format> <log folder>`, run that replica instead."""
    _lines_at_once()
    faulthandler.enable()  # a crash in native code leaves a traceback on the terminal
    if sys.argv[1:2] == [REPLICA]:
        sigterm.stay()
        spec = read_replica_spec(sys.argv[2])
        # The supervisor has chosen the variables; only PYTHONPATH differs, which had to lead to Headgate.
        environ = surroundings.environment(spec, os.environ)
        run_replica(programs, spec, os.path.dirname(sys.argv[2]), environ, LogSettings(sys.argv[3], sys.argv[4], verbose=len(sys.argv) > 5))
    gc.disable()  # nothing that is imported now will ever be freed
    try:
        boot, report_to = _receive()
    except (OSError, msgspec.DecodeError):
        sys.exit("this program is a part of Headgate that serve.init() starts; run your own script instead")
    if boot.python_path is None:
        os.environ.pop("PYTHONPATH", None)
    else:
        os.environ["PYTHONPATH"] = boot.python_path
    supervise(boot, report_to, programs)


def _receive() -> tuple[Boot, socket.socket]:
    """Read what the driver sent, and put /dev/null where the socket was: descriptor 0."""
    sock = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.closerange(3, sock.fileno())  # the driver may have left descriptors open for its children
    os.closerange(sock.fileno() + 1, 65536)
    data = b""
    while received := sock.recv(65536):
        data += received
    return msgspec.msgpack.decode(data, type=Boot), sock


def _lines_at_once() -> None:
    """Show what user code prints line by line, also where the output is a file or a pipe: a replica may be killed at any time."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
