"""How does the sending of spans go, and what is said where it fails? Once, and once more when it works again, however often it is tried."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from time import monotonic
from typing import Final

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

HOPELESS_AFTER_S: Final = 2.0
"""What the receiver has not taken for so long it won't take in the moment that a process has at its end."""
_log = logging.getLogger("headgate.traces")


class Sending(SpanExporter):
    """An exporter, watched. All is called by the thread that sends, but for `is_hopeless`."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._fails = False
        self._told = False
        self._began_at = 0.0  # while something is on its way
        logging.getLogger(type(exporter).__module__).addFilter(self._is_news)  # where it says what is wrong

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """As the exporter."""
        self._began_at = monotonic()
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            failed, self._fails, self._began_at = self._fails, result is not SpanExportResult.SUCCESS, 0.0
            if not self._fails:
                self._told = False
        if failed and not self._fails:
            _log.warning("spans are sent again; those of meanwhile are lost")
        return result

    def shutdown(self) -> None:
        """As the exporter."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """As the exporter."""
        return self._exporter.force_flush(timeout_millis)

    @property
    def is_hopeless(self) -> bool:
        """Whether nothing that waits now is worth waiting for; from any thread."""
        began_at = self._began_at
        return self._fails or (began_at > 0 and monotonic() - began_at > HOPELESS_AFTER_S)

    def _is_news(self, record: logging.LogRecord) -> bool:
        told, self._told = self._told, True
        return not told
