"""How do very many clients talk to one socket at the same time, from one thread, each with bytes of its own?

Attackers come and go, one connection for each case. Among them are friends: they keep their connections, send proper requests, and must
get their own answers whatever the others do.
"""

from __future__ import annotations

import random
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Final, Literal, Self

from tests.chaos import hostile
from tests.support import TIME_FACTOR

HANG_S: Final = 5.0 * TIME_FACTOR
"""A case that neither gets an answer nor an end for so long hangs."""
_QUIET_S: Final = 0.03  # so long without a byte, and a client that closes its side later does so
_READ_BYTES: Final = 1 << 17
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST

Then = Literal["wait", "close its side", "close its side later", "reset"]


class Case:
    """One connection: what is sent, piece by piece, what the client does `then`, and what came back.

    One that closes its side later does so when it has got `enough`, and nothing more comes. A polite one begins with one piece, and
    sends the others when it has got something.
    """

    __slots__ = ("active_at", "at", "ended", "enough", "got", "judge", "number", "pieces", "polite", "reset", "sent_at", "sock", "then")

    def __init__(
        self,
        number: int,
        pieces: list[bytes],
        then: Then,
        judge: Callable[[Case], None],
        enough: Callable[[Case], bool] = lambda _: True,
        *,
        polite: bool = False,
    ) -> None:
        self.number = number
        self.pieces = pieces
        self.then = then
        self.judge = judge
        self.enough = enough
        self.polite = polite
        self.at = 0  # the piece that is sent next
        self.got = b""
        self.reset = False
        """The connection was cut, by either side."""
        self.ended = False
        self.active_at = self.sent_at = 0.0
        self.sock: socket.socket

    def __repr__(self) -> str:
        sent, got = b"".join(self.pieces), self.got
        many = f"in {len(self.pieces)} pieces" if len(self.pieces) > 1 else "at once"
        cut = ", was cut off" if self.reset else ""
        return f"case {self.number}: sent {len(sent)} bytes {many}, {_ends_of(sent)}, then: {self.then}; got {_ends_of(got)}{cut}"


def _ends_of(data: bytes) -> str:
    return repr(data) if len(data) <= 4000 else f"{data[:1500]!r} ... {data[-2500:]!r}"


class Friend:
    """A proper client on a connection of its own. Its requests come in batches, of which each has to be answered in order."""

    def __init__(self, address: tuple[str, int], chance: random.Random) -> None:
        self.sock = socket.create_connection(address, timeout=HANG_S)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.answered = 0
        self.asked_at = 0.0
        self._chance = chance
        self._batch: list[hostile.Good] = []
        self._bare: list[bool] = []
        self._got = b""

    @property
    def idle(self) -> bool:
        """Whether everything was answered."""
        return not self._batch

    def ask(self, number: int) -> None:
        """Send the next batch, all of it at once or in pieces."""
        chance, name = self._chance, hostile.name(number)
        batch = [hostile.good(chance, name) for _ in range(chance.choice([1, 1, 1, 2, 5]))]
        self._batch, self._bare = batch, [each.bare for each in batch]
        data = b"".join(each.data for each in batch)
        cut = chance.randrange(len(data)) if chance.random() < 0.3 else 0
        self.asked_at = time.monotonic()
        for part in (data[:cut], data[cut:]):
            if part:
                self.sock.sendall(part)

    def receive(self) -> None:
        """Take what has arrived; once all is there, it must be what was asked for."""
        data = self.sock.recv(_READ_BYTES)
        assert data, f"the connection of a proper client was closed; it has sent {self._batch!r:.3000}, and got {self._got!r:.1000}"
        self._got += data
        if self._got.count(b"\r\n\r\n") < len(self._batch):
            return
        answers = hostile.read_answers(self._got, lambda index, _: index < len(self._bare) and self._bare[index])
        if len(answers) < len(self._batch) or not answers[-1].whole:
            return
        check_answers(self._batch, answers)
        self.answered += len(answers)
        self._batch, self._got = [], b""


def check_answers(batch: Sequence[hostile.Good], answers: Sequence[hostile.Answer]) -> None:
    """These are the answers to those requests, in order."""
    assert [answer.status for answer in answers] == [each.status for each in batch], (batch, answers)
    for each, answer in zip(batch, answers, strict=True):
        assert answer.whole, (each, answer)
        assert each.body is None or answer.body == each.body, (each, answer)
        if answer.status >= 400 and not each.bare:
            hostile.check_problem(answer)


