"""JSON values to bytes, messages to frames, and both back again.

What JSON cannot carry is refused with the place where it stands. What a broker sends is never
trusted to be well-formed: anything else than a message of the protocol is a ``ProtocolError``.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec
from msgspec import Raw

from worker_sdk.errors import InvalidRequest, NotEncodable, ProtocolError
from worker_sdk.messages import PROTOCOL, Message, Reply, WorkerEvent

ENVELOPE_BYTES = 128
"""More than all that a message holds besides the jobs or ids of its list."""


def _plain_base(value: Any) -> Any:
    """What msgspec does not know by itself: subclasses of float, int and str (numpy.float64)."""
    for base in (float, int, str):
        if isinstance(value, base):
            return base(value)
    raise NotImplementedError


_encode = msgspec.json.Encoder(enc_hook=_plain_base).encode
_decode = msgspec.json.Decoder().decode
_decode_reply: Callable[[bytes], Reply] = msgspec.json.Decoder(Reply).decode
_decode_worker_event: Callable[[bytes], WorkerEvent] = msgspec.json.Decoder(WorkerEvent).decode


# ---- values ----------------------------------------------------------------------------------


def encode_value(value: Any, name: str = "$") -> bytes:
    """The value as JSON.

    Everything that msgspec writes is taken (besides JSON's own types: datetimes, UUIDs, enums,
    bytes, sets, dataclasses, …), except that NaN and infinity, which it would write as null, are
    refused. ``name`` is what errors call the value: ``args.points[3] is nan``.
    """
    try:
        encoded = _encode(value)
    except (TypeError, ValueError, NotImplementedError, OverflowError) as error:
        raise _explain(value, name, error) from None
    except RecursionError:
        raise InvalidRequest(f"{name} is nested too deep, or holds itself") from None
    # The walk costs more than the encoding, so it is only for values that might need it.
    if b"null" in encoded:
        _refuse_non_finite(value, name)
    return encoded


def encode_all(values: Sequence[Any]) -> bytes | None:
    """The values as one JSON list, at a third of the time that each by itself takes; None if one
    may have to be refused: then each is to be encoded by itself.
    """
    try:
        encoded = _encode(values)
    except (TypeError, ValueError, NotImplementedError, OverflowError, RecursionError):
        return None
    return None if b"null" in encoded else encoded


def as_list(encoded: Iterable[bytes]) -> bytes:
    """Values that are JSON already as one JSON list."""
    return b"[" + b",".join(encoded) + b"]"


def decode_value(raw: Raw | bytes, name: str = "value") -> Any:
    """The Python value of JSON that came from the broker; numbers beyond a float are infinite."""
    try:
        return _decode(raw)
    except (ValueError, RecursionError) as error:
        if "out of range" in str(error):
            return _decode_large_numbers(raw, name)
        raise ProtocolError(f"{name} cannot be read: {error}") from None


def _decode_large_numbers(raw: Raw | bytes, name: str) -> Any:
    """Slower, but nobody's 1e400 is to hide the jobs that come in one answer with it."""
    try:
        return json.loads(bytes(raw), parse_int=_whole)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"{name} cannot be read: {error}") from None


def _whole(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:  # Python refuses those of very many digits
        return float(text)


def _refuse_non_finite(value: Any, name: str) -> None:
    for path, each in _walk(value, name):
        if isinstance(each, float) and not math.isfinite(each):
            raise NotEncodable(f"{path} is {each}: JSON has neither NaN nor infinity")


def _explain(value: Any, name: str, error: Exception) -> InvalidRequest:
    """The error that names the innermost culprit of an encoding that failed."""
    for path, each in _walk(value, name):
        if isinstance(each, dict):
            for key in each:
                if not _can_be_encoded({key: None}):
                    return NotEncodable(f"{path} has the key {key!r}, which JSON cannot carry")
        elif isinstance(each, str):
            if surrogate := _lone_surrogate(each):
                return NotEncodable(f"{path} holds {surrogate}, half a character: not Unicode")
        elif not _children(each, path) and not _can_be_encoded(each):
            kind = type(each).__name__
            return NotEncodable(f"{path} is of type {kind}, which JSON cannot carry")
    return NotEncodable(f"{name} cannot be written as JSON: {error}")


def _can_be_encoded(value: Any) -> bool:
    try:
        _encode(value)
    except (TypeError, ValueError, NotImplementedError):
        return False
    return True


def _lone_surrogate(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return repr(text[error.start])
    return ""


def _walk(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Each value inside ``value`` with its path, itself first; without recursion."""
    stack = [(path, value)]
    seen = set()
    while stack:
        path, each = stack.pop()
        yield path, each
        children = _children(each, path)
        if children and id(each) not in seen:
            seen.add(id(each))
            stack.extend(reversed(children))


def _children(value: Any, path: str) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [(f"{path}.{key}", each) for key, each in value.items()]
    if isinstance(value, list | tuple | set | frozenset):
        return [(f"{path}[{index}]", each) for index, each in enumerate(value)]
    for names in ("__struct_fields__", "__dataclass_fields__"):
        if hasattr(type(value), names):
            fields = getattr(type(value), names)
            return [(f"{path}.{field}", getattr(value, field, None)) for field in fields]
    return []


# ---- messages --------------------------------------------------------------------------------


def pack(message: Message) -> list[bytes]:
    """The frames of a message as a DEALER sends them (a REQ adds the empty one by itself)."""
    return [b"", PROTOCOL, _encode(message)]


def unpack_reply(frames: Sequence[bytes]) -> Reply:
    """What a broker answered to a client; ProtocolError if it is no answer."""
    try:
        return _decode_reply(_content(frames))
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the broker's answer is not of the protocol: {error}") from None


def unpack_worker_event(frames: Sequence[bytes]) -> WorkerEvent:
    """What a broker sent to a worker; ProtocolError if it is nothing that a worker knows."""
    try:
        return _decode_worker_event(_content(frames))
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the broker's message is not of the protocol: {error}") from None


class _Numbered(msgspec.Struct):
    req: Any = None


def req_of(frames: Sequence[bytes]) -> int | None:
    """The number of the request that a message answers, if it can be made out at all."""
    try:
        req = msgspec.json.decode(_content(frames), type=_Numbered).req
    except (ValueError, RecursionError, ProtocolError):
        return None
    return req if type(req) is int else None


def _content(frames: Sequence[bytes]) -> bytes:
    if len(frames) < 2 or frames[-2] != PROTOCOL or any(frames[:-2]):
        raise ProtocolError(
            f"the answer has not the frames of the protocol {PROTOCOL.decode()}: "
            f"is what answers a Pointsman broker of this version?"
        )
    return frames[-1]
