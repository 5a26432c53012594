"""Frames to typed messages and back, with an answer ready for what is malformed."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import UNSET, Raw, UnsetType

from broker.core.refusal import listed
from broker.core.workers import Origin
from worker_sdk.messages import PROTOCOL, Enqueue, Error, Message, NewJob, Request

FRAMES_MOST = 16
"""How many frames a message may have: the protocol's three, and envelopes around them."""

encode = msgspec.json.Encoder().encode
"""Gives the JSON frame of a message."""

_REQUESTS = msgspec.json.Decoder(Request)
_JOB = msgspec.json.Decoder(NewJob)
# What canonical ids are alike in: with their digits made zeros they are all the same.
_TO_ZERO = bytes.maketrans(b"123456789abcdef", b"0" * 15)
_ZERO_ID = b"00000000-0000-0000-0000-000000000000"
_SHOWN_MOST = 100  # characters of what is quoted
_FAULTS_TOLD = 5  # in words; the ids of the others are named
# Looked for in one message: each costs microseconds, and millions fit into 16 MiB.
_FAULTS_MOST = 1000
# What is echoed is kept while a request is open, and sent again with its answer: bytes.
_ENVELOPE_MOST = 1024
_REQ_MOST = 1024


class Malformed(Exception):
    """A message that cannot be read; carries where it came from and what to answer."""

    def __init__(self, origin: Origin, error: Error) -> None:
        super().__init__(error.message)
        self.origin = origin
        self.error = error


def decode(frames: Sequence[bytes], message_limit: int) -> tuple[Origin, Message]:
    """Give the sender and the message in the frames that a ROUTER received; raises Malformed."""
    if len(frames) == 4 and not frames[1]:
        origin: Origin = (frames[0], b"")
    else:
        origin = _envelope(frames)
    version, payload = frames[-2:]
    if version != PROTOCOL:
        shown = version[:_SHOWN_MOST].decode("ascii", "backslashreplace")
        raise _malformed(
            origin, "unsupported", f"protocol {shown!r} is not known, this broker speaks PM1"
        )
    if len(payload) > message_limit:
        raise _malformed(
            origin, "too_large", f"{len(payload)} bytes are more than the limit of {message_limit}"
        )
    try:
        if not payload.isascii():
            payload.decode()  # msgspec does not look into strings that it only passes on
        message = _REQUESTS.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(origin, _explain(payload, error)) from None
    if message.req is not UNSET and len(message.req) > _REQ_MOST:
        raise _malformed(origin, "invalid", f"req has more than {_REQ_MOST} bytes")
    if type(message) is Enqueue:
        _check_ids(origin, message)
    return origin, message


def _envelope(frames: Sequence[bytes]) -> Origin:
    """Give the frames up to and with the empty one, if they leave two for the rest."""
    nowhere_better = (frames[0], b"")
    try:
        empty = frames.index(b"", 1)
    except ValueError:
        why = "no empty frame before the protocol's"
        raise _malformed(nowhere_better, "invalid", f"{why}: {_SHAPE}") from None
    origin = tuple(frames[: empty + 1])
    if sum(map(len, origin)) > _ENVELOPE_MOST:
        raise _malformed(
            nowhere_better, "invalid", f"frames before the empty one exceed {_ENVELOPE_MOST} bytes"
        )
    if len(frames) != empty + 3:
        count = len(frames) - empty - 1
        raise _malformed(
            origin, "invalid", f"{count} frames after the empty one are not two: {_SHAPE}"
        )
    return origin


_SHAPE = "a message is the frames [empty] [PM1] [JSON]"


def _malformed(origin: Origin, code: str, message: str) -> Malformed:
    return Malformed(origin, Error(code, message))


def _check_ids(origin: Origin, message: Enqueue) -> None:
    """Refuse ids that are not UUIDs in canonical form."""
    ids = [job.id for job in message.jobs]
    # All together, since that takes a quarter of the time: 0.07 us an id.
    if not _are_canonical("".join(ids), len(ids)):
        wrong = [id for id in ids if not _are_canonical(id, 1)]
        text = f"not a UUID in canonical lower-case form: {listed(wrong)}"
        raise Malformed(origin, Error("invalid", text, tuple(wrong), req=message.req))


