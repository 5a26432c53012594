"""Frames that cannot be read are refused, each with an answer, and never by another exception."""

import pytest

from broker.codec import Malformed, decode

LIMIT_BYTES = 100_000


def refusal(payload: bytes) -> tuple[str, str]:
    """Code and text of the answer to a message that cannot be read."""
    with pytest.raises(Malformed) as caught:
        decode([b"c", b"", b"PM1", payload], LIMIT_BYTES)
    return caught.value.error.code, caught.value.error.message


@pytest.mark.parametrize(
    "payload",
    [
        b'{"jobs":{},"op":"enqueue" 1}',
        b'{"jobs":1',
        b'{"jobs":1,"op":"enqueue","req":NaN}',
        b'{"jobs":[1,2',
        b'{"op":1,"jobs":"x"',
        b'{"jobs":0,"x":' + b"[" * 20_000,
    ],
)
def test_wrong_type_before_broken_json_is_refused(payload: bytes) -> None:
    code, message = refusal(payload)

    assert code == "invalid"
    assert "JSON" in message


def test_wrong_type_of_jobs_is_named_and_its_request_echoed() -> None:
    with pytest.raises(Malformed) as caught:
        decode([b"c", b"", b"PM1", b'{"op":"enqueue","jobs":7,"req":5}'], LIMIT_BYTES)

    assert "array" in caught.value.error.message
    assert bytes(caught.value.error.req) == b"5"  # type: ignore[arg-type]
