"""Do control messages survive any chunking, and does garbage raise nothing but `WireError`?"""

from __future__ import annotations

import itertools
import struct
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.config import BackendConfig, ReplicaOptions
from headgate.core import messages as m
from headgate.core.histograms import Histogram
from headgate.core.reports import Counters, EventCount, QueueDepth, ReplicaCounters, RequestCount, Series, Usage, UserMetric
from headgate.core.specs import Definition, MethodInfo, Parameter
from headgate.errors import ErrorInfo, WireError

DEFINITION = Definition(b"\x80pickle", "Größe", {"": MethodInfo("", parameters=(Parameter("x", "VAR_KEYWORD", False),))})
BACKEND = m.BackendEntry("b", 1, 2, True, 0.0, None, 1000, None, False, ("m",), ("", "m"), (m.ReplicaEntry("r", "/s", "t"),), 0)
USER_METRIC = UserMetric("gauge", "g", "said", ("l",), (Series(("x",), (1.5,)),))
VERBS: list[m.Verb] = [
    m.CreateBackend("b", DEFINITION, BackendConfig(concurrency=3), ReplicaOptions(resources={"tpu": 0.1})),
    m.UpdateBackend("b", DEFINITION, True),
    m.DeleteBackend("b"),
    m.UpdateBackendConfig("b", {"num_replicas": 2}, None),
    m.UpdateBackendConfig("b", None, BackendConfig()),
    m.UpdateBackendConfig("b", {"num_replicas": 2}, None, {"num_replicas": 1}),
    m.CreateEndpoint("e", None, ("GET",), None),
    m.DeleteEndpoint("e"),
    m.SetTraffic("e", {"b": 0.5, "c": 0.5}),
    m.SetTraffic("e", {"b": 0.5, "c": 0.5}, {"b": 1.0}),
    m.ShadowTraffic("e", "b", 0.25),
    m.Deploy(
        (
            m.DeployedBackend("b", DEFINITION, BackendConfig(), ReplicaOptions()),
            m.DeployedBackend("c", None, BackendConfig(), ReplicaOptions()),
        ),
        (m.EndpointEntry("e", "/e", ("GET",), {"b": 1.0}),),
        "id",
    ),
    m.Describe(),
    m.Measure(),
    m.ReadLog(),
    m.ReadLog(5, {"replica-x.log": (7, 100)}, "b", "id", "ERROR"),
    m.CompareInit({"http_port": 0, "resources": {"CPU": 1}}),
    m.Shutdown(),
]
SAMPLES: list[m.Message] = [
    *(m.VerbCall(f"id{number}", verb) for number, verb in enumerate(VERBS)),
    m.Hello(m.PROTOCOL, "replica", "r1", 42, "token", state="ready", address="/tmp/r.sock"),
    m.Hello(m.PROTOCOL, "client", "r1-v", 42, routes=True, replica="r1"),
    m.VerbLeft("id1"),
    m.Applied(3),
    m.Idle(3),
    m.ReplicaReady("/tmp/r.sock"),
    m.ReplicaFailed(ErrorInfo("ReplicaStartError", "raised", "Traceback …", pickled=b"\0")),
    m.Pong(1, 0.5, 7, "no"),
    m.Counted(1, Counters((RequestCount("e", "b", 200, 5, 0.1, (5,)),), (QueueDepth("b", 1, 2),), (EventCount("shed", "e", "b", "", 1),))),
    m.ReplicaCounted(1, ReplicaCounters(Histogram((1, 2), 0.1), usage=Usage(1.5, 4096), metrics=(USER_METRIC,))),
    m.BrokenReplica("r1", "garbage"),
    m.HadAnswered("r1"),
    m.HadAnswered("1-ab"),
    m.Welcome("default", ("http://127.0.0.1:8000",)),
    m.VerbDone("id", b"\xc0", None, ("slow",)),
    m.Configure(BackendConfig(max_batch_size=4)),
    m.Drain(20.0),
    m.Unwanted(),
    m.Ping(1),
    m.Count(1),
    m.RoutingTable(9, {"e": m.EndpointEntry("e", "/é", ("GET",), {"b": 1.0})}, {"b": BACKEND}),
    m.SendTable(),
    m.RoutingChanges(8, 9, m.TableHead(1, 2, 3, False, True), backends={"b": m.BackendChange(BACKEND, 1, BACKEND.replicas, ("q",))}),
]


