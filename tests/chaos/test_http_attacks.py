"""What do clients achieve that send an ingress anything but proper requests: broken, malicious, slow, or gone before the answer?"""

from __future__ import annotations

import random
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headgate import serve
from headgate.serve import Instance
from tests.chaos import hostile
from tests.chaos.conftest import Figures
from tests.chaos.siege import Case, Siege, Then, check_answers
from tests.chaos.upkeep import KEPT_BYTES, MEMORY_BYTES, Upkeep

MUTATED, STRUCTURED = 70_000, 15_000
"""Cases of the normal form, with those on links more than 100,000; the long one has ten times as many."""
WARM_UP: Final = 3000
"""So many cases before memory is looked at: what is kept for good, such as heads that are remembered, is there then."""
HELD_BYTES: Final = 64 << 20
"""`max_inflight_bytes`."""
SLACK_BYTES: Final = 4000
"""Of those, less than this may still count as held after an attack."""
ANSWERED: Final = frozenset((200, 204, 400, 404, 405, 413, 417, 431, 501, 503, 504, 505))
"""What may be answered to any bytes: no failure of the ingress's own, and none of user code."""


@contextmanager
def attacked(journal: Path, capfd: pytest.CaptureFixture[str], *, failures: tuple[str, ...] = ("Traceback",)) -> Iterator[Instance]:
    """An instance to attack; at the end it must be as good as new, have dispatched nothing it must not, and have logged no failure.

    `failures` are what the log has of one.
    """
    config = {"http_methods": hostile.METHODS, "max_queued_queries": 100_000}
    with serve.init(http_port=0, num_ingresses=1, max_inflight_bytes=HELD_BYTES, max_body_bytes=HELD_BYTES) as instance:
        instance.create_backend("m", hostile.Mirror, str(journal), config=config)
        instance.create_endpoint("m", "/m/", ["GET", "POST"], backend="m")
        instance.create_backend("slow", hostile.Mirror, str(journal), config=config)
        instance.create_endpoint("slow", "/slow/", ["POST"], backend="slow")
        yield instance
        check_nothing_is_held(instance)
        witness = hostile.SMUGGLED + b"-not"
        assert requests.post(f"{instance.http_url}/m/", witness, timeout=10).status_code == 200
        assert journal.read_bytes() == b"/m/ %b\n" % witness, "behind a refused message another one was dispatched"
    logged = capfd.readouterr().err
    assert not [failure for failure in failures if failure in logged], logged[-5000:]


def check_nothing_is_held(instance: Instance) -> None:
    """A request is taken that leaves room for hardly anything else in the bytes that may be held."""
    size = HELD_BYTES - SLACK_BYTES
    answer = requests.post(f"{instance.http_url}/m/", bytes(size), headers={"X-Serve-Call-Method": "length"}, timeout=30)
    assert (answer.status_code, answer.text) == (200, str(size))


def cut(chance: random.Random, data: bytes) -> list[bytes]:
    """In one piece, in a few, or a short beginning byte by byte."""
    how = chance.random()
    if how < 0.8 or len(data) < 2:
        return [data] if data else []
    if how < 0.95:
        places = sorted({chance.randrange(1, len(data)) for _ in range(chance.randint(1, 3))})
        return [data[start:stop] for start, stop in zip([0, *places], [*places, len(data)], strict=True)]
    return [*(data[at : at + 1] for at in range(min(30, len(data)))), *([data[30:]] if len(data) > 30 else [])]


# Any bytes.


