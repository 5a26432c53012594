"""Frames to messages and back: what is well-formed is read, what is not is answered."""

import random
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

import msgspec
import pytest
from msgspec import UNSET, Raw

from broker.codec import FRAMES_MOST, Malformed, decode, encode
from worker_sdk.messages import (
    Cancel,
    Dependency,
    Enqueue,
    Error,
    Finish,
    Heartbeat,
    Message,
    Ok,
    Ping,
    Request,
    Status,
)

LIMIT = 100_000
ID = "018f0000-0000-7000-8000-000000000000"
OTHER = "018f0000-0000-7000-8000-000000000001"


def read(payload: bytes | str, limit: int = LIMIT) -> Message:
    payload = payload.encode() if isinstance(payload, str) else payload
    return decode([b"peer", b"", b"PM1", payload], limit)[1]


def refusal_of(frames: Sequence[bytes], limit: int = LIMIT) -> Malformed:
    with pytest.raises(Malformed) as caught:
        decode(frames, limit)
    return caught.value


def refused(payload: bytes | str, limit: int = LIMIT) -> Error:
    payload = payload.encode() if isinstance(payload, str) else payload
    return refusal_of([b"peer", b"", b"PM1", payload], limit).error


def req_of(message: Message) -> bytes | None:
    return bytes(message.req) if isinstance(message.req, Raw) else None


def with_job(**fields: str) -> str:
    """An enqueue of one job whose fields are given as JSON."""
    job = {"id": f'"{ID}"', "type": '"work"', **fields}
    inner = ",".join(f'"{name}":{value}' for name, value in job.items())
    return f'{{"op":"enqueue","req":"r1","jobs":[{{{inner}}}]}}'


# ---- frames --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "envelope",
    [
        [],
        [b"\x00\x00\x00\x01"],
        [b"one", b"two", b"three"],
        [b"x"] * (FRAMES_MOST - 4),
        [b"x" * 1000],
    ],
    ids=len,
)
def test_frames_up_to_the_empty_one_are_the_way_back(envelope: list[bytes]) -> None:
    origin, message = decode([b"peer", *envelope, b"", b"PM1", b'{"op":"ping"}'], LIMIT)

    assert origin == (b"peer", *envelope, b"")
    assert message == Ping()


@pytest.mark.parametrize(
    ("frames", "origin", "words"),
    [
        ([b"peer"], (b"peer", b""), "no empty frame"),
        ([b"peer", b""], (b"peer", b""), "0 frames after"),
        ([b"peer", b"", b"PM1"], (b"peer", b""), "1 frames after"),
        ([b"peer", b"", b"PM1", b"{}", b"more"], (b"peer", b""), "3 frames after"),
        ([b"peer", b"PM1", b'{"op":"ping"}'], (b"peer", b""), "no empty frame"),
        ([b"peer", b"a", b"b", b"PM1", b"{}"], (b"peer", b""), "no empty frame"),
        ([b"peer", b"a", b"", b"PM1"], (b"peer", b"a", b""), "1 frames after"),
        ([b"peer", b"", b"", b"PM1", b"{}"], (b"peer", b""), "3 frames after"),
        ([b"peer", b"a" * 2000, b"", b"PM1", b"{}"], (b"peer", b""), "exceed 1024 bytes"),
    ],
)
def test_wrong_frames_are_invalid_and_answered_as_well_as_can_be(
    frames: list[bytes], origin: tuple[bytes, ...], words: str
) -> None:
    malformed = refusal_of(frames)

    assert malformed.origin == origin
    assert malformed.error.code == "invalid"
    assert words in malformed.error.message
    assert words in str(malformed)


@pytest.mark.parametrize("version", [b"PM2", b"pm1", b"", b"PM1 ", b"\xff\x00", b"x" * 10_000])
def test_other_protocols_are_unsupported(version: bytes) -> None:
    error = refusal_of([b"peer", b"", version, b'{"op":"ping"}']).error

    assert error.code == "unsupported"
    assert "this broker speaks PM1" in error.message
    assert len(error.message) < 600


def test_message_over_the_limit_is_too_large() -> None:
    payload = b'{"op":"ping","x":"' + b"x" * 100 + b'"}'

    assert read(payload, limit=len(payload)) == Ping()
    error = refused(payload, limit=len(payload) - 1)

    assert error.code == "too_large"
    assert f"{len(payload)} bytes are more than the limit of {len(payload) - 1}" in error.message


