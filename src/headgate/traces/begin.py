"""How does a process begin to trace, where do its spans go, and how does it end?

By OpenTelemetry's SDK, after the process was forked, since that starts a thread: what goes out is sent by that thread, from a queue
with a bound. The standard variables `OTEL_*` say where to, and of which requests.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from headgate.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

    from headgate.traces.sending import Sending

END_WITHIN_S: Final = 2.0
"""For the spans that were not sent yet, where a process ends in order."""
_NEEDED: Final = ("opentelemetry", "opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")
_EXPORTERS: Final = ("otlp", "console", "none")
_PROTOCOL: Final = "http/protobuf"
_PROVIDER: Final = "OTEL_PYTHON_TRACER_PROVIDER"
_log = logging.getLogger("headgate.traces")


def check() -> None:
    """Raise `ConfigError` where traces can't be had: what is missing, or which variable asks for what there isn't."""
    if not all(map(_is_there, _NEEDED)):
        raise ConfigError(
            "traces=True needs OpenTelemetry, which isn't installed: pip install '../headgate[otel]', where ../headgate is the clone"
        )
    if _PROVIDER in os.environ:  # then there is one in each process before ours, which sends nothing anywhere
        raise ConfigError(
            f"{_PROVIDER}={os.environ[_PROVIDER]!r} stands in the way of traces=True, which makes tracer providers itself, by the other "
            "OTEL_* variables: leave it out; code that wants another provider calls opentelemetry.trace.set_tracer_provider"
        )
    _check_limits()
    exporter = _exporter(os.environ)
    if exporter is not None:
        exporter.shutdown()


def warm() -> None:
    """Import what processes need that trace, once for all of them; nothing that starts threads."""
    import opentelemetry.exporter.otlp.proto.http.trace_exporter  # noqa: F401  # imported for their sake, all of them

    import headgate.traces.sampling
    import headgate.traces.sending
    import headgate.traces.spans  # noqa: F401  # as above


class Tracing:
    """What a process traces by."""

    def __init__(self, provider: TracerProvider | None, sending: Sending | None = None, draw: Callable[[], bytes] = bytes) -> None:
        self._provider = provider
        self._sending = sending
        self.draw = draw
        """See `Lot`."""

    def end(self) -> None:
        """Send what wasn't sent yet, for `END_WITHIN_S` at most, unless the receiver takes nothing anyhow.

        A provider of the user's own is the user's to end.
        """
        if self._provider is not None and not (self._sending is not None and self._sending.is_hopeless):
            ending = threading.Thread(target=self._provider.shutdown, name="headgate traces end", daemon=True)
            ending.start()
            ending.join(END_WITHIN_S)


_tracing = Tracing(None)  # this process's


def end() -> None:
    """This process is about to end in order: see `Tracing.end`. Nothing happens where it doesn't trace."""
    _tracing.end()


def begin(role: str, id: str, backend: str = "") -> Tracing:
    """Have spans of this process go where `OTEL_*` says, its user code's too. Pair it with `end`.

    Where a tracer provider has been set already, by user code, that is used as it is.
    """
    global _tracing
    from opentelemetry import trace

    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return Tracing(None)
    try:
        _tracing = _begun(role, id, backend)
    except (ConfigError, ValueError) as error:  # this process has other variables than the one that `init` was called in
        _log.error("no spans are made in this process: %s", error)
    return _tracing


def _begun(role: str, id: str, backend: str) -> Tracing:
    """As `begin`. Raises `ConfigError`, or the SDK's `ValueError`, where the variables are wrong; nothing is set then."""
    _check_limits()
    from opentelemetry import trace
    from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from headgate.traces.sampling import Lot, share_of_roots
    from headgate.traces.sending import Sending

    of_process = {SERVICE_INSTANCE_ID: id, "headgate.role": role, **({"headgate.backend": backend} if backend else {})}
    resource = Resource.create(of_process)
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):  # nobody has named it
        resource = resource.merge(Resource({SERVICE_NAME: "headgate"}))
    lot = Lot(share_of_roots(os.environ))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False, id_generator=lot)
    exporter = _exporter(os.environ)
    sending = None if exporter is None else Sending(exporter)
    if sending is not None:
        provider.add_span_processor(BatchSpanProcessor(sending))
    trace.set_tracer_provider(provider)
    return Tracing(provider, sending, lot.draw)


def _check_limits() -> None:
    """Raise `ConfigError` where a variable that limits spans is no number."""
    try:
        from opentelemetry.sdk.trace import SpanLimits  # one of them is read where this is imported

        SpanLimits()
    except ValueError as error:
        raise ConfigError(f"{error}; give it such a number, or leave it out") from None


def _exporter(environ: Mapping[str, str]) -> SpanExporter | None:
    """What sends spans, by the variables. Raises `ConfigError`."""
    name = environ.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    if name not in _EXPORTERS:
        raise ConfigError(f"OTEL_TRACES_EXPORTER={name!r} isn't known here; there are {', '.join(_EXPORTERS)}")
    if name == "none":
        return None
    if name == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter(out=sys.stdout, formatter=lambda span: span.to_json(indent=None) + "\n")
    for variable in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        protocol = environ.get(variable, "").strip() or _PROTOCOL
        if protocol != _PROTOCOL:
            raise ConfigError(f"{variable}={protocol!r}: spans leave here by {_PROTOCOL}; leave it out, and name a port for that (4318)")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    try:
        return OTLPSpanExporter()
    except (ValueError, OSError) as error:
        raise ConfigError(f"one of OTEL_EXPORTER_OTLP_* can't be used: {error}") from None


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # not even the package that it would be in
        return False
