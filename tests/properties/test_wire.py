"""Do frames survive any chunking, and does garbage raise nothing but `WireError`?

The oracle writes frames with a layout of its own, field by field.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headgate.core import wire
from headgate.errors import WireError

U32, U16 = st.integers(0, 2**32 - 1), st.integers(0, 2**16 - 1)
# Around the sizes at which a body gets a buffer of its own, or doesn't fit into the first one with what is before it.
SIZES = st.sampled_from([0, 1, 7, 300, 65_535, 65_536, 65_537, 100_000, 262_143, 300_000])
CHUNKS = st.lists(st.integers(1, 40) | st.sampled_from([1000, 65_536, 1 << 20]), min_size=1, max_size=40)


def pattern(length: int, seed: int) -> bytes:
    """Bytes in which a shift or a gap shows."""
    return bytes(itertools.islice(itertools.cycle(f"{seed}:abcdefghijklmnopqrstuvwxyz|".encode()), length))


@st.composite
def frames(draw: st.DrawFn) -> wire.Frame:
    seed = draw(U16)
    return wire.Frame(
        kind=draw(st.integers(1, wire.LAST_KIND)),
        flags=draw(st.integers(0, 255)),
        number=draw(U32),
        place=draw(U16),
        code=draw(U16),
        micros=draw(U32),
        millis=draw(U32),
        meta=pattern(draw(st.sampled_from([0, 3, 500, 70_000, 300_000])), seed),
        body=pattern(draw(SIZES), seed + 1),
    )


def written(frame: wire.Frame) -> bytes:
    """A frame as bytes: little-endian, padded to 28 bytes of head."""
    numbers = [(len(frame.meta), 4), (len(frame.body), 4), (frame.number, 4), (frame.micros, 4), (frame.millis, 4)]
    numbers += [(frame.place, 2), (frame.code, 2), (frame.kind, 1), (frame.flags, 1), (0, 2)]
    return b"".join(number.to_bytes(size, "little") for number, size in numbers) + frame.meta + frame.body


def feed(decoder: wire.Decoder, data: bytes, chunks: Iterable[int]) -> list[wire.Frame]:
    out: list[wire.Frame] = []
    view = memoryview(data)
    sizes = itertools.cycle(chunks)
    while view:
        buffer = decoder.buffer()
        count = min(len(buffer), len(view), next(sizes))
        assert count
        buffer[:count] = view[:count]
        view = view[count:]
        for frame in decoder.received(count):
            if isinstance(frame.body, memoryview):  # it holds only until the next buffer
                assert frame.kind in (wire.CALLS, wire.ANSWERS)
                frame = msgspec.structs.replace(frame, body=bytes(frame.body))
            out.append(frame)
    return out


@given(sent=st.lists(frames(), max_size=6), chunks=CHUNKS)
@settings(deadline=None)
def test_any_chunking_decodes_the_same(sent: list[wire.Frame], chunks: list[int]) -> None:
    # Tiny chunks only, over a megabyte, would say no more and take long.
    data = b"".join(map(written, sent))
    if len(data) > 20_000:
        chunks = [*chunks, 50_000]
    decoder = wire.Decoder()
    assert feed(decoder, data, chunks) == sent


@given(frame=frames())
def test_frames_are_written_as_they_are_read(frame: wire.Frame) -> None:
    data = wire.encode(
        frame.kind,
        frame.number,
        flags=frame.flags,
        place=frame.place,
        code=frame.code,
        micros=frame.micros,
        millis=frame.millis,
        meta=frame.meta,
        body=bytes(frame.body),
    )
    assert data == written(frame)


@given(frame=frames(), cut=st.integers(1))
@settings(deadline=None)
def test_an_unfinished_frame_is_no_frame_until_the_rest_of_it_has_come(frame: wire.Frame, cut: int) -> None:
    data = written(frame)
    here = len(data) - 1 - cut % (len(data) - 1)
    decoder = wire.Decoder()
    assert feed(decoder, data[:here], [50_000]) == []
    assert feed(decoder, data[here:], [50_000]) == [frame]


@given(data=st.binary(max_size=400), chunks=CHUNKS)
def test_garbage_raises_nothing_but_wire_error(data: bytes, chunks: list[int]) -> None:
    decoder = wire.Decoder(max_body_bytes=1 << 20)
    try:
        feed(decoder, data, chunks)
    except WireError:
        return
    # Not refused yet, so it must be waiting for the rest of something.
    assert len(decoder.buffer())


@given(sent=st.lists(frames(), min_size=1, max_size=2), position=st.integers(0, 60), value=st.integers(0, 255), chunks=CHUNKS)
@settings(deadline=None)
def test_a_flipped_byte_raises_nothing_but_wire_error(sent: list[wire.Frame], position: int, value: int, chunks: list[int]) -> None:
    data = bytearray(b"".join(map(written, sent)))
    data[position % len(data)] = value
    decoder = wire.Decoder(max_body_bytes=1 << 20)
    try:
        feed(decoder, bytes(data), [*chunks, 50_000])
    except WireError:
        return
    assert len(decoder.buffer())


@pytest.mark.parametrize(
    "head",
    [
        wire.HEAD.pack(0, 0, 0, 0, 0, 0, 0, 0, 0),
        wire.HEAD.pack(0, 0, 0, 0, 0, 0, 0, wire.LAST_KIND + 1, 0),
        wire.HEAD.pack(wire.MAX_META_BYTES + 1, 0, 0, 0, 0, 0, 0, wire.CALL, 0),
        wire.HEAD.pack(0, 1001, 0, 0, 0, 0, 0, wire.CALL, 0),
    ],
)
def test_a_head_that_no_peer_sends_is_refused_before_any_of_its_body_arrives(head: bytes) -> None:
    with pytest.raises(WireError):
        feed(wire.Decoder(max_body_bytes=1000), head, [1])


@pytest.mark.parametrize("body_bytes", [65_537, 300_000])
def test_a_large_body_is_received_in_place(body_bytes: int) -> None:
    frame = wire.Frame(wire.CALL, 0, 1, 0, 0, 0, 0, b"m", pattern(body_bytes, 1))
    decoder = wire.Decoder()
    data = written(frame)
    assert feed(decoder, data[:100], [100]) == []
    assert len(decoder.buffer()) == len(data) - 100
    decoder.buffer()[:] = data[100:]
    (received,) = decoder.received(len(data) - 100)
    assert received == frame
    assert isinstance(received.body, bytearray)


def test_a_large_body_gets_memory_as_it_arrives_not_as_it_is_announced() -> None:
    size, at_once = 0xFFFFFFF0, 64 << 20
    decoder = wire.Decoder()
    assert feed(decoder, wire.HEAD.pack(0, size, 1, 0, 0, 0, 0, wire.CALL, 0), [28]) == []
    arrived = 0
    while arrived < at_once + (3 << 20):
        buffer = decoder.buffer()
        assert arrived + len(buffer) <= max(at_once, arrived + (1 << 20))
        arrived += len(buffer)
        assert decoder.received(len(buffer)) == []


def test_a_body_that_got_its_memory_as_it_arrived_is_whole() -> None:
    data = pattern((66 << 20) + 12_345, 1)
    decoder = wire.Decoder()
    head = wire.HEAD.pack(1, len(data), 1, 0, 0, 0, 0, wire.ANSWER, 0) + b"m"
    (received,) = feed(decoder, head + data, [29, 300_000])
    assert received.body == data
    assert isinstance(received.body, bytearray)


@pytest.mark.parametrize(("field", "bad"), [(0, -1), (0, 1 << 32), (1, -1), (1, wire.PLACES), (8, -1), (8, 1 << 40)])
def test_a_call_with_a_number_place_or_count_that_none_has_is_no_call(field: int, bad: int) -> None:
    record: list[object] = [1, wire.PLACES - 1, 0, 0, "e", "", "id", b"", 0, (), b""]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(record), type=wire.Call).place == wire.PLACES - 1
    record[field] = bad
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(record), type=wire.Call)


@pytest.mark.parametrize("code", [-1, 1000])
def test_an_answer_with_a_status_that_none_has_is_no_answer(code: int) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode((1, code, 0, 0, b"", b"")), type=wire.Answer)
