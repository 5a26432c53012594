"""Whatever comes in gets a clear error, and the broker goes on for everyone else."""

import json
import random
from typing import Any

import pytest
import zmq

from broker.local import LocalBroker
from tests.wire.conftest import Connect
from tests.wire.peer import Peer, job, new_id


@pytest.fixture(autouse=True)
def _broker_goes_on(broker: LocalBroker) -> Any:
    """After each of these tests the broker serves a newcomer as ever."""
    yield
    with Peer(broker.endpoint) as client, Peer(broker.endpoint) as worker:
        id = client.enqueue("afterwards", args=[1])
        worker.hello("afterwards")
        one = worker.next_job()
        worker.finish(one, result=2)
        assert client.status(id)["result"] == 2


# ---- JSON and fields -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "code", "words"),
    [
        (b"", "invalid", "not valid JSON"),
        (b"hello", "invalid", "not valid JSON"),
        (b'{"op":"ping"', "invalid", "not valid JSON"),
        (b'{"op":"ping"}}', "invalid", "not valid JSON"),
        (b'{"op":"ping","x":"\xff\xfe"}', "invalid", "not UTF-8"),
        (b'{"op":"ping","x":"\xed\xa0\x80"}', "invalid", "not UTF-8"),
        (b"[]", "invalid", "no op"),
        (b"{}", "invalid", "no op"),
        (b"null", "invalid", "no op"),
        (b'{"op":"frobnicate"}', "unsupported", '"frobnicate" is not known'),
        (b'{"op":7}', "unsupported", "op 7 is not known"),
        (b'{"op":"status"}', "invalid", "missing required field `ids`"),
        (b'{"op":"status","ids":7}', "invalid", "Expected `array`"),
        (b'{"op":"status","ids":[7]}', "invalid", "Expected `str`"),
        (b'{"op":"status","ids":["7"]}', "invalid", "length >= 36"),
        (b'{"op":"wait","ids":[],"timeout":-1}', "invalid", ">= 0"),
        (b'{"op":"wait","ids":[],"timeout":1e99}', "invalid", "<="),
        (b'{"op":"list","limit":0}', "invalid", ">= 1"),
        (b'{"op":"list","since":"yesterday"}', "invalid", "Expected `float | null`"),
        (b'{"op":"ping","req":NaN}', "invalid", "not valid JSON"),
    ],
)
def test_bad_message_is_refused(client: Peer, payload: bytes, code: str, words: str) -> None:
    error = client.answer_to(payload)

    assert (error["op"], error["code"]) == ("error", code)
    assert words in error["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"type": ""},
        {"type": "x" * 201},
        {"type": None},
        {"type": 5},
        {"channel": ""},
        {"channel": "x" * 201},
        {"id": "not-a-uuid"},
        {"id": "0198C2F0-8A00-7000-8000-000000000001"},
        {"id": 5},
        {"dependencies": "all"},
        {"dependencies": ["x"]},
        {"dependencies": [{"condition": "ended"}]},
        {"priority": 2**31},
        {"priority": 0.5},
        {"delay": -1},
        {"delay": "1s"},
        {"timeout": 0},
        {"expires": 0},
        {"max_attempts": 0},
        {"max_attempts": 10**9},
        {"backoff": -1},
        {"backoff": {"factor": 0}},
        {"backoff": {"jitter": 1.5}},
        {"inputs": "yes"},
    ],
    ids=lambda fields: str(fields)[:40],
)
def test_bad_job_is_refused_and_named_and_the_others_are_not_enqueued(
    client: Peer, fields: dict[str, Any]
) -> None:
    good, bad = job(), {**job(), **fields}

    error = client.error("enqueue", jobs=[good, bad])

    assert error["code"] == "invalid"
    if isinstance(bad["id"], str):
        assert error["ids"] == [bad["id"]]
    assert client.code("status", ids=[good["id"]]) == "not_exist"


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "[1,NaN]", '{"a":Infinity}'])
def test_numbers_that_json_does_not_have_are_invalid(client: Peer, value: str) -> None:
    id = new_id()

    error = client.answer_to(
        f'{{"op":"enqueue","req":1,"jobs":[{{"id":"{id}","type":"t","args":{value}}}]}}'
    )

    assert error["code"] == "invalid"
    assert client.code("status", ids=[id]) == "not_exist"


