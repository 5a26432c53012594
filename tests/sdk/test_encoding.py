import math
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from msgspec import Raw

from worker_sdk.encoding import (
    decode_value,
    encode_value,
    pack,
    req_of,
    unpack_reply,
    unpack_worker_event,
)
from worker_sdk.errors import InvalidRequest, NotEncodable, ProtocolError
from worker_sdk.messages import Heartbeat, Ok, Ping


@dataclass
class Point:
    x: float


class Celsius(float):
    pass


@pytest.mark.parametrize(
    "value",
    [
        None,
        [None, {"a": None}],
        {"nul": "\u0000 null \U0001f686"},
        2**200,
        -0.0,
        1e308,
        {"": [[], {}]},
        "null",
    ],
)
def test_json_value_comes_back_as_it_went(value: Any) -> None:
    assert decode_value(encode_value(value)) == value


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (math.nan, "args is nan"),
        (-math.inf, "args is -inf"),
        ({"a": [None, {"b": (1, math.inf)}]}, r"args\.a\[1\]\.b\[1\] is inf"),
        ({"points": [Point(1.0), Point(math.nan)]}, r"args\.points\[1\]\.x is nan"),
        ([Celsius(math.nan)], r"args\[0\] is nan"),
    ],
)
def test_nan_and_infinity_are_refused_with_their_place(value: Any, path: str) -> None:
    with pytest.raises(NotEncodable, match=path):
        encode_value(value, "args")


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ({"a": [1, object()]}, r"args\.a\[1\] is of type object"),
        ([{"f": print}], r"args\[0\]\.f is of type builtin_function_or_method"),
        ({"a": {(1, 2): 3}}, r"args\.a has the key \(1, 2\)"),
        (["fine", "half \ud83d"], r"args\[1\] holds '\\ud83d'"),
        ({"\udc00": 1}, "args has the key '\\\\udc00'"),
    ],
)
def test_what_json_cannot_carry_is_refused_with_its_place(value: Any, complaint: str) -> None:
    with pytest.raises(NotEncodable, match=complaint):
        encode_value(value, "args")


def test_unencodable_value_is_a_type_error_and_an_invalid_request() -> None:
    with pytest.raises(TypeError):
        encode_value(object())
    with pytest.raises(InvalidRequest):
        encode_value(object())


def test_too_deep_nesting_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]

    with pytest.raises(InvalidRequest, match="nested too deep"):
        encode_value(deep)
    while deep:  # taken apart by hand: so deep a list overflows the stack when it is freed
        deep = deep[0]


def test_value_that_holds_itself_is_refused() -> None:
    loop: dict[str, Any] = {"bad": None}
    loop["self"] = loop
    with pytest.raises(InvalidRequest, match="nested too deep"):
        encode_value(loop)

    loop["bad"] = object()
    with pytest.raises(NotEncodable, match=r"\$\.bad is of type object"):
        encode_value(loop)


def test_subclasses_of_plain_types_are_taken() -> None:
    assert encode_value([Celsius(21.5), UUID(int=1)]) == (
        b'[21.5,"00000000-0000-0000-0000-000000000001"]'
    )


def test_message_is_packed_into_three_frames() -> None:
    assert pack(Ping(req=Raw(b"7"))) == [b"", b"PM1", b'{"op":"ping","req":7}']


def test_reply_is_read_with_and_without_the_empty_frame() -> None:
    for envelope in ([], [b""]):
        reply = unpack_reply([*envelope, b"PM1", b'{"op":"ok","version":"1"}'])

        assert isinstance(reply, Ok)
        assert reply.version == "1"


def test_unknown_fields_of_a_reply_are_ignored() -> None:
    assert isinstance(unpack_reply([b"PM1", b'{"op":"ok","new":[1],"req":1}']), Ok)


GARBAGE = [
    [],
    [b""],
    [b"PM1"],
    [b"", b"PM2", b'{"op":"ok"}'],
    [b"x", b"PM1", b'{"op":"ok"}'],
    [b"PM1", b'{"op":"ok"}', b""],
    [b"PM1", b""],
    [b"PM1", b"\xff\xfe"],
    [b"PM1", b'{"op":"ok"'],
    [b"PM1", b"[]"],
    [b"PM1", b"{}"],
    [b"PM1", b'{"op":"new"}'],
    [b"PM1", b'{"op":"ok","jobs":[{"id":1}]}'],
    [b"PM1", b'{"op":"error"}'],
    [b"PM1", b"[" * 100_000],
]


@pytest.mark.parametrize("frames", GARBAGE)
def test_garbage_from_a_broker_is_a_protocol_error(frames: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        unpack_reply(frames)
    with pytest.raises(ProtocolError):
        unpack_worker_event(frames)


@pytest.mark.parametrize("frames", GARBAGE)
def test_number_of_garbage_is_none(frames: list[bytes]) -> None:
    assert req_of(frames) is None


def test_number_of_an_unreadable_answer_is_found() -> None:
    assert req_of([b"", b"PM1", b'{"op":"new","req":12,"jobs":1}']) == 12


def test_worker_gets_events_of_its_own() -> None:
    assert isinstance(unpack_worker_event([b"", b"PM1", b'{"op":"heartbeat"}']), Heartbeat)
    with pytest.raises(ProtocolError):
        unpack_reply([b"PM1", b'{"op":"heartbeat"}'])


def test_number_beyond_a_float_is_infinite() -> None:
    assert decode_value(b'{"a":[1e999,-1e999,1e-999,2]}') == {"a": [math.inf, -math.inf, 0, 2]}


def test_integer_of_very_many_digits_is_read_as_far_as_python_can() -> None:
    assert decode_value(b"9" * 400) == int("9" * 400)
    assert decode_value(b"9" * 5000) == math.inf


@pytest.mark.parametrize("raw", [b"[1", b"", b'"\\ud800"', b"[" * 100_000])
def test_value_that_python_cannot_hold_is_a_protocol_error(raw: bytes) -> None:
    with pytest.raises(ProtocolError, match="result cannot be read"):
        decode_value(raw, "result")