def _are_canonical(text: str, count: int) -> bool:
    """Say whether `text` is `count` UUIDs in canonical form, one right behind the other."""
    return text.encode(errors="replace").translate(_TO_ZERO) == _ZERO_ID * count


# ---- what is wrong with a message: only looked into once it is known that something is ----------


class _Outline(msgspec.Struct):
    """As much of a message as can be read of one that is wrong elsewhere."""

    op: Raw | UnsetType = UNSET
    req: Raw | UnsetType = UNSET
    jobs: list[Raw] | UnsetType = UNSET


class _Envelope(msgspec.Struct):
    op: Raw | UnsetType = UNSET
    req: Raw | UnsetType = UNSET


class _Named(msgspec.Struct):
    id: str


_NAMED = msgspec.json.Decoder(_Named)
_OUTLINES: msgspec.json.Decoder[_Outline | _Envelope] = msgspec.json.Decoder(_Outline)
_ENVELOPES: msgspec.json.Decoder[_Outline | _Envelope] = msgspec.json.Decoder(_Envelope)


def _explain(payload: bytes, error: Exception) -> Error:
    if isinstance(error, UnicodeDecodeError):
        return Error("invalid", f"not UTF-8: {error.reason} at byte {error.start}")
    if isinstance(error, RecursionError):
        return Error("invalid", "JSON is nested too deeply")
    outline = _outline(payload)
    if outline is None:
        return Error("invalid", f"not valid JSON: {error}")
    known = {tag: kind for kind in Request.__args__ if (tag := kind.__struct_config__.tag)}
    op = _text(outline.op)
    if outline.op is UNSET:
        answer = Error("invalid", "the message has no op")
    elif op not in known:
        shown = bytes(outline.op)[:_SHOWN_MOST].decode(errors="replace")
        answer = Error("unsupported", f"op {shown} is not known; there are {', '.join(known)}")
    elif op == "enqueue" and isinstance(outline, _Outline) and outline.jobs is not UNSET:
        answer = _explain_jobs(outline.jobs, error)
    else:
        answer = Error("invalid", f"{op}: {error}")
    if outline.req is UNSET or len(outline.req) <= _REQ_MOST:
        answer.req = outline.req
    return answer


def _outline(payload: bytes) -> _Outline | _Envelope | None:
    for decoder in (_OUTLINES, _ENVELOPES):
        try:
            return decoder.decode(payload)
        except msgspec.ValidationError:
            # Before what is no JSON, perhaps: the next one may still find that.
            continue
        except (msgspec.DecodeError, RecursionError):
            return None
    return _Envelope()


def _text(raw: Raw | UnsetType) -> str | None:
    try:
        return msgspec.json.decode(raw, type=str) if isinstance(raw, Raw) else None
    except msgspec.DecodeError:
        return None


def _explain_jobs(jobs: list[Raw], error: Exception) -> Error:
    """Name the jobs that are wrong: all, if they are not very many."""
    faults: list[str] = []
    culprits: list[str] = []
    for number, raw in enumerate(jobs):
        try:
            _JOB.decode(raw)
        except (msgspec.DecodeError, RecursionError) as fault:
            faults.append(f"jobs[{number}]: {fault}")
            id = _id_of(raw)
            if id is not None:
                culprits.append(id)
            if len(faults) >= _FAULTS_MOST:
                break
    if not faults:
        return Error("invalid", f"enqueue: {error}")
    more = f" and {len(faults) - _FAULTS_TOLD} more" if len(faults) > _FAULTS_TOLD else ""
    text = "; ".join(faults[:_FAULTS_TOLD]) + more
    return Error("invalid", text, tuple(culprits))


def _id_of(raw: Raw) -> str | None:
    try:
        return _NAMED.decode(raw).id[:_SHOWN_MOST]
    except (msgspec.DecodeError, RecursionError):
        return None