# ---- JSON ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"   ",
        b"{",
        b'{"op":"ping"',
        b'{"op":"ping"} x',
        b'{"op":"ping"}{"op":"ping"}',
        b'{"op":"ping",}',
        b"{'op':'ping'}",
        b'{"op":ping}',
        b'{"op":"ping","req":NaN}',
        b'{"op":"ping","req":-Infinity}',
        b'{"op":"ping","req":01}',
        b'{"op":"ping","req":+1}',
        b'{"op":"ping","req":"\\ud800"}',
        b'{"op":"ping","req":"\\x41"}',
        b'{"op":"ping","req":"\x01"}',
        b'\xef\xbb\xbf{"op":"ping"}',
        b"\x00\x01\x02",
    ],
)
def test_what_is_no_json_is_invalid(payload: bytes) -> None:
    error = refused(payload)

    assert error.code == "invalid"
    assert "not valid JSON" in error.message


@pytest.mark.parametrize(
    "payload",
    [
        b'{"op":"ping","req":"\xff"}',
        b'{"op":"ping","x":"\xc3"}',
        b'{"op":"enqueue","jobs":[{"id":"x","type":"t","args":"\xed\xa0\x80"}]}',
        '{"op":"ping","req":"é"}'.encode("latin-1"),
        '{"op":"ping"}'.encode("utf-16"),
    ],
)
def test_what_is_no_utf8_is_invalid(payload: bytes) -> None:
    error = refused(payload)

    assert error.code == "invalid"
    assert error.message.startswith("not UTF-8: ")


@pytest.mark.parametrize("payload", [b"null", b"5", b'"ping"', b"[]", b"{}", b'{"req":1}', b"[[]]"])
def test_message_without_op_is_invalid(payload: bytes) -> None:
    error = refused(payload)

    assert (error.code, error.message) == ("invalid", "the message has no op")


@pytest.mark.parametrize(
    "op",
    ['"frobnicate"', '""', "5", "null", "[]", '"ok"', '"jobs"', '"PING"', '"x' + "x" * 9000 + '"'],
)
def test_unknown_op_is_unsupported_and_echoed_in_short(op: str) -> None:
    error = refused(f'{{"op":{op},"req":7}}')

    assert error.code == "unsupported"
    assert "is not known; there are enqueue, status" in error.message
    assert len(error.message) < 600
    assert req_of(error) == b"7"


@pytest.mark.parametrize(
    "args",
    [
        "NaN",
        "Infinity",
        "-Infinity",
        "[1,NaN]",
        "01",
        "1.",
        ".5",
        "nul",
        "[1,]",
        '"\\ud800"',
        "'x'",
    ],
)
def test_args_that_are_no_json_are_invalid(args: str) -> None:
    assert refused(with_job(args=args)).code == "invalid"


@pytest.mark.parametrize(
    "args",
    [
        "null",
        '"\\u0000 \\ud83d\\ude82"',
        '"\U0001f682 é"',
        "1e999",
        "-0",
        "123456789012345678901234567890",
        '{"a":1,"a":2}',
        " [ 1 , 2 ] ",
        '{"op":"cancel"}',
    ],
)
def test_args_go_through_as_they_came(args: str) -> None:
    message = read(with_job(args=args))

    assert isinstance(message, Enqueue)
    assert bytes(message.jobs[0].args) == args.strip().encode()


@pytest.mark.parametrize("levels", [100_000, 5_000_000])
@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("around", ["{}", '{{"op":"ping","x":{}}}', '{{"op":"ping","req":{}}}'])
def test_deep_nesting_is_invalid(levels: int, closed: bool, around: str) -> None:
    text = "[" * levels + "]" * levels * closed

    assert refused(around.format(text), limit=1 << 30).code == "invalid"


def test_deep_nesting_in_args_of_one_of_many_jobs_is_invalid() -> None:
    deep = '{"a":' * 100_000 + "1" + "}" * 100_000

    assert refused(with_job(args=deep), limit=1 << 30).code == "invalid"


