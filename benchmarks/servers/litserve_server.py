"""How does LitServe serve the works? One worker and one API server, unless the option `replicas` says otherwise.

`noop` and `echo` take bytes, which it doesn't for JSON's content type. Queues: ZeroMQ (`fast_queue`), which its documentation advises above
100 requests a second. Batches wait 1 ms: with the default of 0 the worker polls without a pause, which takes a core from the rest.
"""
# No postponed annotations here: LitServe and FastAPI read them.

import os
import time
from collections.abc import Iterator
from typing import Annotated, Any

import litserve
from fastapi import Body, Response

from benchmarks.servers.asked import BATCH, CHUNK, CHUNKS, LONGEST_S, MODEL_BATCH, MODEL_WAIT_S, WORK, Asked, asked, sleep, unknown

Content = Annotated[bytes, Body(media_type="application/octet-stream")]


class Answering(litserve.LitAPI):
    """Takes JSON, answers bytes."""

    def setup(self, device: str) -> None:
        """Nothing to set up."""

    def encode_response(self, output: bytes) -> Response:
        """As it is."""
        return Response(output)


class Bytes(Answering):
    """Takes bytes, answers bytes."""

    def decode_request(self, request: Content) -> bytes:
        """As it is."""
        return request


class Noop(Bytes):
    """Work `noop`."""

    def predict(self, x: bytes) -> bytes:
        """Answer without a look at the body."""
        return b"hello"


class Batch(Answering):
    """Work `batch`."""

    def batch(self, inputs: list[object]) -> list[object]:
        """As it is."""
        return inputs

    def predict(self, x: list[object]) -> list[bytes]:
        """Answer without a look at the bodies."""
        return [b"hello"] * len(x)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        """As it is."""
        return output


class Echo(Bytes):
    """Work `echo`."""

    def predict(self, x: bytes) -> bytes:
        """Answer the body."""
        return x


class Stream(litserve.LitAPI):
    """Work `stream`."""

    def setup(self, device: str) -> None:
        """Nothing to set up."""

    def predict(self, x: object) -> Iterator[bytes]:
        """Make the chunks."""
        for _ in range(CHUNKS):
            yield CHUNK

    def encode_response(self, output: Iterator[bytes]) -> Any:  # FastAPI refuses what it would be exactly
        """As they are."""
        yield from output


class Modelled(litserve.LitAPI):
    """Works `classifier` and `network`."""

    def setup(self, device: str) -> None:
        """Make the model, in the worker."""
        from benchmarks.servers.model import Model

        self.model = Model(os.environ[WORK])

    def batch(self, inputs: list[Any]) -> list[Any]:
        """As it is."""
        return inputs

    def predict(self, x: list[dict[str, list[float]]]) -> list[dict[str, object]]:
        """Answer a batch of scans."""
        return self.model([item["pixels"] for item in x])

    def unbatch(self, output: list[Any]) -> list[Any]:
        """As it is."""
        return output


class Slow(Answering):
    """Work `slow`."""

    def predict(self, x: object) -> bytes:
        """Sleep."""
        sleep()
        return b"hello"


class Drip(Batch):
    """Work `drip`."""

    def predict(self, x: list[object]) -> list[bytes]:
        """Sleep, then answer how many were in the batch."""
        sleep()
        return [str(len(x)).encode()] * len(x)


class Exponential(Bytes):
    """Work `exponential`."""

    def predict(self, x: bytes) -> bytes:
        """Sleep for as many seconds as the body says."""
        time.sleep(float(x))
        return b"hello"


WORKS: dict[str, type[litserve.LitAPI]] = {
    "noop": Noop,
    "batch": Batch,
    "echo": Echo,
    "stream": Stream,
    "classifier": Modelled,
    "network": Modelled,
    "slow": Slow,
    "drip": Drip,
    "exponential": Exponential,
}


def api(wanted: Asked) -> Any:
    """What answers, with its batches and streams."""
    settings: dict[str, Any] = {}
    if wanted.work in ("batch", "drip"):
        settings = {"max_batch_size": wanted.number("max_batch_size", BATCH), "batch_timeout": wanted.number("batch_wait_ms", 1) / 1000}
    elif WORKS[wanted.work] is Modelled:
        settings = {"max_batch_size": MODEL_BATCH, "batch_timeout": MODEL_WAIT_S}
    elif wanted.work == "stream":
        settings = {"stream": True}
    return WORKS[wanted.work](**settings)


def main() -> None:
    """Serve until SIGTERM."""
    wanted = asked()
    if wanted.work not in WORKS:
        raise unknown(wanted.work)
    server = litserve.LitServer(
        api(wanted),
        accelerator="cpu",
        devices=1,
        workers_per_device=wanted.number("replicas", 1),
        timeout=wanted.number("timeout_ms", LONGEST_S * 1000) / 1000,
        fast_queue=True,
    )
    server.run(
        host="127.0.0.1",
        port=wanted.port,
        num_api_servers=1,
        log_level="error",
        generate_client_file=False,
        access_log=False,
    )


if __name__ == "__main__":
    main()