def feed(decoder: m.MessageDecoder, data: bytes, chunks: list[int]) -> list[m.Message]:
    out: list[m.Message] = []
    sizes = itertools.cycle(chunks)
    while data:
        count = next(sizes)
        out += decoder.received(data[:count])
        data = data[count:]
    return out


def test_there_is_a_sample_of_every_message_and_verb() -> None:
    assert {type(sample) for sample in SAMPLES} == set(get_args(m.Message))
    assert {type(verb) for verb in VERBS} == set(get_args(m.Verb))


@given(sent=st.lists(st.sampled_from(SAMPLES), max_size=8), chunks=st.lists(st.integers(1, 300), min_size=1, max_size=20))
def test_any_chunking_decodes_the_same(sent: list[m.Message], chunks: list[int]) -> None:
    data = b"".join(map(m.encode, sent))
    assert feed(m.MessageDecoder(), data, chunks) == sent


def test_a_message_is_four_bytes_of_length_and_msgpack() -> None:
    body = msgspec.msgpack.encode({"type": "ping", "number": 5})
    assert m.MessageDecoder().received(len(body).to_bytes(4, "big") + body) == [m.Ping(5)]


@given(body=st.binary(max_size=200), chunks=st.lists(st.integers(1, 50), min_size=1, max_size=5))
def test_garbage_in_a_well_cut_message_raises_nothing_but_wire_error(body: bytes, chunks: list[int]) -> None:
    with pytest.raises(WireError, match="close this connection"):
        feed(m.MessageDecoder(), struct.pack(">I", len(body)) + body, chunks)


@given(sample=st.sampled_from(SAMPLES), position=st.integers(0, 500), value=st.integers(0, 255))
def test_a_flipped_byte_raises_nothing_but_wire_error(sample: m.Message, position: int, value: int) -> None:
    data = bytearray(m.encode(sample))
    data[position % len(data)] = value
    try:
        for message in m.MessageDecoder(max_message_bytes=10_000).received(bytes(data)):
            assert isinstance(message, get_args(m.Message))
    except WireError:
        pass


# Values that are valid msgpack, in the places where a message takes any value.
HOSTILE = {
    "nested arrays": b"\x91" * 100_000 + b"\xc0",
    "nested maps": b"\x81\xa1k" * 100_000 + b"\xc0",
    "a map as a key": b"\x81\x80\x01",
    "an array as a key": b"\x81\x91\x01\x01",
    "a time beyond all calendars": b"\xc7\x0c\xff" + b"\0" * 4 + b"\x7f" + b"\xff" * 7,
    "a time of a wrong length": b"\xd4\xff\x00",
    "an extension": b"\xd4\x05\x00",
    "text that is not UTF-8": b"\xa2\xff\xfe",
    "an array said to have four thousand million items": b"\xdd\xff\xff\xff\xff",
    "a map said to have four thousand million entries": b"\xdf\xff\xff\xff\xff",
    "text said to be four thousand million bytes": b"\xdb\xff\xff\xff\xff",
    "a byte that means nothing": b"\xc1",
}


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_values_raise_nothing_but_wire_error(value: bytes) -> None:
    verb = b"\x82\xa4type\xaccompare_init\xa5given\x81\xa1x" + value
    body = b"\x83\xa4type\xa4verb\xa2id\xa1i\xa4verb" + verb
    try:
        received = m.MessageDecoder().received(struct.pack(">I", len(body)) + body)
    except WireError:
        return
    assert [type(message) for message in received] == [m.VerbCall]


def test_a_message_over_the_limit_is_refused_before_it_arrives() -> None:
    with pytest.raises(WireError, match="limit"):
        m.MessageDecoder(max_message_bytes=1000).received(struct.pack(">I", 1001))