# ---- fields --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"type": '""'}, "length >= 1"),
        ({"type": f'"{"x" * 201}"'}, "length <= 200"),
        ({"type": "5"}, "Expected `str`"),
        ({"type": "null"}, "Expected `str`"),
        ({"channel": '""'}, "length >= 1"),
        ({"channel": f'"{"x" * 201}"'}, "length <= 200"),
        ({"id": '"x"'}, "length >= 36"),
        ({"id": "7"}, "Expected `str`"),
        ({"priority": "1.5"}, "Expected `int`"),
        ({"priority": str(2**31)}, "<= 2147483647"),
        ({"priority": str(-(2**31) - 1)}, ">= -2147483648"),
        ({"priority": '"1"'}, "Expected `int`"),
        ({"priority": "1e400"}, "out of range"),
        ({"delay": "-1"}, ">= 0"),
        ({"delay": "1e9"}, "<= 3"),
        ({"timeout": "0"}, "> 0"),
        ({"timeout": "-5"}, "> 0"),
        ({"expires": "0"}, "> 0"),
        ({"max_attempts": "0"}, ">= 1"),
        ({"max_attempts": "1000001"}, "<= 1000000"),
        ({"backoff": "-1"}, ">= 0"),
        ({"backoff": '{"factor":0.5}'}, ">= 1"),
        ({"backoff": '{"jitter":2}'}, "<= 1"),
        ({"backoff": '"fast"'}, "got `str`"),
        ({"inputs": "1"}, "Expected `bool`"),
        ({"dependencies": '"x"'}, "Expected `array`"),
        ({"dependencies": "[5]"}, "got `int`"),
        ({"dependencies": '["short"]'}, "length >= 36"),
        ({"dependencies": f'[{{"id":"{OTHER}","condition":"failed"}}]'}, "Invalid enum value"),
        ({"dependencies": "[{}]"}, "required field `id`"),
    ],
    ids=str,
)
def test_wrong_field_of_a_job_is_invalid_and_names_the_job(
    fields: dict[str, str], words: str
) -> None:
    error = refused(with_job(**fields))

    assert error.code == "invalid"
    assert "jobs[0]: " in error.message
    assert words in error.message
    if "id" not in fields:
        assert error.ids == (ID,)
    assert req_of(error) == b'"r1"'


def test_names_of_200_characters_of_any_kind_are_right() -> None:
    engines = "\U0001f682" * 200
    message = read(with_job(type=f'"{engines}"', channel='"\\u0000"'))

    assert isinstance(message, Enqueue)
    assert message.jobs[0].type == engines
    assert message.jobs[0].channel == "\u0000"


@pytest.mark.parametrize("missing", ["id", "type"])
def test_missing_field_of_a_job_is_named(missing: str) -> None:
    text = with_job().replace(f'"{missing}":', '"unknown":')

    error = refused(text)

    assert error.code == "invalid"
    assert f"required field `{missing}`" in error.message


@pytest.mark.parametrize(
    "id",
    [
        ID.upper(),
        ID.replace("-", "_"),
        "{" + ID[1:-1] + "}",
        "g" * 36,
        ID[:-1] + "g",
        " " + ID[1:],
        "0" * 36,
        "0" * 8 + "-" * 28,
    ],
)
def test_id_that_is_no_canonical_uuid_is_invalid_and_named(id: str) -> None:
    error = refused(with_job(id=f'"{id}"'))

    assert error.code == "invalid"
    assert "not a UUID in canonical lower-case form" in error.message
    assert error.ids == (id,)
    assert req_of(error) == b'"r1"'


def test_every_wrong_job_is_named_not_only_the_first() -> None:
    jobs = [
        {"id": ID, "type": "fine"},
        {"id": OTHER, "type": ""},
        {"type": "nameless"},
        {"id": ID.replace("8", "9"), "type": "t", "priority": 0.5},
    ]
    error = refused(msgspec.json.encode({"op": "enqueue", "jobs": jobs}))

    assert error.ids == (OTHER, ID.replace("8", "9"))
    for number in (1, 2, 3):
        assert f"jobs[{number}]: " in error.message


def test_many_wrong_jobs_are_counted_not_told() -> None:
    jobs = [{"id": ID, "type": ""}] * 300

    error = refused(msgspec.json.encode({"op": "enqueue", "jobs": jobs}))

    assert error.message.endswith(" and 295 more")
    assert len(error.ids) == 300


def test_ids_are_named_beside_what_else_is_wrong() -> None:
    id = "0198c2f0-8a00-7000-8000-000000000001"
    jobs = [
        {"id": id, "type": "t", "priority": 1.5},
        {"id": "A" * 36, "type": "t"},
        {"id": "0198c2f0-8a00-7000-8000-000000000002", "type": "t"},
    ]

    error = refused(msgspec.json.encode({"op": "enqueue", "jobs": jobs}))

    assert error.ids == (id, "A" * 36)
    assert "jobs[1]: id not a UUID in canonical lower-case form" in error.message


