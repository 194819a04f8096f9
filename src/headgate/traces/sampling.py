"""Of which requests that begin a trace is nothing recorded? That is drawn before anything is made for them.

The SDK decides alike, by the trace's id alone, but makes more for each request than is well spent where one in a hundred is recorded.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from typing import Final

from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

from headgate.traces.travel import SPAN_BYTES, TRACE_BYTES

_SHARES: Final = ("traceidratio", "parentbased_traceidratio")
_NONE: Final = ("always_off", "parentbased_always_off")


class Lot(RandomIdGenerator):
    """Draws ids of traces and spans; for a tracer provider whose sampler is that of the variables.

    Not by the module `random`, which user code may seed. `draw` is used by one thread.
    """

    def __init__(self, share: float | None) -> None:
        self._bits = random.Random(os.urandom(16)).getrandbits
        self._bound = None if share is None else TraceIdRatioBased(share).bound
        self._drawn = 0

    def draw(self) -> bytes:
        """A span of a new trace, as it travels, of which nothing is recorded. Empty: begin a span, it is for the sampler to say."""
        if self._bound is None:
            return b""
        drawn = self._bits(8 * TRACE_BYTES) or 1
        if drawn & TraceIdRatioBased.TRACE_ID_LIMIT < self._bound:
            self._drawn = drawn
            return b""
        return drawn.to_bytes(TRACE_BYTES) + (self._bits(8 * SPAN_BYTES) or 1).to_bytes(SPAN_BYTES) + b"\0"

    def generate_trace_id(self) -> int:
        """The one that was drawn, once."""
        drawn, self._drawn = self._drawn, 0
        return drawn or self._bits(8 * TRACE_BYTES) or 1

    def generate_span_id(self) -> int:
        """Any."""
        return self._bits(8 * SPAN_BYTES) or 1


def share_of_roots(environ: Mapping[str, str]) -> float | None:
    """Which share of new traces is recorded, by the variables; None where that takes more than their ids to say."""
    sampler = environ.get("OTEL_TRACES_SAMPLER", "").strip().lower()
    if sampler in _NONE:
        return 0.0
    if sampler not in _SHARES:
        return None
    try:
        share = float(environ.get("OTEL_TRACES_SAMPLER_ARG", ""))
    except ValueError:
        return None
    return share if 0.0 <= share <= 1.0 else None