@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", '"\\ud800"', "tru", "01", "[" * 501 + "]" * 501]
)
def test_result_that_is_no_json_is_invalid_and_the_job_goes_on(
    client: Peer, worker: Peer, value: str
) -> None:
    id = client.enqueue()
    worker.hello()
    worker.next_job()

    error = worker.answer_to(f'{{"op":"finish","req":1,"jobs":[["{id}",1,{value}]]}}')

    assert (error["op"], error["code"]) == ("error", "invalid")
    assert client.state(id) == "running"


@pytest.mark.parametrize("levels", [501, 900, 985, 1000, 100_000])
@pytest.mark.parametrize("pair", [("[", "]"), ('{"a":', "}")], ids=["arrays", "objects"])
def test_deep_nesting_is_invalid(client: Peer, levels: int, pair: tuple[str, str]) -> None:
    opening, closing = pair
    deep = opening * levels + "1" + closing * levels
    id = new_id()

    error = client.answer_to(
        f'{{"op":"enqueue","jobs":[{{"id":"{id}","type":"t","args":{deep}}}]}}'
    )

    assert (error["op"], error["code"]) == ("error", "invalid")
    assert "nested" in error["message"]
    assert client.answer_to(deep)["code"] == "invalid"


def test_deepest_args_and_results_reach_the_other_end(client: Peer, worker: Peer) -> None:
    deep = json.loads("[" * 500 + "]" * 500)
    first = client.enqueue(args=deep)
    client.enqueue(dependencies=[first])
    worker.hello()

    one = worker.next_job()
    assert one["args"] == deep
    worker.finish(one, result=deep)

    assert worker.next_job()["inputs"] == {first: deep}
    assert client.status(first)["result"] == deep


def test_request_that_is_wrong_is_answered_with_its_req(client: Peer) -> None:
    for payload in (
        '{"req":{"a":[1]},"op":"status"}',
        '{"op":"nonsense","req":{"a":[1]}}',
        '{"op":"enqueue","jobs":[{}],"req":{"a":[1]}}',
    ):
        assert client.answer_to(payload)["req"] == {"a": [1]}


@pytest.mark.parametrize("req", [0, -1, "x", None, [], {"a": None}, 1.5, "\u0000é", 2**80])
def test_req_may_be_any_json(client: Peer, req: Any) -> None:
    client.send({"op": "ping", "req": req})

    assert client.receive()["req"] == req


def test_answer_to_a_message_without_req_has_none(client: Peer) -> None:
    assert "req" not in client.answer_to('{"op":"ping"}')
    assert "req" not in client.answer_to('{"op":"status","ids":["x"]}')


# ---- size ----------------------------------------------------------------------------------------


def test_message_over_the_limit_is_too_large(client: Peer) -> None:
    room = 1_000_000 - len(json.dumps({"op": "ping", "x": ""}))
    assert client.answer_to(json.dumps({"op": "ping", "x": "x" * room}))["op"] == "ok"

    error = client.answer_to(json.dumps({"op": "ping", "x": "x" * (room + 1)}))

    assert error["code"] == "too_large"
    assert "1000001 bytes are more than the limit of 1000000" in error["message"]


def test_message_far_over_the_limit_costs_the_connection_and_nobody_elses(
    client: Peer, connect: Connect
) -> None:
    rude = connect()

    rude.send(b"x" * 3_000_000)

    assert rude.hears_nothing()
    assert client.ok("ping")


