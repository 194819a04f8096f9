"""Who notices that something died, how soon is that sure, and what becomes of its requests? Drawn with the times that the code has."""

from __future__ import annotations

from typing import Final, NamedTuple

from docs.pictures.drawing import Picture
from headgate.config import BackendConfig
from headgate.controller.ingresses import CHECK_PERIOD_S, CHECK_TIMEOUT_S
from headgate.controller.lease import AWAY_S
from headgate.engines.local.supervisor import STUCK_AFTER_S
from headgate.router.remote import DROPPED_AFTER_S, LOST_AFTER_S

_GOES_ON: Final = "goes on"
_ELSEWHERE: Final = "runs elsewhere"
_FAILS: Final = "502, or again"
_CUT_OFF: Final = "cut off"
_LOOKS: Final = {_GOES_ON: "yours", _ELSEWHERE: "yours", _FAILS: "warm", _CUT_OFF: "bad"}

_LEFT: Final = 268.0
_SECOND: Final = 17.5
_WAITED, _RAN, _WIDE = 518.0, 650.0, 124.0
_ROW: Final = 44.0


class Death(NamedTuple):
    """Something that died or is stuck; `within_s` is when that is certain, at the latest."""

    what: str
    noticed_by: str
    within_s: float
    waited: str
    ran: str


_USUAL: Final = BackendConfig()
_ON_ONE_MACHINE: Final = (
    Death("a replica", "its router: the socket closes", 0.0, _ELSEWHERE, _FAILS),
    Death(
        "a replica that hangs",
        "the controller's health check",
        _USUAL.health_check_period + _USUAL.health_check_timeout,
        _ELSEWHERE,
        _FAILS,
    ),
    Death("an ingress", "the supervisor, its parent", 0.0, _CUT_OFF, _CUT_OFF),
    Death("an ingress that is frozen", "the controller, which asks it", CHECK_PERIOD_S + CHECK_TIMEOUT_S, _CUT_OFF, _CUT_OFF),
    Death("the controller", "the supervisor, its parent", 0.0, _GOES_ON, _GOES_ON),
    Death("a controller that is stuck", "the supervisor: it says nothing", STUCK_AFTER_S, _GOES_ON, _GOES_ON),
    Death("the supervisor", "the kernel, which ends the rest", 0.0, _CUT_OFF, _CUT_OFF),
    Death("the program that started it", "the supervisor, which ends all", 0.0, _CUT_OFF, _CUT_OFF),
)
_ON_A_CLUSTER: Final = (
    Death("a node whose processes died", "routers: their sockets close", DROPPED_AFTER_S, _ELSEWHERE, _FAILS),
    Death("a node that fell silent", "routers: nothing is heard", LOST_AFTER_S, _FAILS, _FAILS),
    Death("the program that started it", "the controller, which ends all", AWAY_S, _CUT_OFF, _CUT_OFF),
)


def who_notices_a_death() -> Picture:
    """A row for each: who notices it, a bar that is as long as that may take, and both fates."""
    groups = (("On one machine", _ON_ONE_MACHINE), ("On a cluster", _ON_A_CLUSTER))
    height = 40 + sum(34 + _ROW * len(deaths) for _, deaths in groups) + 40
    picture = Picture(
        "who-notices-a-death",
        790,
        height,
        "Who notices a death, how soon, and what becomes of requests",
        " ".join(f"{name}: {'; '.join(_told(death) for death in deaths)}." for name, deaths in groups),
    )
    picture.text(16, 20, "what dies, and who notices", "quiet")
    picture.text(_LEFT, 20, "how soon it is known for sure", "quiet")
    picture.text(_WAITED + _WIDE / 2, 20, "what waited there", "quiet", anchor="middle")
    picture.text(_RAN + _WIDE / 2, 20, "what ran there", "quiet", anchor="middle")
    y = 40.0
    for name, deaths in groups:
        picture.text(16, y + 16, name, "strong")
        picture.line((16, y + 32), (_RAN + _WIDE, y + 32), kind="area")
        y += 34
        for death in deaths:
            _row(picture, y, death)
            y += _ROW
    picture.text(
        16, y + 20, "502, or again: it runs again where its backend is `idempotent`. Goes on: no request needs what died.", "quiet"
    )
    return picture


def _row(picture: Picture, y: float, death: Death) -> None:
    middle = y + _ROW / 2
    picture.text(16, middle - 9, death.what)
    picture.text(16, middle + 9, death.noticed_by, "quiet")
    ends = _LEFT + _SECOND * death.within_s
    if death.within_s:
        picture.rectangle(_LEFT, middle - 6, ends - _LEFT, 12, "plain", round_by=3)
    else:
        picture.dot(_LEFT + 5, middle, 5, "plain")
    picture.text(max(ends, _LEFT + 10) + 8, middle, _seconds(death), "quiet")
    for x, fate in ((_WAITED, death.waited), (_RAN, death.ran)):
        picture.box(x, middle - 15, _WIDE, 30, fate, kind=_LOOKS[fate])


def _told(death: Death) -> str:
    noticed = f"{death.what}, noticed by {death.noticed_by}, {_seconds(death)}"
    return f"{noticed}: what waited {_phrase(death.waited)}, what ran {_phrase(death.ran)}"


def _phrase(fate: str) -> str:
    return {_CUT_OFF: "is cut off", _FAILS: "fails with 502, or runs again"}.get(fate, fate)


def _seconds(death: Death) -> str:
    return f"{death.within_s:g} s" if death.within_s else "at once"
