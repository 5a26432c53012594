"""What the fuzzers feed: messages that are right, that are odd, and bytes that are neither.

All is drawn from a `random.Random`, so that the same generators serve hypothesis, which gives one
that it can shrink, and long runs with a seed of their own.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

JsonObject = dict[str, Any]

IDS = [f"0198c2f0-8a00-7000-8000-{number:012x}" for number in range(24)]
"""So few that messages meet the same jobs again and again."""
NAMES = ("a", "b", "c", "ä\u0000", "x" * 200)
ODD_VALUES: Sequence[Any] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        0.0,
        -0.0,
        0.5,
        2**31,
        2**53,
        2**63,
        2**64,
        10**30,
        1e308,
        -1e308,
    ),
    *(
        "",
        "a",
        "\u0000",
        "\ud7ff",
        "😀",
        "x" * 201,
        "finished",
        "0198c2f0-8a00-7000-8000-00000000000a",
    ),
    *([], [[]], [None], {}, {"op": "ping"}, {"id": "x"}, [1, 2, 3]),
)
ODD_BYTES = (
    *(b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b'"\\ud800"', b'"\\udc00\\ud800"'),
    *(b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\x00", b"\xef\xbb\xbf", b"[" * 2000, b'{"a":' * 600),
    *(b'"op":"ping"', b'"op":1', b'"req":' + b"1" * 1100, b"null", b"{}", b"[]", b",", b"9" * 400),
    *(b'"\\u0000"', b"\\u00", b"01", b"1.", b".5", b"+1", b"1E+400", b'"', b"\\", b"}", b"]"),
)


def some(rng: Random, most: int = 3) -> list[str]:
    """Give a few ids, some of them twice."""
    return [rng.choice(IDS) for _ in range(rng.randint(0, most))]


def claim(rng: Random) -> list[Any]:
    return [rng.choice(IDS), rng.choice((1, 1, 1, 2, 3, 2**53))]


def value(rng: Random) -> Any:
    """Give any JSON value."""
    return copy.deepcopy(rng.choice(ODD_VALUES))


def job(rng: Random) -> JsonObject:
    """Give a job as it stands in an enqueue, its fields within their bounds."""
    fields: JsonObject = {"id": rng.choice(IDS), "type": rng.choice(NAMES)}
    choices: dict[str, Callable[[], Any]] = {
        "args": lambda: value(rng),
        "dependencies": lambda: [
            id if rng.random() < 0.6 else {"id": id, "condition": rng.choice(("finished", "ended"))}
            for id in some(rng)
        ],
        "channel": lambda: rng.choice(NAMES),
        "priority": lambda: rng.choice((0, 1, -1, 2**31 - 1, -(2**31))),
        "delay": lambda: rng.choice((0, 0.5, 3, 315_360_000)),
        "timeout": lambda: rng.choice((None, 1e-9, 1, 315_360_000)),
        "expires": lambda: rng.choice((None, 1e-9, 2, 315_360_000)),
        "max_attempts": lambda: rng.choice((1, 2, 1_000_000)),
        "backoff": lambda: rng.choice(
            (None, 0, 1.5, {}, {"first": 1e-9, "factor": 100, "limit": 0, "jitter": 1})
        ),
        "inputs": lambda: rng.random() < 0.5,
    }
    for name in rng.sample(sorted(choices), rng.randint(0, 3)):
        fields[name] = choices[name]()
    return fields


def _enqueue(rng: Random) -> JsonObject:
    request: JsonObject = {"jobs": [job(rng) for _ in range(rng.choice((0, 1, 1, 1, 2, 4)))]}
    if rng.random() < 0.2:
        request["wait"] = rng.choice((None, 0, 1, 3600))
    return request


def _hello(rng: Random) -> JsonObject:
    return {
        "types": rng.sample(NAMES, rng.randint(0, 3)) or ["a"],
        "channels": rng.choice((["default"], ["default", "a"], list(NAMES), [])),
        "credit": rng.choice((0, 1, 1, 3, 100_000)),
        "name": rng.choice(("", "w", "x" * 200)),
        "session": rng.choice(("", "s1", "s2", "s3")),
        "running": [claim(rng) for _ in range(rng.choice((0, 0, 0, 1, 3)))],
    }


def _credit(rng: Random) -> JsonObject:
    return rng.choice(({}, {}, {"credit": None}, {"credit": 0}, {"credit": 1}, {"credit": 5}))


def _several(rng: Random, one: Callable[[], Any]) -> list[Any]:
    return [one() for _ in range(rng.choice((0, 1, 1, 1, 2, 3)))]


REQUESTS: dict[str, Callable[[Random], JsonObject]] = {
    "enqueue": _enqueue,
    "status": lambda rng: {"ids": some(rng), "args": rng.random() < 0.5},
    "wait": lambda rng: {"ids": some(rng), "timeout": rng.choice((None, 0, 0.5, 1e-9))},
    "cancel": lambda rng: {"ids": some(rng)},
    "retry": lambda rng: {"ids": some(rng)},
    "delete": lambda rng: {"ids": some(rng)},
    "list": lambda rng: {
        "state": rng.choice((None, "ready", ["finished", "failed"], [], "nonsense")),
        "type": rng.choice((None, "a", "")),
        "roots": rng.random() < 0.5,
        "since": rng.choice((None, 0, 1e308, -1)),
        "limit": rng.choice((1, 100, 10_000)),
        "after": rng.choice(
            (None, "live:3", "ended:1", "live:", "x", "live:" + "9" * 30, "live:²")
        ),
    },
    "stats": lambda rng: {},
    "ping": lambda rng: {},
    "hello": _hello,
    "finish": lambda rng: {
        "jobs": _several(rng, lambda: [*claim(rng), value(rng)]),
        **_credit(rng),
    },
    "fail": lambda rng: {
        "jobs": _several(
            rng,
            lambda: {
                **dict(zip(("id", "attempt"), claim(rng), strict=True)),
                "error": rng.choice(("", "it broke", "\u0000", "x" * 70_000)),
                "retry": rng.random() < 0.7,
            },
        ),
        **_credit(rng),
    },
    "release": lambda rng: {"jobs": _several(rng, lambda: claim(rng)), **_credit(rng)},
    "progress": lambda rng: {"jobs": _several(rng, lambda: [*claim(rng), value(rng)])},
    "claim": lambda rng: {"id": rng.choice(IDS)},
    "inputs": lambda rng: {
        **dict(zip(("id", "attempt"), claim(rng), strict=True)),
        "ids": some(rng),
    },
    "heartbeat": _credit,
    "bye": lambda rng: {},
}
_OPS = (
    *REQUESTS,
    "enqueue",
    "enqueue",
    "enqueue",
    "hello",
    "finish",
    "finish",
    "fail",
    "heartbeat",
)


def request(rng: Random) -> JsonObject:
    """Give a message whose fields are right, if perhaps not their meaning."""
    op = rng.choice(_OPS)
    message = {"op": op, **REQUESTS[op](rng)}
    if rng.random() < 0.7:
        message["req"] = rng.choice((1, "x", None, [1], {"a": 1}, 1.5))
    return message


def twisted(rng: Random, message: JsonObject) -> Any:
    """Give a message with something in it replaced, left out or added."""
    for _ in range(rng.choice((1, 1, 2))):
        _twist(rng, message)
    return message


def _twist(rng: Random, inside: Any) -> None:
    while True:
        inner: list[Any] = []
        if isinstance(inside, dict) and inside:
            inner = sorted(inside)
        elif isinstance(inside, list) and inside:
            inner = list(range(len(inside)))
        if not inner:
            return
        key = rng.choice(inner)
        if isinstance(inside[key], dict | list) and inside[key] and rng.random() < 0.7:
            inside = inside[key]
            continue
        what = rng.random()
        if what < 0.6:
            inside[key] = value(rng)
        elif what < 0.8:
            del inside[key]
        elif isinstance(inside, dict):
            inside[rng.choice(("op", "jobs", "ids", "extra", ""))] = value(rng)
        else:
            inside.insert(key, value(rng))
        return


def text_of(message: Any) -> bytes:
    """Give JSON, of which not all need be what JSON allows."""
    return json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass")


def scrambled(rng: Random, payload: bytes) -> bytes:
    """Give bytes that were some message once."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randint(0, len(payload))
        end = min(len(payload), at + rng.choice((0, 1, 1, 8, 100)))
        what = rng.random()
        if what < 0.35:
            payload = payload[:at] + rng.choice(ODD_BYTES) + payload[end:]
        elif what < 0.6:
            payload = payload[:at] + bytes([rng.randrange(256)]) + payload[at + 1 :]
        elif what < 0.75:
            payload = payload[:at] + payload[end:]
        elif what < 0.9:
            payload = payload[:end] + payload[at:]
        else:
            payload = payload[:at]
    return payload


def payload(rng: Random) -> bytes:
    """Give a message's third frame: mostly near to right."""
    message: Any = request(rng)
    if rng.random() < 0.4:
        message = twisted(rng, message)
    text = text_of(message)
    return scrambled(rng, text) if rng.random() < 0.4 else text


def frames(rng: Random, connection: bytes = b"c") -> list[bytes]:
    """Give all frames of a message as a ROUTER hands them over: up to 16."""
    if rng.random() < 0.7:
        return [connection, b"", b"PM1", payload(rng)]
    pool = (b"", b"", b"PM1", b"PM2", b"pm1", b"\xff" * 3, b"env", b"e" * 1025, payload(rng))
    return [connection, *(rng.choice(pool) for _ in range(rng.randint(1, 15)))]
