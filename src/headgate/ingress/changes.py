"""Who may change what an instance does by a request to an ingress, and how does the controller get to know?

Whoever sends the admin token, from where nobody on the way can read it: over TLS, or from this machine. It is told before the body is
read, and guesses are few (`core/strangers.py`). What comes of the body is a verb as everybody sends them, with the same checks and errors.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Final, Protocol

import msgspec

from headgate.core.messages import SetTraffic, UpdateBackendConfig, VerbDone
from headgate.core.strangers import HOLD_S, Strangers, source_of
from headgate.errors import NotRunningError, describe
from headgate.ingress.problems import Refusal, Reply, from_error
from headgate.router import admin
from headgate.router.refusals import Refusals

if TYPE_CHECKING:
    from headgate.ingress.exchange import Exchange

_log = logging.getLogger("headgate.ingress")

MOST_BYTES: Final = 64 * 1024
"""Of a body."""
_SCHEME: Final = b"bearer "

Verb = SetTraffic | UpdateBackendConfig
_Count = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]  # so that it travels; what is too few the verb says


class Asked(Protocol):
    """What a body asks for."""

    def verb(self) -> Verb:
        """The same as a verb."""
        ...


class AskedTraffic(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The weights of an endpoint's backends; where they are no longer what they are `based_on`, nothing changes."""

    endpoint: str
    weights: dict[str, float]
    based_on: dict[str, float] | None = None

    def verb(self) -> Verb:
        """See `Asked`."""
        return SetTraffic(self.endpoint, self.weights, self.based_on)


class AskedReplicas(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many replicas a backend is to have; where it is no longer to have as many as that is `based_on`, nothing changes."""

    backend: str
    num_replicas: _Count
    based_on: _Count | None = None

    def verb(self) -> Verb:
        """See `Asked`."""
        known = None if self.based_on is None else {"num_replicas": self.based_on}
        return UpdateBackendConfig(self.backend, {"num_replicas": self.num_replicas}, None, known)


PAGES: Final[dict[str, type[Asked] | None]] = {"traffic": AskedTraffic, "replicas": AskedReplicas, "token": None}
"""Where changes are asked for, under the reserved prefix, and what their bodies are; at `token` nothing is but whether that is right."""

_NONE_TAKEN: Final = Refusal(
    403, "this instance takes no changes here: it was started without an admin token (init(admin_token=…), --admin-token-file)"
)
_READABLE_BY_OTHERS: Final = Refusal(
    403,
    "changes are taken over HTTPS, or from the instance's own machine: on this way others could read the admin token; start the instance "
    "with ssl_certfile, or come by an SSH tunnel",
)
_MISSING: Final = Refusal(401, "this takes the instance's admin token: `Authorization: Bearer TOKEN`", b"www-authenticate: Bearer\r\n")
_WRONG: Final = Refusal(401, "the instance has another admin token", b'www-authenticate: Bearer error="invalid_token"\r\n')
_TOO_OFTEN: Final = Refusal(
    429, f"there were too many wrong admin tokens in the last {HOLD_S:g} s; try again", b"retry-after: %d\r\n" % max(1, round(HOLD_S))
)
_AWAY: Final = Refusal(
    503, "the controller can't be reached; whether this was done isn't known, and /-/ shows what is so", reason="no controller"
)
TOO_LARGE: Final = Refusal(413, f"a change takes at most {MOST_BYTES} bytes")
_RIGHT: Final = Reply(204)
_JSON: Final = b"content-type: application/json\r\ncache-control: no-store\r\n"


class Change:
    """A request that may change something, whose body is still to come. `left` is called where its client doesn't wait for the answer."""

    __slots__ = ("page", "task")

    def __init__(self, page: str) -> None:
        self.page = page
        self.task: asyncio.Task[None] | None = None

    def left(self) -> None:
        """A verb that waits for room is given up; else it goes on."""
        if self.task is not None:
            self.task.cancel()


class Changes:
    """Made on the running loop. Without arguments it takes none.

    Args:
        check: tells the admin token, as by `admin.check_of`; empty where the instance has none.
        call: has the controller do a verb; raises `NotRunningError` where it can't be reached.
        encrypted: whether clients come over TLS.
    """

    def __init__(self, check: bytes = b"", call: Callable[[Verb], Awaitable[VerbDone]] | None = None, *, encrypted: bool = False) -> None:
        self.taken = bool(check)
        """Whether there is a token to be given."""
        self._check = check
        self._call = call
        self._encrypted = encrypted
        self._strangers = Strangers()
        self._refused = Refusals(_log, "a change that {host} asked for", "{count} changes, the latest asked for by {host}")
        self._tasks: set[asyncio.Task[None]] = set()

    def admit(self, page: str, headers: list[tuple[bytes, bytes]], client: str) -> Change | Refusal:
        """What comes of a request with this head."""
        if not self.taken:
            return _NONE_TAKEN
        if not self._encrypted and not (admin.is_loopback(client) and _came_over_tls(headers)):
            return _READABLE_BY_OTHERS
        given = [value for name, value in headers if name == b"authorization"]
        if len(given) != 1 or not given[0].lower().startswith(_SCHEME):
            return _MISSING
        source = source_of(client)
        if not self._strangers.enter(source, time.monotonic()):
            self._refused.note(client, "there are too many tries")
            return _TOO_OFTEN
        proved = admin.is_token(given[0][len(_SCHEME) :].strip().decode(errors="replace"), self._check)
        self._strangers.leave(source, time.monotonic(), proved=proved)
        if not proved:
            self._refused.note(client, "its admin token is wrong")
            return _WRONG
        return Change(page)

    def begin(self, change: Change, exchange: Exchange) -> None:
        """Do what the body asks for, and answer when that is over."""
        asked = PAGES[change.page]
        if asked is None:
            exchange.reply(_RIGHT)
            return
        body = exchange.body
        try:
            verb = msgspec.json.decode(b"".join(body) if isinstance(body, list) else body, type=asked).verb()
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            exchange.reply(Refusal(400, f"the body is not what {change.page} takes, as JSON: {error}"))
            return
        task = change.task = asyncio.get_running_loop().create_task(self._do(verb, exchange), name="headgate change")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _do(self, verb: Verb, exchange: Exchange) -> None:
        # Who knows the token may see tracebacks: it is the instance's own user, or as good as that.
        assert self._call is not None  # else none was admitted
        try:
            done = await self._call(verb)
        except NotRunningError:
            exchange.reply(_AWAY)
        except Exception as error:  # noqa: BLE001  # the root of a task: whatever it was, the client must be answered
            _log.error("a change failed", exc_info=error)
            exchange.reply(from_error(describe(error), exchange.request_id, debug=True))
        else:
            if done.error is not None:
                exchange.reply(from_error(done.error, exchange.request_id, debug=True))
            else:
                exchange.reply(Reply(200, _JSON, msgspec.json.encode({"warnings": done.warnings})))

    def close(self) -> None:
        """Say in the log what it is owed of those that were refused."""
        self._refused.close()


def _came_over_tls(headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether no proxy says that its client came without."""
    return all(value.strip().lower() == b"https" for name, value in headers if name == b"x-forwarded-proto")