class Mutants:
    """Cases of mutated requests and of random bytes, and what came of them."""

    def __init__(self, chance: random.Random) -> None:
        self.statuses: Counter[int] = Counter()
        self._chance = chance
        self._seeds = hostile.corpus(chance, 600)
        self._number = 0

    def cases(self, count: int) -> Iterator[Case]:
        """So many more."""
        thens: list[Then] = ["close its side later", "close its side later", "close its side later", "close its side", "reset"]
        for _ in range(count):
            self._number += 1
            if self._number % 16:
                data = hostile.mutated(self._chance, self._seeds).replace(hostile.BLANK_NAME, hostile.name(self._number))
            else:
                data = self._chance.randbytes(self._chance.randrange(1, 300))
            yield Case(self._number, cut(self._chance, data), self._chance.choice(thens), self._judge)

    def _judge(self, case: Case) -> None:
        """Whatever came are answers, each well-formed, and nobody else's."""
        sent = b"".join(case.pieces)
        has_head = b"HEAD" in sent
        answers = hostile.read_answers(case.got, lambda _, rest: has_head and (not rest or rest.startswith(b"HTTP/1.1 ")))
        for answer in answers:
            assert answer.whole or case.reset, case
            if answer.whole:
                self.statuses[answer.status] += 1
                assert answer.status in ANSWERED, case
                if answer.status >= 400 and answer.body:
                    hostile.check_problem(answer)
        assert hostile.names_in(case.got) <= {case.number}, f"{case} has got what is another's"


@pytest.mark.timeout(1200)
def test_no_mutation_of_requests_harms_an_ingress_or_gets_an_answer_of_others(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], figure: Figures, long: bool
):
    count = MUTATED * 10 if long else MUTATED
    chance = random.Random(7)
    mutants = Mutants(chance)
    with attacked(tmp_path / "journal", capfd) as instance:
        with Siege(instance.http_url, chance) as siege:
            siege.play(mutants.cases(WARM_UP))
            upkeep = Upkeep(instance)
            began = time.monotonic()
            cases = siege.play(mutants.cases(count))
            seconds = time.monotonic() - began
            assert siege.answered >= cases // 5
            proper = siege.answered
            grown = upkeep.check()
    assert len(mutants.statuses) > 8, mutants.statuses
    figure("HTTP cases", cases, at_least=count)
    figure("HTTP cases a second", cases / seconds)
    figure("proper requests in between, each with its own answer", proper)
    figure("growth of the largest process, in MB", grown / 1e6, at_most=MEMORY_BYTES / 1e6)


# What must be refused.


class Script:
    """Some proper requests on one connection, and perhaps one behind which nothing may be read; all that must come of them."""

    def __init__(self, chance: random.Random, number: int) -> None:
        name = hostile.name(number)
        self._good = [hostile.good(chance, name) for _ in range(chance.choice([0, 0, 1, 2, 5, 20]))]
        self._ends = chance.choice(["flawed", "flawed", "flawed", "unfinished", "closed"])
        if self._ends == "flawed":
            end = hostile.flawed(chance, name)
        elif self._ends == "unfinished":
            end = hostile.unfinished(chance, name)
        else:
            self._good.append(hostile.good(chance, name, last=True))
            end = b""
        data = b"".join(each.data for each in self._good) + end + hostile.behind(name, chance)
        # Where the server can tell where it ends, it must close the connection by itself.
        then: Then = "close its side later" if self._ends == "unfinished" else "wait"
        self.case = Case(number, cut(chance, data), then, self._judge, self._enough)

    def _answers(self, case: Case) -> list[hostile.Answer]:
        return hostile.read_answers(case.got, lambda index, _: index < len(self._good) and self._good[index].bare)

    def _enough(self, case: Case) -> bool:
        answers = self._answers(case)
        return len(answers) >= len(self._good) and all(answer.whole for answer in answers)

    def _judge(self, case: Case) -> None:
        answers = self._answers(case)
        try:
            check_answers(self._good, answers[: len(self._good)])
            rest = answers[len(self._good) :]
            assert len(rest) == (self._ends == "flawed")
            for refusal in rest:
                assert 400 <= refusal.status <= 505
                assert refusal.status not in (500, 502, 503, 504)
                assert refusal.headers[b"connection"] == b"close"
                assert refusal.whole
                hostile.check_problem(refusal)
        except AssertionError as error:
            raise AssertionError(f"{error}: {case}") from None
        assert hostile.names_in(case.got) <= {case.number}, f"{case} has got what is another's"