@pytest.mark.parametrize("half", [r"\ud800", r"\udc00", r"\\\udBff x", r"\ud83d\ud83d\ude82"])
def test_half_a_character_is_called_so_and_its_job_is_named(half: str) -> None:
    id, other = (f"0198c2f0-8a00-7000-8000-00000000000{n}" for n in (1, 2))
    wrong = f'{{"id":"{id}","type":"t","args":"{half}"}}'
    right = f'{{"id":"{other}","type":"t","args":"\\\\ud800"}}'

    error = refused(f'{{"op":"enqueue","req":7,"jobs":[{right},{wrong}]}}'.encode())

    assert "one half of a surrogate pair stands alone" in error.message
    assert (error.ids, bytes(error.req)) == ((id,), b"7")  # type: ignore[arg-type]


def test_halves_are_not_looked_for_in_what_is_long() -> None:
    payload = b'{"op":"ping","x":"\\ud800' + b"\\\\" * 40_000 + b'"}'

    assert "surrogate" not in refused(payload).message


@pytest.mark.parametrize("op", ["status", "wait", "cancel", "retry", "delete"])
def test_ids_that_are_none_are_named(op: str) -> None:
    good = "0198c2f0-8a00-7000-8000-000000000001"

    error = refused(msgspec.json.encode({"op": op, "req": 7, "ids": ["x", good, 5, "y"]}))

    assert error.message.startswith(f"{op}: Expected `str`")
    assert error.message.endswith(": x, 5, y")
    assert error.ids == ("x", "5", "y")


@pytest.mark.parametrize("wrong", [b"1", b'""', b'"a"'])
def test_ids_are_looked_into_up_to_a_number(wrong: bytes) -> None:
    error = refused(b'{"op":"status","ids":[' + b",".join([wrong] * 20_000) + b"]}")

    assert len(error.ids) == 1000
    assert len(error.message) < 500


def test_ids_are_not_blamed_for_another_field() -> None:
    error = refused(b'{"op":"heartbeat","credit":-1,"ids":["x"]}')

    assert error.ids == ()


def test_legal_character_that_is_none_is_not_taken_for_a_half() -> None:
    ids = [f"0198c2f0-8a00-7000-8000-00000000000{n}" for n in (1, 2)]
    texts = [r"\uffff", r"\ud800"]
    jobs = [f'{{"id":"{id}","type":"t","args":"{x}"}}' for id, x in zip(ids, texts, strict=True)]

    error = refused(f'{{"op":"enqueue","jobs":[{",".join(jobs)}]}}'.encode())

    assert error.ids == (ids[1],)


def test_number_of_wrong_jobs_that_are_looked_into_is_bounded() -> None:
    # Each costs microseconds, and millions fit into a message.
    calls = 0

    def count(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal calls
        calls += 1

    payload = b'{"op":"enqueue","jobs":[' + b",".join([b"{}"] * 30_000) + b"]}"
    sys.setprofile(count)
    try:
        error = refused(payload)
    finally:
        sys.setprofile(None)

    assert error.message.endswith("1000 jobs are named, the others were not looked at")
    assert calls < 20_000


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ('{"op":"status","req":1}', "status: Object missing required field `ids`"),
        ('{"op":"status","ids":"x","req":1}', "status: Expected `array`"),
        ('{"op":"status","ids":["x"],"req":1}', "status: Expected `str` of length >= 36"),
        ('{"op":"cancel","ids":[5],"req":1}', "cancel: Expected `str`, got `int`"),
        ('{"op":"wait","ids":[],"timeout":-1,"req":1}', "wait: Expected `float` >= 0"),
        ('{"op":"list","limit":0,"req":1}', "list: Expected `int` >= 1"),
        ('{"op":"list","limit":10001,"req":1}', "list: Expected `int` <= 10000"),
        ('{"op":"list","state":5,"req":1}', "list: Expected `str | array | null`"),
        ('{"op":"enqueue","req":1}', "enqueue: Object missing required field `jobs`"),
        ('{"op":"enqueue","jobs":{},"req":1}', "enqueue: Expected `array`"),
        ('{"op":"enqueue","jobs":[7],"req":1}', "jobs[0]: Expected `object`"),
        ('{"op":"enqueue","jobs":[],"wait":"x","req":1}', "enqueue: Expected `float | null`"),
        ('{"op":"hello","types":[""],"req":1}', "hello: Expected `str` of length >= 1"),
        ('{"op":"hello","types":["t"],"credit":-1,"req":1}', "hello: Expected `int` >= 0"),
        ('{"op":"hello","types":["t"],"credit":100001,"req":1}', "hello: Expected `int` <= 100000"),
        ('{"op":"finish","jobs":[["x",1]],"req":1}', "finish: Expected `str` of length >= 36"),
        (f'{{"op":"finish","jobs":[["{ID}",0]],"req":1}}', "finish: Expected `int` >= 1"),
        (f'{{"op":"finish","jobs":[["{ID}"]],"req":1}}', "finish: Expected `array` of at least"),
        (f'{{"op":"fail","jobs":[{{"id":"{ID}"}}],"req":1}}', "required field `attempt`"),
        (f'{{"op":"claim","id":"{ID}x","req":1}}', "claim: Expected `str` of length <= 36"),
    ],
)
def test_wrong_field_is_invalid_and_named_with_its_op(payload: str, words: str) -> None:
    error = refused(payload)

    assert error.code == "invalid"
    assert words in error.message
    assert req_of(error) == b"1"


