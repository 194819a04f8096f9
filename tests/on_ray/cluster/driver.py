"""The program of a `tests.on_ray.cluster.nodes.Driver`: it joins the cluster, and calls what it is sent.

Run with the cluster's address, and the descriptor of the pipe. It ends when the pipe does.
"""

from __future__ import annotations

import logging
import pickle
import sys
import traceback
from multiprocessing.connection import Connection

import cloudpickle
import ray


def main(address: str, descriptor: int) -> None:
    """Take calls one after the other."""
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    pipe: Connection[bytes, bytes] = Connection(descriptor)
    while True:
        try:
            function, args, kwargs = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            answer = cloudpickle.dumps((function(*args, **kwargs), None))
        except BaseException as error:  # noqa: BLE001  # it is raised where the call was made
            error.add_note(traceback.format_exc())
            answer = cloudpickle.dumps((None, error))
        pipe.send_bytes(answer)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