@pytest.mark.timeout(1200)
def test_what_is_not_plainly_one_request_is_refused_and_nothing_behind_it_is_dispatched(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], figure: Figures, long: bool
):
    count = STRUCTURED * 10 if long else STRUCTURED
    chance = random.Random(8)
    cases = 0
    with attacked(tmp_path / "journal", capfd) as instance:
        with Siege(instance.http_url, chance) as siege:
            siege.play(Script(chance, number).case for number in range(WARM_UP))
            upkeep = Upkeep(instance)

            @settings(max_examples=count // 100, deadline=None, database=None, suppress_health_check=list(HealthCheck))
            @given(st.randoms(use_true_random=False))
            def attack(drawn: random.Random) -> None:
                nonlocal cases
                cases += siege.play([Script(drawn, cases).case])

            began = time.monotonic()
            attack()
            cases += siege.play(Script(chance, number).case for number in range(cases, count))
            seconds = time.monotonic() - began
            assert siege.answered >= cases // 5
            grown = upkeep.check()
    figure("HTTP scripts", cases, at_least=count)
    figure("HTTP scripts a second", cases / seconds)
    figure("growth of the largest process, in MB", grown / 1e6, at_most=MEMORY_BYTES / 1e6)


# Clients that are slow, or gone.


class Loiterer:
    """A client that has begun something and doesn't go on."""

    def __init__(self, siege: Siege, number: int) -> None:
        chance, name = siege.chance, hostile.name(number)
        head = b"POST /m/ HTTP/1.1\r\nHost: a\r\n"
        slow = b"POST /slow/ HTTP/1.1\r\nHost: a\r\nX-Serve-Call-Method: "
        self.sock = socket.create_connection(siege.address, timeout=10)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.sock.setblocking(False)
        starts = [
            b"",
            b"POST /m/" + name,
            head + b"X: " + b"x" * chance.randrange(60_000),
            head + b"Content-Length: 100000\r\n\r\n" + b"x" * chance.randrange(90_000),
            head + b"Transfer-Encoding: chunked\r\n\r\n" + b"5\r\nhello\r\n" * chance.randrange(3000) + b"ffff\r\n" + name,
            head + b"Expect: 100-continue\r\nContent-Length: 100000\r\n\r\n",
            head + b"Connection: upgrade\r\nUpgrade: x\r\nContent-Length: 100000\r\n\r\n" + name,
            (b"GET /m/%b HTTP/1.1\r\nHost: a\r\n\r\n" % name) * chance.randrange(1000),
            (slow + b"large\r\nContent-Length: 6\r\n\r\n100000") * chance.randrange(1, 40),
            slow + b"parts\r\nContent-Length: 4\r\n\r\n1000",
            head + b"Content-Length: nonsense\r\n\r\n" + b"x" * 100_000,
        ]
        try:
            self.sock.send(chance.choice(starts))
        except OSError:  # refused and closed already
            pass

    def leave(self, chance: random.Random) -> None:
        """In one of the ways there are."""
        how = chance.randrange(3)
        try:
            if how == 0:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            elif how == 1:
                self.sock.shutdown(socket.SHUT_WR)
        except OSError:  # the server was first
            pass
        self.sock.close()


@pytest.mark.timeout(600)
def test_slow_clients_and_those_that_leave_in_the_middle_keep_nobody_waiting_and_leave_nothing_behind(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], figure: Figures, long: bool
):
    rounds, at_once = (20 if long else 3), 500
    chance = random.Random(9)
    mutants = Mutants(chance)
    with attacked(tmp_path / "journal", capfd) as instance:
        with Siege(instance.http_url, chance) as siege:
            siege.play(mutants.cases(WARM_UP))
            loiterers: list[Loiterer] = []
            upkeep = Upkeep(instance)
            try:
                for number in range(rounds):
                    loiterers += [Loiterer(siege, number * at_once + each) for each in range(at_once)]
                    before = siege.answered
                    while siege.answered < before + 400:
                        siege.play(mutants.cases(500))
                    chance.shuffle(loiterers)
                    while loiterers:
                        loiterers.pop().leave(chance)
                    if number == 0:
                        upkeep.check()
                        check_nothing_is_held(instance)
                        upkeep = Upkeep(instance)
            finally:
                for loiterer in loiterers:
                    loiterer.sock.close()
            grown = upkeep.check()
    figure("clients that left", rounds * at_once)
    figure("growth of the largest process after the first round, in MB", grown / 1e6, at_most=(MEMORY_BYTES + KEPT_BYTES) / 1e6)