class Siege:
    """Plays cases against `url`, or the Unix socket `path`, with some friends of `url`; closes what it has opened at its end.

    For every `cases_each` cases that are over, a friend sends a batch.
    """

    def __init__(self, url: str, chance: random.Random, *, path: str = "", friends: int = 8, cases_each: int = 5) -> None:
        host, port = url.removeprefix("http://").split(":")
        self.address = (host, int(port))
        self.chance = chance
        self.asked = 0
        self._path = path
        self._cases_each = cases_each
        self._over = 0
        self._poll = select.epoll()
        self._live: dict[int, Case] = {}
        self._quiet: deque[Case] = deque()  # close their side once nothing comes
        self._waiting: deque[Case] = deque()  # must end, in the order of `sent_at`
        self._friends = {friend.sock.fileno(): friend for friend in (Friend(self.address, chance) for _ in range(friends))}
        for descriptor in self._friends:
            self._poll.register(descriptor, select.EPOLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as stack:
            stack.callback(self._poll.close)
            for sock in [case.sock for case in self._live.values()] + [friend.sock for friend in self._friends.values()]:
                stack.callback(sock.close)

    @property
    def answered(self) -> int:
        """Requests of friends that got their own answers."""
        return sum(friend.answered for friend in self._friends.values())

    def play(self, cases: Iterable[Case], *, at_once: int = 128) -> int:
        """So many at a time, until all of them are over, and every friend has its answers. Returns how many there were."""
        coming, done, before = iter(cases), False, self._over
        while True:
            while not done and len(self._live) < at_once:
                case = next(coming, None)
                if case is None:
                    done = True
                else:
                    self._open(case)
            if done and not self._live and all(friend.idle for friend in self._friends.values()):
                return self._over - before
            for descriptor, events in self._poll.poll(_QUIET_S):
                friend = self._friends.get(descriptor)
                if friend is not None:
                    friend.receive()
                    continue
                case = self._live[descriptor]
                if events & ~select.EPOLLOUT:
                    self._receive(case)
                if not case.ended and events & select.EPOLLOUT:
                    self._send(case)
            self._look_at_time()

    def _ask_friend(self) -> None:
        for friend in self._friends.values():
            if friend.idle:
                self.asked += 1
                friend.ask(0xF0000000 + self.asked)
                return

    def _open(self, case: Case) -> None:
        sock = case.sock = socket.socket(socket.AF_UNIX if self._path else socket.AF_INET)
        sock.connect(self._path or self.address)
        sock.setblocking(False)
        if len(case.pieces) > 1 and not self._path:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._live[sock.fileno()] = case
        self._poll.register(sock.fileno(), select.EPOLLIN)
        self._send(case)
        if not case.ended and case.at < len(case.pieces) and not case.polite:
            self._poll.modify(sock.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _send(self, case: Case) -> None:
        """The next piece, as far as it goes."""
        piece = case.pieces[case.at] if case.at < len(case.pieces) else b""
        try:
            sent = case.sock.send(piece) if piece else 0
        except BlockingIOError:
            return
        except OSError:  # the server has closed already
            sent, case.at = len(piece), len(case.pieces)
        if sent < len(piece):
            case.pieces[case.at : case.at + 1] = [piece[:sent], piece[sent:]]
        case.at += 1
        if case.at >= len(case.pieces):
            self._sent(case)

    def _sent(self, case: Case) -> None:
        case.active_at = case.sent_at = time.monotonic()
        if len(case.pieces) > 1:
            self._poll.modify(case.sock.fileno(), select.EPOLLIN)
        if case.then == "reset":
            case.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            case.reset = True
            self._end(case)
            return
        if case.then == "close its side later":
            self._quiet.append(case)
        elif case.then == "close its side":
            self._close_side(case)
        self._waiting.append(case)

    def _close_side(self, case: Case) -> None:
        try:
            case.sock.shutdown(socket.SHUT_WR)
        except OSError:  # it is closed already, and says so when it is read
            pass

    def _receive(self, case: Case) -> None:
        try:
            data = case.sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data, case.reset = b"", True
        if data:
            if case.polite and not case.got and case.at < len(case.pieces):
                self._poll.modify(case.sock.fileno(), select.EPOLLIN | select.EPOLLOUT)
            case.got += data
            case.active_at = time.monotonic()
        else:
            self._end(case)

    def _end(self, case: Case) -> None:
        case.ended = True
        del self._live[case.sock.fileno()]
        case.sock.close()
        case.judge(case)
        self._over += 1
        if self._over % self._cases_each == 0:
            self._ask_friend()

    def _look_at_time(self) -> None:
        now = time.monotonic()
        quiet, waiting = self._quiet, self._waiting
        for _ in range(len(quiet)):
            if not quiet[0].ended and quiet[0].active_at + _QUIET_S > now:
                quiet.rotate(-1)
                break
            case = quiet.popleft()
            if case.ended:
                continue
            if case.enough(case):
                self._close_side(case)
            else:
                quiet.append(case)
        while waiting and (waiting[0].ended or waiting[0].sent_at + HANG_S <= now):
            case = waiting.popleft()
            assert case.ended, f"{case} hangs"
        for friend in self._friends.values():
            assert friend.idle or now - friend.asked_at < HANG_S, f"a proper client waits for its answers: {friend._batch!r:.2000}"
