"""What have an instance's processes sent of their traces? A receiver of OTLP over HTTP, in this process."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

from tests.support import wait_until


class Received(NamedTuple):
    """A span, as it has come over the network."""

    name: str
    trace: str
    id: str
    parent: str
    kind: int
    attributes: dict[str, object]
    process: dict[str, object]  # the attributes of its resource
    links: list[str]  # the ids of the spans that it names
    events: list[dict[str, object]]
    failed: bool
    begin_ns: int
    end_ns: int


class Receiver:
    """Keeps what it gets."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests = 0
        self._spans: list[Received] = []
        self._lock = threading.Lock()

    def take(self, data: bytes) -> None:
        message = ExportTraceServiceRequest.FromString(data)
        found = [
            Received(
                name=span.name,
                trace=span.trace_id.hex(),
                id=span.span_id.hex(),
                parent=span.parent_span_id.hex(),
                kind=span.kind,
                attributes=_attributes(span.attributes),
                process=_attributes(of_process.resource.attributes),
                links=[link.span_id.hex() for link in span.links],
                events=[{"name": event.name, **_attributes(event.attributes)} for event in span.events],
                failed=span.status.code == 2,
                begin_ns=span.start_time_unix_nano,
                end_ns=span.end_time_unix_nano,
            )
            for of_process in message.resource_spans
            for scope in of_process.scope_spans
            for span in scope.spans
        ]
        with self._lock:
            self.requests += 1
            self._spans += found

    def spans(self) -> list[Received]:
        with self._lock:
            return list(self._spans)

    def named(self, name: str, count: int = 1) -> list[Received]:
        """The spans of a name, by their beginning, once there are that many."""

        def there() -> list[Received]:
            found = sorted((span for span in self.spans() if span.name == name), key=lambda span: span.begin_ns)
            assert len(found) >= count, f"{name}: {len(found)} of {count}; there are {sorted(span.name for span in self.spans())}"
            return found

        return wait_until(there, 20.0)


def _attributes(given: object) -> dict[str, object]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in given}  # type: ignore[attr-defined]


@contextmanager
def receiver(before: Callable[[], object] = lambda: None) -> Iterator[Receiver]:
    """A receiver on a free port until the block ends; `before` is called before each answer."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            before()
            taking.take(gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args: object) -> None:
            """Whoever sent this has been killed."""

    server = Server(("127.0.0.1", 0), Handler)
    taking = Receiver(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield taking
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