def test_answers_with_very_many_ids_are_sent(connect: Connect) -> None:
    client = connect()
    ids = [new_id() for _ in range(20_000)]

    error = client.error("status", ids=ids)

    assert (error["code"], error["ids"]) == ("not_exist", ids)
    assert len(error["message"]) < 1000


# ---- frames --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"", b"PM1"],
        [b"", b"PM1", b'{"op":"ping"}', b"more"],
        [b"", b"", b"PM1", b'{"op":"ping"}'],
        [b"PM1", b'{"op":"ping"}'],
        [b'{"op":"ping"}'],
        [b"a", b"b", b"c"],
        [b"x" * 1100, b"", b"PM1", b'{"op":"ping"}'],
    ],
    ids=lambda frames: str(len(frames)),
)
def test_wrong_frames_are_invalid(client: Peer, frames: list[bytes]) -> None:
    client.send_frames(*frames)

    answer = client.receive_frames()

    assert json.loads(answer[-1])["code"] == "invalid"
    assert answer[-3:-1] == [b"", b"PM1"]


@pytest.mark.parametrize("version", [b"PM2", b"pm1", b"", b"MDPC01", b"\xff" * 300])
def test_other_version_is_unsupported(client: Peer, version: bytes) -> None:
    client.send_frames(b"", version, b'{"op":"ping"}')

    error = client.receive()

    assert error["code"] == "unsupported"
    assert "this broker speaks PM1" in error["message"]


def test_message_of_too_many_frames_is_dropped(client: Peer) -> None:
    client.send_frames(*[b"x"] * 12, b"", b"PM1", b'{"op":"ping"}')
    assert len(client.receive_frames()) == 15

    client.send_frames(*[b"x"] * 13, b"", b"PM1", b'{"op":"ping"}')

    assert client.hears_nothing()
    assert client.ok("ping")


def test_envelope_is_echoed(client: Peer) -> None:
    client.send_frames(b"\x00one", b"two", b"", b"PM1", b'{"op":"ping","req":1}')

    envelope = client.receive_frames()

    assert envelope[:4] == [b"\x00one", b"two", b"", b"PM1"]
    assert json.loads(envelope[4])["op"] == "ok"


def test_pushes_to_a_worker_have_the_envelope_of_its_hello(client: Peer, worker: Peer) -> None:
    worker.send_frames(b"route", b"", b"PM1", b'{"op":"hello","types":["work"]}')
    assert json.loads(worker.receive_frames()[-1])["op"] == "welcome"

    client.enqueue()

    frames = worker.receive_frames()
    assert frames[:3] == [b"route", b"", b"PM1"]
    assert json.loads(frames[3])["op"] == "jobs"


def test_random_frames_do_no_harm(client: Peer, connect: Connect) -> None:
    dice = random.Random(5)
    noisy = connect()
    parts = [b"", b"PM1", b'{"op":"ping"}', b"\x00\x00\x00\x01", b'{"op":"hello","types":["t"]}']
    for _ in range(500):
        frames = [dice.choice(parts) for _ in range(dice.randint(1, 17))]
        if dice.random() < 0.3:
            frames[-1] = dice.randbytes(dice.randint(0, 50))
        noisy.send_frames(*frames)

    assert client.ok("ping")


def test_garbage_on_the_port_does_no_harm(broker: LocalBroker, client: Peer) -> None:
    import socket

    host, _, port = broker.endpoint.removeprefix("tcp://").rpartition(":")
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 100, b"\xff\x00" * 5000, b""):
        with socket.create_connection((host, int(port)), timeout=5) as raw:
            raw.sendall(garbage)

    assert client.ok("ping")


def test_other_kinds_of_sockets_do_no_harm(connect: Connect, client: Peer) -> None:
    for kind in (zmq.PUSH, zmq.PUB, zmq.PAIR, zmq.SUB, zmq.REP):
        connect(kind=kind)

    assert client.ok("ping")
