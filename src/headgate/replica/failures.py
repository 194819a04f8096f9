"""Which calls of user code have failed since that was told last? Nothing here is on the way of one that succeeds."""

from __future__ import annotations

import threading
import time
from typing import Final

from headgate.core.failures import Failures
from headgate.core.reports import Failure
from headgate.errors import ErrorInfo
from headgate.replica.member import Member

_KEPT: Final = 16
_LONGEST_NAME: Final = 100


class FailedCalls:
    """Of one replica; any thread may note and take."""

    def __init__(self, backend: str, replica: str) -> None:
        self._backend = backend
        self._replica = replica
        self._lock = threading.Lock()
        self._failures = Failures(_KEPT)

    def note(self, member: Member, info: ErrorInfo) -> None:
        """A call has failed; of a batch, `member` is the first."""
        failure = Failure(
            kind=info.kind,
            backend=self._backend,
            endpoint=member.endpoint,
            error=info.message.partition(":")[0][:_LONGEST_NAME] if info.kind == "UserCodeError" else info.kind,
            count=1,
            at=time.time(),
            replica=self._replica,
            request_id=member.request_id,
            message=info.message,
            traceback=info.traceback,
        )
        with self._lock:
            self._failures.add(failure)

    def take(self) -> tuple[Failure, ...]:
        """Those since this was asked last, the latest first."""
        with self._lock:
            return self._failures.take()
