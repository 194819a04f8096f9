"""Whatever headers and values user code returns, an HTTP client gets an answer that means the same, or none at all."""

from __future__ import annotations

import json
import math
from typing import Any

import h11
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headgate.errors import InvalidValueError
from headgate.replica.response import Response, encode_http

names = (
    st.text(max_size=12) | st.from_regex(r"[a-zA-Z-]{1,12}", fullmatch=True) | st.sampled_from(["Connection", "Set-Cookie", "x-request-id"])
)
values = st.text(max_size=20) | st.text(st.characters(codec="latin-1"), max_size=20) | st.sampled_from(["a\r\nb: c", "\t", " x "])
WRITTEN_BY_THE_INGRESS = {b"connection", b"content-length", b"date", b"x-request-id", b"transfer-encoding", b"te", b"upgrade", b"trailer"}


@given(st.lists(st.tuples(names, values), max_size=4), st.none() | values)
def test_headers_mean_what_was_given_or_are_refused(headers: list[tuple[str, str]], media_type: str | None) -> None:
    try:
        encoded = encode_http(Response(b"body", 200, headers, media_type))
    except InvalidValueError:
        return
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    client.receive_data(b"HTTP/1.1 200 OK\r\n" + encoded.header_lines + b"content-length: 4\r\n\r\n" + encoded.body)
    answer = client.next_event()
    assert isinstance(answer, h11.Response)
    got = [(bytes(name), bytes(value)) for name, value in answer.headers if name not in (b"content-length", b"content-type")]
    expected = [(name.lower().encode(), meaning(value)) for name, value in headers]
    assert got == [each for each in expected if each[0] not in WRITTEN_BY_THE_INGRESS | {b"content-type"}]
    assert sum(name == b"content-type" for name, _ in answer.headers) >= 1
    if media_type is not None:
        assert [value for name, value in answer.headers if name == b"content-type"] == [meaning(media_type)]


def meaning(value: str) -> bytes:
    try:
        data = value.encode("latin-1")
    except UnicodeEncodeError:
        data = value.encode()
    return data.strip(b" \t")


finite = st.floats(allow_nan=False, allow_infinity=False)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner),
)


@given(json_values)
def test_json_is_what_any_parser_reads_back(value: Any) -> None:
    expected = json.loads(json.dumps(value))
    assert json.loads(encode_http([value]).body) == [expected]


arrays = st.lists(st.floats(width=32)).flatmap(lambda numbers: st.sampled_from([np.array(numbers, kind) for kind in ("f4", "f8")]))
whole_arrays = st.lists(st.integers(0, 1000)).flatmap(
    lambda numbers: st.sampled_from([np.array(numbers, kind) for kind in ("u2", "i8", "?")])
)


@given(arrays | whole_arrays)
def test_arrays_are_lists_with_null_for_what_json_has_no_number_for(array: Any) -> None:
    expected = [None if isinstance(each, float) and not math.isfinite(each) else each for each in array.tolist()]
    assert json.loads(encode_http(array).body) == expected
    assert [json.loads(encode_http({"scalar": each}).body)["scalar"] for each in array] == expected
