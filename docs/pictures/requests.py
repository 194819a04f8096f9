"""Which way does a request go, and where may it end early?"""

from __future__ import annotations

from itertools import pairwise

from docs.pictures.drawing import Box, Picture

_LEFT, _WIDTH = 150.0, 300.0
_STEP, _HEIGHT = 70.0, 46.0
_ENDS = 500.0


def life_of_a_request() -> Picture:
    """From the client through ingress, router and replica, and back."""
    picture = Picture(
        "life-of-a-request",
        790,
        660,
        "The life of a request",
        "From top to bottom. The client sends a request. In the ingress its head and body are read, which may end it with 400, "
        "404, 405, 413 or 503; then a backend is drawn by weight or by shard key, and a replica with room in its window, or the "
        "queue: 503 where it is refused. From there on it is admitted, and ends with 504 where its time runs out. In the replica "
        "it waits for a free slot and in a batch for company; behind a slow call it goes back to the router. Then user code is "
        "called: from here on it has started, a death of the replica is 502 and an exception is 500. The answer goes back over "
        "the same link, and to the client in the order of the requests of its connection.",
    )
    client = picture.box(_LEFT, 16, _WIDTH, 36, "HTTP client")
    picture.area(130, 76, 340, 230, "ingress")
    read = _step(picture, 106, "read head and body", "`ingress/http1.py`")
    backend = _step(picture, 106 + _STEP, "choose the backend", "`core/traffic.py`")
    replica = _step(picture, 106 + 2 * _STEP, "choose the replica, or queue", "`core/dispatch.py`")
    picture.area(130, 338, 340, 230, "replica")
    wait = _step(picture, 368, "wait for a slot, and for company", "`core/batching.py`")
    call = _step(picture, 368 + _STEP, "call your code", "`replica/calls.py`", kind="yours")
    encode = _step(picture, 368 + 2 * _STEP, "make an answer of the result", "`replica/response.py`")
    answer = picture.box(_LEFT, 604, _WIDTH, 46, "answer in its turn", "ingress: `ingress/exchange.py`", kind="ours")
    for above, below in pairwise((client, read, backend, replica, wait, call, encode, answer)):
        picture.arrow(above.bottom(), below.top())
    picture.text(_LEFT + _WIDTH / 2 + 10, 328, "link: a socket per router and replica", "quiet")

    # What leads back.
    picture.arrow(wait.left(), (70, wait.left()[1]), (70, replica.left()[1]), replica.left(), dashed=True)
    picture.text(78, 328, "given back", "quiet")
    picture.arrow(answer.left(), (30, answer.left()[1]), (30, client.left()[1]), client.left())

    # Where it may end, and what that is.
    _end(picture, read, "400 404 405 413 503", "malformed, no such route or method,", "too long, too many bytes held")
    _end(picture, backend, "503", "no traffic, shutting down")
    _end(picture, replica, "503", "queue full, no replica,", "not before its deadline")
    _end(picture, wait, "504", "its time ran out, here or in the", "router's queue: it never starts")
    _end(picture, call, "500 502 504", "your code raised, its replica", "died, its time ran out")
    _end(picture, encode, "500", "can't be encoded")
    for y, words in ((316, "admitted"), (426, "started")):
        picture.line((110, y), (_ENDS + 200, y), kind="warm", dashed=True)
        picture.text(_ENDS + 208, y, words, "strong")
    return picture


def _step(picture: Picture, y: float, name: str, file: str, kind: str = "ours") -> Box:
    return picture.box(_LEFT, y, _WIDTH, _HEIGHT, name, file, kind=kind)


def _end(picture: Picture, step: Box, statuses: str, *why: str) -> None:
    x, y = step.right()
    picture.arrow((x, y), (_ENDS, y), kind="bad")
    picture.text(_ENDS + 8, y - 9 * len(why), statuses, "strong")
    for number, line in enumerate(why, 1):
        picture.text(_ENDS + 8, y - 9 * len(why) + 18 * number, line, "quiet")