def test_op_that_stands_twice_is_invalid() -> None:
    assert refused('{"op":"ping","op":"stats"}').code == "invalid"


def test_unknown_fields_are_ignored() -> None:
    message = read(f'{{"op":"cancel","ids":["{ID}"],"new":[{{}}],"req":null}}')

    assert isinstance(message, Cancel)
    assert message.ids == (ID,)


def test_dependencies_are_read_with_and_without_condition() -> None:
    message = read(with_job(dependencies=f'["{OTHER}",{{"id":"{ID}","condition":"ended"}}]'))

    assert isinstance(message, Enqueue)
    assert message.jobs[0].dependencies == (OTHER, Dependency(ID, "ended"))


# ---- req -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("req", ["1", '"a\\u0000b"', "null", ' { "a" : [ 1.50 ] } ', "1e999", "[]"])
def test_req_is_echoed_byte_for_byte(req: str) -> None:
    message = read(f'{{"op":"status","ids":[],"req":{req}}}')

    assert isinstance(message, Status)
    answer = encode(Ok(jobs=(), req=message.req))

    assert f'"req":{req.strip()}'.encode() in answer
    assert req_of(refused(f'{{"op":"status","req":{req}}}')) == req.strip().encode()


def test_no_req_gives_none() -> None:
    assert read('{"op":"ping"}').req is UNSET
    assert b"req" not in encode(Ok(version="1"))


def test_req_that_is_too_long_is_invalid_and_not_echoed() -> None:
    good, bad = '"' + "x" * 1022 + '"', '"' + "x" * 1023 + '"'

    assert req_of(read(f'{{"op":"ping","req":{good}}}')) == good.encode()
    for payload in (f'{{"op":"ping","req":{bad}}}', f'{{"op":"nonsense","req":{bad}}}'):
        error = refused(payload)
        assert error.code in ("invalid", "unsupported")
        assert error.req is UNSET


# ---- both ways -----------------------------------------------------------------------------------


def test_defaults_are_left_out_of_what_is_sent() -> None:
    assert encode(Heartbeat()) == b'{"op":"heartbeat"}'
    assert encode(Ok(ids=())) == b'{"op":"ok","ids":[]}'
    assert encode(Error("busy", "later")) == b'{"op":"error","code":"busy","message":"later"}'


def test_each_request_is_read_as_what_it_is() -> None:
    for kind in Request.__args__:
        tag = kind.__struct_config__.tag
        fields = {
            "jobs": [],
            "ids": [],
            "types": ["t"],
            "id": ID,
            "attempt": 1,
        }
        assert type(read(msgspec.json.encode({"op": tag, **fields}))) is kind


def test_results_go_through_as_they_came() -> None:
    message = read(f'{{"op":"finish","jobs":[["{ID}",1,{{"b":1.50,"a":[]}}],["{OTHER}",2]]}}')

    assert isinstance(message, Finish)
    assert [bytes(one.result) for one in message.jobs] == [b'{"b":1.50,"a":[]}', b"null"]


@pytest.mark.parametrize("seed", range(3))
def test_broken_messages_are_refused_and_raise_nothing_else(seed: int) -> None:
    dice = random.Random(seed)
    good = [
        with_job(args='{"a":[1,2,"x"]}', dependencies=f'["{OTHER}"]').encode(),
        f'{{"op":"wait","ids":["{ID}"],"timeout":1.5,"req":"é"}}'.encode(),
        f'{{"op":"finish","jobs":[["{ID}",1,[null,true]]],"credit":3}}'.encode(),
    ]
    for _ in range(2000):
        payload = bytearray(dice.choice(good))
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(payload))
            what = dice.random()
            if what < 0.4:
                payload[at] = dice.randrange(256)
            elif what < 0.7:
                del payload[at : at + dice.randint(1, 9)]
            else:
                payload[at:at] = dice.choice((b'"', b"[", b"}", b"\\u", b"1e9999", b"\xf0\x9f"))
            if not payload:
                break
        with suppress(Malformed):
            decode([b"peer", b"", b"PM1", bytes(payload)], LIMIT)
